"""Encoded texts with targets, one each or one a piece, laid end to end in batches.

Shapes: B texts, N pieces of them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transfuse.data.batches import IGNORED
from transfuse.data.sequences import PackedSequences, alike, by_length, pack
from transfuse.data.wordpiece import Pieces


@dataclass(frozen=True)
class LabelledBatch:
    """Texts and their targets, in the texts' order in the row: (B,) classes, (B, L) numbers, or (N,) classes of pieces,
    IGNORED where there is none. `n_tokens` counts what the loss is a mean over: texts, or pieces with a target."""

    sequences: PackedSequences
    targets: Tensor
    n_tokens: int

    def to(self, device: torch.device) -> LabelledBatch:
        """The batch on `device`."""
        return LabelledBatch(self.sequences.to(device), self.targets.to(device), self.n_tokens)


@dataclass(frozen=True)
class LabelledDataset:
    """Texts as pieces with their targets: one row of an array each, or, `per_piece`, one number a piece."""

    pieces: Sequence[Pieces]
    targets: Sequence[np.ndarray] | np.ndarray
    per_piece: bool = False

    def __len__(self) -> int:
        return len(self.pieces)

    def fingerprint(self) -> str:
        """SHA-256 of all ids and targets, to tell one dataset from another."""
        digest = hashlib.sha256()
        for one, target in zip(self.pieces, self.targets, strict=True):
            digest.update(np.asarray(one.ids, np.int32).tobytes())
            digest.update(np.ascontiguousarray(target).tobytes())
        return digest.hexdigest()

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        """Rows of every batch of an epoch, at most `budget` tokens each, the same for the same arguments."""
        draw = np.random.default_rng([seed, epoch])
        lengths = np.array([len(one) for one in self.pieces])
        if not self.per_piece:
            return alike(lengths, budget, draw)
        order = draw.permutation(len(self))  # ties fall differently every epoch
        batches = by_length(lengths[order], budget)
        return [[int(order[place]) for place in batches[i]] for i in draw.permutation(len(batches))]

    def in_order(self, budget: int) -> list[list[int]]:
        """Rows of batches sorted by length, nothing random: for scoring."""
        return by_length([len(one) for one in self.pieces], budget)

    def batch(self, rows: Sequence[int]) -> LabelledBatch:
        """These rows end to end, shortest first."""
        ordered = sorted(rows, key=lambda row: len(self.pieces[row]))
        pieces = [self.pieces[row] for row in ordered]
        sequences = pack(ordered, [one.ids for one in pieces], [one.segments for one in pieces])
        targets = (np.concatenate if self.per_piece else np.stack)([self.targets[row] for row in ordered])
        n = int((targets != IGNORED).sum()) if self.per_piece else len(rows)
        return LabelledBatch(sequences, torch.from_numpy(targets), n)
