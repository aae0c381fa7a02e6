"""Attention: multi-head, multi-query and grouped-query, self and cross, in one class.

Scaled dot-product attention is from "Attention Is All You Need" (arXiv 1706.03762), multi-query from arXiv 1911.02150,
grouped-query from arXiv 2305.13245. The only difference between the three is `n_kv_heads`.

Shapes: B rows, T query positions, S key positions, D d_model, H query heads, G key/value heads, R = H / G query heads
a group, K head width. `keep` is boolean, True = may attend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.errors import ConfigError
from transfuse.nn.cache import KeyValueCache
from transfuse.nn.dropout import Dropout
from transfuse.nn.linear import Linear, together
from transfuse.nn.positions import Rotary
from transfuse.nn.ragged import RaggedCache

FUSED_FROM = 128 * 128
HALF_FUSED_FROM = 1025 * 1025
"""On a CPU, query positions × key positions from which the fused kernel beats two matrix products; in bfloat16, whose
products are faster, that is later."""

SHORT = 64
"""Keys up to which a softmax of half precision is faster by way of float32: on a CPU its vectors are not filled."""

BLOCK = 128
"""Queries of causal attention for which two matrix products are made at a time: later keys are left out of both."""


@dataclass(frozen=True)
class BlockDiagonal:
    """A mask in short: the one row of a batch holds sequences end to end, each of which attends to itself alone.
    `groups` says, in their order, how many sequences of which length there are."""

    groups: Sequence[tuple[int, int]]


class Attention(nn.Module):
    """Attention with `n_heads` query heads over `n_kv_heads` key/value heads, each `d_head` (by default
    `d_model // n_heads`) wide.

    `n_kv_heads == n_heads` (the default) is multi-head, 1 is multi-query, anything between grouped-query. Query head h
    reads key/value head `h // (n_heads // n_kv_heads)`: neighbours share. `causal` lets position t see keys up to t;
    `rotary` turns queries and keys by their position (self-attention only). `bias` is that of queries, keys and values,
    `out_bias` (by default the same) that of the output.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        *,
        d_head: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        check_heads(d_model, n_heads, n_kv_heads, d_head)
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head or d_model // n_heads
        self.causal = causal
        self.rotary = rotary
        self.query = Linear(d_model, n_heads * self.d_head, bias=bias)
        self.key = Linear(d_model, n_kv_heads * self.d_head, bias=bias)
        self.value = Linear(d_model, n_kv_heads * self.d_head, bias=bias)
        self.out = Linear(n_heads * self.d_head, d_model, bias=bias if out_bias is None else out_bias)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None = None,
        *,
        keep: Tensor | BlockDiagonal | None = None,
        cache: KeyValueCache | RaggedCache | None = None,
    ) -> Tensor:
        """Attend from `x` to itself, or to `memory` when given; (B, T, D) comes back.

        `keep` is (B, S), or (B, T, S) where it depends on the query, or, with B = 1, a `BlockDiagonal`. With a `cache`,
        self-attention appends `x`'s keys and values and attends to all that it holds; cross-attention fills it from
        `memory` at the first call and reads it ever after. A `RaggedCache` says which row each of `x`'s tokens
        continues; causal self-attention only.
        """
        return self.out(self.heads(x_BTD, memory_BSD, keep=keep, cache=cache))

    def heads(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None = None,
        *,
        keep: Tensor | BlockDiagonal | None = None,
        cache: KeyValueCache | RaggedCache | None = None,
    ) -> Tensor:
        """What the heads found, side by side (B, T, H · K), before the output projection."""
        q_BHTK, k_BGSK, v_BGSK = self.project(x_BTD, memory_BSD, cache)
        if isinstance(cache, RaggedCache):
            heads_BHTK = _attend_by_row(q_BHTK, cache)
        elif isinstance(keep, BlockDiagonal):
            heads_BHTK = self._attend_within(q_BHTK, k_BGSK, v_BGSK, keep)
        else:
            heads_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, keep=keep, causal=self.causal, dropout=self.dropout)
        return heads_BHTK.transpose(1, 2).flatten(2)

    def weights(self, x_BTD: Tensor, memory_BSD: Tensor | None = None, *, keep: Tensor | None = None) -> Tensor:
        """The attention weights themselves, (B, H, T, S); each row sums to 1."""
        q_BHTK, k_BGSK, _ = self.project(x_BTD, memory_BSD)
        return attention_weights(q_BHTK, k_BGSK, keep, self.causal)

    def project(
        self, x_BTD: Tensor, memory_BSD: Tensor | None = None, cache: KeyValueCache | RaggedCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, G, S, K), turned by their positions where `rotary` is."""
        if memory_BSD is not None:
            assert not isinstance(cache, RaggedCache), "a memory's rows are padded, not ragged"
            return self._split(self.query(x_BTD), self.n_heads), *self._memory_heads(memory_BSD, cache)
        q_BTD, k_BTD, v_BTD = together((self.query, self.key, self.value), x_BTD)
        q_BHTK = self._split(q_BTD, self.n_heads)
        k_BGTK, v_BGTK = self._split(k_BTD, self.n_kv_heads), self._split(v_BTD, self.n_kv_heads)
        if self.rotary is not None:
            T = x_BTD.shape[1]
            positions_T = torch.arange(T) if cache is None else cache.positions(T)
            q_BHTK, k_BGTK = self._turn(q_BHTK, k_BGTK, positions_T)
        if cache is not None:
            k_BGTK, v_BGTK = cache.append(k_BGTK, v_BGTK)
        return q_BHTK, k_BGTK, v_BGTK

    def _attend_within(self, q_1HNK: Tensor, k_1GNK: Tensor, v_1GNK: Tensor, blocks: BlockDiagonal) -> Tensor:
        """Attention of sequences laid end to end, each to itself; (1, H, N, K)."""
        found, sizes = [], [n * T for n, T in blocks.groups]
        # one split, whose gradient is one concatenation: that of slices is a whole tensor of zeros for each
        parts = (torch.split(x[0].transpose(0, 1), sizes) for x in (q_1HNK, k_1GNK, v_1GNK))
        for (n, T), *heads in zip(blocks.groups, *parts, strict=True):
            q, k, v = (part.unflatten(0, (n, T)).transpose(1, 2) for part in heads)
            heads_BHTK = attend(q, k, v, causal=self.causal, dropout=self.dropout)
            found.append(heads_BHTK.transpose(1, 2).flatten(0, 1))
        return torch.cat(found).transpose(0, 1)[None]

    def _turn(self, q_BHTK: Tensor, k_BGTK: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        assert self.rotary is not None
        if torch.is_grad_enabled():
            return self.rotary(q_BHTK, positions_T), self.rotary(k_BGTK, positions_T)
        # a few rows cost less copied than turned in two calls
        turned = self.rotary(torch.cat([q_BHTK, k_BGTK], dim=1), positions_T)
        return turned[:, : self.n_heads], turned[:, self.n_heads :]

    def _memory_heads(self, memory_BSD: Tensor, cache: KeyValueCache | None) -> tuple[Tensor, Tensor]:
        if cache is not None and len(cache):
            return cache.read()
        k_BSD, v_BSD = together((self.key, self.value), memory_BSD)
        k_BGSK, v_BGSK = self._split(k_BSD, self.n_kv_heads), self._split(v_BSD, self.n_kv_heads)
        # read at every later step, so laid out for the reads once
        return (k_BGSK, v_BGSK) if cache is None else cache.append(k_BGSK.contiguous(), v_BGSK.contiguous())

    def _split(self, x_BTD: Tensor, n_heads: int) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], n_heads, self.d_head).transpose(1, 2)


def check_heads(d_model: int, n_heads: int, n_kv_heads: int, d_head: int | None = None) -> None:
    """Raise ConfigError unless the sizes fit together."""
    if n_heads < 1 or (d_head is None and d_model % n_heads):
        raise ConfigError(f"d_model={d_model} must be a multiple of n_heads={n_heads}")
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ConfigError(f"n_heads={n_heads} must be a multiple of n_kv_heads={n_kv_heads}")


def heads_by_layer(n_kv_heads: int | tuple[int, ...] | None, n_heads: int, n_layers: int) -> tuple[int, ...]:
    """Key/value heads of each layer: `n_kv_heads` may be one number for all, one a layer, or None for `n_heads`.

    Raises ConfigError unless there is one for each layer.
    """
    if not isinstance(n_kv_heads, tuple):
        return (n_heads if n_kv_heads is None else n_kv_heads,) * n_layers
    if len(n_kv_heads) != n_layers:
        raise ConfigError(f"n_kv_heads={n_kv_heads} must be one number, or one for each of {n_layers} layers")
    return n_kv_heads


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    keep: Tensor | None = None,
    causal: bool = False,
    dropout: Dropout | None = None,
) -> Tensor:
    """Scaled dot-product attention of H query heads over G key/value heads; (B, H, T, K).

    With `causal` the T queries are the last T of the S positions. Short sequences take two matrix products with a
    group's queries folded into one; long ones PyTorch's fused kernel.
    """
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    drops = dropout is not None and dropout.training and dropout.rate > 0
    fused_from = FUSED_FROM if q_BHTK.dtype.itemsize > 2 else HALF_FUSED_FROM
    if not drops and T > 1 and (q_BHTK.is_cuda or fused_from <= T * S):
        square = keep is None and T == S
        mask = _allowed(keep, causal and not square, T, S, q_BHTK.device)
        grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=causal and square, enable_gqa=grouped
        )
    if causal and T > BLOCK:
        parts = []
        for first in range(0, T, BLOCK):
            last = min(first + BLOCK, T)
            part, keys = slice(first, last), slice(S - T + last)
            kept = keep
            if keep is not None:
                kept = keep[:, keys] if keep.dim() == 2 else keep[:, part if keep.shape[1] > 1 else slice(None), keys]
            q, k, v = q_BHTK[:, :, part], k_BGSK[:, :, keys], v_BGSK[:, :, keys]
            parts.append(attend(q, k, v, keep=kept, causal=True, dropout=dropout))
        return torch.cat(parts, dim=2)
    weights_BGRTS = _weights(q_BHTK, k_BGSK, keep, causal)
    if dropout is not None:
        weights_BGRTS = dropout(weights_BGRTS)
    return (weights_BGRTS.flatten(2, 3) @ v_BGSK).view(q_BHTK.shape)


def _attend_by_row(q_1HNK: Tensor, cache: RaggedCache) -> Tensor:
    """Causal attention of a step's tokens, each to the keys of its own row; (1, H, N, K)."""
    parts = []
    for part in cache.rows.parts:
        q_HNK = q_1HNK[0, :, part.tokens]
        q_BHTK = q_HNK.unflatten(1, (-1, part.n_queries)).transpose(0, 1)  # type: ignore[no-untyped-call]
        heads_BHTK = attend(q_BHTK, *cache.read(part), keep=part.keep_BS, causal=True)
        parts.append(heads_BHTK.transpose(0, 1).flatten(1, 2))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[None]


