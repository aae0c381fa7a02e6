"""What models that write no text of their own print: a line of text, or of JSON, for each row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from transfuse.cli.options import read_questions, read_rows
from transfuse.cli.saved import kind_of, load_model

LINE_ENDS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")

_QUESTIONS = re.compile(r"\.jsonl?(\.gz|\.xz)?$", re.IGNORECASE)
"""Files that hold questions and contexts without columns being named."""

Line = tuple[str, dict[str, Any]]
"""As text, and as JSON."""


def print_found(
    directory: Path,
    data: str,
    source: str | None,
    second: str | None,
    as_json: bool,
    device: str | None,
    dtype: str,
) -> None:
    """What the model says of each row of `data`, one a line."""
    ids: list[str] = []
    rows: list[Any]
    if kind_of(directory) == "QuestionAnswerer" and source is None and second is None and _QUESTIONS.search(data):
        questions = read_questions(Path(data), "refuse", answers=False)
        rows, ids = questions.X, questions.ids
    else:
        in_windows = kind_of(directory) in ("TokenTagger", "QuestionAnswerer")
        rows = read_rows(data, source, second, in_windows)
    model = load_model(directory, device, dtype)
    for number, (row, (text, record)) in enumerate(zip(rows, _lines(model, rows), strict=True)):
        given = {"source": row} if isinstance(row, str) else {"source": row[0], "second": row[1]}
        if ids:
            given["id"] = ids[number]
        typer.echo(json.dumps({**given, **record}, ensure_ascii=False) if as_json else text)


def print_rows(
    directory: Path,
    table: Path,
    files: Path | None,
    unreadable: str | None,
    as_json: bool,
    device: str | None,
    dtype: str,
) -> None:
    """What a multimodal model says of each row of a table."""
    from transfuse import read_table

    frame = read_table(table, numbers=False)
    model = load_model(directory, device, dtype).set_params(files=files or table.parent)
    if unreadable is not None:
        model.set_params(unreadable=unreadable)
    if not hasattr(model, "predict_proba"):
        for row, one in enumerate(model.predict(frame).tolist(), start=1):
            typer.echo(json.dumps({"row": row, "output": one}) if as_json else str(one))
        return
    shares, classes = model.predict_proba(frame), model.classes_.tolist()  # files are read once
    for row, (one, best) in enumerate(zip(shares.tolist(), shares.argmax(1).tolist(), strict=True), start=1):
        record = {"row": row, "output": classes[best], "probabilities": dict(zip(map(str, classes), one, strict=True))}
        typer.echo(json.dumps(record, ensure_ascii=False) if as_json else _one_line(str(classes[best])))


def _lines(model: Any, rows: list[Any]) -> Iterator[Line]:
    if hasattr(model, "transform"):
        for vector in model.transform(rows).tolist():
            yield "\t".join(map(str, vector)), {"vector": vector}
    elif hasattr(model, "predict_n_best"):
        for found in model.predict_n_best(rows):
            yield _one_line(found[0].text), {"answers": [asdict(one) for one in found]}
    elif hasattr(model, "scheme_"):
        yield from _tags(model, rows) if model.scheme_ == "plain" else _entities(model, rows)
    else:
        yield from _classes(model, rows)


def _entities(model: Any, rows: list[str]) -> Iterator[Line]:
    for found in model.entities(rows):
        text = "\t".join(f"{one.start}-{one.end} {one.label} {_one_line(one.text)}" for one in found)
        yield text, {"entities": [asdict(one) for one in found]}


def _tags(model: Any, rows: list[str]) -> Iterator[Line]:
    places = model.words(rows)
    words = [[text[a:b] for a, b in row] for text, row in zip(rows, places, strict=True)]
    found = iter(model.predict([row for row in words if row]) if any(words) else ())
    for row, tags in ((row, next(found) if row else []) for row in words):
        yield "\t".join(f"{word}/{tag}" for word, tag in zip(row, tags, strict=True)), {"tokens": row, "tags": tags}


def _classes(model: Any, rows: list[Any]) -> Iterator[Line]:
    if not hasattr(model, "predict_proba"):
        yield from ((str(one), {"output": one}) for one in model.predict(rows).tolist())
        return
    classes = model.classes_.tolist()
    names = list(map(str, classes))
    for chances in model.predict_proba(rows).tolist():
        output = classes[chances.index(max(chances))]
        text = _one_line(str(output))
        if model.kind_ == "labels":
            output = [name for name, chance in zip(names, chances, strict=True) if chance > 0.5]
            text = "\t".join(map(_one_line, output))
        yield text, {"output": output, "probabilities": dict(zip(names, chances, strict=True))}


def _one_line(text: str) -> str:
    return LINE_ENDS.sub(" ", text)
