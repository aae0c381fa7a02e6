"""Words with a tag each, and texts with entities marked in them: from CoNLL and JSONL files, or from memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from transfuse.data.pairs import as_texts
from transfuse.data.text_files import MOST_CHARACTERS, read_lines, suffix_of
from transfuse.errors import DataError

_SPACES = re.compile(r"[ \t]+")  # others may be a token

Mark = tuple[int, int, str]
"""An entity in a text: its first character, its last + 1, its kind."""


@dataclass
class Tagged:
    """`X` holds lists of words and `y` a tag for each, or `X` holds texts and `y` the entities marked in each."""

    X: list[Any] = field(default_factory=list)
    y: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.X)


def read_tags(path: str | Path, *, token: int = 1, tag: int = -1) -> Tagged:
    """Read a CoNLL file, or a .jsonl of objects with `tokens` and `tags` or with `text` and `entities`.

    In CoNLL a line is a word with its columns between spaces or tabs, a blank line ends a sentence, and -DOCSTART-
    lines are passed over; `token` and `tag` are numbers of columns from 1, or from the end below 0. An entity is
    [start, end, kind] or an object with the keys `start`, `end` and `label`, in characters of the text.
    Raises DataError naming file, line and rule.
    """
    path = Path(path)
    rows = _json_rows(path) if suffix_of(path) == ".jsonl" else _sentences(path, token, tag)
    found = Tagged()
    for x, y in rows:
        found.X.append(x)
        found.y.append(y)
    if not found.X:
        raise DataError(f"{path}: no sentences in it")
    return found


def _sentences(path: Path, token: int, tag: int) -> Iterator[tuple[list[str], list[str]]]:
    if 0 in (token, tag):
        raise DataError(f"{path}: columns are numbered from 1, or from -1 at the end: token={token}, tag={tag}")
    width = 0
    words: list[str] = []
    tags: list[str] = []
    for line, text in enumerate(read_lines(path), start=1):
        cells = _SPACES.split(text.strip(" \t"))
        if cells == [""] or cells[0] == "-DOCSTART-":
            if words:
                yield words, tags
                words, tags = [], []
            continue
        width = width or len(cells)
        if len(cells) != width:
            raise DataError(f"{path}:{line}: {len(cells)} columns, but {width} before")
        for column in (token, tag):
            if not -width <= column <= width or width < 2:
                raise DataError(f"{path}:{line}: {width} columns, no word in column {token} with a tag in column {tag}")
        words.append(cells[token - (token > 0)])
        tags.append(cells[tag - (tag > 0)])
    if words:
        yield words, tags


def _json_rows(path: Path) -> Iterator[tuple[Any, Any]]:
    kind = ""
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not JSON ({error})") from error
        names = ("text", "entities") if isinstance(record, dict) and "text" in record else ("tokens", "tags")
        if not isinstance(record, dict) or not set(names) <= set(record):
            raise DataError(f"{path}:{line}: expected an object with tokens and tags, or with text and entities")
        x, y = (record[name] for name in names)
        where = f"{path}:{line}"
        kind = kind or names[0]
        if names[0] != kind:
            raise DataError(f"{where}: an object with {names[0]}, but the first had {kind}")
        if kind == "text":
            marks = [_mark(one, f"{where}: entity {i}") for i, one in enumerate(_list(y, where))]
            (text,), _ = _named(where, as_words, [x])
            yield text, _named(where, as_marks, [marks], [text])[0]
        else:
            (words,), _ = _named(where, as_words, [_list(x, where)])
            yield words, _named(where, as_tags, [_list(y, where)], [words])[0]


def _named(where: str, check: Callable[..., Any], rows: list[Any], *others: Any) -> Any:
    """What `check` makes of the one row, its errors named by the line."""
    try:
        return check(rows, *others, "row")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {type(value).__name__}, expected a list")
    return value


def _mark(one: Any, where: str) -> Mark:
    """An entity as (start, end, kind). Raises DataError if it is not one."""
    cells = [one.get(name) for name in ("start", "end", "label")] if isinstance(one, dict) else one
    if isinstance(cells, str | bytes) or not hasattr(cells, "__len__") or len(cells) != 3:
        raise DataError(f"{where}: {one!r}, expected start, end and label")
    start: Any
    end: Any
    start, end, label = cells
    whole = all(isinstance(place, Integral) and not isinstance(place, bool) for place in (start, end))
    if not whole or not isinstance(label, str) or not label:
        raise DataError(f"{where}: {one!r}, expected two whole numbers and a name")
    return int(start), int(end), label


def as_words(X: Iterable[Any], name: str) -> tuple[list[Any], bool]:
    """Rows of words, or texts, checked, and which of the two it is (True for texts).

    Raises DataError naming row and word.
    """
    if isinstance(X, str | bytes):
        raise DataError(f"{name} is one string; expected a list of texts or of lists of words")
    if hasattr(X, "columns"):
        raise DataError(f"{name} is a table; give the column of its texts or words")
    rows = list(X)
    if rows and isinstance(rows[0], str):
        return as_texts(rows, name, MOST_CHARACTERS), True
    for row, words in enumerate(rows):
        if isinstance(words, str) or not hasattr(words, "__len__") or not len(words):
            raise DataError(f"{name}[{row}]: {words!r}, expected a list of at least one word")
        for place, word in enumerate(words):
            if not isinstance(word, str) or any("\ud800" <= character <= "\udfff" for character in word):
                raise DataError(f"{name}[{row}][{place}]: {word!r} is not a word")
    if not rows:
        raise DataError(f"{name} is empty; at least one row is needed")
    return [list(map(str, words)) for words in rows], False


def as_tags(y: Iterable[Any], rows: Sequence[Sequence[Any]], name: str) -> list[list[str]]:
    """One tag a word, checked. Raises DataError naming row and word."""
    found = list(y)
    if len(found) != len(rows):
        raise DataError(f"{name} has {len(found)} rows for {len(rows)} of words; they must be equally many")
    for row, (tags, words) in enumerate(zip(found, rows, strict=True)):
        if isinstance(tags, str) or not hasattr(tags, "__len__") or len(tags) != len(words):
            n = len(tags) if hasattr(tags, "__len__") and not isinstance(tags, str) else 0
            raise DataError(f"{name}[{row}]: {n} tags for {len(words)} words; one each is needed")
        for place, tag in enumerate(tags):
            if not isinstance(tag, str) or not tag:
                raise DataError(f"{name}[{row}][{place}]: {tag!r} is not a tag")
    return [list(map(str, tags)) for tags in found]


def as_marks(y: Iterable[Any], texts: Sequence[str], name: str) -> list[list[Mark]]:
    """Entities of each text, in order, checked: inside the text, not empty, and none over another.

    Raises DataError naming row and entity.
    """
    found = list(y)
    if len(found) != len(texts):
        raise DataError(f"{name} has {len(found)} rows for {len(texts)} texts; they must be equally many")
    rows = []
    for row, (entities, text) in enumerate(zip(found, texts, strict=True)):
        if isinstance(entities, str) or not hasattr(entities, "__iter__"):
            raise DataError(f"{name}[{row}]: {entities!r}, expected the entities of a text")
        marks = sorted(_mark(one, f"{name}[{row}][{i}]") for i, one in enumerate(entities))
        for i, (start, end, _) in enumerate(marks):
            if not 0 <= start < end <= len(text):
                raise DataError(f"{name}[{row}]: an entity from {start} to {end} in a text of {len(text)} characters")
            if i and start < marks[i - 1][1]:
                raise DataError(f"{name}[{row}]: two entities at character {start}; entities may not overlap")
        rows.append(marks)
    return rows
