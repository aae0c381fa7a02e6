"""Arguments and options that several commands have, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfuse.cli.messages import say
from transfuse.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transfuse import LanguageModel, Pairs, Seq2Seq, TextClassifier, TextEncoder

Data = Annotated[
    list[Path],
    typer.Argument(help="A .tsv, .csv or .jsonl file, two parallel files (.gz and .xz too), or - for a TSV on stdin."),
]
ModelDir = Annotated[Path, typer.Argument(help="A model directory, as written by fit.")]
SourceColumn = Annotated[str | None, typer.Option("--source", help="Column of the source: a name, or a number from 1.")]
TargetColumn = Annotated[str | None, typer.Option("--target", help="Column of the target: a name, or a number from 1.")]
SkipBadRows = Annotated[bool, typer.Option(help="Leave out rows with an empty, missing or over-long side.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path, typer.Option(help="Where the model directory goes; checkpoints go to OUT/training.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in OUT.")]
Beams = Annotated[int | None, typer.Option(min=1, help="Beams of the search; 1 is greedy. Default: as trained with.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: the best there is.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any setting, as model.d_model=512 or training.epochs=9; repeatable."
    ),
]
SearchSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the search, as search.max_tokens=50; repeatable."),
]


def read_pairs(paths: list[Path], source: str | None, target: str | None, skip_bad_rows: bool) -> Pairs:
    """The pairs of one file or two; rows left out are counted on stderr."""
    from transfuse import read_pairs

    if len(paths) > 2:
        raise DataError(f"{len(paths)} files given; expected one file of pairs or two parallel files")
    second = paths[1] if len(paths) == 2 else None
    pairs = read_pairs(paths[0], second, source=source, target=target, skip_bad_rows=skip_bad_rows)
    if pairs.skipped:
        say(f"{paths[0]}: {pairs.skipped:,} unusable rows left out, {len(pairs):,} kept")
    return pairs


def parse_settings(
    model: Seq2Seq | LanguageModel | TextEncoder | TextClassifier, settings: Iterable[str]
) -> dict[str, Any]:
    """`training.epochs=3` as `{"training__epochs": 3}`; values are JSON where they can be, text otherwise."""
    known = model.get_params()
    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        key = name.strip().replace(".", "__")
        if not equals or key not in known or "__" not in key:
            names = ", ".join(sorted(known_name.replace("__", ".") for known_name in known if "__" in known_name))
            raise ConfigError(f"--set {setting}: expected NAME=VALUE with NAME one of {names}")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed


def check_ours(folder: Path) -> None:
    """Refuse to write a model over somebody's project or over a model from elsewhere."""
    foreign = [name for name in ("config.json", "README.md") if (folder / name).exists()]
    if foreign and not (folder / "transfuse.json").exists():
        raise ConfigError(f"--out {folder}: holds a {foreign[0]} that transfuse did not write; choose another folder")
