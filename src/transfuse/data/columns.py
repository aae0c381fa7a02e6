"""What the columns of a table hold: text, image or audio files, numbers, categories or dates."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from transfuse.errors import ConfigError, DataError

Kind = Literal["text", "image", "audio", "number", "category", "date", "ignored"]

IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")

MOST_LEVELS = 100
"""Different values up to which a column of short strings is one of categories, however few rows there are."""

FEW = 0.05
"""Share of different values among the known ones up to which it is one too, however many there are."""

WORDS = 3.0
"""Words of a value, on average, above which a column of many different values is text."""


def find_kinds(frame: pd.DataFrame, given: Mapping[str, Kind]) -> dict[str, Kind]:
    """The kind of each column: as `given`, or as its values look.

    Raises ConfigError for a name that is no column or a kind that is none, DataError for equally named columns.
    """
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two columns are called {twice[0]!r}")
    for name, kind in given.items():
        if name not in names:
            raise ConfigError(f"{name!r} is not a column; there are {', '.join(names)}")
        if kind not in get_args(Kind):
            raise ConfigError(f"column {name!r}: kind {kind!r} must be one of {', '.join(get_args(Kind))}")
    return {name: given.get(name) or look(frame[column]) for name, column in zip(names, frame.columns, strict=True)}


def look(column: pd.Series) -> Kind:
    """The kind that a column's known values suggest.

    Numbers are numbers; what is a file's name by its ending is that file; what reads as a date is one. Strings of few
    different values (at most `MOST_LEVELS`, or `FEW` of the known ones) are categories unless each is different and has
    more than `WORDS` words. Other strings are text if they have several words, and otherwise names of rows, which teach
    nothing about other rows: ignored, as is a column of which nothing is known.
    """
    known = column.dropna()
    if not len(known):
        return "ignored"
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(known.infer_objects()):
        return "category"
    if pd.api.types.is_datetime64_any_dtype(column):
        return "date"
    if pd.api.types.is_numeric_dtype(known.infer_objects()) or pd.to_numeric(known, errors="coerce").notna().all():
        return "number"
    texts = known.astype(str)
    endings = texts.str.lower().str.extract(r"(\.[a-z0-9]+)$")[0]
    for kind, those in (("image", IMAGES), ("audio", SOUNDS)):
        if endings.isin(those).mean() > 0.9:
            return kind  # type: ignore[return-value]
    if as_dates(texts.head(1000), day_first(texts)).notna().all():
        return "date"
    n_levels, words = texts.nunique(), texts.head(1000).map(lambda text: len(text.split())).mean()
    if n_levels == len(texts) and words > WORDS:
        return "text"
    if n_levels <= max(min(MOST_LEVELS, len(texts) // 2), FEW * len(texts)):
        return "category"
    return "text" if words > 1.2 else "ignored"


_ISO = r"^\d{4}[-/.]\d{1,2}[-/.]\d{1,2}"
_NUMERIC = r"^(?P<first>\d{1,2})(?P<mark>[-/.])(?P<second>\d{1,2})[-/.](?P<year>\d{4})(?P<rest>.*)$"
_NAMED = r"^(?:[A-Za-z]{3,}\.?,? )?(?:\d{1,2}\.? [A-Za-z]{3,}|[A-Za-z]{3,}\.? \d{1,2}),? \d{4}"
_OFFSET = r"(?<=[\dM])\s*(?:Z|(?:UTC|GMT)?[+-]\d{2}:?\d{2}|[A-Z]{3,5})$|(?:(?<=:\d\d)|(?<=[AP]M))\s*[+-]\d{2}$"
"""What a place's clock is ahead of the world's, or the name of its zone: dates are taken as that clock shows them."""


def day_first(texts: pd.Series) -> bool:
    """Whether numbers such as 02/03/2020 begin with the day: as those tell that can only be read one way, and where
    none does, if they are divided by points."""
    if pd.api.types.is_datetime64_any_dtype(texts):
        return False
    parts = texts.dropna().astype(str).str.strip().str.extract(_NUMERIC).dropna()
    first, second = (parts[name].astype(int) for name in ("first", "second"))
    if (first > 12).any() or (second > 12).any():
        return bool((first > 12).any())
    return bool(len(parts)) and bool((parts["mark"] == ".").all())


def as_dates(texts: pd.Series, by_day: bool) -> pd.Series:
    """Dates of strings (or of what are dates already), NaT where they are none. Numbers are day, month and year in this
    order where `by_day`, else month first; a year has four digits."""
    if pd.api.types.is_datetime64_any_dtype(texts):
        return texts.dt.tz_localize(None)
    strings = texts.astype("string").str.strip()
    numeric = strings.str.extract(_NUMERIC)
    day, month = ("first", "second") if by_day else ("second", "first")
    turned = numeric["year"] + "-" + numeric[month].str.zfill(2) + "-" + numeric[day].str.zfill(2) + numeric["rest"]
    known = strings.str.contains(f"(?:{_ISO})|(?:{_NAMED})", regex=True).fillna(False)
    dated = turned.where(numeric["year"].notna(), strings.where(known)).str.replace(_OFFSET, "", regex=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which format it fell back to is of no interest
        try:
            found = pd.to_datetime(dated, errors="coerce", format="mixed")
        except ValueError:  # zones in some way that is not known here, and not the same in all
            found = pd.Series(pd.NaT, index=dated.index)
        return found.dt.tz_localize(None)


def as_numbers(column: pd.Series) -> np.ndarray:
    """A column as float64, lengths of time in seconds, NaN where nothing is known.

    Raises DataError naming column and row of a value that is not a finite number.
    """
    if pd.api.types.is_timedelta64_dtype(column):
        column = column.dt.total_seconds()
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    bad = np.flatnonzero((np.isnan(numbers) & column.notna().to_numpy()) | np.isinf(numbers))
    if len(bad):
        raise DataError(f"column {column.name!r}, row {bad[0] + 1}: {column.iloc[bad[0]]} is not a finite number")
    return numbers


def known_dates(column: pd.Series, by_day: bool) -> pd.Series:
    """A column as dates, NaT where nothing is known. Raises DataError naming column and row of a value that is none, in
    the order of day and month that the others have."""
    dates = as_dates(column, by_day)
    bad = np.flatnonzero((dates.isna() & column.notna()).to_numpy())
    if len(bad):
        raise DataError(f"column {column.name!r}, row {bad[0] + 1}: {column.iloc[bad[0]]} is not a date")
    return dates


def days(dates: pd.Series) -> pd.Series:
    """Days since 1970, with fractions, NaN where there is no date."""
    return (dates - pd.Timestamp(1970, 1, 1)) / pd.Timedelta(days=1)


def as_strings(column: pd.Series) -> list[str | None]:
    """A column as strings, None where nothing is known; whole numbers have no decimals, as in a column without gaps."""
    return [None if _missing(value) else _string(value) for value in column.tolist()]


def as_paths(column: pd.Series, folder: Path) -> tuple[list[Path | None], dict[int, str]]:
    """Files that a column names, relative to `folder`, None where it names none; and, by row, why one may not be read:
    by its name it lies outside of the folder (links in the folder may lead anywhere)."""
    root = Path(os.path.abspath(folder))
    paths: list[Path | None] = []
    refused: dict[int, str] = {}
    for row, name in enumerate(as_strings(column)):
        path = None if name is None else Path(os.path.normpath(root / name))
        if name is not None and "\0" in name:
            refused[row], path = f"{name!r}: no name of a file", None
        elif path is not None and not (path.is_relative_to(root) or _resolves_below(path, root)):
            refused[row], path = f"{name}: lies outside of {folder}, where files are looked for", None
        paths.append(path)
    return paths, refused


def _resolves_below(path: Path, root: Path) -> bool:
    """Whether a path is in a folder that it names otherwise, by way of links."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _missing(value: Any) -> bool:
    return np.ndim(value) == 0 and (bool(pd.isna(value)) or value == "")


def _string(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def names_of(kinds: Mapping[str, Kind], *wanted: Kind) -> list[str]:
    """Columns of these kinds, sorted, so that the order in a table does not matter."""
    return sorted(name for name, kind in kinds.items() if kind in wanted)


def check_cells(frame: pd.DataFrame, kinds: Mapping[str, Kind], by_day: Mapping[str, bool] | None = None) -> None:
    """Raise DataError if a column is not there, or for a cell that is not of its column's kind, naming its row. Dates
    are in the order that `by_day` says, or their column itself."""
    missing = sorted(name for name, kind in kinds.items() if kind != "ignored" and name not in frame.columns)
    if missing:
        raise DataError(f"there is no column {', '.join(map(repr, missing))}, which the model was trained on")
    for name in names_of(kinds, "number"):
        as_numbers(frame[name])
    for name in names_of(kinds, "date"):
        known_dates(frame[name], day_first(frame[name]) if by_day is None else by_day.get(name, False))