def attention_weights(q_BHTK: Tensor, k_BGSK: Tensor, keep: Tensor | None, causal: bool) -> Tensor:
    """Softmax of the scaled scores of H query heads over G key heads, (B, H, T, S)."""
    return _weights(q_BHTK, k_BGSK, keep, causal).flatten(1, 2)


def _weights(q_BHTK: Tensor, k_BGSK: Tensor, keep: Tensor | None, causal: bool) -> Tensor:
    """Softmax of the scaled scores, (B, G, R, T, S)."""
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    folded = (q_BHTK * (1 / math.sqrt(K))).reshape(B, G, H // G * T, K)  # neighbours share a group
    scores = (folded @ k_BGSK.transpose(2, 3)).view(B, G, H // G, T, S)
    allowed = _allowed(keep, causal and T > 1, T, S, q_BHTK.device)
    if allowed is not None:
        scores = scores + torch.where(allowed, 0.0, -math.inf).to(scores.dtype).unsqueeze(1)
    if scores.dtype.itemsize < 4 and not scores.is_cuda and S <= SHORT:
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(-1)


def _allowed(keep: Tensor | None, causal: bool, T: int, S: int, device: torch.device) -> Tensor | None:
    """Both masks in one, True = may attend, broadcastable to (B, heads, T, S); None where all may."""
    allowed = None
    if keep is not None:
        allowed = keep[:, None, None, :] if keep.dim() == 2 else keep[:, None]
    if causal:
        allowed = _causal(T, S, device) if allowed is None else allowed & _causal(T, S, device)
    return allowed


def _causal(T: int, S: int, device: torch.device) -> Tensor:
    return torch.ones(1, 1, T, S, dtype=torch.bool, device=device).tril(S - T)
