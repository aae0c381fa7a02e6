"""`transfuse fit`: a model from the user's own data."""

from __future__ import annotations

import shlex
import shutil
import sys
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
from transfuse.errors import ConfigError, TransfuseError

if TYPE_CHECKING:
    from transfuse import Corpus, LanguageModel, Seq2Seq

fit_app = typer.Typer(help="Train a model on your own data.", no_args_is_help=True)


@fit_app.command("seq2seq")
def fit_seq2seq(
    data: Data,
    out: Out,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Held-out pairs: one file, or the option twice for two parallel files.")
    ] = None,
    source: SourceColumn = None,
    target: TargetColumn = None,
    skip_bad_rows: SkipBadRows = False,
    settings: Settings = None,
    metric: Annotated[str, typer.Option(help="bleu, bleu-lc, bleu-char, chrf, rouge, exact or exact-lc.")] = "bleu",
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the pairs, 1,000 at most, to hold out where --validation is not given.")
    ] = 0.05,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train an encoder–decoder on pairs: translation, summarisation, dialogue."""
    pairs = read_pairs(data, source, target, skip_bad_rows)
    held_out = read_pairs(validation, source, target, skip_bad_rows) if validation else None
    from transfuse import Seq2Seq

    check_ours(out)
    model = Seq2Seq(
        metric=metric,
        validation_fraction=validation_fraction,
        run_dir=out / "training",
        device=device,
        random_state=seed,
        verbose=True,
    )
    model.set_params(**parse_settings(model, settings or []))
    say(f"{len(pairs):,} pairs; the model goes to {out}")
    validation_pairs = (held_out.sources, held_out.targets) if held_out else None
    with stoppable():
        model.fit(pairs.sources, pairs.targets, validation=validation_pairs, resume=resume)
    _save(model, out)
    folder = shlex.quote(str(out))
    uses = "predict {} TEXTS", "evaluate {} PAIRS", "inspect {} 'A TEXT'"
    say("next: " + "    ".join(f"transfuse {use.format(folder)}" for use in uses))


@fit_app.command("generate")
def fit_generate(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Text files (a document each), .jsonl (a document a line), folders of them, or - for stdin."
        ),
    ],
    out: Out,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Held-out text, as DATA; repeatable. Default: the end of DATA.")
    ] = None,
    key: Annotated[str, typer.Option(help="Key of the text in .jsonl.")] = "text",
    context: Annotated[int, typer.Option(min=2, help="Tokens of a training row.")] = 256,
    settings: Settings = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the tokens to hold out where --validation is not given.")
    ] = 0.05,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train a language model on plain text."""
    from transfuse import Corpus, LanguageModel

    check_ours(out)
    model = LanguageModel(
        context=context,
        validation_fraction=validation_fraction,
        run_dir=out / "training",
        device=device,
        random_state=seed,
        verbose=True,
    )
    model.set_params(**parse_settings(model, settings or []))
    held_out = Corpus(validation, key=key) if validation else None
    with stoppable():
        model.fit(_stored(data, out, key, resume), validation=held_out, resume=resume)
    _save(model, out)
    say(f"next: echo 'It was' | transfuse predict {out} -    transfuse evaluate {out} TEXTS")


def _stored(paths: list[Path], out: Path, key: str, resume: bool) -> Corpus:
    """The corpus of these paths. Standard input, which can be read only once, is kept in `out`, where a resumed run
    finds it again."""
    from transfuse import Corpus

    if Path("-") in paths:
        copy = out / "training" / "stdin.txt"
        if not copy.exists():
            _keep_standard_input(copy)
        elif not resume:
            raise ConfigError(f"{copy} is there from an earlier run; resume it, or choose another folder")
        paths = [copy if path == Path("-") else path for path in paths]
    return Corpus(paths, key=key)


def _keep_standard_input(copy: Path) -> None:
    part = copy.with_suffix(".part")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        part.rename(copy)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TransfuseError(f"cannot keep standard input in {copy}: {error.strerror}") from error


def _save(model: Seq2Seq | LanguageModel, out: Path) -> None:
    model.save(out)
    for score in model.results_["held_out_metrics"]:
        say(f"held out: {score['name']} {score['value']:.2f} ({score['signature']})")
    typer.echo(str(out))
