"""`transfuse describe`: what the columns of a table hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from transfuse.cli.options import AsJson, KindOption, parse_kinds


def describe(
    table: Annotated[Path, typer.Argument(help="A .csv or .tsv file with a header; .gz and .xz too.")],
    kinds: KindOption = None,
    as_json: AsJson = False,
) -> None:
    """Show each column's kind, as `fit multimodal` would take it, what it holds, and texts that repeat themselves."""
    import transfuse

    found = transfuse.describe(transfuse.read_table(table), parse_kinds(kinds))
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else found.to_text())
