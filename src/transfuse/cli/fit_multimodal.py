"""`transfuse fit multimodal`: a class or a number from a table of texts, images, sounds, numbers and categories."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfuse.cli.messages import say, stoppable
from transfuse.cli.options import (
    AsJson,
    Device,
    FilesOption,
    Out,
    Resume,
    Seed,
    Settings,
    UnreadableFiles,
    check_ours,
    parse_settings,
)
from transfuse.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES = 20
"""Different decimal numbers up to which a column of them may be one of classes."""

TableFile = Annotated[Path, typer.Argument(help="A .csv or .tsv file with a header; .gz and .xz too.")]
Target = Annotated[str, typer.Option(help="The column to predict.")]
Columns = list[str] | None
Number = Annotated[bool, typer.Option("--number", help="The target is a number, not a class.")]
OfKind = {
    kind: typer.Option(f"--{kind}", help=f"A column of {what}; repeatable. Default: as it looks.")
    for kind, what in {
        "image": "paths of images",
        "audio": "paths of sounds",
        "text": "text",
        "category": "categories",
        "date": "dates",
    }.items()
}
Ignore = Annotated[Columns, typer.Option("--ignore", help="A column to leave out; repeatable.")]
HeldOutTable = Annotated[Path | None, typer.Option("--validation", help="Held-out rows, as TABLE.")]


def fit_multimodal(
    table: TableFile,
    target: Target,
    out: Out,
    validation: HeldOutTable = None,
    image: Annotated[Columns, OfKind["image"]] = None,
    audio: Annotated[Columns, OfKind["audio"]] = None,
    text: Annotated[Columns, OfKind["text"]] = None,
    category: Annotated[Columns, OfKind["category"]] = None,
    date: Annotated[Columns, OfKind["date"]] = None,
    ignore: Ignore = None,
    number: Number = False,
    files: FilesOption = None,
    unreadable: UnreadableFiles = "refuse",
    fusion: Annotated[str | None, typer.Option(help="early, middle, bottleneck, concatenate, gate or average.")] = None,
    align: Annotated[str | None, typer.Option(help="pad, trim, interpolate, attend or resample.")] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh classes by how rare they are.")] = False,
    alone: Annotated[bool, typer.Option(help="Also train on each modality alone, to stand beside.")] = True,
    skip_bad_rows: Annotated[bool, typer.Option(help="Leave out rows without a target.")] = False,
    settings: Settings = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of the rows to hold out.")] = 0.1,
    as_json: AsJson = False,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Learn a class, or a number, of rows whose columns hold text, images, sounds, numbers, categories or dates, and
    report what each modality and column is worth."""
    import transfuse

    check_ours(out)
    if number and balanced:
        raise ConfigError("--balanced is for classes, and --number is not of classes")
    kinds = {"image": image, "audio": audio, "text": text, "category": category, "date": date, "ignored": ignore}
    model = new_model(
        number,
        kinds=_kinds(kinds),
        files=files or table.parent,
        unreadable=unreadable,
        validation_fraction=validation_fraction,
        run_dir=out / "training",
        device=device,
        random_state=seed,
        verbose=True,
    )
    set_up(model, settings, fusion, align)
    X, y = read_rows(table, target, skip_bad_rows, number=number)
    held = None if validation is None else read_rows(validation, target, skip_bad_rows, number=number)
    if number and held is not None and len(held[1]) < 2:
        raise DataError(f"{validation} has 1 row; R² of numbers needs at least 2")
    with stoppable():
        weights = "balanced" if balanced else None
        model.fit(X, y, sample_weight=weights, validation=held, resume=resume)
        for name, columns in model.form_.columns_of.items():
            say(f"{name}: {', '.join(f'{column} ({model.form_.kinds[column]})' for column in columns)}")
        left_out = [name for name, kind in model.form_.kinds.items() if kind == "ignored"]
        if left_out:
            say(f"left out: {', '.join(left_out)}")
        if model.results_["trimmed"]:
            say(f"trimming throws {100 * model.results_['trimmed']:.0f} % of the tokens away")
        model.save(out)  # the report may take as long again
        learned, judged = ((X, y), held) if held else model.divided(X, y)
        found = transfuse.modality_report(
            model, *learned, held=judged, sample_weight=weights, alone=alone, random_state=seed
        )
    model.results_["modalities"] = found.to_dict()
    model.save(out)
    report = found.save(out / "modalities.html")
    say(found.to_text())
    say(f"report: {report}")
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else str(out))
    folder = shlex.quote(str(out))
    say(f"next: transfuse predict {folder} TABLE    transfuse evaluate {folder} TABLE --target {shlex.quote(target)}")


