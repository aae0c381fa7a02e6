"""Masked batches under a token budget, grouped by length, in an order that is a function of (seed, epoch).

Shapes: B rows, S source positions, T target positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transfuse.data.pairs import Columns
from transfuse.errors import DataError

MOST_HELD_OUT = 1000
"""Rows held out of the training data at most, when no validation pairs are given."""

IGNORED = -100
"""Label of a position that has none, as in `torch.nn.functional.cross_entropy`."""

Ids = Sequence[int]


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors. `target` starts with the start token; `labels` is what should follow each target position,
    `IGNORED` on padding and where that is always the same token."""

    source_BS: Tensor
    source_keep_BS: Tensor
    target_BT: Tensor
    labels_BT: Tensor

    @property
    def n_tokens(self) -> int:
        """Real (not padding) target tokens."""
        return int(self.real_BT.sum())

    @property
    def real_BT(self) -> Tensor:
        """Target positions that are no padding."""
        return self.labels_BT != IGNORED

    def to(self, device: torch.device) -> PairBatch:
        """The batch on `device`."""
        return PairBatch(*(part.to(device) for part in vars(self).values()))


def pad(rows: Sequence[Ids], value: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one (B, T) tensor filled up with `value`, and its keep mask.

    Raises DataError for a row without tokens: nothing could attend anywhere in it.
    """
    lengths = torch.tensor([len(row) for row in rows])
    if not rows or int(lengths.min()) == 0:
        raise DataError(f"row {int(lengths.argmin()) if len(rows) else 0} has no tokens; every row needs at least one")
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.full(keep.shape, value)
    padded[keep] = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    return padded, keep


@dataclass(frozen=True)
class PairDataset:
    """Encoded pairs and the special ids that batches need. Every row ends with its end token; targets begin with
    `first_id`, which is not learned, where it is given."""

    sources: Sequence[Ids]
    targets: Sequence[Ids]
    start_id: int
    pad_id: int
    first_id: int | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """The pairs with these indices as one padded batch."""
        source, source_keep = pad([self.sources[row] for row in rows], self.pad_id)
        first = [] if self.first_id is None else [self.first_id]
        labels, keep = pad([[*first, *self.targets[row]] for row in rows], IGNORED)
        target = labels.roll(1, dims=1).masked_fill_(~keep.roll(1, dims=1), self.pad_id)
        target[:, 0] = self.start_id
        labels[:, : len(first)] = IGNORED
        return PairBatch(source, source_keep, target, labels)

    def fingerprint(self) -> str:
        """SHA-256 of all ids, to tell one dataset from another."""
        digest = hashlib.sha256()
        for row in (*self.sources, *self.targets):
            digest.update(np.asarray(row, dtype=np.int32).tobytes())
        return digest.hexdigest()

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        """Indices of every batch of one epoch, the same for the same (budget, seed, epoch).

        A batch's padded source and padded target each hold at most `budget` tokens; a longer pair stands alone.
        """
        generator = np.random.default_rng([seed, epoch])
        lengths = np.array([[len(s), len(t)] for s, t in zip(self.sources, self.targets, strict=True)])
        batches = _cut(_by_length(lengths, generator), lengths, budget)
        return [batches[i] for i in generator.permutation(len(batches))]

    def in_order(self, budget: int) -> list[list[int]]:
        """Indices of batches sorted by length, nothing random: for scoring."""
        lengths = np.array([[len(s), len(t)] for s, t in zip(self.sources, self.targets, strict=True)])
        return _cut(np.lexsort((lengths[:, 0], lengths[:, 1])), lengths, budget)


def hold_out(pairs: Columns, fraction: float, seed: int) -> tuple[Columns, Columns]:
    """Pairs to learn from, and a random `fraction` of them, at least 1 and at most `MOST_HELD_OUT`, to judge by."""
    n = len(pairs[0])
    if n < 2:
        raise DataError(f"{n} pair; at least 2 are needed, one to learn from and one to judge by")
    n_held_out = min(max(1, round(fraction * n)), MOST_HELD_OUT, n - 1)
    order = np.random.default_rng(seed).permutation(n)
    learned, held_out = (
        tuple([side[row] for row in sorted(rows)] for side in pairs)
        for rows in (order[n_held_out:], order[:n_held_out])
    )
    return learned, held_out  # type: ignore[return-value]


def _by_length(lengths: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Indices sorted by target length, source length going up and down in turn so that neighbours always fit."""
    order = generator.permutation(len(lengths))  # ties fall differently every epoch
    source, target = lengths[order].T
    return order[np.lexsort((np.where(target % 2, source, -source), target))]


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for row in order.tolist():
        grown = max(longest, int(lengths[row].max()))
        if batches and grown * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
            longest = grown
        else:
            batches.append([row])
            longest = int(lengths[row].max())
    return batches
