"""Sequences laid end to end in one row, so that nothing is computed on padding.

Shapes: N tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PARTS = 4
"""Lengths, from short to long, that a batch of mixed lengths has."""

SLACK = 1.25
"""How many times the fewest batches are made at most, for none to be above its budget; what still is, is halved."""

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


def by_length(lengths: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
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


def alike(lengths: Sequence[int] | np.ndarray, budget: int, draw: np.random.Generator) -> list[list[int]]:
    """Rows in batches of about as many rows and tokens each, at most `budget` tokens; a longer row stands alone.

    Each batch has neighbours in length of short, middling and long rows. Were batches cut by length alone, a step's
    mean would be over many short texts or over few long ones, which would weigh more each.
    """
    sizes = np.asarray(lengths)
    order = draw.permutation(len(sizes))  # ties fall differently every time
    order = order[np.argsort(sizes[order], kind="stable")]
    fewest = max(1, math.ceil(sizes.sum() / budget))
    for n_batches in np.unique(np.linspace(fewest, SLACK * fewest, 10).astype(int)).tolist():
        parts = np.array_split(order, max(1, min(PARTS, len(order) // n_batches)))
        chunks = [np.array_split(part, n_batches) for part in parts]
        for chunk in chunks[:-1]:  # the longest of the long go with the shortest of the others
            chunk.reverse()
        batches = [np.concatenate(own) for own in zip(*chunks, strict=True)]
        if all(sizes[batch].sum() <= budget for batch in batches):
            break
    within = [part.tolist() for batch in batches for part in _halved(batch, sizes, budget) if len(part)]
    return [within[i] for i in draw.permutation(len(within))]


def _halved(batch: np.ndarray, sizes: np.ndarray, budget: int) -> list[np.ndarray]:
    """The batch, or halves of it that are within the budget."""
    if len(batch) < 2 or sizes[batch].sum() <= budget:
        return [batch]
    return [part for half in (batch[::2], batch[1::2]) for part in _halved(half, sizes, budget)]


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
