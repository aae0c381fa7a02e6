"""What is learned of rows whose columns hold text, images, sounds, numbers and categories."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted

from transfuse.config import Config
from transfuse.data.augmentation import AugmentationConfig
from transfuse.data.columns import Kind, check_cells, find_kinds, names_of
from transfuse.data.features import FIRST_LEVEL, FeatureForm, plain_columns
from transfuse.data.images import ImageConfig
from transfuse.data.modalities import Modality, MultimodalDataset, Scores
from transfuse.data.rows import TABLE, TEXT, Failure, Media, RowForm, band_statistics, columns_of, read_media
from transfuse.data.sounds import SoundConfig
from transfuse.data.wordpiece import WordPiece, WordPieceConfig
from transfuse.errors import ConfigError, DataError, ModelDirectoryError, UnreadableWarning
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, read_about
from transfuse.estimators.fine_tuned import JUDGED_TOKENS, divided
from transfuse.estimators.model_card import model_card
from transfuse.estimators.text_encoder import TOKENS, TextEncoder
from transfuse.estimators.trained import TrainedEstimator
from transfuse.estimators.tree_tower import TreeTower
from transfuse.metrics.text_scores import Score
from transfuse.models.bert import BertConfig
from transfuse.models.fusion import PARALLEL, FusionConfig, FusionModel, MultimodalConfig
from transfuse.models.towers import (
    ImageTower,
    ImageTowerConfig,
    ScoreTowerConfig,
    SoundTowerConfig,
    TableTowerConfig,
    TowerConfig,
    TowersConfig,
)
from transfuse.nn.linear import packed
from transfuse.pretrained.directory import load_model, save_model
from transfuse.pretrained.hub import local_directory
from transfuse.training.config import TrainingConfig
from transfuse.training.loop import mean_loss
from transfuse.training.multimodal import MultimodalLoss
from transfuse.training.run import pick_device

TRAINING = TrainingConfig(
    epochs=20,
    batch_tokens=2048,
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=50,
    weight_decay=0.05,
    label_smoothing=0.0,
    validate_every=100,
    average=1,
)
"""Of towers trained from nothing."""

FINE_TUNING = TRAINING.replace(epochs=6, learning_rate=2e-4)
"""Where a tower starts from a checkpoint and is trained on."""

ROWS = 512
"""Rows whose files are read at a time to predict."""

TREES = "trees.json"

Rows = tuple[pd.DataFrame, list[Any]]
"""A table, and the targets of its rows."""

Unreadable = Literal["refuse", "missing", "drop"]


class MultimodalEstimator(TrainedEstimator):
    """What `MultimodalClassifier` and `MultimodalRegressor` share.

    `kinds` says what columns hold where it is not as it looks, by name: text, image, audio, number, category, date or
    ignored. Files are named relative to `files`, and one that cannot be read is `unreadable`: "refuse" the rows, take
    the value for "missing", or "drop" the row from training (and take it for missing in rows to predict).
    """

    SETTINGS: ClassVar[dict[str, type[Config]]] = {
        "fusion": FusionConfig,
        "towers": TowersConfig,
        "images": ImageConfig,
        "sounds": SoundConfig,
        "augmentation": AugmentationConfig,
        "tokenizer": WordPieceConfig,
    }
    KIND: ClassVar[Literal["class", "number"]]

    fusion: FusionConfig
    towers: TowersConfig
    form_: RowForm
    trees_: TreeTower | None

    def __init__(
        self,
        *,
        kinds: Mapping[str, Kind] | None = None,
        files: str | Path = ".",
        unreadable: Unreadable = "refuse",
        fusion: FusionConfig = FusionConfig(),
        towers: TowersConfig = TowersConfig(),
        images: ImageConfig = ImageConfig(),
        sounds: SoundConfig = SoundConfig(),
        augmentation: AugmentationConfig = AugmentationConfig(),
        tokenizer: WordPieceConfig = TOKENS,
        training: TrainingConfig | None = None,
        validation_fraction: float = 0.1,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.kinds = kinds
        self.files = files
        self.unreadable = unreadable
        self.fusion = fusion
        self.towers = towers
        self.images = images
        self.sounds = sounds
        self.augmentation = augmentation
        self.tokenizer = tokenizer
        self.training = training  # type: ignore[assignment]
        self.validation_fraction = validation_fraction
        self.run_dir = run_dir
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @property
    def default_training(self) -> TrainingConfig:
        """What `training=None` stands for."""
        tuned = not self.towers.frozen and (self.towers.text_from or self.towers.image_from)
        return FINE_TUNING if tuned else TRAINING

    def _learn(
        self,
        X: Any,
        targets: np.ndarray,
        n_outputs: int,
        loss: MultimodalLoss,
        validation: tuple[Any, np.ndarray] | None,
        sample_weight: Iterable[float] | None,
        resume: bool,
    ) -> None:
        """Train on a table and targets, (rows,) classes or (rows, numbers)."""
        seed = self._seed()
        frame = as_frame(X, "X")
        weights = _weights(sample_weight, len(frame))
        if len(frame) != len(targets):
            raise DataError(f"X has {len(frame)} rows and y has {len(targets)}; they must be equally many")
        kinds = find_kinds(frame, self.kinds or {})
        check_cells(frame, kinds)
        kept, aside = np.arange(len(frame)), np.arange(0)
        if validation is None:
            kept, aside = divided(
                len(frame), self.validation_fraction, self._known_seed(), targets if loss.kind == "class" else None
            )
        else:
            further = as_frame(validation[0], "validation[0]")
            if len(further) != len(validation[1]):
                raise DataError(
                    f"validation has {len(further)} rows and {len(validation[1])} targets; one each is needed"
                )
            aside = np.arange(len(frame), len(frame) + len(further))
            frame = pd.concat([frame, further[frame.columns]], ignore_index=True)
            targets = np.concatenate([targets, validation[1]])
            weights = np.concatenate([weights, np.ones(len(further), np.float32)])
        self.feature_names_in_ = np.array(list(kinds), dtype=object)
        self.n_features_in_ = len(kinds)
        with self._run_folder(resume) as folder:
            media = self._read(frame, kinds, folder)
            kept, aside = self._without_unreadable(media, kept, aside)
            self._begin(frame.iloc[kept].reset_index(drop=True), kinds, media.keep(kept), n_outputs, seed)
            data, held = self._datasets(frame, media, targets, weights, kept, aside, loss.kind, seed)
            self.model_.to(pick_device(self.device))
            self._train_on(folder, data, held, loss, seed, resume)
            self._judge(frame.iloc[aside], held, targets[aside])

    def _read(self, frame: pd.DataFrame, kinds: Mapping[str, Kind], scratch: Path | None, first: int = 0) -> Media:
        images, sounds = self._media_settings()
        media = read_media(frame, kinds, Path(self.files), images, sounds, scratch, first)
        if media.failures and self.unreadable == "refuse":
            more = f" (and {len(media.failures) - 1} more)" if len(media.failures) > 1 else ""
            raise DataError(f"{media.failures[0]}{more}; unreadable='missing' or 'drop' goes on without")
        if media.failures:
            warnings.warn(_told(media.failures, self.unreadable), UnreadableWarning, stacklevel=5)
        return media

    def _media_settings(self) -> tuple[ImageConfig, SoundConfig]:
        """How files are read: images as the tower they go to takes them."""
        if self.towers.image_from is None:
            return self.images, self.sounds
        tower = self._image_tower().config
        return self.images.replace(size=tower.size, channels=tower.channels), self.sounds

    def _image_tower(self) -> ImageTower:
        assert self.towers.image_from is not None
        folder = local_directory(self.towers.image_from)
        tower = load_model(folder)
        if not isinstance(tower, ImageTower):
            raise ModelDirectoryError(f"{folder}: not a vision Transformer")
        return tower

    def _without_unreadable(self, media: Media, kept: np.ndarray, aside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.unreadable != "drop" or not media.failures:
            return kept, aside
        bad = {failure.row for failure in media.failures}
        kept, aside = (np.array([row for row in rows if row not in bad], dtype=int) for rows in (kept, aside))
        if not len(kept) or not len(aside):
            raise DataError("no row is left to learn from or to judge by once those with unreadable files are dropped")
        return kept, aside

    def _begin(self, frame: pd.DataFrame, kinds: dict[str, Kind], media: Media, n_outputs: int, seed: int) -> None:
        """Learn the form of rows, and make a model for it whose weights are new, or its towers' own."""
        t = self.towers
        if not columns_of(kinds):
            raise DataError(f"every column is ignored ({', '.join(kinds)}); say what they hold by kinds=")
        encoder = None
        if names_of(kinds, "text"):
            self.tokenizer_, encoder = self._text_start(frame, names_of(kinds, "text"))
        else:
            self.tokenizer_ = None
        features = FeatureForm.learn(frame, kinds)
        configs = [self._tower(name, kinds, features, encoder, n_outputs) for name in columns_of(kinds)]
        text = next((one for one in configs if isinstance(one, BertConfig)), None)
        self.form_ = RowForm(
            kinds=kinds,
            features=features,
            bands=band_statistics(media),
            tokenizer=self.tokenizer_,
            longest=min(t.max_pieces, text.max_positions) if text else t.max_pieces,
            n_segments=text.n_segments if text else 1,
            image_tokens=next(
                ((one.size // one.patch) ** 2 + 1 for one in configs if isinstance(one, ImageTowerConfig)), 1
            ),
            frames_a_token=2**t.n_halvings,
        )
        names = tuple(self.form_.names)
        fusion = self.fusion.replace(outputs=self.KIND, n_outputs=n_outputs)
        if fusion.align == "attend" and fusion.longest is None:
            lengths = [self.form_.modality(name, frame, media).lengths_N for name in names]
            typical = [float(np.median(one[one > 0])) if (one > 0).any() else 0.0 for one in lengths]
            fusion = fusion.replace(longest=int(np.argmax(typical)))
        self.model_ = FusionModel(MultimodalConfig(fusion=fusion, towers=tuple(configs), names=names)).initialise(seed)
        self._take_towers(encoder)

    def _text_start(self, frame: pd.DataFrame, columns: Sequence[str]) -> tuple[WordPiece, TextEncoder | None]:
        if self.towers.text_from is not None:
            encoder = TextEncoder.load(self.towers.text_from)
            return encoder.tokenizer_, encoder
        texts = [str(text) for name in columns for text in frame[name].dropna()]
        return WordPiece.train(texts, self.towers.vocab_size, self.tokenizer), None

    def _tower(
        self,
        name: str,
        kinds: Mapping[str, Kind],
        features: FeatureForm,
        encoder: TextEncoder | None,
        n_outputs: int,
    ) -> TowerConfig:
        t = self.towers
        sizes = {"d_model": t.d_model, "n_layers": t.n_layers, "n_heads": t.n_heads, "d_hidden": t.d_hidden}
        kind = kinds[columns_of(kinds)[name][0]]
        if kind == "text":
            if encoder is not None:
                return encoder.model_.config.replace(head="none", pooler=False)
            assert self.tokenizer_ is not None
            own = {"vocab_size": len(self.tokenizer_), "max_positions": t.max_pieces, "pooler": False}
            n_segments = max(2, len(names_of(kinds, "text")))
            return BertConfig(**sizes, **own, n_segments=n_segments, dropout=t.dropout, attention_dropout=0.0)  # type: ignore[arg-type]
        if kind == "image":
            if t.image_from is not None:
                return self._image_tower().config
            images = {"size": self.images.size, "channels": self.images.channels, "patch": t.patch, "stem": t.stem}
            return ImageTowerConfig(**sizes, **images, dropout=t.dropout)  # type: ignore[arg-type]
        if kind == "audio":
            return SoundTowerConfig(**sizes, n_bands=self.sounds.n_mels, n_halvings=t.n_halvings, dropout=t.dropout)  # type: ignore[arg-type]
        if t.table == "trees":
            n_scores = 1 if self.KIND == "class" and n_outputs == 2 else n_outputs
            return ScoreTowerConfig(n_scores=n_scores, d_model=t.d_model)
        levels = tuple(len(one) + FIRST_LEVEL for one in features.levels.values())
        return TableTowerConfig(
            **sizes,  # type: ignore[arg-type]
            n_numbers=len(features.edges),
            n_bins=features.n_bins,
            n_levels=levels,
            dropout=t.dropout,
        )

    def _take_towers(self, encoder: TextEncoder | None) -> None:
        """Give towers that start from a checkpoint its weights."""
        for name, tower in zip(self.form_.names, self.model_.towers, strict=True):
            source = None
            if name == TEXT and encoder is not None:
                source, tower = encoder.model_, tower.bert
            elif isinstance(tower, ImageTower) and self.towers.image_from is not None:
                source = self._image_tower()
            if source is None:
                continue
            known = dict(source.named_parameters())
            with torch.no_grad():
                for weight_name, weight in tower.named_parameters():
                    weight.copy_(known[weight_name])
                    weight.requires_grad_(not self.towers.frozen)

    def _datasets(
        self,
        frame: pd.DataFrame,
        media: Media,
        targets: np.ndarray,
        weights: np.ndarray,
        kept: np.ndarray,
        aside: np.ndarray,
        kind: str,
        seed: int,
    ) -> tuple[MultimodalDataset, MultimodalDataset]:
        self.trees_ = None
        found = []
        for rows in (kept, aside):
            part = frame.iloc[rows].reset_index(drop=True)
            modalities = {name: self.form_.modality(name, part, media.keep(rows)) for name in self.form_.names}
            if self._uses_trees:
                modalities[TABLE] = self._scores(part, modalities[TABLE], targets[rows], weights[rows], kind, seed)
            empty = np.flatnonzero(np.stack([one.lengths_N for one in modalities.values()]).sum(0) == 0)
            if len(empty):
                raise DataError(
                    f"row {rows[empty[0]] + 1}: every modality is missing, so there is nothing to learn from"
                )
            found.append(MultimodalDataset(modalities, targets[rows], weights[rows], self.augmentation, seed))
        return found[0], found[1]

    @property
    def _uses_trees(self) -> bool:
        return self.towers.table == "trees" and TABLE in self.form_.names

    def _scores(
        self, frame: pd.DataFrame, table: Modality, y: np.ndarray, weights: np.ndarray, kind: str, seed: int
    ) -> Scores:
        """Scores of trees: of training rows (the first that are asked for) by trees that did not see them."""
        X = plain_columns(frame, self.form_.features)
        if self.trees_ is None:
            numbers = y if kind == "class" else y[:, 0]
            levels = [len(one) for one in self.form_.features.levels.values()]
            self.trees_, scores = TreeTower.fit(X, numbers, weights, levels, kind, seed)
        else:
            scores = self.trees_.scores(X)
        return Scores(scores, table.lengths_N > 0)

    def _train_on(
        self,
        folder: Path,
        data: MultimodalDataset,
        held: MultimodalDataset,
        loss: MultimodalLoss,
        seed: int,
        resume: bool,
    ) -> None:
        config = self.training or self.default_training
        identity = {
            "model": {"fusion": self.model_.config.fusion.to_dict(), "names": list(self.model_.config.names)},
            "towers": [tower.to_dict() for tower in self.model_.config.towers],
            "augmentation": self.augmentation.to_dict(),
            "data": data.fingerprint(),
            "validation": held.fingerprint(),
            "class_weights": None if loss.weights is None else list(loss.weights),
        }

        def score() -> float:
            return -mean_loss(self.model_, held, loss, config)

        self.results_ = self._train(
            folder, data, loss, score, seed=seed, identity=identity, resume=resume, config=config
        )
        self.results_["held_out_loss"] = mean_loss(self.model_, held, loss, config)
        self.results_["trimmed"] = trimmed_share(held) if self.fusion.align == "trim" else 0.0

    def _judge(self, frame: pd.DataFrame, held: MultimodalDataset, targets: np.ndarray) -> None:
        scores = self.score_of(self.outputs_of(held), self._as_given(targets))
        self.results_ |= {"held_out_rows": len(held), "held_out_metrics": [vars(score) for score in scores]}

    @torch.inference_mode()
    def outputs_of(self, data: MultimodalDataset) -> np.ndarray:
        """What the model gives for each row, (rows, outputs), in float64."""
        device = next(self.model_.parameters()).device
        found = np.empty((len(data), self.model_.config.fusion.n_outputs))
        self.model_.eval()
        with packed(self.model_.modules()):
            for rows in data.in_order(JUDGED_TOKENS):
                found[rows] = self.model_(data.batch(rows).to(device).parts).double().cpu().numpy()
        return found

    def _predicted(self, X: Any, without: Sequence[str] = ()) -> np.ndarray:
        """The model's outputs for each row of a table, read in stretches."""
        check_is_fitted(self, "model_")
        frame = as_frame(X, "X")
        check_cells(frame, self.form_.kinds)  # before it is cut up, so that rows have their numbers
        unknown = sorted(set(without) - set(self.form_.names))
        if unknown:
            raise DataError(f"there is no modality {unknown[0]!r}; there are {', '.join(self.form_.names)}")
        found = [np.empty((0, self.model_.config.fusion.n_outputs))]
        for first in range(0, len(frame), ROWS):
            part = frame.iloc[first : first + ROWS].reset_index(drop=True)
            found.append(self.outputs_of(self.rows_of(part, first, without)))
        return np.concatenate(found)

    def rows_of(self, frame: pd.DataFrame, first: int = 0, without: Sequence[str] = ()) -> MultimodalDataset:
        """Rows as the model takes them, the first being row `first` of those given. Raises DataError as fit does."""
        data = self.rows_and_media(frame, first)[0]
        for name in without:
            data.lengths_NM[:, self.form_.names.index(name)] = 0
        empty = np.flatnonzero(data.lengths_NM.sum(1) == 0)
        if len(empty):
            row = first + int(empty[0]) + 1
            raise DataError(f"row {row}: every modality is missing, so there is nothing to predict from")
        return data

    def rows_and_media(self, frame: pd.DataFrame, first: int = 0) -> tuple[MultimodalDataset, Media]:
        """Rows as the model takes them, and the files they name as they were read."""
        check_cells(frame, self.form_.kinds)
        media = self._read(frame, self.form_.kinds, None, first)
        modalities = {name: self.modality_of(name, frame, media) for name in self.form_.names}
        return MultimodalDataset(modalities, np.zeros(len(frame)), np.ones(len(frame), np.float32)), media

    def modality_of(self, name: str, frame: pd.DataFrame, media: Media) -> Modality:
        """One modality of rows; of a table whose tower is trees, their scores."""
        found = self.form_.modality(name, frame, media)
        if name != TABLE or self.trees_ is None:
            return found
        return Scores(self.trees_.scores(plain_columns(frame, self.form_.features)), found.lengths_N > 0)

    def divided(self, X: pd.DataFrame, y: Sequence[Any]) -> tuple[Rows, Rows]:
        """Rows to learn from and rows to judge by, as `fit` divides them where it is given none to judge by."""
        classes = np.unique(self.targets_of(y, "y"), return_inverse=True)[1] if self.KIND == "class" else None
        sides = divided(len(X), self.validation_fraction, self._known_seed(), classes)
        learned, judged = ((X.iloc[rows].reset_index(drop=True), [y[row] for row in rows]) for rows in sides)
        return learned, judged

    def evaluate(self, X: Any, y: Iterable[Any]) -> list[Score]:
        """Scores of the predictions for `X` against `y`."""
        return self.score_of(self._predicted(X), self.targets_of(y, "y"))

    def score_of(self, outputs: np.ndarray, wanted: np.ndarray) -> list[Score]:
        """Scores of the model's outputs, the most telling first, higher being better."""
        raise NotImplementedError

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """What the model's outputs come to: a class or a number a row."""
        raise NotImplementedError

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def targets_of(self, y: Iterable[Any], name: str) -> np.ndarray:
        """Targets as an array. Raises DataError naming the row of one that is missing or not usable."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> Path:
        """Write a directory: config.json, model.safetensors, transfuse.json, README.md, and tokenizer.json and
        trees.json where there are any."""
        check_is_fitted(self, "model_")
        name = type(self).__name__
        example = [f"from transfuse import {name}", "", f'{name}.load("this-directory").predict(table)']
        about = self._about(
            training=self.training.to_dict() if self.training else {},
            unreadable=self.unreadable,
            form=self.form_.to_dict(),
            columns=self.feature_names_in_.tolist(),
            **self._labels(),
        )
        beside = {
            ESTIMATOR: json.dumps(about, indent=2, ensure_ascii=False),
            "README.md": model_card(f"{name} ({self.fusion.fusion} fusion)", self.model_, self.results_, example),
        }
        if self.tokenizer_ is not None:
            beside[TOKENIZER] = self.tokenizer_.to_json()
        if self.trees_ is not None:
            beside[TREES] = json.dumps(self.trees_.to_dict())
        save_model(self.model_, Path(folder), beside)
        return Path(folder)

    def _labels(self) -> dict[str, Any]:
        """What a saved directory says of its targets."""
        raise NotImplementedError

    def _take_labels(self, about: dict[str, Any]) -> None:
        """Put back what `_labels` gave."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path, *, files: str | Path = ".", device: str | None = None) -> Self:
        """The estimator saved in `folder`, which finds the files of rows under `files`.

        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there.
        """
        pick_device(device)  # the caller's setting, so not an error of the directory
        folder = local_directory(folder)
        model = load_model(folder)
        if not isinstance(model, FusionModel) or model.config.fusion.outputs != cls.KIND:
            raise ModelDirectoryError(f"{folder}: not a multimodal model of {cls.KIND}s")
        own = {"form": {}, "unreadable": "refuse", "columns": [], "classes": [], "mean": [], "scale": []}
        about = read_about(folder, COMMON | {name: {} for name in cls.SETTINGS} | own)
        tokenizer = WordPiece.load(folder / TOKENIZER) if TEXT in model.config.names else None
        try:
            form = RowForm.from_dict(about["form"], tokenizer)
            trees = json.loads((folder / TREES).read_text(encoding="utf-8")) if (folder / TREES).is_file() else None
            settings: dict[str, Any] = {name: kind.from_dict(about[name]) for name, kind in cls.SETTINGS.items()}
            estimator = cls(
                **settings,
                kinds=form.kinds,
                files=files,
                unreadable=about["unreadable"],
                training=TrainingConfig.from_dict(about["training"]) if about["training"] else None,
                validation_fraction=about["validation_fraction"],
                random_state=about["random_state"],
                device=device,
            )
            estimator.form_, estimator.tokenizer_ = form, tokenizer
            estimator.trees_ = None if trees is None else TreeTower.from_dict(trees)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise ModelDirectoryError(
                f"{folder / ESTIMATOR}: not what a multimodal model says of itself ({error!r})"
            ) from error
        estimator.model_, estimator.results_ = model.to(pick_device(device)), about["results"]
        estimator.feature_names_in_ = np.array(about["columns"], dtype=object)
        estimator.n_features_in_ = len(about["columns"])
        estimator._take_labels(about)
        return estimator

    def _check_settings(self) -> None:
        """Raise ConfigError for settings that fit cannot work with."""
        kinds = dict(self.SETTINGS) | ({"training": TrainingConfig} if self.training is not None else {})
        self._check_common_settings(kinds)
        if self.unreadable not in ("refuse", "missing", "drop"):
            raise ConfigError(f"unreadable={self.unreadable!r} must be refuse, missing or drop")
        if self.towers.table == "trees" and self.fusion.fusion not in PARALLEL:
            raise ConfigError(
                f"table='trees' gives scores, not tokens, so fusion={self.fusion.fusion!r} must be one of "
                + ", ".join(PARALLEL)
            )
        if self.training is not None and self.training.select_by != "loss":
            raise ConfigError(f"select_by={self.training.select_by!r}: these models are judged by their loss")


def as_frame(X: Any, name: str) -> pd.DataFrame:
    """A table with columns called by strings and rows numbered from 0; columns of an array are x0, x1, …"""
    if isinstance(X, pd.DataFrame):
        frame = X.reset_index(drop=True)
        frame.columns = [str(column) for column in frame.columns]
    elif isinstance(X, Mapping):
        frame = pd.DataFrame(X).reset_index(drop=True)
    else:
        values = np.asarray(X)
        if values.ndim != 2:
            raise DataError(f"{name} has {values.ndim} dimensions; expected a DataFrame, or rows and columns")
        frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"{name} has {len(frame)} rows and {len(frame.columns)} columns; at least one of each is needed"
        )
    return frame


def trimmed_share(data: MultimodalDataset) -> float:
    """The share of tokens that align="trim" throws away."""
    lengths = data.lengths_NM
    shortest = np.where(lengths > 0, lengths, np.iinfo(lengths.dtype).max).min(1, keepdims=True)
    return float(1 - np.minimum(lengths, shortest).sum() / lengths.sum())


def _told(failures: list[Failure], unreadable: str) -> str:
    rows = len({failure.row for failure in failures})
    done = "taken for missing" if unreadable == "missing" else "left out of training, or taken for missing"
    return f"{len(failures)} files of {rows} rows cannot be read and are {done}; the first: {failures[0]}"


def _weights(sample_weight: Iterable[float] | None, n: int) -> np.ndarray:
    """Weights with a mean of 1."""
    if sample_weight is None:
        return np.ones(n, np.float32)
    weights = np.asarray(sample_weight if hasattr(sample_weight, "__array__") else list(sample_weight), np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
        raise DataError(f"sample_weight must be {n} finite numbers of at least 0, not all of them 0")
    return (weights / weights.mean()).astype(np.float32)
