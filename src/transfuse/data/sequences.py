"""Sequences laid end to end in one row, so that nothing is computed on padding.

Shapes: N tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class PackedSequences:
    """Sequences of ids, shortest first, end to end: `ids_1N`, which text each token is of (`segments_1N`), where it
    stands in its sequence (`positions_N`), where sequences begin (`starts`, and the end), and `groups`: how many there
    are of which length. `rows` says which sequence of the input each one is."""

    ids_1N: Tensor
    segments_1N: Tensor
    positions_N: Tensor
    starts: Tensor
    groups: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]

    def to(self, device: torch.device) -> PackedSequences:
        """The sequences on `device`."""
        return PackedSequences(
            self.ids_1N.to(device),
            self.segments_1N.to(device),
            self.positions_N.to(device),
            self.starts.to(device),
            self.groups,
            self.rows,
        )


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows, shortest first, cut into batches of at most `budget` tokens; a longer row stands alone."""
    batches: list[list[int]] = []
    left = 0
    for row in np.argsort(np.asarray(lengths), kind="stable").tolist():
        if not batches or lengths[row] > left:
            batches.append([])
            left = budget
        batches[-1].append(row)
        left -= lengths[row]
    return batches


def pack(rows: Sequence[int], ids: Sequence[Ids], segments: Sequence[Ids]) -> PackedSequences:
    """The ids and segments of these rows, which must be sorted by length, as one."""
    lengths = np.array([len(one) for one in ids])
    assert (np.diff(lengths) >= 0).all(), "rows are packed shortest first"
    sizes, counts = np.unique(lengths, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat_ids, flat_segments = (
        torch.from_numpy(np.concatenate([np.asarray(one, dtype=np.int64) for one in part]))[None]
        for part in (ids, segments)
    )
    return PackedSequences(
        flat_ids,
        flat_segments,
        torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        torch.from_numpy(starts),
        tuple(zip(counts.tolist(), sizes.tolist(), strict=True)),
        tuple(rows),
    )
