"""Lines of text files: what ends one, what is decompressed, and what is refused with file, line and rule."""

from __future__ import annotations

import gzip
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.data.text_files import read_lines, suffix_of
from transfuse.errors import DataError

BOM = b"\xef\xbb\xbf"
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_lines(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\n\ntwo\n", ["one", "", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (BOM + b"one\ntwo\n", ["one", "two"]),
        (b"one\n" + BOM + b"two\n", ["one", "\ufefftwo"]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"]),
        (b"a\rb\n", ["a\rb"]),
        ("übung 你好 مرحبا 🦊\n".encode(), ["übung 你好 مرحبا 🦊"]),
    ],
)
def test_only_a_line_feed_ends_a_line(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    assert list(read_lines(written(tmp_path / "text.txt", content))) == lines


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_files_read_as_plain_ones(tmp_path: Path, ending: str) -> None:
    content = "eins\r\nzwei 你\nthree".encode()
    path = written(tmp_path / f"text.txt{ending}", COMPRESSORS[ending](content))
    assert list(read_lines(path)) == ["eins", "zwei 你", "three"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.tsv", ".tsv"), ("a.TSV.gz", ".tsv"), ("a.b.jsonl.xz", ".jsonl"), ("a", ""), ("a.gz", ""), ("a.zip", ".zip")],
)
def test_suffix_names_the_format_without_compression(name: str, suffix: str) -> None:
    assert suffix_of(Path("folder.csv") / name) == suffix


def test_bytes_that_are_not_utf8_are_named_by_line_and_place(tmp_path: Path) -> None:
    path = written(tmp_path / "text.txt", "gut\nschön\n".encode("latin-1"))
    assert complaint(path) == (
        f"{path}:2: byte 4 of the line is 0xf6, which is not UTF-8; convert the text (iconv -t UTF-8) first"
    )


def test_the_place_of_a_wrong_byte_counts_the_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "text.txt", BOM + b"ab\xe9\n")
    assert complaint(path).startswith(f"{path}:1: byte 6 of the line is 0xe9, which is not UTF-8")


def test_utf16_is_refused_at_its_first_byte(tmp_path: Path) -> None:
    path = written(tmp_path / "text.txt", "hello\n".encode("utf-16"))
    assert complaint(path).startswith(f"{path}:1: byte 1 of the line is 0xff")


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, ending: str) -> None:
    text = "".join(f"{random.Random(row).random()}\n" for row in range(5000)).encode()
    path = written(tmp_path / f"text{ending}", COMPRESSORS[ending](text)[:-1000])
    assert re.search(rf"{re.escape(str(path))}:\d+: the compressed file is damaged or truncated \(", complaint(path))


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_a_file_that_is_not_what_its_ending_says_is_refused(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"text{ending}", b"plain text, never compressed\n")
    assert complaint(path).startswith(f"{path}:1: the compressed file is damaged or truncated (")


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_a_changed_byte_in_a_compressed_file_is_refused(tmp_path: Path, ending: str) -> None:
    content = bytearray(COMPRESSORS[ending](b"".join(b"%d\n" % row for row in range(1000))))
    content[len(content) // 2] ^= 0xFF
    path = written(tmp_path / f"text{ending}", bytes(content))
    assert "the compressed file is damaged or truncated (" in complaint(path)


@pytest.mark.parametrize("ending", ["", *COMPRESSORS])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"nowhere.txt{ending}"
    assert complaint(path) == f"{path}: No such file or directory"


@pytest.mark.parametrize("ending", ["", *COMPRESSORS])
def test_a_directory_is_not_a_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"folder{ending}"
    path.mkdir()
    assert complaint(path) == f"{path}: Is a directory"
