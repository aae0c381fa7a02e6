"""The decoder-only Transformer: a language model, the Llama way (arXiv 2302.13971) or the GPT-2 way.

Shapes: B rows, T positions, N tokens of rows of unequal length one after another, D d_model, V vocabulary. Ids are
integers, masks boolean with True = may attend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from transfuse.config import Config
from transfuse.errors import ConfigError, DataError
from transfuse.nn.attention import Attention, check_heads, heads_by_layer
from transfuse.nn.blocks import Block, BlockCache, Stack
from transfuse.nn.embeddings import TokenEmbedding
from transfuse.nn.feed_forward import FeedForward
from transfuse.nn.linear import Linear
from transfuse.nn.norms import RMSNorm
from transfuse.nn.positions import Learned, Rotary, RotaryScaling
from transfuse.nn.ragged import RaggedCache, RaggedRows

PREFILL_TOKENS = 2048
"""Prompt tokens that go through the model at a time."""

STD = 0.02
"""Standard deviation of initial weights, GPT-2's."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """Every size and choice of a decoder-only Transformer. The defaults are the Llama way; the GPT-2 way is
    `activation="gelu_tanh", gated=False, qkv_bias=out_bias=hidden_bias=True, norm="layer", positions="learned"`.

    `n_kv_heads=None` is as many as `n_heads`, a list one number a layer; `d_head=None` is `d_model / n_heads`.
    `rotary_base` and the four `rotary_…` fields after it are those of rotary positions (`RotaryScaling` says what they
    do). `end_ids` end a text; `end_ids[0]` stands between documents in training.
    """

    vocab_size: int = 8000
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int | tuple[int, ...] | None = None
    d_head: int | None = None
    d_hidden: int = 704
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    hidden_bias: bool = False
    norm: Literal["layer", "rms"] = "rms"
    norm_eps: float = 1e-5
    positions: Literal["learned", "rotary"] = "rotary"
    max_positions: int = 1024
    rotary_base: float = 10_000.0
    rotary_factor: float | None = None
    rotary_original_positions: int | None = None
    rotary_low: float | None = None
    rotary_high: float | None = None
    tie_output: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    start_id: int | None = None
    end_ids: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("vocab_size", "d_model", "n_layers", "d_head", "d_hidden", "max_positions")
        self.check_positive(
            "norm_eps", "rotary_base", "rotary_factor", "rotary_original_positions", "rotary_low", "rotary_high"
        )
        self.check_fraction("dropout", "attention_dropout")
        for n_kv_heads in self.kv_heads_by_layer:
            check_heads(self.d_model, self.n_heads, n_kv_heads, self.d_head)
        scaled = [self.rotary_original_positions, self.rotary_low, self.rotary_high]
        if any(scaled) and None in (*scaled, self.rotary_factor):
            raise ConfigError(
                f"rotary_original_positions={scaled[0]}, rotary_low={scaled[1]} and rotary_high={scaled[2]} belong "
                f"together, and to rotary_factor={self.rotary_factor}"
            )
        if self.rotary_low is not None and self.rotary_high is not None and self.rotary_low >= self.rotary_high:
            raise ConfigError(f"rotary_low={self.rotary_low} must be below rotary_high={self.rotary_high}")
        if self.positions == "rotary" and self.head_width % 2:
            raise ConfigError(f"d_head={self.head_width} must be even for rotary positions")
        for name, ids in (("start_id", (self.start_id,)), ("end_ids", self.end_ids)):
            for one in ids:
                if one is not None and not 0 <= one < self.vocab_size:
                    raise ConfigError(f"{name}={getattr(self, name)} must be tokens of vocab_size={self.vocab_size}")
        if not self.end_ids:
            raise ConfigError("end_ids=() must name one token at least")

    @property
    def kv_heads_by_layer(self) -> tuple[int, ...]:
        """Key/value heads of each layer."""
        return heads_by_layer(self.n_kv_heads, self.n_heads, self.n_layers)

    @property
    def cached_heads(self) -> tuple[int, ...]:
        """Key/value heads of every attention that decoding keeps a cache for."""
        return self.kv_heads_by_layer

    def with_kv_heads(self, n_kv_heads: int | tuple[int, ...] | None) -> DecoderConfig:
        """The same with other key/value heads in every attention that decoding keeps a cache for."""
        return self.replace(n_kv_heads=n_kv_heads)

    @property
    def head_width(self) -> int:
        """Coordinates of a head."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def has_plain_heads(self) -> bool:
        """Whether the query heads are as wide together as the model."""
        return self.n_heads * self.head_width == self.d_model

    @property
    def n_target_tokens(self) -> int:
        """Size of the vocabulary that is written."""
        return self.vocab_size

    @property
    def never_written(self) -> list[int]:
        """Ids no output may hold: the start token, unless it also ends texts."""
        return [] if self.start_id is None or self.start_id in self.end_ids else [self.start_id]


class LanguageState:
    """What decoding keeps between steps: every row's length and every block's cache."""

    def __init__(self, n_rows: int, n_blocks: int, device: torch.device) -> None:
        self.rows = RaggedRows(n_rows, device)
        self.caches = [BlockCache(RaggedCache(self.rows)) for _ in range(n_blocks)]

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(cache.own.n_bytes for cache in self.caches)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.rows.select(rows)
        for cache in self.caches:
            cache.own.select(rows)


