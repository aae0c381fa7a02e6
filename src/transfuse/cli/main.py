"""The command line: stdout is data, stderr is messages, exit codes are 0, 1 (failed), 2 (usage), 130/143 (interrupted).

Nothing here imports torch until a command runs, so `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from transfuse.errors import ConfigError, DataError, TrainingInterrupted, TransfuseError

if TYPE_CHECKING:
    from transfuse import Corpus, LanguageModel, Pairs, SearchConfig, Seq2Seq

app = typer.Typer(
    help="Transformers you train on your own text, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the other kind takes a third of a second to import
)
fit_app = typer.Typer(help="Train a model on your own data.", no_args_is_help=True)
app.add_typer(fit_app, name="fit")

_options = {"debug": False}
_LINE_ENDS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")

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


def run() -> None:
    """Entry point: every expected failure becomes one line on stderr and an exit code."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (DataError, ConfigError) as error:
        _fail(error, 2)
    except TransfuseError as error:
        _fail(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _Stopped as stopped:
        _fail(stopped.interrupted, 128 + stopped.interrupted.signal_number)
    except KeyboardInterrupt as error:
        _fail(error, 130)
    except (OSError, MemoryError) as error:
        _fail(error, 1)
    except Exception as error:  # ours to mend; the reader is told so, and how to see where
        _fail(error, 1, f"unexpected {type(error).__name__}: {error} (--debug before the command shows where)")


class _Stopped(Exception):
    """Carries a TrainingInterrupted through typer, which takes every KeyboardInterrupt for its own."""

    def __init__(self, interrupted: TrainingInterrupted) -> None:
        self.interrupted = interrupted


@contextmanager
def _stoppable() -> Iterator[None]:
    try:
        yield
    except TrainingInterrupted as interrupted:
        raise _Stopped(interrupted) from interrupted


@app.callback(invoke_without_command=True)
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    import transfuse

    _options["debug"] = debug
    if version:
        typer.echo(f"transfuse {transfuse.__version__}")
        raise typer.Exit


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
    metric: Annotated[str, typer.Option(help="bleu, bleu-lc, bleu-char, chrf, rouge or exact.")] = "bleu",
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the pairs to hold out where --validation is not given.")
    ] = 0.05,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train an encoder–decoder on pairs: translation, summarisation, dialogue."""
    pairs = _read_pairs(data, source, target, skip_bad_rows)
    held_out = _read_pairs(validation, source, target, skip_bad_rows) if validation else None
    from transfuse import Seq2Seq

    _check_ours(out)
    model = Seq2Seq(
        metric=metric,
        validation_fraction=validation_fraction,
        run_dir=out / "training",
        device=device,
        random_state=seed,
        verbose=True,
    )
    model.set_params(**_parse_settings(model, settings or []))
    _say(f"{len(pairs):,} pairs; the model goes to {out}")
    validation_pairs = (held_out.sources, held_out.targets) if held_out else None
    with _stoppable():
        model.fit(pairs.sources, pairs.targets, validation=validation_pairs, resume=resume)
    _save(model, out)
    _say(f"next: transfuse predict {out} TEXTS    transfuse evaluate {out} PAIRS    transfuse inspect {out} 'A TEXT'")


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

    _check_ours(out)
    model = LanguageModel(
        context=context,
        validation_fraction=validation_fraction,
        run_dir=out / "training",
        device=device,
        random_state=seed,
        verbose=True,
    )
    model.set_params(**_parse_settings(model, settings or []))
    held_out = Corpus(validation, key=key) if validation else None
    with _stoppable():
        model.fit(_stored(data, out, key, resume), validation=held_out, resume=resume)
    _save(model, out)
    _say(f"next: echo 'It was' | transfuse predict {out} -    transfuse evaluate {out} TEXTS")


@app.command()
def predict(
    directory: ModelDir,
    data: Annotated[str, typer.Argument(help="A text file (a text a line), .tsv, .csv, .jsonl, or - for stdin.")] = "-",
    source: SourceColumn = None,
    beams: Beams = None,
    n_best: Annotated[int | None, typer.Option(min=1, help="Outputs for each text. Default: as trained with.")] = None,
    settings: SearchSettings = None,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Print the model's output for each text, one a line (tabs and line ends in it become spaces).

    A language model takes all of standard input for one prompt, and prints its continuation as it is written.
    """
    if data == "-" and not as_json and _is_language_model(directory):
        _stream(directory, beams, n_best, settings, device)
        return
    texts = _read_sources(data, source)
    model = _load(directory, device)
    search = _search(model, beams, n_best, settings)
    for text, candidates in zip(texts, model.predict_n_best(texts, search), strict=True):
        if as_json:
            outputs = [one.to_dict() for one in candidates]
            typer.echo(json.dumps({"source": text, "outputs": outputs}, ensure_ascii=False))
        else:
            typer.echo("\t".join(_LINE_ENDS.sub(" ", one.text) for one in candidates))