def new_model(number: bool, **settings: Any) -> Any:
    """A multimodal estimator, of classes or numbers, whose training can be set."""
    import transfuse

    model = (transfuse.MultimodalRegressor if number else transfuse.MultimodalClassifier)(**settings)
    return model.set_params(training=model.default_training)


def set_up(model: Any, settings: list[str] | None, fusion: str | None, align: str | None) -> None:
    """Apply --set, --fusion and --align; a start from a checkpoint has its own defaults."""
    chosen = parse_settings(model, settings or [])
    if fusion is not None:
        chosen["fusion__fusion"] = fusion
    if align is not None:
        chosen["fusion__align"] = align
    model.set_params(**{name: value for name, value in chosen.items() if name.startswith("towers__")})
    model.set_params(training=model.default_training)
    model.set_params(**chosen)


def read_rows(
    table: Path, target: str, skip_bad_rows: bool = False, *, number: bool = False
) -> tuple[pd.DataFrame, list[Any]]:
    """A table without its target, cells as they are spelled, and the target: numbers, or classes. Raises DataError
    naming the row of a missing one, and of what is no number, or of numbers that are no classes."""
    from transfuse import read_table

    frame = read_table(table, numbers=False)
    if target not in frame.columns:
        raise DataError(f"{table}: there is no column {target!r}; there are {', '.join(frame.columns)}")
    missing = frame[target].isna()
    if missing.any():
        if not skip_bad_rows:
            row = int(missing.to_numpy().argmax()) + 1
            raise DataError(
                f"{table}: row {row}: the target {target!r} is missing: an empty cell, or ?, NA, null or None "
                "(--skip-bad-rows leaves such rows out)"
            )
        say(
            f"{table}: {int(missing.sum()):,} rows without a target left out, {int((~missing).sum()):,} kept; "
            "what follows counts those that are kept"
        )
        frame = frame[~missing].reset_index(drop=True)
    if not len(frame):
        raise DataError(f"{table}: no row has a target in column {target!r}")
    return frame.drop(columns=target), _targets(frame[target].tolist(), f"{table}: column {target!r}", number)


def _targets(cells: list[str], name: str, number: bool) -> list[Any]:
    numbers = [_as_number(cell) for cell in cells]
    if number:
        bad = next((row for row, one in enumerate(numbers) if one is None), None)
        if bad is not None:
            raise DataError(f"{name}, row {bad + 1}: {cells[bad]!r} is not a number")
        return numbers
    decimal = [cell for cell, one in zip(cells, numbers, strict=True) if one is not None and one != round(one)]
    if decimal and None not in numbers and len(set(numbers)) > MOST_CLASSES:
        raise DataError(f"{name} holds numbers, as {decimal[0]}, and no classes; --number learns them")
    return cells


def _as_number(cell: str) -> float | None:
    try:
        found = float(cell)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _kinds(given: dict[str, list[str] | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, names in given.items():
        for name in names or []:
            if found.get(name, kind) != kind:
                raise ConfigError(f"column {name!r} is given as {found[name]} and as {kind}")
            found[name] = kind
    return found
