"""Questions on contexts with their answers: SQuAD 1 and 2 files, .jsonl of the same fields, or rows in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from transfuse.data.text_files import DAMAGE, open_bytes, read_lines, suffix_of
from transfuse.errors import ConfigError, DataError

Answer = tuple[str, int]
"""Its text, and its first character in the context."""

Mismatched = Literal["refuse", "drop", "find"]


@dataclass
class Questions:
    """`X` holds (question, context) rows, `y` the right answers of each, none where there is none, `ids` their names;
    `dropped` counts answers and empty questions that were left out and `moved` those found elsewhere, as asked."""

    X: list[tuple[str, str]] = field(default_factory=list)
    y: list[list[Answer]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    dropped: int = 0
    moved: int = 0

    def __len__(self) -> int:
        return len(self.X)


def read_questions(path: str | Path, *, mismatched: Mismatched = "refuse", answers: bool = True) -> Questions:
    """Read a SQuAD file, version 1 or 2 (.json), or .jsonl with `question`, `context` and `answers`; .gz and .xz too.

    An answer whose `answer_start` does not give its text is refused, left out ("drop"), or moved to where the text
    stands nearest in the context ("find"; left out if nowhere). A question that loses its last answer is left out with
    it, and so is an empty one. Without answers (and without `is_impossible`) a question has none; `answers=False` reads
    none at all. Raises DataError naming file and question.
    """
    path = Path(path)
    if mismatched not in ("refuse", "drop", "find"):
        raise ConfigError(f"mismatched={mismatched!r} must be refuse, drop or find")
    found = Questions()
    for where, question, context, record in _json_rows(path) if suffix_of(path) == ".jsonl" else _squad(path):
        if not question.strip():
            if mismatched == "refuse":
                raise DataError(f"{where}: the question is empty")
            found.dropped += 1
            continue
        given = [] if record.get("is_impossible") or not answers else _answers(record.get("answers"), where)
        kept: list[Answer] = []
        for answer in given:
            placed = _placed(answer, context, mismatched, where)
            found.dropped += placed is None
            found.moved += placed is not None and placed != answer
            if placed is not None:
                kept.append(placed)
        if given and not kept:
            continue
        found.X.append((question, context))
        found.y.append(kept)
        found.ids.append(str(record.get("id", len(found.ids))))
    if not found.X:
        raise DataError(f"{path}: no questions in it")
    return found


def as_answers(y: Iterable[Any], rows: Sequence[tuple[str, str]], name: str) -> list[list[Answer]]:
    """The right answers of each row as (text, first character), checked against the contexts.

    A row is a list of such pairs, or `{"text": […], "answer_start": […]}`. Raises DataError naming the row.
    """
    found = list(y)
    if len(found) != len(rows):
        raise DataError(f"{name} has {len(found)} rows for {len(rows)} questions; they must be equally many")
    checked = []
    for row, (answers, (_, context)) in enumerate(zip(found, rows, strict=True)):
        where = f"{name}[{row}]"
        for answer in (read := _answers(answers, where)):
            _placed(answer, context, "refuse", where)
        checked.append(read)
    return checked


def _placed(answer: Answer, context: str, mismatched: Mismatched, where: str) -> Answer | None:
    """The answer where the context has it, None if it is to be left out."""
    text, start = answer
    if text.strip() and start >= 0 and context[start : start + len(text)] == text:
        return answer
    if mismatched == "refuse":
        there = context[start : start + len(text)] if start >= 0 else ""
        raise DataError(f"{where}: the answer is {text!r}, but the context has {there!r} at character {start}")
    places = _occurrences(context, text) if mismatched == "find" and text.strip() else []
    return (text, min(places, key=lambda place: abs(place - start))) if places else None


def _occurrences(context: str, text: str) -> list[int]:
    places = [context.find(text)]
    while places[-1] >= 0:
        places.append(context.find(text, places[-1] + 1))
    return places[:-1]


def _answers(value: Any, where: str) -> list[Answer]:
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not _is_row(texts) or not _is_row(starts) or len(texts) != len(starts):
            raise DataError(f"{where}: answers need text and answer_start, equally many of each")
        value = list(zip(texts, starts, strict=True))
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise DataError(f"{where}: {value!r}, expected a list of answers")
    found = []
    for one in value:
        cells = (one.get("text"), one.get("answer_start")) if isinstance(one, dict) else one
        if not _is_row(cells) or len(cells) != 2:
            raise DataError(f"{where}: {one!r}, expected the answer's text and its first character")
        text, start = cells
        if not isinstance(text, str) or isinstance(start, bool) or not hasattr(start, "__index__"):
            raise DataError(f"{where}: {one!r}, expected a text and a whole number")
        found.append((text, int(start)))
    return found


def _is_row(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list, or what stands for one, as an array does."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | dict)


Row = tuple[str, str, str, dict[str, Any]]
"""Where it stands, question, context, and its record."""


def _json_rows(path: Path) -> Iterator[Row]:
    for line, text in enumerate(read_lines(path), start=1):
        if text.strip():
            record = _parsed(text, f"{path}:{line}")
            where = f"{path}:{line}"
            yield where, _question(record, where), _text(record, "context", where), record


def _squad(path: Path) -> Iterator[Row]:
    with open_bytes(path) as stream:
        try:
            content = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte {error.start + 1} is not UTF-8") from error
        except (OSError, *DAMAGE) as error:
            raise DataError(f"{path}: the compressed file is damaged or truncated ({error})") from error
    for i, article in enumerate(_list(_parsed(content, str(path)), "data", str(path))):
        where = f"{path}: data[{i}]"
        for j, paragraph in enumerate(_list(article, "paragraphs", where)):
            place = f"{where}.paragraphs[{j}]"
            context = _text(paragraph, "context", place)
            for k, record in enumerate(_list(paragraph, "qas", place)):
                named = f"{place}.qas[{k}]"
                question = _question(record, named)
                yield f"{named} (id {record.get('id')})", question, context, record


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: {type(record).__name__}, expected an object")
    return record


def _list(record: Any, key: str, where: str) -> list[Any]:
    if not isinstance(record, dict) or not isinstance(record.get(key), list):
        raise DataError(f"{where}: no list {key!r}; expected SQuAD's data, paragraphs and qas")
    return list(record[key])


def _question(record: Any, where: str) -> str:
    value = record.get("question") if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise DataError(f"{where}: no text 'question'")
    return value


def _text(record: Any, key: str, where: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: no text {key!r}")
    return value