class DecoderModel(nn.Module):
    """Ids in, logits over the vocabulary out: position t scores the token after it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # layers draw default weights from a generator that is not ours
            self._assemble(config)

    def _assemble(self, c: DecoderConfig) -> None:
        token = nn.Embedding(c.vocab_size, c.d_model)
        positions = Learned(c.max_positions, c.d_model) if c.positions == "learned" else None
        self.embedding = TokenEmbedding(token, positions, dropout=c.dropout)
        self.rotary = _rotary(c)
        self.decoder = Stack(
            [_block(c, n_kv_heads, self.rotary) for n_kv_heads in c.kv_heads_by_layer], _norm(c)(c.d_model)
        )
        self.output = Linear(c.d_model, c.vocab_size, bias=False)
        if c.tie_output:
            self.output.weight = token.weight

    def initialise(self, seed: int) -> DecoderModel:
        """Draw all weights anew from `seed`, as GPT-2 does: N(0, 0.02²), what is added to the residual stream divided
        by √(2 · layers), biases 0, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if "norm" in name:
                nn.init.constant_(weight, float(name.endswith("weight")))
            elif weight.dim() == 1:
                nn.init.zeros_(weight)
            else:
                added = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                std = STD / math.sqrt(2 * self.config.n_layers) if added else STD
                nn.init.normal_(weight, std=std, generator=generator)
        return self

    def forward(self, ids_BT: Tensor, keep: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits (B, T, V). `keep` (B, T) or (B, T, T) says what may be attended to besides being earlier, `positions`
        (B, T) which learned position each token has, by default 0 to T - 1; rotary positions act by distances in the
        row alone, which packing documents into rows does not change."""
        return self.output(self.hidden(ids_BT, keep, positions))

    def hidden(self, ids_BT: Tensor, keep: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """The last vectors (B, T, D), before the output projection."""
        if ids_BT.shape[1] > self.config.max_positions:
            raise DataError(f"{ids_BT.shape[1]} tokens, but the model has {self.config.max_positions} positions")
        return self.decoder(self.embedding(ids_BT, positions), keep=keep)

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[LanguageState, Tensor]:
        """Read all but the last token of each prompt; return the state and those last tokens, (B,), which come first in
        `hidden_step`. Prompts need not be equally long; nothing is computed on padding."""
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.config.max_positions:
                raise DataError(
                    f"prompt {row} has {len(prompt)} tokens; at least 1 is needed and the model has "
                    f"{self.config.max_positions} positions"
                )
        device = self.output.weight.device
        state = LanguageState(len(prompts), len(self.decoder.blocks), device)
        for stretches in _chunks([len(prompt) - 1 for prompt in prompts], PREFILL_TOKENS):
            ids = [i for row, first, last in stretches for i in prompts[row][first:last]]
            state.rows.extend([(row, last - first) for row, first, last in stretches])
            self._advance(torch.tensor([ids], device=device), state)
        return state, torch.tensor([prompt[-1] for prompt in prompts], device=device)

    def hidden_step(self, ids_B1: Tensor, state: LanguageState) -> Tensor:
        """Feed one token a row; the last vectors (B, 1, D), before the output projection."""
        state.rows.extend_each()
        return self._advance(ids_B1.T, state).transpose(0, 1)

    def _advance(self, ids_1N: Tensor, state: LanguageState) -> Tensor:
        x_1ND = self.embedding(ids_1N, state.rows.positions)
        return self.decoder(x_1ND, cache=state.caches)

    def n_tokens_allowed(self, prompt: Sequence[int], asked: int | None) -> int:
        """Tokens that may follow a prompt: those asked for, where the positions suffice. The last token written needs
        no position: nothing follows it."""
        left = self.config.max_positions - len(prompt) + 1
        return left if asked is None else min(asked, left)

    def n_positions(self, prompt: Sequence[int], n_tokens: int) -> int:
        """Positions that a prompt and `n_tokens` after it take."""
        return len(prompt) + n_tokens - 1

    def cache_bytes(self, prompt: Sequence[int], n_tokens: int, beams: int) -> int:
        """Bytes of keys and values for a prompt and `beams` continuations of `n_tokens`."""
        c = self.config
        width = sum(c.kv_heads_by_layer) * c.head_width
        numbers = 2 * width * beams * self.n_positions(prompt, n_tokens)
        return numbers * self.output.weight.element_size()


def _chunks(lengths: Sequence[int], budget: int) -> Iterator[list[tuple[int, int, int]]]:
    """Stretches (row, first, last) of all rows in order, `budget` tokens at a time; the last may be fewer."""
    chunk: list[tuple[int, int, int]] = []
    left = budget
    for row, length in enumerate(lengths):
        first = 0
        while first < length:
            last = min(length, first + left)
            chunk.append((row, first, last))
            left -= last - first
            first = last
            if not left:
                yield chunk
                chunk, left = [], budget
    if chunk:
        yield chunk


def _norm(c: DecoderConfig) -> Callable[[int], nn.Module]:
    return partial(RMSNorm if c.norm == "rms" else nn.LayerNorm, eps=c.norm_eps)


def _rotary(c: DecoderConfig) -> Rotary | None:
    """One for all layers, so that its table is made once."""
    if c.positions != "rotary":
        return None
    scaling = None
    if c.rotary_factor is not None:
        scaling = RotaryScaling(c.rotary_factor, c.rotary_original_positions, c.rotary_low, c.rotary_high)
    return Rotary(c.head_width, c.rotary_base, scaling)


def _block(c: DecoderConfig, n_kv_heads: int, rotary: Rotary | None) -> Block:
    attention = Attention(
        c.d_model,
        c.n_heads,
        n_kv_heads,
        d_head=c.d_head,
        bias=c.qkv_bias,
        out_bias=c.out_bias,
        causal=True,
        dropout=c.attention_dropout,
        rotary=rotary,
    )
    feed_forward = FeedForward(c.d_model, c.d_hidden, activation=c.activation, gated=c.gated, bias=c.hidden_bias)
    return Block(c.d_model, attention, feed_forward, norm=_norm(c), dropout=c.dropout)
