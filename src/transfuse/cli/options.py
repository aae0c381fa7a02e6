"""Arguments and options that several commands have, and what is read from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfuse.cli.messages import say
from transfuse.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from transfuse import Pairs, Questions, Tagged

Data = Annotated[
    list[Path],
    typer.Argument(help="A .tsv, .csv or .jsonl file, two parallel files (.gz and .xz too), or - for a TSV on stdin."),
]
ModelDir = Annotated[Path, typer.Argument(help="A model directory, as written by fit.")]
SourceColumn = Annotated[
    str | None,
    typer.Option("--source", help="Column of the source: a name (line 1 is then a header), or a number from 1."),
]
TargetColumn = Annotated[
    str | None,
    typer.Option("--target", help="Column of the target: a name (line 1 is then a header), or a number from 1."),
]
SkipBadRows = Annotated[bool, typer.Option(help="Leave out rows with an empty, missing or over-long side.")]
SeveralLabels = Annotated[
    str | None,
    typer.Option(
        "--several", help="The target is any number of labels: this between them (--several ,), or in JSONL a list."
    ),
]
SecondColumn = Annotated[
    str | None,
    typer.Option("--second", help="Column of the second text, where rows are pairs (of a question: the context)."),
]
TokenColumn = Annotated[int, typer.Option(help="Column of the word in a CoNLL file, from 1 (from the end below 0).")]
TagColumn = Annotated[int, typer.Option(help="Column of the tag in a CoNLL file, from 1 (from the end below 0).")]
MismatchedAnswers = Annotated[
    str, typer.Option("--mismatched", help="Answers that do not stand where they say: refuse, drop or find.")
]
FilesOption = Annotated[
    Path | None, typer.Option("--files", help="Folder that paths in a table begin at. Default: the one TABLE is in.")
]
UnreadableFiles = Annotated[
    str, typer.Option("--unreadable", help="Files that cannot be read: refuse, missing or drop.")
]
UnreadableRows = Annotated[
    str | None,
    typer.Option("--unreadable", help="Files that cannot be read: refuse, or take for missing. Default: as trained."),
]
KindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--kind", metavar="COLUMN=KIND", help="text, image, audio, number, category, date or ignored; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path, typer.Option(help="Where the model directory goes; checkpoints go to OUT/training.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in OUT.")]
Beams = Annotated[int | None, typer.Option(min=1, help="Beams of the search; 1 is greedy. Default: as trained with.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: the best there is.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16: what it computes in. Half the bytes, fewer digits.")
]
Start = Annotated[
    str | None, typer.Option("--from", help="BERT to start from: a directory or hub id. Default: from nothing.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Train so often, report the spread, keep the best.")]
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


def one_file(paths: list[Path]) -> Path:
    """The file, which must be one."""
    if len(paths) != 1:
        raise DataError(f"{len(paths)} files given; expected one")
    return paths[0]


def read_labelled(
    paths: list[Path],
    source: str | None,
    second: str | None,
    target: str | None,
    skip_bad_rows: bool,
    *,
    numbers: bool = False,
    several: str | None = None,
    known: Collection[str] | None = None,
) -> tuple[list[Any], Any]:
    """Texts, or pairs of them where there is a second column, and their labels; rows left out are counted on stderr.

    Where there are `several` labels in a cell, with that between them (or as an array in JSONL), what comes back is a
    frame with a column of zeros and ones for each; cells may be empty. Raises DataError naming file and line, also of
    labels that are no `numbers`, or not among those `known`.
    """
    if len(paths) == 2 and second is None:  # parallel files
        if several is not None:
            raise ConfigError("--several: the lines of a second file are one label each; give a table")
        pairs = read_pairs(paths, source, target, skip_bad_rows)
        return pairs.sources, as_numbers(pairs.targets, paths[1]) if numbers else pairs.targets
    from transfuse import read_columns

    path = one_file(paths)
    names = None if source is None and second is None and target is None else [source, *filter(None, [second]), target]
    if names is not None and None in names:
        raise DataError(f"{path}: name all columns or none: source={source}, second={second}, target={target}")
    if names is None and ".jsonl" in path.suffixes:
        names = ["source", "target"]
    last = len(names or "xy") - 1
    rule: Callable[[str], str | None] | None = not_a_number if numbers else None
    if several is not None and known is not None:
        rule = partial(_not_known, several, known)
    columns, skipped = read_columns(
        path,
        names,  # type: ignore[arg-type]
        skip_bad_rows=skip_bad_rows,
        rules={last: rule} if rule else {},
        may_be_empty=() if several is None else {last},
        lists={} if several is None else {last: several},
    )
    if skipped:
        say(f"{path}: {skipped:,} unusable rows left out, {len(columns[0]):,} kept")
    X = columns[0] if second is None else list(zip(columns[0], columns[1], strict=True))
    if several is not None:
        return X, _split(columns[-1], several)
    return X, as_numbers(columns[-1], path) if numbers else columns[-1]


def _labels_of(cell: str, mark: str) -> list[str]:
    return [label for label in map(str.strip, cell.split(mark)) if label]


def _not_known(mark: str, known: Collection[str], cell: str) -> str | None:
    new = [label for label in _labels_of(cell, mark) if label not in known]
    return f"{new[0]!r} is not among the {len(known)} labels that are learned" if new else None


def _split(cells: list[str], mark: str) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    found = [_labels_of(cell, mark) for cell in cells]
    place = {label: i for i, label in enumerate(sorted({label for row in found for label in row}))}
    indicators = np.zeros((len(found), len(place)), np.int8)
    for row, labels in enumerate(found):
        indicators[row, [place[label] for label in labels]] = 1
    return pd.DataFrame(indicators, columns=list(place))


def with_labels(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The frame with a column for each of `names`, zeros where it had none, and its others behind them."""
    return frame.reindex(columns=[*names, *(name for name in frame.columns if name not in names)], fill_value=0)


