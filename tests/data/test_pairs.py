"""Pairs from files and from memory: every format gives the same pairs, every complaint has file, line and rule."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from transfuse.data.pairs import Pairs, as_texts, read_columns, read_pairs, read_sources
from transfuse.errors import DataError

GERMAN = ["Ein Hund läuft .", "Zwei  Katzen", "line\u2028separator"]
ENGLISH = ["A dog runs .", '"Two" cats, 3', "你好 🦊"]
EXPECTED = Pairs(GERMAN, ENGLISH)

BOM = "\ufeff"
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


TSV = "".join(f"{left}\t{right}\n" for left, right in zip(GERMAN, ENGLISH, strict=True))
CSV = "".join(f"{quoted(left)},{quoted(right)}\n" for left, right in zip(GERMAN, ENGLISH, strict=True))
JSONL = "".join(
    json.dumps({"source": left, "extra": 1, "target": right}, ensure_ascii=False) + "\n"
    for left, right in zip(GERMAN, ENGLISH, strict=True)
)
FORMATS = {"pairs.tsv": TSV, "pairs.csv": CSV, "pairs.jsonl": JSONL}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def short(value: object) -> str:
    return repr(value)[:40]


def complaint(path: Path, *more: Any, **settings: Any) -> str:
    """What `read_pairs` says of the file, without the path in front."""
    with pytest.raises(DataError) as caught:
        read_pairs(path, *more, **settings)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_plain_or_compressed_gives_the_same_pairs(tmp_path: Path, name: str, compression: str) -> None:
    path = written(tmp_path / (name + compression), COMPRESSORS[compression](FORMATS[name].encode()))
    assert read_pairs(path) == EXPECTED
    assert read_pairs(str(path)) == EXPECTED


@pytest.mark.parametrize("change", [lambda text: BOM + text, lambda text: text.replace("\n", "\r\n"), str.rstrip])
@pytest.mark.parametrize("name", FORMATS)
def test_byte_order_mark_windows_line_ends_and_an_open_last_line_change_nothing(
    tmp_path: Path, name: str, change: Callable[[str], str]
) -> None:
    assert read_pairs(written(tmp_path / name, change(FORMATS[name]))) == EXPECTED


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_two_parallel_files(tmp_path: Path, compression: str) -> None:
    compress = COMPRESSORS[compression]
    left = written(tmp_path / f"train.de{compression}", compress("\n".join(GERMAN).encode()))
    right = written(tmp_path / "train.en", BOM + "\r\n".join(ENGLISH) + "\r\n")
    assert read_pairs(left, right) == EXPECTED


def test_a_quoted_csv_cell_may_hold_line_ends_commas_and_quotes(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.csv", 'a,"one\ntwo, ""three"""\r\n"b\r\nc",d\n')
    assert read_pairs(path) == Pairs(["a", "b\nc"], ['one\ntwo, "three"', "d"])


