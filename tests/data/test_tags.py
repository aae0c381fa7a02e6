"""Tagged words and marked texts, from files and from memory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from transfuse import DataError, read_tags
from transfuse.data.tags import as_marks, as_tags, as_words
from transfuse.data.wordpiece import word_places


def test_conll(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nleft  VBD\tB-VP O\n\n\n. . O O")
    found = read_tags(path)
    assert found.X == [["Anna", "left"], ["."]] and found.y == [["B-PER", "O"], ["O"]]
    assert read_tags(path, tag=2).y == [["NNP", "VBD"], ["."]]
    assert read_tags(path, token=-1, tag=1).X == [["B-PER", "O"], ["O"]]


def test_a_token_may_be_a_wide_space_and_a_file_compressed(tmp_path: Path) -> None:
    path = tmp_path / "weibo.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("北\tB-GPE.NAM\n\u3000\tO\n")
    assert read_tags(path).X == [["北", "\u3000"]]


def test_json_lines_of_both_kinds(tmp_path: Path) -> None:
    words, marked = tmp_path / "words.jsonl", tmp_path / "marked.jsonl"
    words.write_text(json.dumps({"tokens": ["Anna", "left"], "tags": ["B-PER", "O"]}) + "\n\n")
    marked.write_text(
        json.dumps({"text": "Anna left", "entities": [[0, 4, "PER"]]})
        + "\n"
        + json.dumps({"text": "Bob", "entities": [{"start": 0, "end": 3, "label": "PER"}]})
    )
    assert read_tags(words).y == [["B-PER", "O"]]
    assert read_tags(marked).y == [[(0, 4, "PER")], [(0, 3, "PER")]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "Anna O\nleft\n", r"a.txt:2: 1 columns, but 2 before"),
        ("a.txt", "Anna\n", r"a.txt:1: 1 columns, no word in column 1 with a tag in column -1"),
        ("a.txt", "\n\n", "no sentences in it"),
        ("a.jsonl", "{", "a.jsonl:1: not JSON"),
        ("a.jsonl", '{"tokens": ["a"]}', "a.jsonl:1: expected an object with tokens and tags"),
        (
            "a.jsonl",
            '{"text": "a", "entities": [[0, 1]]}',
            r"a.jsonl:1: entity 0: \[0, 1\], expected start, end and label",
        ),
        ("a.jsonl", '{"text": "a", "entities": [[0, true, "X"]]}', "two whole numbers and a name"),
        ("a.jsonl", '\n{"tokens": ["a", "b"], "tags": ["O"]}', r"a.jsonl:2: row\[0\]: 1 tags for 2 words"),
        ("a.jsonl", '{"tokens": [1], "tags": ["O"]}', r"a.jsonl:1: row\[0\]\[0\]: 1 is not a word"),
        ("a.jsonl", '{"text": "ab", "entities": [[0, 9, "A"]]}', "a.jsonl:1: row.*from 0 to 9 in a text of 2"),
        (
            "a.jsonl",
            '{"text": "a", "entities": []}\n{"tokens": ["a"], "tags": ["O"]}',
            "a.jsonl:2: an object with tokens",
        ),
        ("a.jsonl", '{"tokens": "ab", "tags": ["O"]}', "a.jsonl:1: str, expected a list"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_tags(path)


def test_bad_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Anna O\n")
    with pytest.raises(DataError, match="2 columns, no word in column 3"):
        read_tags(path, token=3)
    with pytest.raises(DataError, match="numbered from 1"):
        read_tags(path, tag=0)


def test_rows_in_memory() -> None:
    assert as_words((["a", "b"], ["c"]), "X") == ([["a", "b"], ["c"]], False)
    assert as_words(["a b"], "X") == (["a b"], True)
    for X, message in (
        ("ab", "one string"),
        ([], "X is empty"),
        ([["a"], []], r"X\[1\]: \[\], expected a list of at least one word"),
        ([["a"], "b"], r"X\[1\]: 'b', expected a list"),
        ([["a", None]], r"X\[0\]\[1\]: None is not a word"),
        ([["\ud800"]], r"X\[0\]\[0\]"),
        (["a", ""], r"X\[1\]"),
    ):
        with pytest.raises(DataError, match=message):
            as_words(X, "X")
    with pytest.raises(DataError, match=r"y\[0\]: 1 tags for 2 words"):
        as_tags([["O"]], [["a", "b"]], "y")
    with pytest.raises(DataError, match=r"y\[0\]\[1\]: nan is not a tag"):
        as_tags([["O", float("nan")]], [["a", "b"]], "y")
    with pytest.raises(DataError, match="y has 0 rows for 1"):
        as_tags([], [["a"]], "y")


def test_marks_are_inside_their_text_and_apart() -> None:
    assert as_marks([[(5, 6, "B"), [0, 1, "A"]]], ["a b c d"], "y") == [[(0, 1, "A"), (5, 6, "B")]]
    for entities, message in (
        ([(0, 9, "A")], r"y\[0\]: an entity from 0 to 9 in a text of 7 characters"),
        ([(2, 2, "A")], "from 2 to 2"),
        ([(0, 3, "A"), (2, 5, "B")], "two entities at character 2"),
        ("abc", "expected the entities of a text"),
        ([(0, 1, "")], "two whole numbers and a name"),
    ):
        with pytest.raises(DataError, match=message):
            as_marks([entities], ["a b c d"], "y")


def test_words_stand_where_they_stand() -> None:
    text = "Ünïcode 北京 cafe\u0301 it's 😀 Ｆｕｌｌ."
    assert [text[a:b] for a, b in word_places(text)] == [
        "Ünïcode", "北", "京", "cafe\u0301", "it", "'", "s", "😀", "Ｆｕｌｌ", ".",
    ]  # fmt: skip
