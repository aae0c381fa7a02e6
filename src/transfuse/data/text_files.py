"""Text files line by line: plain, .gz or .xz, or standard input; UTF-8, the line number in every complaint."""

from __future__ import annotations

import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from transfuse.errors import DataError

MAX_CHARACTERS = 100_000
"""Longest text a row may hold; longer ones are almost always a file that is not what it seems."""

MOST_CHARACTERS = 10_000_000
"""Of a text that is read in windows."""

STDIN = Path("stdin")
"""Stands for standard input, in reading and in errors: this very object, not a file of that name."""

_OPENERS: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".xz": lzma.open}
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""What damaged compression raises, besides OSError."""


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed by its ending. Raises DataError if it cannot be opened."""
    try:
        return cast(BinaryIO, _OPENERS.get(path.suffix.lower(), open)(path, "rb"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def suffix_of(path: Path) -> str:
    """The ending that names the format, lower-case and without .gz or .xz: `pairs.TSV.gz` gives `.tsv`."""
    inner = Path(path.stem) if path.suffix.lower() in _OPENERS else path
    return inner.suffix.lower()


def read_lines(path: Path) -> Iterator[str]:
    """The lines without their ends (`\\n` or `\\r\\n`; nothing else ends a line) of a file, or of `STDIN`.

    Raises DataError naming file and line for bytes that are not UTF-8 and for damaged compression.
    """
    if path is STDIN:
        if sys.stdin is None:
            raise DataError("stdin: closed")
        yield from _decoded(sys.stdin.buffer, path)
        return
    with open_bytes(path) as stream:
        yield from _decoded(stream, path)


def _decoded(stream: BinaryIO, name: Path) -> Iterator[str]:
    lines = iter(stream)
    number = 0
    while True:
        number += 1
        try:
            raw = next(lines)
            text = raw.decode("utf-8")
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number}: byte {error.start + 1} of the line is 0x{raw[error.start]:02x}, "
                "which is not UTF-8; convert the text (iconv -t UTF-8) first"
            ) from error
        except (OSError, *DAMAGE) as error:
            raise DataError(f"{name}:{number}: the compressed file is damaged or truncated ({error})") from error
        text = text.removeprefix("\ufeff") if number == 1 else text
        yield text.removesuffix("\n").removesuffix("\r")
