"""`transfuse fit classify`, `tag` and `answer`: BERT with a head for a task, from scratch or from an encoder."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from transfuse.cli.messages import say, stoppable
from transfuse.cli.options import (
    Data,
    Device,
    MismatchedAnswers,
    Out,
    Resume,
    SecondColumn,
    Seed,
    Seeds,
    Settings,
    SeveralLabels,
    SkipBadRows,
    SourceColumn,
    Start,
    TagColumn,
    TargetColumn,
    TokenColumn,
    check_idle,
    check_ours,
    one_file,
    parse_settings,
    read_labelled,
    read_questions,
    read_tags,
    with_labels,
)
from transfuse.errors import ConfigError, DataError

HeldOut = Annotated[Path | None, typer.Option("--validation", help="Held-out rows, as DATA.")]
HeldOutShare = Annotated[
    float,
    typer.Option("--validation-fraction", help="Share of the rows to hold out where --validation is not given."),
]

ERROR = "mean absolute error"

MEASURES = ("entity F1", "accuracy", "R²", "F1")
"""Scores that tell the best of several seeds, each model by the first it has; of several labels a text, by F1."""

MANY_ROWS = 20
"""Rows from which half as many classes are a mistake."""


def fit_classify(
    data: Data,
    out: Out,
    start: Start = None,
    validation: HeldOut = None,
    source: SourceColumn = None,
    second: SecondColumn = None,
    target: TargetColumn = None,
    skip_bad_rows: SkipBadRows = False,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh classes by how rare they are.")] = False,
    number: Annotated[bool, typer.Option("--number", help="The target is a number, not a class.")] = False,
    several: SeveralLabels = None,
    seeds: Seeds = 1,
    settings: Settings = None,
    validation_fraction: HeldOutShare = 0.1,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Learn the class, labels or number (column --target) of texts (column --source) or pairs (and --second)."""
    if number and balanced:
        raise ConfigError("--balanced is for classes, and --number is not of classes")
    if several is not None and (number or balanced or not several):
        raise ConfigError(
            f"--several {several!r} is what stands between labels; --number and --balanced are not for it"
        )

    def read(path: list[Path], known: list[str] | None = None) -> tuple[list[Any], Any]:
        return read_labelled(path, source, second, target, skip_bad_rows, numbers=number, several=several, known=known)

    X, y = read(data)
    if several is not None and not len(y.columns):
        raise DataError(f"{data[0]}: no row has a label")
    held = None
    if validation is not None:
        held = read([validation], None if several is None else list(y.columns))
        if several is not None:
            held = held[0], with_labels(held[1], list(y.columns))
    n_classes = 0 if number or several else len(set(y))
    if len(X) >= MANY_ROWS and n_classes > len(X) / 2:
        raise DataError(
            f"{data[0]}: {n_classes:,} classes in {len(X):,} rows are none; --source and --target choose columns, by "
            "number or by name, which makes line 1 a header"
        )
    from transfuse import TextClassifier, TextRegressor

    kinds = "" if number else f" of {y.shape[1]} labels" if several else f" in {len(set(y))} classes"
    say(f"{len(X):,} rows{kinds}; the model goes to {out}")

    def make(**common: Any) -> TextClassifier | TextRegressor:
        if number:
            return TextRegressor(**common)
        return TextClassifier(class_weight="balanced" if balanced else None, **common)

    common = {"encoder": start, "validation_fraction": validation_fraction, "device": device}
    _fit(make, common, X, y, held, data=data, out=out, seeds=seeds, seed=seed, settings=settings, resume=resume)
    given = {"--source": source or ("1" if second else None), "--second": second}
    columns = "".join(f" {name} {shlex.quote(value)}" for name, value in given.items() if value)
    further = {"--target": target, "--several": several}
    how = columns + "".join(f" {name} {shlex.quote(value)}" for name, value in further.items() if value is not None)
    texts, folder = f"TABLE{columns}" if columns else "TEXTS", shlex.quote(str(out))
    say(f"next: transfuse predict {folder} {texts}    transfuse evaluate {folder} TABLE{how}")


