"""Questions with answers, from SQuAD files, .jsonl and memory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from transfuse import ConfigError, DataError, read_questions
from transfuse.data.questions import as_answers

CONTEXT = "Rome is old. Rome is big."


def squad(*records: dict[str, Any], context: str = CONTEXT) -> str:
    return json.dumps({"version": "v2.0", "data": [{"paragraphs": [{"context": context, "qas": list(records)}]}]})


def record(text: str, start: int, **more: Any) -> dict[str, Any]:
    return {"id": "q1", "question": "What?", "answers": [{"text": text, "answer_start": start}], **more}


def test_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    none = {"id": "q2", "question": "Who?", "answers": [], "is_impossible": True}
    plausible = record("old", 8, is_impossible=True)
    with gzip.open(path, "wt") as stream:
        stream.write(squad(record("old", 8), none, plausible))
    found = read_questions(path)
    assert found.X == [("What?", CONTEXT), ("Who?", CONTEXT), ("What?", CONTEXT)]
    assert found.y == [[("old", 8)], [], []] and found.ids == ["q1", "q2", "q1"]


def test_json_lines_as_hubs_have_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    answers = {"text": ["old", "big"], "answer_start": [8, 21]}
    path.write_text(json.dumps({"question": "What?", "context": CONTEXT, "answers": answers}) + "\n")
    assert read_questions(path).y == [[("old", 8), ("big", 21)]]


def test_answers_that_stand_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(squad(record("Rome", 12), record("Oslo", 0), record("old", 8)))
    with pytest.raises(DataError, match=r"a.json: data\[0\].paragraphs\[0\].qas\[0\] \(id q1\): the answer is 'Rome'"):
        read_questions(path)
    dropped = read_questions(path, mismatched="drop")
    assert len(dropped) == 1 and (dropped.dropped, dropped.moved) == (2, 0)
    found = read_questions(path, mismatched="find")
    assert found.y == [[("Rome", 13)], [("old", 8)]] and (found.dropped, found.moved) == (1, 1)
    path.write_text(squad(record("old", 8), {"question": " "}))
    assert (one := read_questions(path, mismatched="drop")).dropped == 1 and len(one) == 1
    with pytest.raises(ConfigError, match="mismatched='keep'"):
        read_questions(path, mismatched="keep")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a.json: not JSON"),
        ("[]", "a.json: list, expected an object"),
        ('{"data": [{}]}', r"data\[0\]: no list 'paragraphs'"),
        ('{"data": []}', "no questions in it"),
        (squad({"id": "1", "question": " "}), r"qas\[0\] \(id 1\): the question is empty"),
        (squad({"id": "1"}), r"qas\[0\]: no text 'question'"),
        (squad({"question": "What?"}, context=""), r"paragraphs\[0\]: no text 'context'"),
        (squad({"question": "What?", "answers": [["a"]]}), r"\['a'\], expected the answer's text"),
        (squad({"question": "What?", "answers": [["a", True]]}), "expected a text and a whole number"),
        (squad({"question": "What?", "answers": {"text": ["a"], "answer_start": []}}), "equally many of each"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(squad(record("old", 8)).encode())[:-9])
    with pytest.raises(DataError, match="damaged or truncated"):
        read_questions(path)
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="byte 1 is not UTF-8"):
        read_questions(path)


def test_answers_in_memory() -> None:
    rows = [("What?", CONTEXT)] * 2
    assert as_answers([None, [("old", 8)]], rows, "y") == [[], [("old", 8)]]
    with pytest.raises(DataError, match=r"y\[1\]: the answer is 'old', but the context has 'ld\.' at character 9"):
        as_answers([[], [("old", 9)]], rows, "y")
    with pytest.raises(DataError, match=r"y\[0\]: 'old', expected a list"):
        as_answers(["old", []], rows, "y")
    with pytest.raises(DataError, match="y has 1 rows for 2"):
        as_answers([[]], rows, "y")