@app.command()
def evaluate(
    directory: ModelDir,
    data: Data,
    source: SourceColumn = None,
    target: TargetColumn = None,
    skip_bad_rows: SkipBadRows = False,
    metric: Annotated[
        list[str] | None, typer.Option(help="bleu, bleu-lc, bleu-char, chrf, rouge, exact; repeatable.")
    ] = None,
    key: Annotated[str, typer.Option(help="Key of the text in .jsonl, for a language model.")] = "text",
    beams: Beams = None,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Score the model on data it was not trained on, with signatures: pairs, or text for a language model."""
    if _is_language_model(directory):
        if metric or beams or source or target or skip_bad_rows:
            raise ConfigError("--metric, --beams, --source, --target and --skip-bad-rows are for pairs")
        from transfuse import Corpus

        corpus, about = Corpus(data, key=key), {}
        scores = cast("LanguageModel", _load(directory, device)).evaluate(corpus)
    else:
        pairs = _read_pairs(data, source, target, skip_bad_rows)
        model = cast("Seq2Seq", _load(directory, device))
        model.set_params(search=_search(model, beams))
        scores = model.evaluate(pairs.sources, pairs.targets, metric or model.metric)
        about = {"rows": len(pairs)}
    if as_json:
        typer.echo(json.dumps({**about, "scores": [vars(score) for score in scores]}))
    else:
        for score in scores:
            typer.echo(str(score))


@app.command()
def inspect(
    directory: ModelDir,
    text: Annotated[str, typer.Argument(help="A text to send through the model.")],
    target: Annotated[str | None, typer.Option("--target", help="Its output. Default: what the model says.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Where the picture of attention goes (.png, .svg, .pdf).")
    ] = None,
    attention: Annotated[str, typer.Option(help="Which attention to draw: cross, encoder or decoder.")] = "cross",
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Show every stage's shapes, the parameters of each part, cache bytes, and attention as a picture."""
    if attention not in ("cross", "encoder", "decoder"):
        raise ConfigError(f"attention={attention!r} must be one of cross, encoder, decoder")
    import transfuse

    model = _load(directory, device)
    if isinstance(model, transfuse.LanguageModel):
        raise ConfigError(f"{directory} is a language model; inspect shows encoder–decoders")
    found = transfuse.inspect(model, text, target)
    if picture is not None:
        found.save_picture(picture, attention)  # type: ignore[arg-type]
        _say(f"attention drawn to {picture}")
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else found.to_text())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the model and the picture go.")] = Path("runs/demo"),
    seed: Seed = 0,
) -> None:
    """Train a small real model, dates in twenty languages to ISO 8601, and show that it works."""
    from transfuse.cli.demo import run_demo

    with _stoppable():
        run_demo(out, seed, _say, typer.echo)


