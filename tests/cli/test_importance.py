"""`transfuse importance` and `transfuse longest`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from commands import call, failure


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("importance") / "t.csv"
    rows = [
        (x, "?" if i % 9 == 0 else "ab"[int(x > 0.5)], "yes" if x > 0.3 else "no")
        for i, x in enumerate(draw.random(120))
    ]
    path.write_text("x,letter,answer\n" + "".join(f'{x:.3f},{letter},"{answer}"\n' for x, letter, answer in rows))
    return path


def test_a_table_and_a_picture(table: Path) -> None:
    picture = table.with_suffix(".png")
    code, output, messages = call("importance", table, "--target", "answer", "--trees", "10", "--picture", picture)
    assert code == 0 and "The model scores accuracy" in output and picture.exists() and "drawn to" in messages
    code, output, _ = call(
        "importance", table, "--target", "answer", "--trees", "10", "--noise", "2", "--json", "--test", table
    )
    record = json.loads(output)
    assert record["rows"] == 120 and {one["feature"] for one in record["features"]} == {
        "x",
        "letter",
        "noise 1",
        "noise 2",
    }


def test_bad_tables_are_named(table: Path, tmp_path: Path) -> None:
    for content, message in (
        ("a,b\n1,2\n3\n", "t.csv:3: 1 columns, but the header has 2"),
        ("a,a\n1,2\n", "t.csv:1: two columns are called 'a'"),
        ("a,\n1,2\n", "t.csv:1: column 2 has no name"),
        ("a,b\n", "no rows in it"),
        ("", "empty; a table begins"),
        ("a,b\n1,2\ninf,3\n", "row 2, column 'a': inf is not a finite number"),
        ('a,b\n"1,2\n', "t.csv:2: unexpected end of data"),
    ):
        path = tmp_path / "t.csv"
        path.write_text(content)
        code, last = failure("importance", path, "--target", "b")
        assert code == 2 and message in last, last
    code, last = failure("importance", table, "--target", "nothing")
    assert code == 2 and "has no column 'nothing'; it has 'x', 'letter', 'answer'" in last
    code, last = failure("importance", table, "--target", "answer", "--trees", "3", "--picture", tmp_path / "a.docx")
    assert code == 2 and "the ending must be .png, .svg or .pdf" in last
    code, output, messages = call(
        "importance", table, "--target", "answer", "--trees", "3", "--picture", tmp_path / "no" / "a.png"
    )
    assert code == 1 and "The model scores" in output and "cannot draw" in messages
    code, last = failure("importance", table, "--target", "answer", "--trees", "3", "--scoring", "f1")
    assert code == 2 and "scoring='f1' cannot judge this y" in last
    code, last = failure("importance", table, "--target", "answer", "--trees", "3", "--scoring", "beauty")
    assert code == 2 and "scoring='beauty': not among scikit-learn's scorers" in last
    path.write_text("a,y\n" + "1e300,b\n2,c\n" * 20)
    code, last = failure("importance", path, "--target", "y", "--trees", "3")
    assert code == 2 and "column 'a': 1e+300 is more than a tree's numbers (float32) hold" in last
    path.write_text("noise 1,y\n" + "1,b\n2,c\n" * 20)
    code, output, messages = call("importance", path, "--target", "y", "--trees", "3", "--noise", "30", "--json")
    names = {one["feature"] for one in json.loads(output)["features"]}
    assert code == 0 and names == {f"noise {i}" for i in range(1, 32)}, messages
    path.write_text("a,y\n" + "".join(f"{i},{i * i / 7}\n" for i in range(40)))
    (tmp_path / "one.csv").write_text("a,y\n1,2.5\n")
    (tmp_path / "codes.csv").write_text("code,y\n" + "01,a\n02,b\n03,b\n2A,a\n" * 10)
    (tmp_path / "digits.csv").write_text("code,y\n" + "01,a\n02,b\n03,b\n" * 10)  # no code with a letter in it
    words = ("importance", tmp_path / "codes.csv", "--target", "y", "--trees", "10", "--test", tmp_path / "digits.csv")
    assert json.loads(call(*words, "--json")[1])["score"] == 1
    (tmp_path / "digits.csv").write_text("a,y\n1,1.5\nx,2\n3,4\n")
    code, last = failure("importance", path, "--target", "y", "--trees", "3", "--test", tmp_path / "digits.csv")
    assert code == 2 and "digits.csv: row 2, column 'a': x is not a number" in last
    code, last = failure("importance", path, "--target", "y", "--trees", "3", "--test", tmp_path / "one.csv")
    assert code == 2 and "X has 1 row; at least 2 are needed" in last
    code, last = failure("importance", tmp_path / "t.txt", "--target", "b")
    assert code == 2 and "cannot tell the format" in last


@pytest.mark.parametrize(("text", "line"), [("abcabcbb", "3\t0\t3\tabc"), ("", "0\t0\t0\t"), (" ", "1\t0\t1\t ")])
def test_longest_of_an_argument(text: str, line: str) -> None:
    assert call("longest", text) == (0, line + "\n", "")


def test_longest_of_standard_input() -> None:
    long = ("abcdefgh" * 200_000 + "éñ北\ti😀").encode()
    _, output, _ = call("longest", "-", "--json", given=long)
    record = json.loads(output)
    assert record["window"] == "abcdefghéñ北\ti😀" and record["length"] == 14
    _, output, _ = call("longest", "-", "--lines", given=b"aab\r\nxyz\n\nqq")
    assert output == "2\t1\t3\tab\n3\t0\t3\txyz\n0\t0\t0\t\n1\t0\t1\tq\n"
    wide = b"ab" * (1 << 20) + b"c\r\nxyzx\n" + b"d" * (1 << 20)  # lines of several pieces
    _, output, _ = call("longest", "-", "--lines", given=wide)
    assert output == f"3\t{(2 << 20) - 2}\t{(2 << 20) + 1}\tabc\n3\t0\t3\txyz\n1\t0\t1\td\n"
    _, output, _ = call("longest", "abab", "--all", given=b"")
    assert output == "2\t0\t2\tab\n2\t1\t3\tba\n2\t2\t4\tab\n"
    _, output, _ = call("longest", "-", "--graphemes", "--normalise", "NFC", given="e\u0301\u00e9a".encode())
    assert output.startswith("2\t1\t3")
    code, last = failure("longest", "-", given=b"ab\xff")
    assert code == 2 and "byte 3 is not UTF-8" in last
    code, last = failure("longest", "ab", "--lines")
    assert code == 2 and "--lines reads standard input" in last
    code, last = failure("longest", "ab", "--normalise", "NFX")
    assert code == 2 and "normalise='NFX'" in last
