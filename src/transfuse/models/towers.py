"""Towers: what turns one kind of input into tokens, `(tokens, keep)`, for a fusion or by itself.

A tower is called with the tensors of its kind, of which the last says what is there, and looks at nothing else. It may
be given rows of which all is there alone: the fusion leaves the others out.

Shapes: B rows, T tokens, D d_model; C channels, S pixels a side; M bands; F numbers, E bins, G categories, K scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from transfuse.config import Config
from transfuse.errors import ConfigError, DataError
from transfuse.models.bert import BertConfig, BertModel
from transfuse.nn.attention import Attention, check_heads
from transfuse.nn.blocks import Block, Stack
from transfuse.nn.dropout import Dropout
from transfuse.nn.embeddings import ConvolutionalStem, FeatureEmbedding, FrameEmbedding, PatchEmbedding
from transfuse.nn.feed_forward import FeedForward
from transfuse.nn.linear import Linear
from transfuse.nn.positions import Learned, Sinusoidal


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig(Config):
    """A vision Transformer (arXiv 2010.11929) on square images of `size` pixels a side, a token for each `patch` pixels
    squared, made of them by one matrix as in ViT, or by "convolutions"."""

    size: int = 64
    patch: int = 8
    channels: int = 3
    stem: Literal["patches", "convolutions"] = "patches"
    d_model: int = 128
    n_layers: int = 3
    n_heads: int = 4
    d_hidden: int | None = None
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    bias: bool = True
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("size", "patch", "channels", "d_model", "n_layers", "d_hidden", "norm_eps")
        self.check_fraction("dropout", "attention_dropout")
        check_heads(self.d_model, self.n_heads, self.n_heads)
        if self.size % self.patch:
            raise ConfigError(f"size={self.size} must be a multiple of patch={self.patch}")


@dataclass(frozen=True, kw_only=True)
class SoundTowerConfig(Config):
    """A Transformer on frames of `n_bands`, with a token for every 2 to the `n_halvings` of them."""

    n_bands: int = 80
    n_halvings: int = 2
    d_model: int = 128
    n_layers: int = 3
    n_heads: int = 4
    d_hidden: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("n_bands", "d_model", "n_layers", "d_hidden")
        self.check_fraction("dropout")
        check_heads(self.d_model, self.n_heads, self.n_heads)
        if self.n_halvings < 0:
            raise ConfigError(f"n_halvings={self.n_halvings} must not be negative")


@dataclass(frozen=True, kw_only=True)
class TableTowerConfig(Config):
    """A Transformer on one token a column: `n_numbers` numbers of `n_bins` bins, and categories of `n_levels` each."""

    n_numbers: int = 0
    n_bins: int = 1
    n_levels: tuple[int, ...] = ()
    d_model: int = 128
    n_layers: int = 2
    n_heads: int = 4
    d_hidden: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("n_bins", "d_model", "n_layers", "d_hidden")
        self.check_fraction("dropout")
        check_heads(self.d_model, self.n_heads, self.n_heads)
        if self.n_numbers + len(self.n_levels) < 1:
            raise ConfigError("a table needs at least one column")


@dataclass(frozen=True, kw_only=True)
class ScoreTowerConfig(Config):
    """What stands for a tower whose work is done elsewhere, as by trees: its `n_scores`, one an output (logarithms
    of shares, or a number on the model's own scale), are a prediction that parallel fusions begin with, and a token."""

    n_scores: int = 1
    d_model: int = 128

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("n_scores", "d_model")


@dataclass(frozen=True, kw_only=True)
class TowersConfig(Config):
    """What towers are made of: the sizes of those trained from nothing, and what others start from.

    `text_from` and `image_from` are directories or hub ids of a BERT and a ViT; `frozen` leaves them as they are.
    `table` is "transformer", or "trees": gradient-boosted trees, whose prediction a parallel fusion begins with.
    Without `text_from`, `vocab_size` bounds the pieces learned from texts, and `lowercase` makes all letters small.
    `max_pieces` bounds the pieces of a row.
    """

    d_model: int = 128
    n_layers: int = 2
    n_heads: int = 4
    d_hidden: int | None = None
    dropout: float = 0.1
    patch: int = 8
    stem: Literal["patches", "convolutions"] = "convolutions"
    n_halvings: int = 2
    vocab_size: int = 8000
    lowercase: bool = True
    max_pieces: int = 256
    text_from: str | None = None
    image_from: str | None = None
    frozen: bool = False
    table: Literal["transformer", "trees"] = "transformer"

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("d_model", "n_layers", "d_hidden", "patch", "vocab_size", "max_pieces")
        self.check_fraction("dropout")
        check_heads(self.d_model, self.n_heads, self.n_heads)
        if self.n_halvings < 0:
            raise ConfigError(f"n_halvings={self.n_halvings} must not be negative")
        if self.frozen and self.text_from is None and self.image_from is None:
            raise ConfigError(
                "frozen=True keeps towers that start from a checkpoint, and text_from and image_from are None"
            )


TowerConfig = BertConfig | ImageTowerConfig | SoundTowerConfig | TableTowerConfig | ScoreTowerConfig


class TextTower(nn.Module):
    """A BERT: ids (B, T), segments (B, T), keep (B, T) to one vector a piece."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config)

    def forward(self, ids_BT: Tensor, segments_BT: Tensor, keep_BT: Tensor) -> tuple[Tensor, Tensor]:
        """One vector a piece, (B, T, D), and `keep`."""
        return self.bert(ids_BT, keep_BT, segments_BT), keep_BT


class ImageTower(nn.Module):
    """Pixels (B, C, S, S), 0 to 255, and which rows have an image, to one vector for the image and one a patch.

    Pixels are brought to -1 … 1, as ViT's own preprocessing does.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.config = c = config
        with torch.random.fork_rng(devices=[]):
            stem = PatchEmbedding if c.stem == "patches" else ConvolutionalStem
            self.patches = stem(c.size, c.patch, c.channels, c.d_model)
            self.first = nn.Parameter(torch.empty(c.d_model))
            self.positions = Learned(self.patches.n_patches + 1, c.d_model)
            self.dropout = Dropout(c.dropout)
            norm = partial(nn.LayerNorm, eps=c.norm_eps)
            blocks = [
                Block(
                    c.d_model,
                    Attention(c.d_model, c.n_heads, bias=c.bias, out_bias=True, dropout=c.attention_dropout),
                    FeedForward(c.d_model, c.d_hidden or 4 * c.d_model, activation=c.activation),
                    norm=norm,
                    dropout=c.dropout,
                )
                for _ in range(c.n_layers)
            ]
            self.encoder = Stack(blocks, norm(c.d_model))

    def forward(self, pixels_BCSS: Tensor, keep_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1 + patches, D); all tokens of an image are real."""
        c, shape = self.config, tuple(pixels_BCSS.shape[1:])
        if shape != (c.channels, c.size, c.size):
            raise DataError(f"images of shape {shape}, but the model takes {(c.channels, c.size, c.size)}")
        x_BTD = self.patches(pixels_BCSS.to(self.first.dtype) / 127.5 - 1)
        x_BTD = torch.cat([self.first.to(x_BTD.dtype).expand(len(x_BTD), 1, -1), x_BTD], dim=1)
        x_BTD = self.encoder(self.dropout(x_BTD + self.positions(torch.arange(x_BTD.shape[1]))))
        return x_BTD, keep_B[:, None].expand(x_BTD.shape[:2])


class SoundTower(nn.Module):
    """Frames (B, T, M) and which are real, (B, T), to one vector for every few frames."""

    def __init__(self, config: SoundTowerConfig) -> None:
        super().__init__()
        self.config = c = config
        with torch.random.fork_rng(devices=[]):
            self.frames = FrameEmbedding(c.n_bands, c.n_halvings, c.d_model)
            self.positions = Sinusoidal(c.d_model)
            self.dropout = Dropout(c.dropout)
            self.encoder = _encoder(c)

    def forward(self, frames_BTM: Tensor, keep_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T', D) and which of its tokens are real."""
        x_BTD, keep_BT = self.frames(frames_BTM, keep_BT)
        x_BTD = self.dropout(x_BTD + self.positions(torch.arange(x_BTD.shape[1])).to(x_BTD))
        return self.encoder(x_BTD, keep=keep_BT), keep_BT


class TableTower(nn.Module):
    """Encodings of numbers (B, F, E), which are known, codes of categories (B, G), and which rows are there, to one
    vector a column."""

    def __init__(self, config: TableTowerConfig) -> None:
        super().__init__()
        self.config = c = config
        with torch.random.fork_rng(devices=[]):
            self.features = FeatureEmbedding(c.n_numbers, c.n_bins, c.n_levels, c.d_model)
            self.dropout = Dropout(c.dropout)
            self.encoder = _encoder(c)

    def forward(self, numbers_BFE: Tensor, known_BF: Tensor, codes_BG: Tensor, keep_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F + G, D); all tokens of a row are real."""
        x_BTD = self.encoder(self.dropout(self.features(numbers_BFE, known_BF, codes_BG)))
        return x_BTD, keep_B[:, None].expand(x_BTD.shape[:2])


class ScoreTower(nn.Module):
    """Scores (B, K) and which rows have them, to one token."""

    def __init__(self, config: ScoreTowerConfig) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            self.scores = Linear(config.n_scores, config.d_model)

    def forward(self, scores_BK: Tensor, keep_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, D)."""
        return self.scores(scores_BK)[:, None], keep_B[:, None]


def tower_of(config: TowerConfig) -> nn.Module:
    """The tower with these sizes."""
    if isinstance(config, BertConfig):
        return TextTower(config)
    if isinstance(config, ImageTowerConfig):
        return ImageTower(config)
    if isinstance(config, SoundTowerConfig):
        return SoundTower(config)
    return TableTower(config) if isinstance(config, TableTowerConfig) else ScoreTower(config)


def _encoder(c: SoundTowerConfig | TableTowerConfig) -> Stack:
    blocks = [pre_norm_block(c.d_model, c.n_heads, c.d_hidden, c.dropout) for _ in range(c.n_layers)]
    return Stack(blocks, nn.LayerNorm(c.d_model))


def pre_norm_block(d_model: int, n_heads: int, d_hidden: int | None, dropout: float) -> Block:
    """A block of self-attention and feed-forward, as towers trained here and fusions are built of."""
    feed_forward = FeedForward(d_model, d_hidden or 4 * d_model, activation="gelu")
    return Block(d_model, Attention(d_model, n_heads), feed_forward, dropout=dropout)
