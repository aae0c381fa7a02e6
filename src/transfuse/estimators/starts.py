"""What the towers of a multimodal model are, and what those that start from a checkpoint begin with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfuse.data.columns import Kind, names_of
from transfuse.data.features import FIRST_LEVEL
from transfuse.data.images import ImageConfig
from transfuse.data.rows import RowForm
from transfuse.data.sounds import SoundConfig
from transfuse.data.wordpiece import WordPiece, WordPieceConfig
from transfuse.errors import ModelDirectoryError
from transfuse.estimators.text_encoder import TextEncoder
from transfuse.models.bert import BertConfig
from transfuse.models.fusion import FusionModel
from transfuse.models.towers import (
    ImageTower,
    ImageTowerConfig,
    ScoreTowerConfig,
    SoundTowerConfig,
    TableTowerConfig,
    TextTower,
    TowerConfig,
    TowersConfig,
)
from transfuse.pretrained.directory import load_model, read_json
from transfuse.pretrained.hub import local_directory
from transfuse.training.checkpoint import fingerprint


@dataclass(frozen=True)
class Starts:
    """The settings of towers, and the BERT and the ViT that some of them start from."""

    towers: TowersConfig
    encoder: TextEncoder | None = None
    vision: ImageTower | None = None

    @classmethod
    def opened(cls, towers: TowersConfig, kinds: Mapping[str, Kind]) -> Starts:
        """With what columns of these kinds need. Raises ModelDirectoryError for what is not a BERT or a ViT."""
        encoder, vision = None, None
        if towers.text_from is not None and names_of(kinds, "text"):
            encoder = TextEncoder.load(towers.text_from)
        if towers.image_from is not None and names_of(kinds, "image"):
            folder = local_directory(towers.image_from)
            opened = load_model(folder)
            if not isinstance(opened, ImageTower):
                raise ModelDirectoryError(f"{folder}: not a vision Transformer")
            _check_preparation(folder)
            vision = opened
        return cls(towers, encoder, vision)

    def tokenizer(self, texts: Sequence[str]) -> WordPiece:
        """The encoder's own, or one learned from texts."""
        if self.encoder is not None:
            found: WordPiece = self.encoder.tokenizer_
            return found
        return WordPiece.train(texts, self.towers.vocab_size, WordPieceConfig(lowercase=self.towers.lowercase))

    @property
    def longest(self) -> int:
        """Pieces of a row at most."""
        if self.encoder is None:
            return self.towers.max_pieces
        return min(self.towers.max_pieces, self.encoder.model_.config.max_positions)

    def n_segments(self, kinds: Mapping[str, Kind]) -> int:
        """How many columns of text a text tower tells apart."""
        if self.encoder is not None:
            n: int = self.encoder.model_.config.n_segments
            return n
        return max(2, len(names_of(kinds, "text")))

    def image_settings(self, images: ImageConfig) -> ImageConfig:
        """How images are read: as the tower they go to takes them."""
        if self.vision is None:
            return images
        return images.replace(size=self.vision.config.size, channels=self.vision.config.channels)

    def image_tokens(self, images: ImageConfig) -> int:
        """Tokens of an image."""
        config = self._image(images)
        return (config.size // config.patch) ** 2 + 1

    def fingerprint(self) -> str:
        """What tells these starts from others: settings, and the weights that towers begin with."""
        digest = hashlib.sha256(self.towers.to_json().encode())
        for source in (self.encoder.model_ if self.encoder else None, self.vision):
            if source is not None:
                digest.update(fingerprint(source).encode())
        return digest.hexdigest()

    def configs(
        self, form: RowForm, images: ImageConfig, sounds: SoundConfig, n_scores: int
    ) -> tuple[TowerConfig, ...]:
        """The tower of each modality; that of a table whose tower is trees takes `n_scores`."""
        made: list[TowerConfig] = []
        for columns in form.columns_of.values():
            kind = form.kinds[columns[0]]
            if kind == "text":
                made.append(self._text(form))
            elif kind == "image":
                made.append(self._image(images))
            elif kind == "audio":
                t = self.towers
                sound: dict[str, Any] = {"n_bands": sounds.n_mels, "n_halvings": t.n_halvings, "dropout": t.dropout}
                made.append(SoundTowerConfig(**self._sizes, **sound))
            elif self.towers.table == "trees":
                made.append(ScoreTowerConfig(n_scores=n_scores, d_model=self.towers.d_model))
            else:
                made.append(self._table(form))
        return tuple(made)

    def give(self, model: FusionModel) -> None:
        """Give towers that start from a checkpoint its weights, to be trained on or not."""
        for tower in model.towers:
            if isinstance(tower, TextTower) and self.encoder is not None:
                _copy(self.encoder.model_, tower.bert, not self.towers.frozen)
            if isinstance(tower, ImageTower) and self.vision is not None:
                _copy(self.vision, tower, not self.towers.frozen)

    @property
    def _sizes(self) -> dict[str, Any]:
        t = self.towers
        return {"d_model": t.d_model, "n_layers": t.n_layers, "n_heads": t.n_heads, "d_hidden": t.d_hidden}

    def _text(self, form: RowForm) -> BertConfig:
        if self.encoder is not None:
            own: BertConfig = self.encoder.model_.config.replace(head="none", pooler=False)
            return own
        assert form.tokenizer is not None
        return BertConfig(
            **self._sizes,
            vocab_size=len(form.tokenizer),
            max_positions=self.towers.max_pieces,
            n_segments=form.n_segments,
            pooler=False,
            dropout=self.towers.dropout,
            attention_dropout=0.0,
        )

    def _image(self, images: ImageConfig) -> ImageTowerConfig:
        if self.vision is not None:
            return self.vision.config
        t = self.towers
        own: dict[str, Any] = {"size": images.size, "channels": images.channels, "patch": t.patch, "stem": t.stem}
        return ImageTowerConfig(**self._sizes, **own, dropout=t.dropout)

    def _table(self, form: RowForm) -> TableTowerConfig:
        features = form.features
        return TableTowerConfig(
            **self._sizes,
            n_numbers=len(features.edges),
            n_bins=features.n_bins,
            n_levels=tuple(len(one) + FIRST_LEVEL for one in features.levels.values()),
            dropout=self.towers.dropout,
        )


def fitted_images(images: ImageConfig, model: FusionModel) -> ImageConfig:
    """How images are read for a fitted model."""
    for tower in model.config.towers:
        if isinstance(tower, ImageTowerConfig):
            return images.replace(size=tower.size, channels=tower.channels)
    return images


def _check_preparation(folder: Path) -> None:
    """Raise ModelDirectoryError for a ViT that was trained on pixels brought to another range than -1 … 1."""
    values = read_json(folder / "preprocessor_config.json", missing={})
    for name in ("image_mean", "image_std"):
        if values.get(name, [0.5]) not in ([0.5], [0.5] * 3):
            raise ModelDirectoryError(
                f"{folder / 'preprocessor_config.json'}: {name}={values[name]} is not supported; pixels are brought to "
                "-1 … 1, a mean and deviation of 0.5"
            )


def _copy(source: nn.Module, tower: nn.Module, trains: bool) -> None:
    known = dict(source.named_parameters())
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            weight.copy_(known[name])
            weight.requires_grad_(trains)
