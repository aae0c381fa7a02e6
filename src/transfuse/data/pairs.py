"""Pairs of texts: from TSV, CSV or JSONL, from two parallel files, or from columns in memory."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfuse.data.text_files import MAX_CHARACTERS, MOST_CHARACTERS, STDIN, read_lines, suffix_of
from transfuse.errors import DataError

_TABLES = (".tsv", ".csv")

Columns = tuple[list[str], list[str]]
"""Sources and targets."""

Row = tuple[int, list[Any]]
"""Line number and cells."""


@dataclass
class Pairs:
    """Sources and targets of equal number; `skipped` counts the rows left out as unusable."""

    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.sources)


def read_pairs(
    path: str | Path,
    second: str | Path | None = None,
    *,
    source: str | None = None,
    target: str | None = None,
    skip_bad_rows: bool = False,
) -> Pairs:
    """Read pairs from one file, or from two parallel files with a text a line.

    `source` and `target` name the columns: header names (the first row is then a header) or numbers from 1 (no header).
    Without them a TSV or CSV has exactly two columns and no header, and a JSONL the keys `source` and `target`. Files
    may end in .gz or .xz; the path "-" is a TSV on standard input. Raises DataError naming file, line and rule;
    `skip_bad_rows` leaves rows with an empty, missing or over-long side out instead and counts them.
    """
    path = _input(path)
    if second is not None:
        if source is not None or target is not None:
            raise DataError(f"{path}: two parallel files have no columns to name: source={source}, target={target}")
        rows = _parallel(path, Path(second))
    elif suffix_of(path) == ".jsonl":
        rows = _json_lines(path, [source or "source", target or "target"])
    elif suffix_of(path) in _TABLES or path is STDIN:
        if (source is None) != (target is None):
            raise DataError(f"{path}: name both columns or none: source={source}, target={target}")
        rows = _table_rows(path, None if source is None or target is None else [source, target])
    else:
        raise DataError(
            f"{path}: cannot tell the format; end the name in .tsv, .csv or .jsonl (and .gz or .xz), "
            "or give two parallel files"
        )
    pairs = Pairs()
    for line, (left, right) in rows:
        complaint = _complaint("source", left) or _complaint("target", right)
        if complaint is None:
            pairs.sources.append(left)
            pairs.targets.append(right)
        elif skip_bad_rows:
            pairs.skipped += 1
        else:
            raise DataError(f"{path}:{line}: {complaint}")
    if not pairs.sources:
        raise DataError(f"{path}: no pairs in it" + (f" ({pairs.skipped} unusable rows)" if pairs.skipped else ""))
    return pairs


def read_sources(path: str | Path, *, source: str | None = None, long: bool = False) -> list[str]:
    """Texts to feed a model: a line each of a plain text file, or one column of a TSV, CSV or JSONL; `long` ones, for a
    model that reads in windows, of up to 10,000,000 characters.

    The path "-" is standard input, a text a line.
    `source` names the column as in `read_pairs`; without it a TSV or CSV gives its first column and has no header.
    Raises DataError as `read_pairs` does.
    """
    path = _input(path)
    if suffix_of(path) == ".jsonl":
        rows: Iterator[Row] = _json_lines(path, [source or "source"])
    elif suffix_of(path) in _TABLES:
        rows = _table_rows(path, [source or "1"])
    elif source is not None:
        raise DataError(f"{path}: a text a line has no columns to name: source={source}")
    else:
        rows = ((line, [text]) for line, text in enumerate(read_lines(path), start=1))
    texts = []
    for line, (text,) in rows:
        complaint = _complaint("source", text, MOST_CHARACTERS if long else MAX_CHARACTERS)
        if complaint is not None:
            raise DataError(f"{path}:{line}: {complaint}")
        texts.append(text)
    if not texts:
        raise DataError(f"{path}: no texts in it")
    return texts


def read_columns(
    path: str | Path,
    names: Sequence[str] | None,
    *,
    skip_bad_rows: bool = False,
    long: bool = False,
    rules: Mapping[int, Callable[[str], str | None]] | None = None,
    may_be_empty: Collection[int] = (),
    lists: Mapping[int, str] | None = None,
) -> tuple[list[list[str]], int]:
    """Columns of a TSV, CSV or JSONL file, and how many rows were left out.

    `names` are header names, or numbers from 1, as in `read_pairs`; None stands for the two columns there are. Numbers
    in JSONL are read as text. Texts may be `long` as for `read_sources`. `rules` say of a column, by its place, what is
    wrong with a cell, if anything is. Columns in `may_be_empty` may have empty cells, and null in JSONL, those in
    `lists` arrays, whose parts come back as one string with this between them. Raises DataError as `read_pairs`
    does.
    """
    path = _input(path)
    if suffix_of(path) == ".jsonl":
        if names is None:
            raise DataError(f"{path}: an object has no first and second column; name the keys")
        rows = _json_lines(path, names)
    elif suffix_of(path) in _TABLES or path is STDIN:
        rows = _table_rows(path, names)
    else:
        raise DataError(f"{path}: cannot tell the format; end the name in .tsv, .csv or .jsonl (and .gz or .xz)")
    labels = ["column 1", "column 2"] if names is None else [f"column {name}" for name in names]
    columns: list[list[str]] = [[] for _ in labels]
    skipped = 0
    for line, given in rows:
        cells = list(map(_as_read, given))
        broken = None
        for place, mark in (lists or {}).items():
            if isinstance(given[place], list):
                parts = list(map(_as_read, given[place]))
                broken = broken or _list_complaint(labels[place], parts, mark)
                cells[place] = mark.join(map(str, parts))
        for place in may_be_empty:
            if cells[place] is None or (isinstance(cells[place], str) and not cells[place].strip()):
                cells[place] = ""
        longest = MOST_CHARACTERS if long else MAX_CHARACTERS
        complaints = (
            _complaint(label, cell, longest)
            for place, (label, cell) in enumerate(zip(labels, cells, strict=True))
            if not (cell == "" and place in may_be_empty)
        )
        complaint = broken or next(filter(None, complaints), None)
        for place, rule in (rules or {}).items():
            complaint = complaint or rule(cells[place])
        if complaint is None:
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
        elif skip_bad_rows:
            skipped += 1
        else:
            raise DataError(f"{path}:{line}: {complaint}")
    if not columns[0]:
        raise DataError(f"{path}: no rows in it" + (f" ({skipped} unusable rows)" if skipped else ""))
    return columns, skipped


def as_texts(column: Iterable[Any], name: str, longest: int = MAX_CHARACTERS) -> list[str]:
    """A list, array or pandas column as a list of strings of at most `longest` characters, checked. `name` stands for
    it in errors.

    Raises DataError naming the row (from 0, as indexing has it) of a missing, empty or over-long text.
    """
    if isinstance(column, str | bytes):
        raise DataError(f"{name} is one string; expected a list, array or column of strings")
    if not isinstance(column, Iterable) or isinstance(column, set | frozenset):
        raise DataError(f"{name} is of type {type(column).__name__}; expected a list, array or column of strings")
    if getattr(column, "ndim", 1) != 1:
        raise DataError(f"{name} has {getattr(column, 'ndim', 0)} dimensions; expected one column of strings")
    texts = []
    for row, text in enumerate(column):
        complaint = _complaint("text", text, longest)
        if complaint is not None:
            raise DataError(f"{name}[{row}]: {complaint}")
        texts.append(str(text))
    if not texts:
        raise DataError(f"{name} is empty; at least one text is needed")
    return texts


def as_pairs(X: Iterable[Any], y: Iterable[Any], x_name: str, y_name: str) -> Columns:
    """Two columns in memory, checked as `as_texts` does; they must be equally long."""
    sources, targets = as_texts(X, x_name), as_texts(y, y_name)
    if len(sources) != len(targets):
        raise DataError(f"{x_name} has {len(sources)} rows and {y_name} has {len(targets)}; they must be equally many")
    return sources, targets


def _input(path: str | Path) -> Path:
    return STDIN if str(path) == "-" else Path(path)


def _complaint(side: str, text: Any, longest: int = MAX_CHARACTERS) -> str | None:
    if text is None or (isinstance(text, float) and text != text):
        return f"the {side} is missing"
    if not isinstance(text, str):
        return f"the {side} is {type(text).__name__} {text!r}, expected a string"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"the {side} holds half a surrogate pair, which is not a character"
    if len(text) > longest:
        return f"the {side} has {len(text):,} characters, at most {longest:,} are allowed"
    if not text.strip():
        return f"the {side} is empty"
    return None


def _as_read(cell: Any) -> Any:
    """A JSON number as text."""
    return str(cell) if isinstance(cell, int | float) and cell == cell else cell


def _list_complaint(side: str, found: list[Any], mark: str) -> str | None:
    for one in found:
        if not isinstance(one, str) or not one.strip():
            return f"the {side} is a list with {one!r}, expected strings that are not empty"
        if mark in one:
            return f"the {side} is a list with {one!r}, which holds {mark!r}, what is to stand between its strings"
    return None


def _parallel(left: Path, right: Path) -> Iterator[Row]:
    lefts, rights = list(read_lines(left)), list(read_lines(right))
    if len(lefts) != len(rights):
        raise DataError(
            f"{left} has {len(lefts)} lines and {right} has {len(rights)}; "
            "line i of one must belong to line i of the other"
        )
    for line, (one, other) in enumerate(zip(lefts, rights, strict=True), start=1):
        yield line, [one, other]


def _json_lines(path: Path, keys: Sequence[str]) -> Iterator[Row]:
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{line}: not JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not JSON that Python can read ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{line}: {type(record).__name__}, expected an object a line")
        for key in keys:
            if key not in record:
                raise DataError(f"{path}:{line}: no key {key!r} among {', '.join(sorted(map(repr, record)))}")
        yield line, [record[key] for key in keys]


def _table_rows(path: Path, names: Sequence[str] | None) -> Iterator[Row]:
    """Cells of the named columns; of the two there are, without names."""
    rows = numbered_rows(path)
    if names is None:
        wanted: list[int] = [0, 1]
        width: int | None = 2
    elif all(name.isdecimal() for name in names):
        wanted = [int(name) - 1 for name in names]
        width = None
    else:
        first = next(rows, None)
        if first is None:
            return
        wanted, width = _header(path, first[1], names)
    for line, cells in rows:
        if cells in ([], [""]):  # a blank line, whatever the number of columns
            yield line, [""] * len(wanted)
            continue
        width = len(cells) if width is None else width
        if len(cells) != width:
            hint = " (source<TAB>target)" if suffix_of(path) != ".csv" and width == 2 else ""
            hint += "; of more, name those that count" if len(cells) > 2 == width else ""
            raise DataError(f"{path}:{line}: {len(cells)} columns, expected {width}{hint}")
        for column in wanted:
            if not 0 <= column < width:
                raise DataError(f"{path}:{line}: {width} columns, no column {column + 1}")
        yield line, [cells[column] for column in wanted]


def _header(path: Path, header: Sequence[str], names: Sequence[str]) -> tuple[list[int], int]:
    for name in names:
        if name not in header:
            raise DataError(f"{path}:1: no column {name!r} in the header {', '.join(map(repr, header))}")
        if list(header).count(name) > 1:
            raise DataError(f"{path}:1: {list(header).count(name)} columns are called {name!r} in the header")
    return [list(header).index(name) for name in names], len(header)


def numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number (of the row's end) and cells; a TSV cell is everything between tabs, a CSV cell may be quoted.

    Raises DataError naming the line, and where the row begins that a quote leaves open.
    """
    if suffix_of(path) != ".csv":
        yield from ((line, text.split("\t")) for line, text in enumerate(read_lines(path), start=1))
        return
    csv.field_size_limit(sys.maxsize)  # our own limit names the side and both numbers
    reader = csv.reader((text + "\n" for text in read_lines(path)), strict=True)
    begins = 1
    try:
        for cells in reader:
            yield reader.line_num, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        open_quote = reader.line_num > begins and "end of data" in str(error)
        where = f"; a quote in the row that begins at line {begins} is not closed" if open_quote else ""
        raise DataError(f"{path}:{reader.line_num}: {error}{where}") from error
