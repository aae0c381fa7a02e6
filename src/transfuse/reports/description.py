"""What a table holds, column by column, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfuse.data.columns import Kind, as_numbers, as_strings, day_first, find_kinds, known_dates
from transfuse.reports.page import text_table
from transfuse.strings.longest import longest_distinct_rows

RUN = 4
"""Words of a run; one that recurs ends a stretch without a repeat."""

SHORTEST = 20
"""Runs below which a text is too short to be said to repeat itself."""

NUMBERS = 1 << 20
"""Runs looked at together, counting what shorter texts are filled up with."""


@dataclass(frozen=True)
class ColumnDescription:
    """One column: what kind it looks (or is given) to be, how many cells are known and how many different, and `about`,
    what the kind has to say. Of text: words of a cell on average, texts that repeat themselves, and the row (from 1) of
    the one that does most, None where there is none."""

    name: str
    kind: Kind
    known: int
    different: int
    about: str
    words: float | None = None
    repeating: int | None = None
    worst_row: int | None = None


@dataclass(frozen=True)
class Description:
    """All columns of a table of `n_rows`."""

    n_rows: int
    columns: list[ColumnDescription]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """A table for a terminal."""
        header = ["column", "kind", "known", "different", "words", "repeat themselves", "what"]
        rows = [
            [
                one.name,
                one.kind,
                f"{100 * one.known / self.n_rows:.0f} %",
                f"{one.different:,}",
                "" if one.words is None else f"{one.words:.1f}",
                "" if not one.repeating else f"{one.repeating:,} (most: row {one.worst_row})",
                one.about,
            ]
            for one in self.columns
        ]
        return "\n".join([f"{self.n_rows:,} rows", *text_table(header, rows)])


def describe(frame: pd.DataFrame, kinds: Mapping[str, Kind] | None = None) -> Description:
    """The kind of each column, as `kinds` says or as it looks, and what it holds.

    A text repeats itself if the longest stretch of it in which no run of four words recurs is less than half of it
    (and it has at least `SHORTEST` runs). Raises DataError and ConfigError as `MultimodalClassifier.fit` does.
    """
    found = find_kinds(frame, kinds or {})
    return Description(len(frame), [_described(frame[name], kind) for name, kind in found.items()])


def distinct_shares(texts: Sequence[str]) -> np.ndarray:
    """Of each text the share of its runs of four words that its longest stretch without a repeated one holds; 1 for a
    text with fewer than `SHORTEST`."""
    shares = np.ones(len(texts))
    long = [(row, runs) for row, text in enumerate(texts) if len(runs := _runs(text)) >= SHORTEST]
    long.sort(key=lambda item: len(item[1]))
    while long:
        # the longest, and as many of those before it as fit beside it
        part = long[-max(1, NUMBERS // len(long[-1][1])) :]
        del long[-len(part) :]
        lengths = np.array([len(runs) for _, runs in part])
        keep = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(keep.shape, np.int64)
        ids[keep] = np.concatenate([runs for _, runs in part])
        shares[[row for row, _ in part]] = longest_distinct_rows(ids, keep)[0] / lengths
    return shares


def _runs(text: str) -> np.ndarray:
    """The runs of four words of a text, by number."""
    words = text.split()
    if len(words) < RUN:
        return np.zeros(0, np.int64)
    numbers: dict[tuple[str, ...], int] = {}
    runs = zip(*(words[i:] for i in range(RUN)), strict=False)
    return np.array([numbers.setdefault(run, len(numbers)) for run in runs], np.int64)


def _described(column: pd.Series, kind: Kind) -> ColumnDescription:
    strings = as_strings(column)
    known = [one for one in strings if one is not None]
    words, repeating, worst = None, None, None
    if kind == "text":
        shares = distinct_shares([one or "" for one in strings])
        words = float(np.mean([len(one.split()) for one in known])) if known else 0.0
        repeating = int((shares < 0.5).sum())
        worst = int(shares.argmin()) + 1 if repeating else None
    about = _about(column, kind, known)
    return ColumnDescription(str(column.name), kind, len(known), len(set(known)), about, words, repeating, worst)


def _about(column: pd.Series, kind: Kind, known: list[str]) -> str:
    if not known:
        return "nothing is known"
    if kind == "number":
        low, middle, high = np.nanquantile(as_numbers(column), (0, 0.5, 1))
        return f"{low:.6g} to {high:.6g}, median {middle:.6g}"
    if kind == "date":
        dates = known_dates(column, day_first(column)).dropna()
        return f"{dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}"
    if kind == "category":
        counts = pd.Series(known).value_counts()
        return f"most often {counts.index[0]} ({100 * counts.iloc[0] / len(known):.0f} %)"
    first = " ".join(known[0].split())
    return first if len(first) <= 40 else first[:39] + "…"
