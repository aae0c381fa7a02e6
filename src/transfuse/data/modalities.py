"""Rows of several modalities with targets, as batches of padded tensors that say what is there.

Every modality becomes a tuple of tensors, the last of which is boolean, True = there: by row (B,) or by token (B, T).

Shapes: N rows, B rows of a batch, T tokens or frames, M bands, C channels, S pixels a side, F numbers, E bins,
G categories, K scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from transfuse.data.augmentation import AugmentationConfig, change_image, change_sound, drop_modalities
from transfuse.data.features import MISSING, UNKNOWN, Features
from transfuse.data.sequences import by_length

Part = tuple[Tensor, ...]
Draws = Sequence[np.random.Generator] | None
"""A generator a row where rows are to be changed as in training."""


class Modality(Protocol):
    """One modality of all rows."""

    @property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each row, 0 where it is missing."""

    def part(self, rows: Sequence[int], present_B: np.ndarray, draws: Draws, config: AugmentationConfig) -> Part:
        """These rows; those that are not `present` are as missing."""

    def content(self, row: int) -> bytes:
        """What tells a row from another."""


@dataclass(frozen=True)
class Texts:
    """Ids and segments of each row, empty where it has no text; of `cut` rows not all text is read."""

    ids: Sequence[np.ndarray]
    segments: Sequence[np.ndarray]
    pad_id: int
    cut: int = 0

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Pieces of each row."""
        return np.array([len(one) for one in self.ids], dtype=np.int64)

    def part(self, rows: Sequence[int], present_B: np.ndarray, draws: Draws, config: AugmentationConfig) -> Part:
        """Ids (B, T), segments (B, T), keep (B, T)."""
        del draws, config
        lengths_B = np.where(present_B, self.lengths_N[list(rows)], 0)
        shape = (len(rows), max(1, int(lengths_B.max(initial=1))))
        ids, segments = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64)
        for place, (row, length) in enumerate(zip(rows, lengths_B, strict=True)):
            ids[place, :length], segments[place, :length] = self.ids[row][:length], self.segments[row][:length]
        return torch.from_numpy(ids), torch.from_numpy(segments), _until(lengths_B, shape[1])

    def content(self, row: int) -> bytes:
        """Its ids and segments."""
        return self.ids[row].tobytes() + self.segments[row].tobytes()


@dataclass(frozen=True)
class Images:
    """Pixels (N, C, S, S), 0 to 255, and which rows have them; `n_tokens` is what the tower makes of an image."""

    pixels_NCSS: np.ndarray
    present_N: np.ndarray
    n_tokens: int

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each row."""
        return np.where(self.present_N, self.n_tokens, 0)

    def part(self, rows: Sequence[int], present_B: np.ndarray, draws: Draws, config: AugmentationConfig) -> Part:
        """Pixels (B, C, S, S) as bytes, keep (B,)."""
        pixels = self.pixels_NCSS[list(rows)]
        if draws is not None:
            for place in np.flatnonzero(present_B & self.present_N[list(rows)]).tolist():
                pixels[place] = change_image(pixels[place], config, draws[place])
        return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(present_B & self.present_N[list(rows)])

    def content(self, row: int) -> bytes:
        """Its pixels."""
        return self.pixels_NCSS[row].tobytes() if self.present_N[row] else b""


