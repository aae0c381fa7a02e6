"""Tokens of several modalities whose sequences are of unequal length, brought together.

"trim" cuts every row's sequences to its shortest, "interpolate" stretches them linearly to the row's longest and adds
them up position by position, "resample" brings each to a fixed number of tokens by learned queries (as Perceiver, arXiv
2103.03206), and a `CrossAttention` lets one read another. What is masked has no part in any of them, and a row without
a modality none in its result.

Shapes: B rows, T tokens of a row, S of another modality, D d_model, Q queries, M modalities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transfuse.nn.attention import Attention
from transfuse.nn.dropout import Dropout
from transfuse.nn.feed_forward import FeedForward

Tokens = tuple[Tensor, Tensor]
"""Vectors (B, T, D), and which are real, (B, T)."""


class CrossAttention(nn.Module):
    """`x` and what it reads in a memory; a row without a memory reads nothing."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(d_model), Attention(d_model, n_heads)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, memory: Tokens) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        memory_BSD, keep_BS = memory
        read_BTD = self.attention(self.norm(x_BTD), memory_BSD, keep=safe(keep_BS))
        return x_BTD + self.dropout(read_BTD) * keep_BS.any(1)[:, None, None]


class Resampler(nn.Module):
    """Tokens of any number to `n_queries`, by as many learned queries."""

    def __init__(self, n_queries: int, d_model: int, n_heads: int, d_hidden: int | None, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(n_queries, d_model))
        self.read = CrossAttention(d_model, n_heads, dropout)
        self.norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden or 4 * d_model, activation="gelu")

    def forward(self, tokens: Tokens) -> Tokens:
        """(B, T, D) to (B, Q, D); of a row without tokens none are real."""
        x_BQD = self.read(self.queries.expand(len(tokens[0]), -1, -1), tokens)
        x_BQD = x_BQD + self.feed_forward(self.norm(x_BQD))
        return x_BQD, tokens[1].any(1)[:, None].expand(x_BQD.shape[:2])


def align(tokens: list[Tokens], how: str, resamplers: Sequence[nn.Module] | nn.ModuleList) -> list[Tokens]:
    """Each modality's tokens, cut or resampled where asked."""
    if how == "trim":
        return trim(tokens)
    if how == "resample":
        return [resample(one) for resample, one in zip(resamplers, tokens, strict=True)]
    return tokens


def trim(tokens: list[Tokens]) -> list[Tokens]:
    """In each row the first tokens of every modality, as many as its shortest there has."""
    lengths_MB = torch.stack([keep.sum(1) for _, keep in tokens])
    shortest_B = lengths_MB.masked_fill(lengths_MB == 0, torch.iinfo(lengths_MB.dtype).max).amin(0)
    found = []
    for x_BTD, keep_BT in tokens:
        kept_BT = keep_BT & (keep_BT.cumsum(1) <= shortest_B[:, None])
        longest = max(1, int(kept_BT.sum(1).max()))
        found.append((x_BTD[:, :longest], kept_BT[:, :longest]))
    return found


def interpolate(tokens: list[Tokens]) -> Tokens:
    """In each row all modalities stretched to its longest, position 0 to position 0 and last to last, and added up."""
    lengths_MB = torch.stack([keep.sum(1) for _, keep in tokens])
    longest_B = lengths_MB.amax(0)
    at_T = torch.arange(int(longest_B.max()), device=longest_B.device)
    keep_BT = at_T < longest_B[:, None]
    total = tokens[0][0].new_zeros(*keep_BT.shape, tokens[0][0].shape[-1])
    for (x_BSD, _), length_B in zip(tokens, lengths_MB, strict=True):
        last_B = (length_B - 1).clamp(min=0)[:, None]
        place_BT = at_T * last_B / (longest_B - 1).clamp(min=1)[:, None]
        low_BT = place_BT.floor().long().clamp(max=last_B)
        share = (place_BT - low_BT)[..., None].to(total.dtype)
        total = (
            total
            + (_take(x_BSD, low_BT) * (1 - share) + _take(x_BSD, (low_BT + 1).clamp(max=last_B)) * share)
            * (length_B > 0)[:, None, None]
        )
    return total, keep_BT


def safe(keep_BT: Tensor) -> Tensor:
    """A mask under which rows without anything may attend to their first place, whose result is then not used."""
    nothing = torch.zeros_like(keep_BT)
    nothing[:, 0] = ~keep_BT.any(1)
    return keep_BT | nothing


def _take(x_BSD: Tensor, places_BT: Tensor) -> Tensor:
    return x_BSD.gather(1, places_BT[..., None].expand(-1, -1, x_BSD.shape[-1]))
