"""`transfuse importance`: which columns of a table matter to a forest that predicts one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from transfuse.cli.messages import say
from transfuse.cli.options import AsJson, Seed
from transfuse.errors import ConfigError, TransfuseError


def importance(
    table: Annotated[Path, typer.Argument(help="A .csv or .tsv file with a header; .gz and .xz too.")],
    target: Annotated[str, typer.Option(help="The column to predict: classes, or numbers.")],
    test: Annotated[Path | None, typer.Option(help="Held-out rows, as TABLE. Default: a quarter of TABLE.")] = None,
    trees: Annotated[int, typer.Option(min=1, help="Trees of the forest.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Shuffles of each column.")] = 5,
    scoring: Annotated[str | None, typer.Option(help="As scikit-learn names it. Default: accuracy or r2.")] = None,
    noise: Annotated[int, typer.Option(min=0, help="Add so many columns of noise to stand beside.")] = 0,
    drop: Annotated[bool, typer.Option("--drop", help="Also fit again without each column.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Where the picture goes (.png, .svg, .pdf).")] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Leave out rows without a target.")] = False,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Fit a forest to a table, and show how much each column matters: on training and held-out rows, and shuffled."""
    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--picture {picture}: the ending must be .png, .svg or .pdf")
    from transfuse import forest_importance, read_table

    rows = read_table(table)
    # what is a number is found out once, for both tables
    held = None if test is None else read_table(test, numbers=rows.select_dtypes("number").columns)
    found = forest_importance(
        rows,
        target,
        held=held,
        n_trees=trees,
        n_repeats=repeats,
        scoring=scoring,
        noise=noise,
        drop=drop,
        skip_bad_rows=skip_bad_rows,
        random_state=seed,
    )
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else found.to_text())
    if picture is not None:
        try:
            found.save_picture(picture)
        except OSError as error:
            raise TransfuseError(f"cannot draw {picture}: {error.strerror or error}") from error
        say(f"drawn to {picture}")
