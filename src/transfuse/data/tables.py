"""Tables from CSV and TSV files, as pandas frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from transfuse.data.pairs import numbered_rows
from transfuse.data.text_files import suffix_of
from transfuse.errors import DataError

MISSING = ["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]
"""Cells that hold nothing."""


def read_table(path: str | Path, *, numbers: bool | Iterable[str] = True) -> pd.DataFrame:
    """A .csv or .tsv file with a header, .gz and .xz too; numbers where a whole column is of them, text otherwise.

    `numbers` may name the columns of numbers instead, where another table has said which they are; without any
    (False), all cells are text as it stands there, which does not depend on what else is in a column.

    Raises DataError naming file, line and rule: no rows, rows of another width, unnamed or equally named columns.
    """
    path = Path(path)
    if suffix_of(path) not in (".csv", ".tsv"):
        raise DataError(f"{path}: cannot tell the format; end the name in .csv or .tsv (and .gz or .xz)")
    numbered = numbered_rows(path)
    _, header = next(numbered, (1, []))
    _check_header(path, header)
    rows: list[list[str]] = []
    for line, cells in numbered:
        if cells == ([] if suffix_of(path) == ".csv" else [""]):  # a blank line
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}:{line}: {len(cells)} columns, but the header has {len(header)}")
        rows.append(cells)
    if not rows:
        raise DataError(f"{path}: no rows in it")
    frame = pd.DataFrame(rows, columns=header)
    if numbers is True:
        typed = frame.apply(_typed)
    else:
        named = set() if numbers is False else set(numbers)
        typed = frame.apply(lambda column: _numbers(column, path) if column.name in named else _known(column))
    for name in typed.columns:
        if pd.api.types.is_numeric_dtype(typed[name]) and np.isinf(typed[name].to_numpy(float)).any():
            row = int(np.flatnonzero(np.isinf(typed[name].to_numpy(float)))[0])
            raise DataError(
                f"{path}: row {row + 1}, column {name!r}: {rows[row][header.index(name)]} is not a finite number"
            )
    return typed


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise DataError(f"{path}: empty; a table begins with the names of its columns")
    for place, name in enumerate(header, start=1):
        if not name.strip():
            raise DataError(f"{path}:1: column {place} has no name")
        if header.index(name) != place - 1:
            raise DataError(f"{path}:1: two columns are called {name!r}")


def _known(column: pd.Series) -> pd.Series:
    stripped = column.str.strip()
    return stripped.mask(stripped.isin(MISSING))


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    known = _known(column)
    numbers = pd.to_numeric(known, errors="coerce")
    bad = np.flatnonzero(numbers.isna() & known.notna())
    if len(bad):
        raise DataError(f"{path}: row {bad[0] + 1}, column {column.name!r}: {column.iloc[bad[0]]} is not a number")
    return numbers


def _typed(column: pd.Series) -> pd.Series:
    known = _known(column)
    numbers = pd.to_numeric(known, errors="coerce")
    return numbers if (numbers.notna() == known.notna()).all() and known.notna().any() else known
