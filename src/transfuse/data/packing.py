"""Documents packed into rows of equal length, in an order that is a function of (seed, epoch).

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transfuse.data.batches import IGNORED
from transfuse.errors import DataError


@dataclass(frozen=True)
class PackedBatch:
    """Rows of tokens, each labelled with the token that follows it in its document, or with the end token.

    `keep_BTT` says which tokens belong to the same document, `positions_BT` where each stands in its row's stretch of
    it; both are None where every row is a stretch of one document.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    keep_BTT: Tensor | None = None
    positions_BT: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens with a label."""
        return int(self.real_BT.sum())

    @property
    def real_BT(self) -> Tensor:
        """Positions that are no padding."""
        return self.labels_BT != IGNORED

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on `device`."""
        return PackedBatch(*(None if part is None else part.to(device) for part in vars(self).values()))  # type: ignore[arg-type]


class PackedDataset:
    """Rows of at most `context` tokens out of a flat array of documents (`TokenFile.tokens` and its `starts`).

    An epoch lays the documents end to end in a new order and cuts that line, from a new place, into rows, so every
    token but a remainder shorter than a row is learned from once. A token sees its own document only, from its row's
    beginning on. `end_id` is the label of a document's last token.
    """

    def __init__(
        self, tokens: np.ndarray, starts: np.ndarray, *, context: int, end_id: int, fingerprint: str, seed: int = 0
    ) -> None:
        if len(tokens) < 2:
            raise DataError(f"{len(tokens)} tokens are too few to learn from; at least 2 are needed")
        self.tokens, self.starts = tokens, starts
        self.context = min(context, len(tokens))
        self.end_id, self.seed, self._fingerprint = end_id, seed, fingerprint
        self.n_rows = len(tokens) // self.context
        self._order: tuple[int, np.ndarray, np.ndarray, int] | None = None

    def __len__(self) -> int:
        return self.n_rows

    def fingerprint(self) -> str:
        """Tells one corpus, and one way of cutting it, from another."""
        return f"{self._fingerprint}-{self.context}-{len(self.tokens)}"

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        """Row numbers of each batch, `budget` tokens each. A row number holds its epoch: epoch · rows + row."""
        del seed  # the dataset's own: `batch` needs it too
        n = max(1, budget // self.context)
        shuffled = np.random.default_rng([self.seed, epoch, 1]).permutation(self.n_rows) + epoch * self.n_rows
        return [shuffled[i : i + n].tolist() for i in range(0, self.n_rows, n)]

    def in_order(self, budget: int) -> list[list[int]]:
        """Row numbers for scoring, negative: every token once, documents in their own order."""
        n = max(1, budget // self.context)
        rows = [-1 - row for row in range(-(-len(self.tokens) // self.context))]
        return [rows[i : i + n] for i in range(0, len(rows), n)]

    def batch(self, rows: Sequence[int]) -> PackedBatch:
        """These rows as one batch."""
        parts = [self._row(row) for row in rows]
        T = max(len(ids) for ids, _, _, _ in parts)
        ids, labels, documents, positions = (
            torch.from_numpy(np.stack([_filled(part[i], T, filler) for part in parts]))
            for i, filler in enumerate((self.end_id, IGNORED, -1, 0))
        )
        if (documents == documents[:, :1]).all():
            return PackedBatch(ids, labels)
        return PackedBatch(ids, labels, documents[:, :, None] == documents[:, None, :], positions)

    def _row(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels, document numbers and positions of a row."""
        n = len(self.tokens)
        if row < 0:
            first = (-1 - row) * self.context
            order, line, length = None, self.starts, min(self.context, n - first)
        else:
            order, line, offset = self._laid_out(row // self.n_rows)
            first, length = offset + row % self.n_rows * self.context, self.context
        places = (first + np.arange(length)) % n
        index = np.searchsorted(line, places, side="right") - 1
        documents = index if order is None else order[index]
        at = self.starts[documents] + places - line[index]
        last = at + 1 == self.starts[documents + 1]
        ids = self.tokens[at].astype(np.int64)
        labels = np.where(last, self.end_id, self.tokens[np.minimum(at + 1, n - 1)]).astype(np.int64)
        new = np.concatenate([[True], (index[1:] != index[:-1]) | (at[1:] != at[:-1] + 1)])
        piece = np.cumsum(new) - 1
        return ids, labels, piece, np.arange(length) - np.flatnonzero(new)[piece]

    def _laid_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Documents in the epoch's order, the place of each on the line, and where the first row begins."""
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(len(self.starts) - 1)
            line = np.concatenate([[0], np.cumsum(np.diff(self.starts)[order])])
            self._order = epoch, order, line, int(generator.integers(len(self.tokens)))
        return self._order[1:]


def _filled(part: np.ndarray, length: int, filler: int) -> np.ndarray:
    return np.concatenate([part, np.full(length - len(part), filler, dtype=part.dtype)])


def split_tail(
    tokens: np.ndarray, starts: np.ndarray, fraction: float
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The (tokens, starts) to learn from, and those of the last `fraction` of all tokens, to judge by. A document that
    the cut goes through is two."""
    n = len(tokens)
    cut = min(max(2, round((1 - fraction) * n)), n - 2)
    if n < 4:
        raise DataError(f"{n} tokens are too few; at least 4 are needed, two to learn from and two to judge by")
    left, right = starts[starts < cut], starts[starts > cut]
    return (tokens[:cut], np.append(left, cut)), (tokens[cut:], np.append(0, right - cut))