def fit_tag(
    data: Annotated[list[Path], typer.Argument(help="A CoNLL file (any ending), or a .jsonl; .gz and .xz too.")],
    out: Out,
    start: Start = None,
    validation: HeldOut = None,
    token_column: TokenColumn = 1,
    tag_column: TagColumn = -1,
    scheme: Annotated[str | None, typer.Option(help="bio or bioes: tags to learn. Default: as in DATA.")] = None,
    seeds: Seeds = 1,
    settings: Settings = None,
    validation_fraction: HeldOutShare = 0.1,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Learn a tag for each word, such as those of entities."""
    tagged = read_tags(data, token_column, tag_column)
    held = read_tags([validation], token_column, tag_column) if validation else None
    from transfuse import TokenTagger

    say(f"{len(tagged):,} rows; the model goes to {out}")
    common = {"encoder": start, "scheme": scheme, "validation_fraction": validation_fraction, "device": device}
    judged = (held.X, held.y) if held else None
    _fit(
        TokenTagger,
        common,
        tagged.X,
        tagged.y,
        judged,
        data=data,
        out=out,
        seeds=seeds,
        seed=seed,
        settings=settings,
        resume=resume,
    )
    folder = shlex.quote(str(out))
    say(f"next: transfuse predict {folder} TEXTS    transfuse evaluate {folder} TAGGED")


def fit_answer(
    data: Annotated[
        list[Path], typer.Argument(help="A SQuAD file (.json, version 1 or 2), or a .jsonl; .gz and .xz too.")
    ],
    out: Out,
    start: Start = None,
    validation: HeldOut = None,
    mismatched: MismatchedAnswers = "refuse",
    seeds: Seeds = 1,
    settings: Settings = None,
    validation_fraction: HeldOutShare = 0.1,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Learn to find answers in texts."""
    questions = read_questions(one_file(data), mismatched)
    held = read_questions(validation, mismatched) if validation else None
    from transfuse import QuestionAnswerer

    say(f"{len(questions):,} questions; the model goes to {out}")
    common = {"encoder": start, "validation_fraction": validation_fraction, "device": device}
    judged = (held.X, held.y) if held else None
    _fit(
        QuestionAnswerer,
        common,
        questions.X,
        questions.y,
        judged,
        data=data,
        out=out,
        seeds=seeds,
        seed=seed,
        settings=settings,
        resume=resume,
    )
    folder = shlex.quote(str(out))
    say(f"next: transfuse predict {folder} QUESTIONS.json    transfuse evaluate {folder} QUESTIONS.json")


def _fit(
    make: Callable[..., Any],
    common: dict[str, Any],
    X: list[Any],
    y: Any,
    held: tuple[list[Any], Any] | None,
    *,
    data: list[Path],
    out: Path,
    seeds: int,
    seed: int,
    settings: list[str] | None,
    resume: bool,
) -> None:
    """Train once a seed, keep the model that is best on the held-out rows, and say how far the others are from it."""
    check_ours(out)
    check_idle(common["encoder"], settings)
    if seeds > 1 and held is None:  # seeds compare on the same rows
        (X, y), held = make(**common, random_state=seed).divided(X, y)
    models = []
    for own in range(seed, seed + seeds):
        folder = out / ("training" if seeds == 1 else f"training-{own}")
        model = make(**common, run_dir=folder, random_state=own, verbose=True)
        model.set_params(training=model.default_training)
        model.set_params(**parse_settings(model, settings or []))
        with stoppable(*data):
            model.fit(X, y, validation=held, resume=resume)
        models.append(model)
    scores = [{score["name"]: score for score in model.results_["held_out_metrics"]} for model in models]
    measures = ("F1",) if getattr(models[0], "kind_", "") == "labels" else MEASURES
    measure = next((name for name in measures if name in scores[0]), ERROR)  # of one number there is no R²
    values = [one[measure]["value"] for one in scores]
    best = values.index((min if measure == ERROR else max)(values))
    models[best].save(out)
    for score in scores[best].values():
        say(f"held out: {score['name']} {score['value']:.2f} ({score['signature']})")
    if seeds > 1:
        say(
            f"{seeds} seeds: {measure} {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} "
            f"({min(values):.2f} to {max(values):.2f}); the best is kept"
        )
    typer.echo(str(out))