def test_a_tsv_cell_is_everything_between_tabs(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.tsv", '"a\tb"\n \'c\t d\n')
    assert read_pairs(path) == Pairs(['"a', " 'c"], ['b"', " d"])


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv"])
def test_columns_by_name_come_from_the_header_in_any_order(tmp_path: Path, name: str) -> None:
    tab = "\t" if name.endswith("tsv") else ","
    path = written(tmp_path / name, f"en{tab}id{tab}de\nyes{tab}1{tab}ja\nno{tab}2{tab}nein\n")
    assert read_pairs(path, source="de", target="en") == Pairs(["ja", "nein"], ["yes", "no"])
    assert read_sources(path, source="en") == ["yes", "no"]


def test_columns_by_number_have_no_header(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.tsv", "1\tja\tyes\n2\tnein\tno\n")
    assert read_pairs(path, source="3", target="2") == Pairs(["yes", "no"], ["ja", "nein"])
    assert read_sources(path, source="2") == ["ja", "nein"]
    assert read_sources(path) == ["1", "2"]


def test_jsonl_keys_by_name_and_blank_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", '{"de": "ja", "en": "yes"}\n\n  \n{"en": "no", "de": "nein"}\n')
    assert read_pairs(path, source="de", target="en") == Pairs(["ja", "nein"], ["yes", "no"])
    assert read_sources(path, source="en") == ["yes", "no"]


def test_sources_of_a_plain_file_are_its_lines(tmp_path: Path) -> None:
    assert read_sources(written(tmp_path / "texts.txt", BOM + "a\tb\r\nc\u2028d\n")) == ["a\tb", "c\u2028d"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.tsv", "", ": no pairs in it"),
        ("pairs.csv", "", ": no pairs in it"),
        ("pairs.jsonl", "\n\n", ": no pairs in it"),
        ("pairs.tsv", "a\tb\nc\n", ":2: 1 columns, expected 2 (source<TAB>target)"),
        ("pairs.tsv", "only one column\n", ":1: 1 columns, expected 2 (source<TAB>target)"),
        ("pairs.tsv", "a\tb\tc\n", ":1: 3 columns, expected 2 (source<TAB>target)"),
        ("pairs.tsv", "a\tb\n\nc\td\n", ":2: the source is empty"),
        ("pairs.csv", "a,b\nc,d,e\n", ":2: 3 columns, expected 2"),
        ("pairs.csv", 'a,"b\nb"\nc\n', ":3: 1 columns, expected 2"),
        ("pairs.csv", 'a,"b\n', ":1: unexpected end of data"),
        (
            "pairs.csv",
            'a,b\n"c\nc",d\ne,"f\n' + "g,h\n" * 9,
            ":13: unexpected end of data; a quote in the row that begins at line 4",
        ),
        ("pairs.csv", 'a,"b"b\n', ":1: ',' expected after '\"'"),
        ("pairs.tsv", "a\t \n", ":1: the target is empty"),
        ("pairs.tsv", "a\tb\n\tb\n", ":2: the source is empty"),
        ("pairs.tsv", "a\tb\nc\t" + "x" * 1_000_000, ":2: the target has 1,000,000 characters, at most 100,000 are"),
        ("pairs.csv", "a,b\n" + "x" * 1_000_000 + ",d\n", ":2: the source has 1,000,000 characters, at most 100,000"),
        ("pairs.tsv", "a\tb\nsch\xf6n\tc\n".encode("latin-1"), ":2: byte 4 of the line is 0xf6, which is not UTF-8"),
        ("pairs.csv", "a,b\nsch\xf6n,c\n".encode("latin-1"), ":2: byte 4 of the line is 0xf6, which is not UTF-8"),
        ("pairs.jsonl", '{"source": "a", "target": "b"}\n{"source": ', ":2: not JSON (Expecting value at column 12)"),
        ("pairs.jsonl", '["a", "b"]\n', ":1: list, expected an object a line"),
        ("pairs.jsonl", '"a"\n', ":1: str, expected an object a line"),
        ("pairs.jsonl", '{"b": 1, "source": "a"}\n', ":1: no key 'target' among 'b', 'source'"),
        ("pairs.jsonl", '{"source": "a", "target": null}\n', ":1: the target is missing"),
        ("pairs.jsonl", '{"source": NaN, "target": "b"}\n', ":1: the source is missing"),
        ("pairs.jsonl", '{"source": "a", "target": 7}\n', ":1: the target is int 7, expected a string"),
        ("pairs.jsonl", '{"source": ["a"], "target": "b"}\n', ":1: the source is list ['a'], expected a string"),
        ("pairs.txt", "a\tb\n", ": cannot tell the format; end the name in .tsv, .csv or .jsonl (and .gz or .xz), or"),
        ("pairs", "a\tb\n", ": cannot tell the format"),
        ("pairs.gz", "a\tb\n", ": cannot tell the format"),
    ],
    ids=short,
)
def test_a_bad_file_is_refused_with_line_and_rule(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    assert complaint(written(tmp_path / name, content)).startswith(message)


@pytest.mark.parametrize("compression", [".gz", ".xz"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_compressed_file_is_refused_even_if_its_rows_so_far_are_good(
    tmp_path: Path, name: str, compression: str
) -> None:
    content = COMPRESSORS[compression](FORMATS[name].encode() * 999)[:-9]
    message = complaint(written(tmp_path / (name + compression), content), skip_bad_rows=True)
    assert re.match(r":\d+: the compressed file is damaged or truncated \(", message)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param("1" * 5000, id="integer too long for Python"),
        pytest.param("[" * 99_999, id="nested too deep for Python"),
    ],
)
def test_json_that_the_parser_gives_up_on_is_refused_like_any_other(tmp_path: Path, number: str) -> None:
    path = written(tmp_path / "pairs.jsonl", f'{{"source": "a", "target": {number}}}\n')
    assert complaint(path).startswith(":1: ")


def test_half_a_surrogate_pair_in_json_is_not_text(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", '{"source": "a", "target": "\\ud83e"}\n')
    assert complaint(path).startswith(":1: the target ")


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("de\ten\nja\tyes\n", {"source": "de", "target": "fr"}, ":1: no column 'fr' in the header 'de', 'en'"),
        ("de\ten\nja\n", {"source": "de", "target": "en"}, ":2: 1 columns, expected 2"),
        ("de\ten\nja\tyes\n", {"source": "1", "target": "3"}, ":1: 2 columns, no column 3"),
        ("de\ten\nja\tyes\n", {"source": "0", "target": "2"}, ":1: 2 columns, no column 0"),
        ("a\tb\tc\nd\te\n", {"source": "1", "target": "2"}, ":2: 2 columns, expected 3"),
        ("de\ten\nja\tyes\n", {"target": "en"}, ": name both columns or none: source=None, target=en"),
        ("de\ten\nja\tyes\n", {"source": "de"}, ": name both columns or none: source=de, target=None"),
        ("de\ten\nja\tyes\n", {"source": "1"}, ": name both columns or none: source=1, target=None"),
        ("de\ten\nja\tyes\n", {"source": "²", "target": "1"}, ":1: no column '²' in the header 'de', 'en'"),
        ("", {"source": "de", "target": "en"}, ""),
        ("de\ten\n", {"source": "de", "target": "en"}, ": no pairs in it"),
    ],
)
def test_columns_that_are_not_there_are_named(
    tmp_path: Path, content: str, settings: dict[str, Any], message: str
) -> None:
    assert complaint(written(tmp_path / "pairs.tsv", content), **settings).startswith(message)


def test_parallel_files_must_have_equally_many_lines(tmp_path: Path) -> None:
    left, right = written(tmp_path / "a.de", "eins\nzwei\n"), written(tmp_path / "a.en", "one\n")
    rule = f" has 2 lines and {right} has 1; line i of one must belong to line i of the other"
    assert complaint(left, right) == rule


def test_an_empty_line_of_the_second_parallel_file_is_refused_at_its_line(tmp_path: Path) -> None:
    left, right = written(tmp_path / "a.de", "eins\nzwei\n"), written(tmp_path / "a.en", "one\n\n")
    assert complaint(left, right) == ":2: the target is empty"


@pytest.mark.parametrize("second", [False, True])
def test_missing_files_and_directories_are_named(tmp_path: Path, second: bool) -> None:
    good, folder = written(tmp_path / "good.tsv", "a\tb\n"), tmp_path / "folder.tsv"
    folder.mkdir()
    for bad, rule in ((tmp_path / "nowhere.tsv", "No such file or directory"), (folder, "Is a directory")):
        with pytest.raises(DataError) as caught:
            read_pairs(*((good, bad) if second else (bad,)))
        assert str(caught.value) == f"{bad}: {rule}"


@pytest.mark.parametrize("name", FORMATS)
def test_skip_bad_rows_leaves_out_and_counts_rows_with_an_unusable_side(tmp_path: Path, name: str) -> None:
    rows = [("a", "b"), ("", "c"), ("d", "  "), ("e", "x" * 1_000_000), ("f", "g")]
    lines = {
        "pairs.tsv": "".join(f"{left}\t{right}\n" for left, right in rows),
        "pairs.csv": "".join(f"{left},{right}\n" for left, right in rows),
        "pairs.jsonl": "".join(json.dumps({"source": left, "target": right}) + "\n" for left, right in rows),
    }
    pairs = read_pairs(written(tmp_path / name, lines[name]), skip_bad_rows=True)
    assert pairs == Pairs(["a", "f"], ["b", "g"], skipped=3)


def test_a_file_of_nothing_but_bad_rows_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.tsv", "\tb\nc\t\n")
    assert complaint(path, skip_bad_rows=True) == ": no pairs in it (2 unusable rows)"


def test_skip_bad_rows_does_not_hide_a_wrong_number_of_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.tsv", "a\tb\nc\n")
    assert complaint(path, skip_bad_rows=True).startswith(":2: 1 columns, expected 2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.txt", "", ": no texts in it"),
        ("texts.txt", "a\n\nb\n", ":2: the source is empty"),
        ("texts.txt", "x" * 1_000_000, ":1: the source has 1,000,000 characters, at most 100,000 are allowed"),
        ("texts.tsv", "a\tb\nc\n", ":2: 1 columns, expected 2"),
        ("texts.jsonl", '{"text": "a"}\n', ":1: no key 'source' among 'text'"),
    ],
)
def test_bad_sources_are_refused_with_line_and_rule(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_sources(path)
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    "column",
    [
        ENGLISH,
        tuple(ENGLISH),
        iter(ENGLISH),
        np.array(ENGLISH),
        np.array(ENGLISH, dtype=object),
        pd.Series(ENGLISH, index=[7, 5, 5]),
        pd.Series(ENGLISH, dtype="string"),
        pd.Series(ENGLISH, dtype=object),
        pd.Categorical(ENGLISH),
    ],
    ids=lambda column: type(column).__name__,
)
def test_lists_arrays_and_pandas_columns_are_plain_strings(column: Any) -> None:
    texts = as_texts(column, "X")
    assert texts == ENGLISH
    assert {type(text) for text in texts} == {str}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pd.Series(["a", None]), "X[1]: the text is missing"),
        (pd.Series(["a", np.nan, "b"], dtype=object), "X[1]: the text is missing"),
        (pd.Series(["a", None], dtype=object, index=[5, 6]), "X[1]: the text is missing"),
        (pd.Series(["a", pd.NA], dtype="string"), "X[1]: the text is "),
        (np.array(["a", ""]), "X[1]: the text is empty"),
        (["a", " \t\n"], "X[1]: the text is empty"),
        (["a", "b", "x" * 100_001], "X[2]: the text has 100,001 characters, at most 100,000 are allowed"),
        ([1, 2], "X[0]: the text is int 1, expected a string"),
        ([b"a"], "X[0]: the text is bytes b'a', expected a string"),
        (np.array([["a", "b"]]), "X"),
        (pd.DataFrame({"de": ["ja", "nein"]}), "X"),
        (["a", "\ud83e"], "X[1]: the text "),
        ("one string", "X is one string; expected a list, array or column of strings"),
        (b"bytes", "X is one string; expected a list, array or column of strings"),
        ([], "X is empty; at least one text is needed"),
    ],
    ids=short,
)
def test_a_bad_column_is_refused_with_row_and_rule(column: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        as_texts(column, "X")
    assert str(caught.value).startswith(message)


def test_a_text_of_the_greatest_length_is_accepted() -> None:
    assert as_texts(["x" * 100_000], "X") == ["x" * 100_000]


def test_a_blank_line_is_a_row_without_texts(tmp_path: Path) -> None:
    for name, content in (("pairs.tsv", "a\tb\n\nc\td\n\n"), ("pairs.csv", "a,b\n\nc,d\n\n")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(DataError, match=rf"{name}:2: the source is empty"):
            read_pairs(path)
        pairs = read_pairs(path, skip_bad_rows=True)
        assert (pairs.sources, pairs.targets, pairs.skipped) == (["a", "c"], ["b", "d"], 2)


def test_columns_cannot_be_named_where_there_are_none(tmp_path: Path) -> None:
    one, two = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("a\n")
    two.write_text("b\n")
    with pytest.raises(DataError, match="two parallel files have no columns to name"):
        read_pairs(one, two, source="a", target="b")
    with pytest.raises(DataError, match="a text a line has no columns to name"):
        read_sources(one, source="a")


def test_a_header_that_says_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text("a,a,b\n1,2,3\n")
    with pytest.raises(DataError, match=r"twice\.csv:1: 2 columns are called 'a'"):
        read_pairs(path, source="a", target="b")


def test_an_empty_file_with_named_columns_has_no_pairs(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_text("")
    with pytest.raises(DataError, match=r"empty\.csv: no pairs in it"):
        read_pairs(path, source="a", target="b")


def test_endings_may_be_upper_case(tmp_path: Path) -> None:
    path = tmp_path / "PAIRS.TSV.GZ"
    path.write_bytes(gzip.compress(b"a\tb\n"))
    assert read_pairs(path).targets == ["b"]


def test_pairs_come_from_standard_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\tb\r\nc\td\te\n")))
    with pytest.raises(DataError, match=r"stdin:2: 3 columns, expected 2 \(source<TAB>target\)"):
        read_pairs("-")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="stdin: closed"):
        read_pairs("-")


def rows_of(path: Path, *cells: Any) -> Path:
    path.write_text("".join(json.dumps({"text": "a", "labels": cell}) + "\n" for cell in cells), encoding="utf-8")
    return path


def test_arrays_come_back_as_one_string_where_they_may(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "rows.jsonl", ["wet", "very cold"], "wet; cold", [], [3])
    columns, skipped = read_columns(path, ["text", "labels"], may_be_empty={1}, lists={1: ";"})
    assert columns == [["a"] * 4, ["wet;very cold", "wet; cold", "", "3"]] and skipped == 0
    with pytest.raises(DataError, match=re.escape(f"{path}:1: the column labels is list ['wet', 'very cold']")):
        read_columns(path, ["text", "labels"], may_be_empty={1})
    with pytest.raises(DataError, match=re.escape(f"{path}:3: the column labels is empty")):
        read_columns(path, ["text", "labels"], lists={1: ";"})


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        (["wet", float("nan")], "a list with nan, expected strings"),
        (["wet", None], "a list with None, expected strings"),
        (["wet", " "], "a list with ' ', expected strings"),
        ([["wet"]], "a list with ['wet'], expected strings"),
        (["wet", "cold; dry"], "'cold; dry', which holds ';'"),
        ({"wet": 1}, "dict {'wet': 1}, expected a string"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(tmp_path: Path, cell: Any, complaint: str) -> None:
    path = rows_of(tmp_path / "rows.jsonl", ["wet"], cell)
    with pytest.raises(DataError, match=re.escape(f"{path}:2: the column labels is ") + ".*" + re.escape(complaint)):
        read_columns(path, ["text", "labels"], lists={1: ";"})
    columns, skipped = read_columns(path, ["text", "labels"], lists={1: ";"}, skip_bad_rows=True)
    assert columns == [["a"], ["wet"]] and skipped == 1
