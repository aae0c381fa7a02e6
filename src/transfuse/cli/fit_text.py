"""`transfuse fit encode`: a BERT pre-trained on the user's own text."""

from __future__ import annotations

import shlex
import statistics
from pathlib import Path
from typing import Annotated

import typer

from transfuse.cli.messages import say, stoppable
from transfuse.cli.options import (
    Device,
    Out,
    Resume,
    Seed,
    Seeds,
    Settings,
    Start,
    check_idle,
    check_ours,
    parse_settings,
)
from transfuse.errors import ConfigError


def fit_encode(
    data: Annotated[
        list[Path],
        typer.Argument(help="Text files (a document each), .jsonl (a document a line), or folders of them."),
    ],
    out: Out,
    start: Start = None,
    key: Annotated[str, typer.Option(help="Key of the text in .jsonl.")] = "text",
    context: Annotated[int, typer.Option(min=8, help="Tokens of a training row.")] = 128,
    pooling: Annotated[str, typer.Option(help="mean, max or cls: how tokens' vectors become the text's.")] = "mean",
    ablate_nsp: Annotated[
        bool, typer.Option("--ablate-nsp", help="Train again without next sentence, and say what it bought.")
    ] = False,
    settings: Settings = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of the sentences to hold out.")] = 0.05,
    seeds: Seeds = 1,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Pre-train a BERT on plain text: masked words and next sentence; from nothing, or on from another."""
    from sklearn.base import clone

    from transfuse import Corpus, MaskingConfig, TextEncoder, ablate_next_sentence

    check_ours(out)
    check_idle(start, settings)
    model = TextEncoder(
        **({"model": start} if start else {}),  # type: ignore[arg-type]
        masking=MaskingConfig(context=context),
        pooling=pooling,  # type: ignore[arg-type]
        validation_fraction=validation_fraction,
        device=device,
        verbose=True,
    )
    model.set_params(**parse_settings(model, settings or []))
    if ablate_nsp and not model.masking.next_sentence:
        raise ConfigError("--ablate-nsp: masking.next_sentence is off, so there is nothing to take away")
    corpus = Corpus(data, key=key)
    models = []
    for own in range(seed, seed + seeds):
        folder = out / ("training" if seeds == 1 else f"training-{own}")
        models.append(clone(model).set_params(run_dir=folder, random_state=own))
        with stoppable(*data):
            models[-1].fit(corpus, resume=resume)
    losses = [one.results_["held_out_loss"] for one in models]
    model = models[losses.index(min(losses))]
    model.save(out)
    if seeds > 1:
        spread = f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}"
        say(f"{seeds} seeds: held-out loss of hidden words {spread}; the best is kept")
    for name, value in model.results_["held_out"].items():
        if value is not None:
            say(f"held out: {name.replace('_', ' ')} {value:.3f}")
    if ablate_nsp:
        say("the same again without next-sentence prediction:")
        with stoppable():
            folder = out / "training-without-next-sentence"
            ablation = ablate_next_sentence(model, corpus, run_dir=folder, resume=resume and folder.exists())
        say(str(ablation))
    typer.echo(str(out))
    name = shlex.quote(str(out))
    say(f"next: transfuse predict {name} TEXTS    transfuse fit classify TABLE --from {name} --out DIR")
