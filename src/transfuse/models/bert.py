"""BERT (arXiv 1810.04805): a bidirectional encoder and the heads that are trained on it.

It gives one vector a token, and, where it has a pooler, one vector a sequence: that of the first token through a layer
of its own. The pooler means something only after training with a loss on it (next sentence, or a class); a mean over
the real tokens needs no such training.

Shapes: B rows, T positions, D d_model, V vocabulary, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from transfuse.config import Config
from transfuse.errors import ConfigError, DataError
from transfuse.nn.attention import Attention, BlockDiagonal, check_heads
from transfuse.nn.blocks import Block, Stack
from transfuse.nn.dropout import Dropout
from transfuse.nn.embeddings import TokenEmbedding
from transfuse.nn.feed_forward import ACTIVATIONS, FeedForward
from transfuse.nn.linear import Linear
from transfuse.nn.positions import Learned, Sinusoidal

Head = Literal["none", "words", "pretraining", "sequence", "token", "span"]

POOLED: tuple[Head, ...] = ("pretraining", "sequence")
"""Heads that read the pooled vector, and so have a pooler."""

GAIN = 0.02 * 768**0.5
"""Deviation of BERT's first weights times √d_model: 0.02 at BERT-base's width, and more in narrower models, whose
attention would otherwise add so little at first that the first token learns nothing of the others."""


@dataclass(frozen=True, kw_only=True)
class BertConfig(Config):
    """Every size and choice of a BERT.

    `head` is what is trained on it: "words" (masked words), "pretraining" (masked words and next sentence), "sequence",
    "token" (`n_labels` logits a sequence, a token), "span" (start and end of an answer) or "none". `pooler=None` is
    where the head needs one. `d_hidden=None` is four times `d_model`. `position_start` is what positions begin as,
    before training: drawn ("random"), as in BERT, or sines and cosines of their size ("sinusoidal"), of which far ones
    are learned sooner where pre-training goes from short rows to long ones.
    """

    vocab_size: int = 8000
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    d_hidden: int | None = None
    max_positions: int = 512
    n_segments: int = 2
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float | None = None
    pooler: bool | None = None
    head: Head = "none"
    n_labels: int = 2
    pad_id: int = 0
    position_start: Literal["random", "sinusoidal"] = "random"

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("vocab_size", "d_model", "n_layers", "d_hidden", "max_positions", "n_segments", "norm_eps")
        self.check_positive("n_labels")
        self.check_fraction("dropout", "attention_dropout")
        check_heads(self.d_model, self.n_heads, self.n_heads)
        if self.head_dropout is not None:
            self.check_fraction("head_dropout")
        if self.pooler is False and self.head in POOLED:
            raise ConfigError(f"head={self.head!r} reads the pooled vector, so pooler=False contradicts it")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ConfigError(f"pad_id={self.pad_id} must be a token of vocab_size={self.vocab_size}")

    @property
    def has_pooler(self) -> bool:
        """Whether there is a pooled vector."""
        return self.head in POOLED if self.pooler is None else self.pooler


def check_pairs(config: BertConfig) -> None:
    """Raise ConfigError for a model that does not tell a second text from a first."""
    if config.n_segments < 2:
        raise ConfigError(f"n_segments={config.n_segments}: this model reads one text a row; two texts need 2 segments")


class WordHead(nn.Module):
    """Logits of the word at each position: a layer, a norm, and the token table."""

    def __init__(self, config: BertConfig, token: nn.Embedding) -> None:
        super().__init__()
        self.layer = Linear(config.d_model, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.output = Linear(config.d_model, config.vocab_size)
        self.output.weight = token.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        return self.output(self.transformed(x))

    def transformed(self, x: Tensor) -> Tensor:
        """What is multiplied with the token table, (..., D)."""
        return self.norm(self.activation(self.layer(x)))


class BertModel(nn.Module):
    """Ids in, one vector a token out, and what its head makes of them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # layers draw default weights from a generator that is not ours
            self._assemble(config)

    def _assemble(self, c: BertConfig) -> None:
        token = nn.Embedding(c.vocab_size, c.d_model)
        self.embedding = TokenEmbedding(token, Learned(c.max_positions, c.d_model))
        self.segments = nn.Embedding(c.n_segments, c.d_model)
        self.embedding_norm = nn.LayerNorm(c.d_model, eps=c.norm_eps)
        self.embedding_dropout = Dropout(c.dropout)
        self.encoder = Stack([_block(c) for _ in range(c.n_layers)])
        self.pooler = Linear(c.d_model, c.d_model) if c.has_pooler else None
        self.words = WordHead(c, token) if c.head in ("words", "pretraining") else None
        n_labels = {"pretraining": 2, "sequence": c.n_labels, "token": c.n_labels, "span": 2}.get(c.head)
        self.labels = None if n_labels is None else Linear(c.d_model, n_labels)
        self.head_dropout = Dropout(c.dropout if c.head_dropout is None else c.head_dropout)

    def initialise(self, seed: int) -> BertModel:
        """Draw all weights anew from `seed`: matrices and tables N(0, 0.02²) at BERT-base's width, as BERT does, and
        N(0, GAIN² / d_model) at others; biases 0, norms 1; positions as `position_start` says."""
        deviation = GAIN / self.config.d_model**0.5
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if "norm" in name:
                nn.init.constant_(weight, float(name.endswith("weight")))
            elif weight.dim() == 1:
                nn.init.zeros_(weight)
            else:
                nn.init.normal_(weight, std=deviation, generator=generator)
            if name == "embedding.positions.weight" and self.config.position_start == "sinusoidal":
                waves = Sinusoidal(self.config.d_model)(torch.arange(self.config.max_positions))
                with torch.no_grad():  # their mean square is a half
                    weight.copy_(waves * (2**0.5 * deviation))
        return self

    def forward(
        self,
        ids_BT: Tensor,
        keep: Tensor | BlockDiagonal | None = None,
        segments_BT: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """One vector a token, (B, T, D). `keep` (B, T) is True on real tokens; sequences laid end to end in one row
        have a `BlockDiagonal` instead, and `positions` that begin anew with each."""
        if ids_BT.shape[1] > self.config.max_positions and positions is None:
            raise DataError(f"{ids_BT.shape[1]} tokens, but the model has {self.config.max_positions} positions")
        x_BTD = self.embedding(ids_BT, positions)
        segments = self.segments.weight[0] if segments_BT is None else self.segments(segments_BT)
        x_BTD = self.embedding_dropout(self.embedding_norm(x_BTD + segments))
        return self.encoder(x_BTD, keep=keep)

    def pool(self, first_BD: Tensor) -> Tensor:
        """One vector a sequence, (B, D), of its first token's."""
        if self.pooler is None:
            raise ConfigError("this model has no pooler; a mean over its token vectors needs none")
        return torch.tanh(self.pooler(first_BD))

    def label_logits(self, x: Tensor) -> Tensor:
        """What the head makes of vectors, (..., D) to (..., L): pooled ones for "sequence" and "pretraining" (next
        sentence), those of tokens otherwise."""
        if self.labels is None:
            raise ConfigError(f"a model with head={self.config.head!r} gives no labels")
        return self.labels(self.head_dropout(x) if self.config.head in ("sequence", "token") else x)


def _block(c: BertConfig) -> Block:
    attention = Attention(c.d_model, c.n_heads, dropout=c.attention_dropout)
    feed_forward = FeedForward(c.d_model, c.d_hidden or 4 * c.d_model, activation=c.activation)
    norm = partial(nn.LayerNorm, eps=c.norm_eps)
    return Block(c.d_model, attention, feed_forward, norm=norm, norm_first=False, dropout=c.dropout)
