"""A table as it is learned from: its kinds, targets and weights, and which rows are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from transfuse.data.columns import Kind, check_cells, day_first, names_of
from transfuse.errors import DataError


@dataclass(frozen=True)
class LearningRows:
    """All rows of a training: `kept` are learned from, `aside` judged by. The first `n_own` rows are X's, those behind
    them a validation table's. Once `weighed`, no row weighs nothing, and weights have a mean of 1 on either side."""

    frame: pd.DataFrame
    kinds: dict[str, Kind]
    targets: np.ndarray
    weights: np.ndarray
    kept: np.ndarray
    aside: np.ndarray
    n_own: int

    def beside(self, X: Any, y: np.ndarray, weights: np.ndarray) -> Self:
        """All of these rows learned from, all of another table judged by. Raises DataError if it lacks a column, naming
        it and its rows as those of the validation."""
        further = as_frame(X, "validation[0]")
        if len(further) != len(y):
            raise DataError(f"validation has {len(further)} rows and {len(y)} targets; one each is needed")
        try:
            by_day = {name: day_first(self.frame[name]) for name in names_of(self.kinds, "date")}
            check_cells(further, self.kinds, by_day)
        except DataError as error:
            raise DataError(f"validation: {error}") from None
        used = [name for name, kind in self.kinds.items() if kind != "ignored"]
        n = len(self.frame)
        return replace(
            self,
            frame=pd.concat([self.frame, further[used]], ignore_index=True),
            targets=np.concatenate([self.targets, y]),
            weights=np.concatenate([self.weights, weights]),
            kept=np.arange(n),
            aside=np.arange(n, n + len(further)),
        )

    def weighed(self) -> Self:
        """Without rows that weigh nothing, the others' mean brought to 1 on either side. Raises DataError if no row is
        left on one."""
        kept, aside = (rows[self.weights[rows] > 0] for rows in (self.kept, self.aside))
        if not len(kept) or not len(aside):
            raise DataError("no row that weighs anything is left to learn from or to judge by")
        weights = self.weights.copy()
        for rows in (kept, aside):
            weights[rows] /= weights[rows].max()  # so that no sum is too large for a number
            weights[rows] /= weights[rows].mean()
        return replace(self, weights=weights.astype(np.float32), kept=kept, aside=aside)

    def without(self, bad: set[int]) -> Self:
        """Without these rows. Raises DataError if none is left."""
        kept, aside = (np.array([row for row in rows if row not in bad], dtype=int) for rows in (self.kept, self.aside))
        if not len(kept) or not len(aside):
            raise DataError("no row is left to learn from or to judge by once those with unreadable files are dropped")
        return replace(self, kept=kept, aside=aside)

    def name(self, row: int) -> str:
        """What a row is called, counted from 1 in its own table."""
        return row_name(row) if row < self.n_own else f"validation {row_name(row - self.n_own)}"


def row_name(row: int, first: int = 0) -> str:
    """What row `row` behind `first` others is called, counted from 1."""
    return f"row {first + row + 1}"


def as_frame(X: Any, name: str) -> pd.DataFrame:
    """A table with columns called by strings and rows numbered from 0, empty strings as missing; columns of an array or
    of lists are x0, x1, …

    Raises DataError for a table without rows or columns, or with two columns of one name.
    """
    if isinstance(X, pd.DataFrame):
        frame = X.reset_index(drop=True)
    elif isinstance(X, Mapping):
        frame = pd.DataFrame(X)
    else:
        if getattr(X, "ndim", 2) != 2:
            raise DataError(f"{name} has {X.ndim} dimensions; expected a DataFrame, or rows and columns")
        frame = pd.DataFrame(X if isinstance(X, np.ndarray) else list(X))
        frame.columns = [f"x{i}" for i in range(frame.shape[1])]
    frame.columns = [str(column) for column in frame.columns]
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"{name} has {len(frame)} rows and {len(frame.columns)} columns; at least one of each is needed"
        )
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{name}: two columns are called {twice[0]!r}")
    strings = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]
    for column in strings:
        empty = np.array([isinstance(cell, str) and not cell.strip() for cell in frame[column]])
        if empty.any():
            frame[column] = frame[column].mask(empty, None)
    return frame
