"""Documents to learn a language from: text files, JSONL, folders of both, or texts in memory; never all at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transfuse.data.pairs import as_texts
from transfuse.data.text_files import read_lines, suffix_of
from transfuse.errors import DataError

PIECE = 1 << 16
"""Characters of a long document that are handled at a time, and then up to a paragraph's end, `LONGEST` at most."""

LONGEST = 4 * PIECE

_KNOWN = {".txt", ".text", ".md", ".jsonl"}


class Corpus:
    """Documents, each an iterator over its pieces of text. It can be read any number of times.

    A text file is a document, a line of a JSONL file is one (the string under `key`), a folder has those of its files
    (.txt, .text, .md, .jsonl, also as .gz or .xz), sorted by path. Raises DataError naming file, line and rule while it
    is read.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], *, key: str = "text") -> None:
        several = [paths] if isinstance(paths, str | Path) else list(paths)
        self.files = [file for path in several for file in _files(path)]
        self.key = key

    def __iter__(self) -> Iterator[Iterator[str]]:
        for file in self.files:
            if suffix_of(file) == ".jsonl":
                yield from (iter([text]) for text in _json_texts(file, self.key))
            else:
                yield _pieces(file)


class Texts:
    """Documents in memory, behind the same door as a `Corpus`."""

    def __init__(self, texts: Iterable[Any], name: str = "X") -> None:
        if isinstance(texts, Path):
            raise DataError(f"{name} is the path {texts}; the documents of files are Corpus({str(texts)!r})")
        self.texts = as_texts(texts, name, longest=sys.maxsize)

    def __iter__(self) -> Iterator[Iterator[str]]:
        return (iter([text]) for text in self.texts)


def as_corpus(X: Any, name: str = "X") -> Corpus | Texts:
    """A corpus as it is; anything else as a list, array or column of documents."""
    return X if isinstance(X, Corpus | Texts) else Texts(X, name)


def _files(path: str | Path) -> list[Path]:
    if str(path) == "-":
        raise DataError("a corpus is read more than once, which standard input cannot be; write it to a file first")
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and suffix_of(file) in _KNOWN)
    if not found:
        raise DataError(f"{path}: no text in it; expected files that end in {', '.join(sorted(_KNOWN))}")
    return found


def _pieces(file: Path) -> Iterator[str]:
    """The text of a file, cut at line ends before a line that does not begin with a space; where there is none for
    long, before any line, and a long line before its spaces."""
    kept: list[str] = []
    size = 0
    for line in read_lines(file):
        for number, part in enumerate(_short(line + "\n")):
            begins = part[:1].strip() or number
            if size >= PIECE and (begins or size + len(part) > LONGEST):
                yield "".join(kept)
                kept, size = [], 0
            kept.append(part)
            size += len(part)
    if size:
        yield "".join(kept)


def _short(line: str) -> Iterator[str]:
    """A line longer than `LONGEST` in parts of at most `PIECE` characters, cut before spaces where there are any."""
    first = 0
    while len(line) - first > LONGEST:
        cut = line.rfind(" ", first + 1, first + PIECE)
        while cut > first and line[cut - 1].isspace():
            cut -= 1
        last = cut if cut > first else first + PIECE
        yield line[first:last]
        first = last
    yield line[first:]


def _json_texts(file: Path, key: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: not JSON ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get(key), str):
            raise DataError(f"{file}:{number}: expected an object with a string under {key!r}")
        if any("\ud800" <= character <= "\udfff" for character in record[key]):
            raise DataError(f"{file}:{number}: {key} holds half a surrogate pair, which is not a character")
        yield record[key]
