"""`transfuse fit encode` and `fit classify`: BERT on the user's own text."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfuse.cli.messages import say, stoppable
from transfuse.cli.options import (
    Data,
    Device,
    Out,
    Resume,
    Seed,
    Settings,
    SkipBadRows,
    SourceColumn,
    TargetColumn,
    check_ours,
    parse_settings,
    read_pairs,
)

if TYPE_CHECKING:
    from transfuse import TextClassifier


def fit_encode(
    data: Annotated[
        list[Path],
        typer.Argument(help="Text files (a document each), .jsonl (a document a line), or folders of them."),
    ],
    out: Out,
    key: Annotated[str, typer.Option(help="Key of the text in .jsonl.")] = "text",
    context: Annotated[int, typer.Option(min=8, help="Tokens of a training row.")] = 128,
    pooling: Annotated[str, typer.Option(help="mean, max or cls: how tokens' vectors become the text's.")] = "mean",
    settings: Settings = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of the sentences to hold out.")] = 0.05,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Pre-train a BERT on plain text: masked words and next sentence."""
    from transfuse import Corpus, MaskingConfig, TextEncoder

    check_ours(out)
    model = TextEncoder(
        masking=MaskingConfig(context=context),
        pooling=pooling,  # type: ignore[arg-type]
        validation_fraction=validation_fraction,
        run_dir=out / "training",
        device=device,
        random_state=seed,
        verbose=True,
    )
    model.set_params(**parse_settings(model, settings or []))
    with stoppable():
        model.fit(Corpus(data, key=key), resume=resume)
    model.save(out)
    for name, value in model.results_["held_out"].items():
        if value is not None:
            say(f"held out: {name.replace('_', ' ')} {value:.3f}")
    typer.echo(str(out))
    say(f"next: transfuse predict {out} TEXTS    transfuse fit classify TABLE --from {out} --out DIR")


def fit_classify(
    data: Data,
    out: Out,
    start: Annotated[
        str | None, typer.Option("--from", help="BERT to start from: a directory or hub id. Default: from nothing.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out rows, as DATA.")] = None,
    source: SourceColumn = None,
    target: TargetColumn = None,
    skip_bad_rows: SkipBadRows = False,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh classes by how rare they are.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Train so often, report the spread, keep the best.")] = 1,
    settings: Settings = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the rows to hold out where --validation is not given.")
    ] = 0.1,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Learn the class (column --target) of texts (column --source)."""
    rows = read_pairs(data, source, target, skip_bad_rows)
    held = read_pairs([validation], source, target, skip_bad_rows) if validation else None
    from transfuse import TextClassifier

    check_ours(out)
    say(f"{len(rows):,} texts in {len(set(rows.targets))} classes; the model goes to {out}")
    models: list[TextClassifier] = []
    for number in range(seeds):
        model = TextClassifier(
            encoder=start,
            class_weight="balanced" if balanced else None,
            validation_fraction=validation_fraction,
            run_dir=out / ("training" if seeds == 1 else f"training-{seed + number}"),
            device=device,
            random_state=seed + number,
            verbose=True,
        )
        model.set_params(training=model.default_training)
        model.set_params(**parse_settings(model, settings or []))
        with stoppable():
            model.fit(
                rows.sources, rows.targets, validation=(held.sources, held.targets) if held else None, resume=resume
            )
        models.append(model)
    accuracies = [model.results_["held_out_metrics"][-1]["value"] for model in models]
    best = models[accuracies.index(max(accuracies))]
    best.save(out)
    for score in best.results_["held_out_metrics"]:
        say(f"held out: {score['name']} {score['value']:.2f} ({score['signature']})")
    if seeds > 1:
        say(
            f"{seeds} seeds: accuracy {statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} "
            f"({min(accuracies):.2f} to {max(accuracies):.2f}); the best is kept"
        )
    typer.echo(str(out))
    say(f"next: transfuse predict {out} TEXTS    transfuse evaluate {out} TABLE")