@dataclass(frozen=True)
class Sounds:
    """Frames of all rows one after another, (frames, M), given with `mean_M` taken off and divided by `scale_M`;
    `starts` (N + 1) is where each row's begin. The tower makes a token of `frames_a_token`."""

    frames: np.ndarray
    starts: np.ndarray
    frames_a_token: int
    mean_M: np.ndarray
    scale_M: np.ndarray

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each row."""
        return -(-np.diff(self.starts) // self.frames_a_token)

    def part(self, rows: Sequence[int], present_B: np.ndarray, draws: Draws, config: AugmentationConfig) -> Part:
        """Frames (B, T, M), keep (B, T)."""
        own = [
            (self.frames[self.starts[row] : self.starts[row + 1] if there else self.starts[row]] - self.mean_M)
            / self.scale_M
            for row, there in zip(rows, present_B, strict=True)
        ]
        if draws is not None:
            own = [change_sound(one, config, draw) if len(one) else one for one, draw in zip(own, draws, strict=True)]
        lengths_B = np.array([len(one) for one in own])
        found = np.zeros((len(rows), max(1, int(lengths_B.max(initial=1))), self.frames.shape[1]), np.float32)
        for place, one in enumerate(own):
            found[place, : len(one)] = one
        return torch.from_numpy(found), _until(lengths_B, found.shape[1])

    def content(self, row: int) -> bytes:
        """Its frames."""
        return self.frames[self.starts[row] : self.starts[row + 1]].tobytes()


@dataclass(frozen=True)
class Table:
    """Columns of numbers and categories; a row of which no cell is known is missing."""

    features: Features

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Columns where there is any."""
        f = self.features
        return np.where(f.any_N, f.known_NF.shape[1] + f.codes_NC.shape[1], 0)

    def part(self, rows: Sequence[int], present_B: np.ndarray, draws: Draws, config: AugmentationConfig) -> Part:
        """Numbers (B, F, E), known (B, F), codes (B, G), keep (B,)."""
        f, chosen = self.features, list(rows)
        known_BF, codes_BG = f.known_NF[chosen], f.codes_NC[chosen]
        n_numbers, n_cells = known_BF.shape[1], known_BF.shape[1] + codes_BG.shape[1]
        for place, draw in enumerate(draws or ()):
            if draw.random() < config.cell_dropout:
                cell = int(draw.integers(n_cells))
                if cell < n_numbers:
                    known_BF[place, cell] = False
                else:
                    codes_BG[place, cell - n_numbers] = draw.choice([MISSING, UNKNOWN])
        cells = (f.numbers_NFE[chosen], known_BF, codes_BG, f.any_N[chosen] & present_B)
        return tuple(torch.from_numpy(one) for one in cells)

    def content(self, row: int) -> bytes:
        """Its cells."""
        f = self.features
        return f.numbers_NFE[row].tobytes() + f.known_NF[row].tobytes() + f.codes_NC[row].tobytes()


@dataclass(frozen=True)
class Scores:
    """What another model says of each row, (N, K), and which rows it can say something of."""

    scores_NK: np.ndarray
    present_N: np.ndarray

    @property
    def lengths_N(self) -> np.ndarray:
        """1 where there are scores."""
        return self.present_N.astype(np.int64)

    def part(self, rows: Sequence[int], present_B: np.ndarray, draws: Draws, config: AugmentationConfig) -> Part:
        """Scores (B, K), keep (B,)."""
        del draws, config
        chosen = list(rows)
        found = self.scores_NK[chosen].astype(np.float32)
        return torch.from_numpy(found), torch.from_numpy(self.present_N[chosen] & present_B)

    def content(self, row: int) -> bytes:
        """Its scores."""
        return self.scores_NK[row].tobytes()


@dataclass(frozen=True)
class Chosen:
    """The rows `rows` of a modality, in that order, without a copy."""

    own: Modality
    rows: np.ndarray

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each row."""
        lengths: np.ndarray = self.own.lengths_N[self.rows]
        return lengths

    def part(self, rows: Sequence[int], present_B: np.ndarray, draws: Draws, config: AugmentationConfig) -> Part:
        """As the modality gives them."""
        return self.own.part(self.rows[list(rows)].tolist(), present_B, draws, config)

    def content(self, row: int) -> bytes:
        """What tells a row from another."""
        return self.own.content(int(self.rows[row]))


@dataclass(frozen=True)
class MultimodalBatch:
    """Each modality's tensors, (B,) classes or (B, K) numbers, and the weight of each row."""

    parts: tuple[Part, ...]
    targets: Tensor
    weights_B: Tensor

    @property
    def n_tokens(self) -> int:
        """Rows, which the loss is a mean over."""
        return len(self.targets)

    def to(self, device: torch.device) -> MultimodalBatch:
        """The batch on `device`."""
        parts = tuple(tuple(one.to(device) for one in part) for part in self.parts)
        return MultimodalBatch(parts, self.targets.to(device), self.weights_B.to(device))


