"""`transfuse longest`: the longest stretch of a text in which nothing occurs twice."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from transfuse.cli.options import AsJson
from transfuse.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transfuse import Distinct

PIECE = 1 << 20


def longest(
    text: Annotated[str, typer.Argument(help="The text, or - for standard input, of any size.")] = "-",
    graphemes: Annotated[bool, typer.Option("--graphemes", help="Elements are what a reader sees as one.")] = False,
    normalise: Annotated[str | None, typer.Option(help="NFC, NFD, NFKC or NFKD, before anything else.")] = None,
    casefold: Annotated[bool, typer.Option("--casefold", help="Upper and lower case are alike.")] = False,
    every: Annotated[bool, typer.Option("--all", help="All of the longest, not the first.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Of each line of standard input by itself.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the longest stretch without a repeated character: its length, where it begins and ends, and itself."""
    from transfuse import DistinctStream, Reading, all_longest_distinct, longest_distinct

    reading = Reading(graphemes, normalise, casefold)  # type: ignore[arg-type]
    how = {"graphemes": graphemes, "normalise": normalise, "casefold": casefold}
    if lines:
        if text != "-" or every:
            raise ConfigError("--lines reads standard input and gives one stretch a line, so without TEXT and --all")
        for line in _lines():
            _print(longest_distinct(line, **how), as_json)  # type: ignore[arg-type]
    elif every:
        for found in all_longest_distinct("".join(_pieces()) if text == "-" else text, **how):  # type: ignore[arg-type]
            _print(found, as_json)
    elif text == "-":
        stream = DistinctStream(reading)
        for piece in _pieces():
            stream.feed(piece)
        _print(stream.result(), as_json)
    else:
        _print(longest_distinct(text, **how), as_json)  # type: ignore[arg-type]


def _pieces() -> Iterator[str]:
    """Standard input, decoded as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_read = 0
    while True:
        content = sys.stdin.buffer.read(PIECE)
        before = n_read - len(decoder.getstate()[0])
        try:
            yield decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            raise DataError(f"stdin: byte {before + error.start + 1} is not UTF-8") from error
        n_read += len(content)
        if not content:
            return


def _lines() -> Iterator[str]:
    parts: list[str] = []  # of a line that has not ended
    for piece in _pieces():
        first, *more = piece.split("\n")
        parts.append(first)
        for line in more:
            yield "".join(parts).removesuffix("\r")
            parts = [line]
    if kept := "".join(parts):
        yield kept


def _print(found: Distinct, as_json: bool) -> None:
    if as_json:
        record = {"length": len(found), "start": found.start, "end": found.end, "window": found.window}
        typer.echo(json.dumps(record))
    else:
        window = found.window.encode("utf-8", "backslashreplace").decode("utf-8")
        typer.echo(f"{len(found)}\t{found.start}\t{found.end}\t{json.dumps(window, ensure_ascii=False)[1:-1]}")
