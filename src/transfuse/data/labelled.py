"""Encoded texts with a target each, laid end to end in batches of like lengths.

Shapes: B texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transfuse.data.sequences import PackedSequences, by_length, pack
from transfuse.data.wordpiece import Pieces


@dataclass(frozen=True)
class LabelledBatch:
    """Texts and their targets, in the texts' order in the row: (B,) class numbers, or (B, L) numbers."""

    sequences: PackedSequences
    targets: Tensor

    @property
    def n_tokens(self) -> int:
        """Texts, which the loss is a mean over."""
        return len(self.targets)

    def to(self, device: torch.device) -> LabelledBatch:
        """The batch on `device`."""
        return LabelledBatch(self.sequences.to(device), self.targets.to(device))


@dataclass(frozen=True)
class LabelledDataset:
    """Texts as pieces and an array of targets, one row a text."""

    pieces: Sequence[Pieces]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.pieces)

    def fingerprint(self) -> str:
        """SHA-256 of all ids and targets, to tell one dataset from another."""
        digest = hashlib.sha256(np.ascontiguousarray(self.targets).tobytes())
        for one in self.pieces:
            digest.update(np.asarray(one.ids, np.int32).tobytes())
        return digest.hexdigest()

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        """Rows of every batch of an epoch, at most `budget` tokens each, the same for the same arguments."""
        draw = np.random.default_rng([seed, epoch])
        order = draw.permutation(len(self))  # ties fall differently every epoch
        batches = by_length([len(self.pieces[row]) for row in order], budget)
        return [[int(order[place]) for place in batches[i]] for i in draw.permutation(len(batches))]

    def in_order(self, budget: int) -> list[list[int]]:
        """Rows of batches sorted by length, nothing random: for scoring."""
        return by_length([len(one) for one in self.pieces], budget)

    def batch(self, rows: Sequence[int]) -> LabelledBatch:
        """These rows end to end, shortest first."""
        ordered = sorted(rows, key=lambda row: len(self.pieces[row]))
        sequences = pack(ordered, [one.ids for one in self.pieces], [one.segments for one in self.pieces])
        return LabelledBatch(sequences, torch.from_numpy(self.targets[ordered]))
