"""Tables for a terminal, for Markdown and for one offline HTML page with pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfuse.errors import TransfuseError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Sequence[str]

_STYLE = (
    "<style>body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}table{border-collapse:collapse}"
    "tr{border-bottom:1px solid #ccc}</style>"
)


def text_table(header: Row, rows: Sequence[Row]) -> list[str]:
    """Lines with columns one under another."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def markdown_table(header: Row, rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]


def html_table(header: Row, rows: Sequence[Row]) -> str:
    """A table element, its cells escaped."""

    def line(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(header, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def paragraph(text: str) -> str:
    """A paragraph, escaped."""
    return f"<p>{html.escape(text)}</p>"


def picture(figure: Figure) -> str:
    """A figure, inside of the page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return f"<p><img src='data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}' alt=''></p>"


def page(title: str, heading: str, parts: Sequence[str]) -> str:
    """A whole page that needs nothing beside it."""
    head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
    return "\n".join([head, _STYLE, f"<h1>{html.escape(heading)}</h1>", *parts])


def write_page(path: str | Path, content: str) -> Path:
    """Write a page. Raises TransfuseError if the disk refuses."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise TransfuseError(f"cannot write {path}: {error.strerror}") from error
    return path


def new_figure(width: float = 7, height: float = 4) -> tuple[Figure, Any]:
    """A figure and its axes, without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
