"""Columns of a table as a model takes them: numbers by how far they fill each of their bins, categories by number.

Bins are between quantiles of the training rows, and a number is told by how far it fills each: all of those below it,
none of those above (piecewise linear encoding, arXiv 2203.05556). What lies outside of the training rows' range is told
as its end. A date is its day counted on, its day in the year, month and week, and its hour.

Shapes: N rows, F numbers, E bins of a number, C categories.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from transfuse.data.columns import Kind, as_numbers, as_strings, day_first, days, known_dates, names_of
from transfuse.errors import DataError

BINS = 48
MISSING, UNKNOWN, FIRST_LEVEL = 0, 1, 2
"""Numbers of a category: nothing known, a level that training did not see, and the first that it did."""

DATE_PARTS = ("day", "day of year", "day of month", "weekday", "hour")


@dataclass(frozen=True)
class Features:
    """Rows of a table: `numbers_NFE` in [0, 1], `known_NF`, and `codes_NC`."""

    numbers_NFE: np.ndarray
    known_NF: np.ndarray
    codes_NC: np.ndarray

    @property
    def any_N(self) -> np.ndarray:
        """Rows of which anything is known."""
        found: np.ndarray = self.known_NF.any(1) | (self.codes_NC != MISSING).any(1)
        return found


@dataclass(frozen=True)
class FeatureForm:
    """What training rows said of their columns: `edges` of each number's bins (one more than bins), the `levels` of
    each category, the most frequent first, and of each date whether the day stands before the month. Columns are in the
    order of their names."""

    edges: dict[str, list[float]] = field(default_factory=dict)
    levels: dict[str, list[str]] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    by_day: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def learn(cls, frame: pd.DataFrame, kinds: Mapping[str, Kind], n_bins: int = BINS) -> FeatureForm:
        """The form of the number, category and date columns of `frame`; numbers of few values have fewer bins."""
        own = {name: kinds[name] for name in names_of(kinds, "number", "category", "date")}
        by_day = {name: day_first(frame[name]) for name in names_of(own, "date")}
        edges = {name: _edges(numbers, n_bins) for name, numbers in _numbers(frame, own, by_day).items()}
        levels = {}
        for name in names_of(own, "category"):
            counts = Counter(value for value in as_strings(frame[name]) if value is not None)
            levels[name] = [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        return cls(edges, levels, own, by_day)

    @property
    def n_bins(self) -> int:
        """The most bins that a number has."""
        return max((len(edges) - 1 for edges in self.edges.values()), default=1)

    def encode(self, frame: pd.DataFrame) -> Features:
        """Rows of a table that has these columns. Raises DataError as `as_numbers` does."""
        numbers = _numbers(frame, self.kinds, self.by_day)
        filled = np.zeros((len(frame), len(self.edges), self.n_bins), np.float32)
        for i, (name, edges) in enumerate(self.edges.items()):
            low, high = np.array(edges[:-1]), np.array(edges[1:])
            value = np.nan_to_num(numbers[name])[:, None]
            filled[:, i, : len(low)] = np.clip((value - low) / (high - low), 0, 1)
        known = (
            np.stack([~np.isnan(numbers[name]) for name in self.edges], 1)
            if self.edges
            else np.zeros((len(frame), 0), bool)
        )
        filled[~known] = 0
        codes = np.zeros((len(frame), len(self.levels)), np.int64)
        for i, (name, levels) in enumerate(self.levels.items()):
            codes[:, i] = coded(levels, as_strings(frame[name]))
        return Features(filled, known, codes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"edges": self.edges, "levels": self.levels, "kinds": self.kinds, "by_day": self.by_day}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureForm:
        """The form that `to_dict` wrote."""
        return cls(*(dict(values[name]) for name in ("edges", "levels", "kinds", "by_day")))


_WHOLE = re.compile(r"-?\d+(?:\.0+)?")
_TRUTH = {"True": "1", "False": "0", "1": "True", "0": "False"}


def coded(levels: Sequence[str], values: Sequence[str | None]) -> list[int]:
    """The number of each value's level: as it is spelled or, where none is, as the whole number that it is ("01" and
    "1.0" are "1" where that is a level and they are not), or as the truth value."""
    number = {level: FIRST_LEVEL + place for place, level in enumerate(levels)}
    whole = _by_number(levels)

    def code(value: str | None) -> int:
        if value is None:
            return MISSING
        level = value if value in number else whole.get(_whole(value), _TRUTH.get(value, value))
        return number.get(level, UNKNOWN)

    return [code(value) for value in values]


def as_classes(labels: Sequence[Any], classes: Sequence[Any]) -> list[Any]:
    """Labels as the classes that they are: the same text or, where none is, the same whole number; others unchanged."""
    spelled = {str(one): one for one in classes}
    whole = _by_number(list(spelled))
    return [spelled.get(str(one), spelled.get(whole.get(_whole(str(one)), ""), one)) for one in labels]


def _by_number(levels: Sequence[str]) -> dict[int | None, str]:
    """Levels that are whole numbers by these, of several the one that is spelled most plainly."""
    numbers = [(number, level) for level in levels if (number := _whole(level)) is not None]
    return dict(sorted(numbers, key=lambda one: one[1] == str(one[0])))


def _whole(text: str) -> int | None:
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None


def plain_columns(frame: pd.DataFrame, form: FeatureForm) -> np.ndarray:
    """Numbers (and parts of dates) as they are and categories by number from 0, NaN where nothing is known or a level
    is new, (N, F + G): what trees take."""
    numbers = _numbers(frame, form.kinds, form.by_day)
    codes = form.encode(frame).codes_NC.astype(np.float64) - FIRST_LEVEL
    codes[codes < 0] = np.nan
    return np.concatenate([*(numbers[name][:, None] for name in form.edges), codes], axis=1)


def _numbers(frame: pd.DataFrame, kinds: Mapping[str, Kind], by_day: Mapping[str, bool]) -> dict[str, np.ndarray]:
    """Every number by its name: columns, and the parts of dates. Raises DataError if a column is called as a part."""
    found = {name: as_numbers(frame[name]) for name in names_of(kinds, "number")}
    for name in names_of(kinds, "date"):
        dates = known_dates(frame[name], by_day[name])
        parts = (
            days(dates),
            dates.dt.day_of_year,
            dates.dt.day,
            dates.dt.day_of_week,
            dates.dt.hour + dates.dt.minute / 60,
        )
        twice = sorted({f"{name} ({part})" for part in DATE_PARTS} & set(found))
        if twice:
            raise DataError(f"a column is called {twice[0]!r}, as is a part of the date {name!r}")
        found |= {
            f"{name} ({part})": series.to_numpy(np.float64) for part, series in zip(DATE_PARTS, parts, strict=True)
        }
    return found


def _edges(numbers: np.ndarray, n_bins: int) -> list[float]:
    """Quantiles of the known ones, each once; of a constant, one bin about it."""
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return [0.0, 1.0]
    edges: Sequence[float] = np.unique(np.quantile(known, np.linspace(0, 1, n_bins + 1))).tolist()
    return [*edges] if len(edges) > 1 else [edges[0] - 0.5, edges[0] + 0.5]