@dataclass(frozen=True)
class MultimodalDataset:
    """Rows of several modalities, in the order of their names in the model.

    Row numbers up to N are rows as they are; (epoch + 1) · N + row is a row as it is changed in that epoch. Those of
    `modalities` that are `left_out` are as missing in every row.
    """

    modalities: Mapping[str, Modality]
    targets: np.ndarray
    weights: np.ndarray
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    seed: int = 0
    left_out: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def lengths_NM(self) -> np.ndarray:
        """Tokens of each row in each modality."""
        lengths = {name: one.lengths_N for name, one in self.modalities.items()}
        return np.stack([one * (name not in self.left_out) for name, one in lengths.items()], axis=1)

    def choose(self, rows: np.ndarray) -> MultimodalDataset:
        """These rows alone."""
        modalities: dict[str, Modality] = {name: Chosen(one, rows) for name, one in self.modalities.items()}
        return replace(self, modalities=modalities, targets=self.targets[rows], weights=self.weights[rows])

    def fingerprint(self) -> str:
        """SHA-256 of all rows, to tell one dataset from another."""
        digest = hashlib.sha256(",".join(self.modalities).encode())
        for one in self.modalities.values():
            for row in range(len(self)):
                digest.update(one.content(row))
        digest.update(self.targets.tobytes() + self.weights.tobytes())
        return digest.hexdigest()

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        """Rows of every batch of an epoch, at most `budget` padded tokens each, the same for the same arguments.

        Rows share a batch with rows of about their length, but no closer than by a factor of √2: how long a sound or a
        text is may tell its class, and batches of one class each teach little.
        """
        draw = np.random.default_rng([seed, epoch])
        order = draw.permutation(len(self))
        sizes = np.floor(2 * np.log2(np.maximum(self.lengths_NM.sum(1), 1)))[order]
        batches = _cut(order[np.argsort(sizes, kind="stable")], self.lengths_NM, budget)
        return [[(epoch + 1) * len(self) + row for row in batches[i]] for i in draw.permutation(len(batches))]

    def in_order(self, budget: int) -> list[list[int]]:
        """Rows of batches sorted by length, nothing random: for scoring."""
        return by_length(self.lengths_NM.sum(1).tolist(), budget)

    def batch(self, rows: Sequence[int]) -> MultimodalBatch:
        """These rows."""
        own = [row % len(self) for row in rows]
        present_BM = self.lengths_NM[own] > 0
        draws: Draws = None
        if rows and rows[0] >= len(self):
            draws = [np.random.default_rng([self.seed, row // len(self), row % len(self)]) for row in rows]
            rate = self.augmentation.modality_dropout
            kept = [drop_modalities(one, rate, draw) for one, draw in zip(present_BM, draws, strict=True)]
            present_BM = np.stack(kept)
        parts = tuple(
            one.part(own, present_BM[:, i], draws, self.augmentation) for i, one in enumerate(self.modalities.values())
        )
        return MultimodalBatch(parts, torch.from_numpy(self.targets[own]), torch.from_numpy(self.weights[own]))


def _cut(order: np.ndarray, lengths_NM: np.ndarray, budget: int) -> list[list[int]]:
    """Rows in this order, cut into batches of at most `budget` tokens once padded; a longer row stands alone."""
    batches: list[list[int]] = []
    longest_M = np.zeros(lengths_NM.shape[1], dtype=np.int64)
    for row in order.tolist():
        grown_M = np.maximum(longest_M, lengths_NM[row])
        if batches and grown_M.sum() * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
            longest_M = grown_M
        else:
            batches.append([row])
            longest_M = lengths_NM[row]
    return batches


def _until(lengths_B: np.ndarray, longest: int) -> Tensor:
    return torch.from_numpy(np.arange(longest) < lengths_B[:, None])