def _read_pairs(paths: list[Path], source: str | None, target: str | None, skip_bad_rows: bool) -> Pairs:
    from transfuse import read_pairs

    if len(paths) > 2:
        raise DataError(f"{len(paths)} files given; expected one file of pairs or two parallel files")
    second = paths[1] if len(paths) == 2 else None
    pairs = read_pairs(paths[0], second, source=source, target=target, skip_bad_rows=skip_bad_rows)
    if pairs.skipped:
        _say(f"{paths[0]}: {pairs.skipped:,} unusable rows left out, {len(pairs):,} kept")
    return pairs


def _read_sources(path: str, source: str | None) -> list[str]:
    from transfuse import read_sources

    return read_sources(path, source=source)


def _is_language_model(directory: Path) -> bool:
    """Whether a directory holds one; of a directory that cannot be opened, loading says why."""
    from transfuse import ModelDirectoryError, kind_of

    try:
        return kind_of(directory) == "LanguageModel"
    except ModelDirectoryError:
        return False


def _stream(
    directory: Path, beams: int | None, n_best: int | None, settings: list[str] | None, device: str | None
) -> None:
    """Print the continuation of the prompt on standard input as it is written."""
    prompt = _prompt()
    model = cast("LanguageModel", _load(directory, device))
    for piece in model.stream(prompt, _search(model, beams, n_best, settings)):
        typer.echo(piece, nl=False)
    typer.echo()


def _prompt() -> str:
    """All of standard input, without the line end that closes it."""
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: byte {error.start + 1} is 0x{content[error.start]:02x}, which is not UTF-8") from error


def _stored(paths: list[Path], out: Path, key: str, resume: bool) -> Corpus:
    """The corpus of these paths. Standard input, which can be read only once, is kept in `out`, where a resumed run
    finds it again."""
    from transfuse import Corpus

    if Path("-") in paths:
        copy = out / "training" / "stdin.txt"
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with (part := copy.with_suffix(".part")).open("wb") as stream:
                shutil.copyfileobj(sys.stdin.buffer, stream)
            part.rename(copy)
        elif not resume:
            raise ConfigError(f"{copy} is there from an earlier run; resume it, or choose another folder")
        paths = [copy if path == Path("-") else path for path in paths]
    return Corpus(paths, key=key)


def _load(directory: Path, device: str | None) -> Seq2Seq | LanguageModel:
    from transfuse import load

    return load(directory, device=device)


def _save(model: Seq2Seq | LanguageModel, out: Path) -> None:
    model.save(out)
    for score in model.results_["held_out_metrics"]:
        _say(f"held out: {score['name']} {score['value']:.2f} ({score['signature']})")
    typer.echo(str(out))


def _search(
    model: Seq2Seq | LanguageModel, beams: int | None, n_best: int | None = None, settings: list[str] | None = None
) -> SearchConfig:
    changes = {name.removeprefix("search__"): value for name, value in _parse_settings(model, settings or []).items()}
    unknown = sorted(set(changes) - set(model.search.to_dict()))
    if unknown:
        raise ConfigError(f"--set {unknown[0]}: only settings of search can change after training")
    if beams is not None:
        changes |= {"beams": beams, "n_best": 1}
    if n_best is not None:
        changes["n_best"] = n_best
    return model.search.replace(**changes)


def _check_ours(folder: Path) -> None:
    """Refuse to write a model over somebody's project or over a model from elsewhere."""
    foreign = [name for name in ("config.json", "README.md") if (folder / name).exists()]
    if foreign and not (folder / "transfuse.json").exists():
        raise ConfigError(f"--out {folder}: holds a {foreign[0]} that transfuse did not write; choose another folder")


def _parse_settings(model: Seq2Seq | LanguageModel, settings: Iterable[str]) -> dict[str, Any]:
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


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    _say(f"warning: {message}")


def _fail(error: BaseException, code: int, message: str | None = None) -> None:
    if _options["debug"]:
        traceback.print_exception(error)
    _say(f"transfuse: {message or str(error) or type(error).__name__}")
    sys.exit(code)