def not_a_number(cell: str) -> str | None:
    """What is wrong with a cell that should hold a number."""
    try:
        return None if math.isfinite(float(cell)) else f"{cell!r} is not a finite number"
    except ValueError:
        return f"{cell!r} is not a number"


def as_numbers(labels: list[str], path: Path) -> list[float]:
    """Cells as numbers. Raises DataError naming the file and the row, of those that are used, of one that is none."""
    for row, label in enumerate(labels, start=1):
        if complaint := not_a_number(label):
            raise DataError(f"{path}: row {row}: {complaint}")
    return [float(label) for label in labels]


def read_rows(path: str, source: str | None, second: str | None, long: bool = False) -> list[Any]:
    """Texts, or pairs of them where there is a second column; `long` ones for a model that reads in windows."""
    if second is None:
        from transfuse import read_sources

        return read_sources(path, source=source, long=long)
    from transfuse import read_columns

    if source is None:
        raise DataError(f"{path}: name both columns: source={source}, second={second}")
    columns, _ = read_columns(path, [source, second], long=long)
    return list(zip(*columns, strict=True))


def read_sources(path: str, source: str | None) -> list[str]:
    """Texts to feed a model that writes text."""
    return read_rows(path, source, None)


def read_tags(paths: list[Path], token_column: int, tag_column: int) -> Tagged:
    """Tagged words or marked texts of one file."""
    from transfuse import read_tags

    return read_tags(one_file(paths), token=token_column, tag=tag_column)


def read_questions(path: Path, mismatched: str, answers: bool = True) -> Questions:
    """Questions of one file; answers left out or moved are counted on stderr."""
    from transfuse import read_questions

    questions = read_questions(path, mismatched=mismatched, answers=answers)  # type: ignore[arg-type]
    if questions.dropped or questions.moved:
        say(f"{path}: {questions.dropped:,} answers left out and {questions.moved:,} moved, as they stand elsewhere")
    return questions


def parse_settings(model: Any, settings: Iterable[str]) -> dict[str, Any]:
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


def check_idle(start: str | None, settings: list[str] | None) -> None:
    """Refuse settings of what a checkpoint brings along."""
    idle = [one for one in settings or [] if start and one.strip().startswith(("model.", "tokenizer."))]
    if idle:
        raise ConfigError(f"--set {idle[0]}: --from {start} has its own, which training keeps")


def parse_kinds(kinds: list[str] | None) -> dict[str, Any]:
    """`size=number` as `{"size": "number"}`; what the kind may be, the table's reader says."""
    found = {}
    for setting in kinds or []:
        column, equals, kind = setting.rpartition("=")
        if not equals:
            raise ConfigError(f"--kind {setting}: expected COLUMN=KIND")
        found[column] = kind
    return found


def check_ours(folder: Path) -> None:
    """Refuse to write a model over somebody's project or over a model from elsewhere."""
    foreign = [name for name in ("config.json", "README.md") if (folder / name).exists()]
    if foreign and not (folder / "transfuse.json").exists():
        raise ConfigError(f"--out {folder}: holds a {foreign[0]} that transfuse did not write; choose another folder")
