"""Keys and values of rows of unequal length, with no padding among the tokens that are computed.

The tokens of a step, one a row while decoding, a stretch of some rows while prompts are read, lie one after another in
a single sequence, so linear layers see real tokens only. `RaggedRows` says which row and position each belongs to and
is shared by all layers; each layer has a `RaggedCache`.

Shapes: B rows, N tokens of a step, G key/value heads, S key positions, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH = 128
"""Key positions by which a full cache grows at a time."""

WASTE = 64
"""Keys of padding worth reading rather than to make one more product."""


@dataclass(frozen=True)
class Part:
    """Rows that attend together: `n_queries` tokens each, the last of at most `n_keys` keys. `keep_BS` hides the
    padding of the shorter rows; None where there is none."""

    rows: slice
    tokens: slice
    n_queries: int
    n_keys: int
    keep_BS: Tensor | None = None


class RaggedRows:
    """The lengths of a batch's rows, and where the tokens of the current step go."""

    def __init__(self, n_rows: int, device: torch.device) -> None:
        self.lengths = [0] * n_rows
        self.device = device
        self.parts: list[Part] = []
        self.positions = self.owners = torch.empty(0, dtype=torch.long)

    def extend_each(self) -> None:
        """Let the step's tokens be one more of every row, in order."""
        self.lengths = [length + 1 for length in self.lengths]
        self.positions = torch.tensor(self.lengths) - 1
        self.owners = torch.arange(len(self.lengths))
        self.parts, first, longest, total = [], 0, 0, 0
        for row, length in enumerate(self.lengths):
            longest, total = max(longest, length), total + length
            if longest * (row + 1 - first) - total > WASTE:
                self.parts.append(self._decoding(slice(first, row)))
                first, longest, total = row, length, length
        self.parts.append(self._decoding(slice(first, len(self.lengths))))

    def extend(self, stretches: Sequence[tuple[int, int]]) -> None:
        """Let the step's tokens be, for each (row, n), the next n of that row."""
        positions, owners, self.parts, first = [], [], [], 0
        for row, n in stretches:
            start, self.lengths[row] = self.lengths[row], self.lengths[row] + n
            positions.append(torch.arange(start, start + n))
            owners.append(torch.full((n,), row))
            self.parts.append(Part(slice(row, row + 1), slice(first, first + n), n, start + n))
            first += n
        self.positions, self.owners = torch.cat(positions), torch.cat(owners)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.lengths = [self.lengths[row] for row in rows.tolist()]

    def _decoding(self, rows: slice) -> Part:
        lengths = self.lengths[rows]
        longest, keep_BS = max(lengths), None
        if min(lengths) < longest:
            keep_BS = (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(self.device)
        return Part(rows, rows, 1, longest, keep_BS)


class RaggedCache:
    """The keys and values of one self-attention, `n_kv_heads` heads wide, a block of positions more whenever a row
    needs it."""

    def __init__(self, rows: RaggedRows) -> None:
        self.rows = rows
        self._kv_2BGSK: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values held (what is reserved for growth, or for shorter rows, is not counted)."""
        if self._kv_2BGSK is None:
            return 0
        two, _, G, _, K = self._kv_2BGSK.shape
        return two * sum(self.rows.lengths) * G * K * self._kv_2BGSK.element_size()

    def reserve(self, n_positions: int, like_1GNK: Tensor) -> Tensor:
        """Make room for rows of `n_positions` keys like these; return where they are kept, (2, B, G, S, K)."""
        held = self._kv_2BGSK
        if held is not None and held.shape[3] >= n_positions:
            return held
        _, G, _, K = like_1GNK.shape
        room = -(-n_positions // GROWTH) * GROWTH
        # zeros, for a masked key has no weight but is multiplied all the same
        grown = like_1GNK.new_zeros(2, len(self.rows.lengths), G, room, K)
        if held is not None:
            grown[:, :, :, : held.shape[3]] = held
        self._kv_2BGSK = grown
        return grown

    def positions(self, n_tokens: int) -> Tensor:
        """Where the step's tokens stand, each in its row, (N,)."""
        assert n_tokens == len(self.rows.positions), "another number of tokens than the step was laid out for"
        return self.rows.positions

    def append(self, k_1GNK: Tensor, v_1GNK: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of the step's tokens where `rows` says; they come back as they are."""
        kv_2BGSK = self.reserve(max(self.rows.lengths), k_1GNK)
        owners, positions = self.rows.owners.to(k_1GNK.device), self.rows.positions.to(k_1GNK.device)
        for held_BGSK, new_1GNK in zip(kv_2BGSK, (k_1GNK, v_1GNK), strict=True):
            held_BGSK[owners, :, positions] = new_1GNK[0].transpose(0, 1)
        return k_1GNK, v_1GNK

    def read(self, part: Part) -> tuple[Tensor, Tensor]:
        """The keys and the values that `part` attends to, each (B, G, S, K)."""
        assert self._kv_2BGSK is not None, "read before the first append"
        k_BGSK, v_BGSK = self._kv_2BGSK[:, part.rows, :, : part.n_keys]
        return k_BGSK, v_BGSK

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (a 1-D index) in the order given. Rows that keep their place are not copied."""
        if self._kv_2BGSK is None:
            return
        self._kv_2BGSK = keep_rows(self._kv_2BGSK, rows)


def keep_rows(kv_2BGSK: Tensor, rows: Tensor) -> Tensor:
    """Keys and values of `rows` in the order given; those that keep their place are not copied, others are moved within
    `kv`, which the result is a part of."""
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
    if len(moved):
        kv_2BGSK.index_copy_(1, moved, kv_2BGSK.index_select(1, rows[moved]))
    return kv_2BGSK[:, : len(rows)]
