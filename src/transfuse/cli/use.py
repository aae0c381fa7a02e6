"""`transfuse predict`, `evaluate` and `inspect`: a saved model put to use."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from transfuse.cli.messages import say
from transfuse.cli.options import (
    AsJson,
    Beams,
    Data,
    Device,
    ModelDir,
    SearchSettings,
    SkipBadRows,
    SourceColumn,
    TargetColumn,
    parse_settings,
    read_pairs,
)
from transfuse.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transfuse import LanguageModel, SearchConfig, Seq2Seq, TextClassifier

_LINE_ENDS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")


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
    """Print the model's output for each text, one a line (tabs and line ends in it become spaces): a text, a class, a
    number, or a vector.

    A language model takes all of standard input for one prompt, and prints its continuation as it is written.
    """
    if data == "-" and not as_json and _is_language_model(directory):
        _stream(directory, beams, n_best, settings, device)
        return
    texts = _read_sources(data, source)
    model = _load(directory, device)
    if not hasattr(model, "search"):
        if beams or n_best or settings:
            raise ConfigError("--beams, --n-best and --set are for models that write text")
        _print_found(model, texts, as_json)
        return
    search = _search(model, beams, n_best, settings)
    for text, candidates in zip(texts, model.predict_n_best(texts, search), strict=True):
        if as_json:
            outputs = [one.to_dict() for one in candidates]
            typer.echo(json.dumps({"source": text, "outputs": outputs}, ensure_ascii=False))
        else:
            typer.echo("\t".join(_LINE_ENDS.sub(" ", one.text) for one in candidates))


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
    elif _kind(directory) in ("TextClassifier", "TextRegressor"):
        if metric or beams:
            raise ConfigError("--metric and --beams are for pairs of texts")
        pairs = read_pairs(data, source, target, skip_bad_rows)
        judge = cast("TextClassifier", _load(directory, device))
        wanted: list[Any] = [_as_class(judge, label) for label in pairs.targets]
        scores, about = judge.evaluate(pairs.sources, wanted), {"rows": len(pairs)}
    elif _kind(directory) == "TextEncoder":
        raise ConfigError(f"{directory} is an encoder: its vectors have no score of their own")
    else:
        pairs = read_pairs(data, source, target, skip_bad_rows)
        model = cast("Seq2Seq", _load(directory, device))
        model.set_params(search=_search(model, beams))
        scores = model.evaluate(pairs.sources, pairs.targets, metric or model.metric)
        about = {"rows": len(pairs)}
    if as_json:
        typer.echo(json.dumps({**about, "scores": [vars(score) for score in scores]}))
    else:
        for score in scores:
            typer.echo(str(score))


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
    if not isinstance(model, transfuse.Seq2Seq):
        raise ConfigError(f"{directory} is a {type(model).__name__}; inspect shows encoder–decoders")
    found = transfuse.inspect(model, text, target)
    if picture is not None:
        found.save_picture(picture, attention)  # type: ignore[arg-type]
        say(f"attention drawn to {picture}")
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else found.to_text())


def _read_sources(path: str, source: str | None) -> list[str]:
    from transfuse import read_sources

    return read_sources(path, source=source)


def _kind(directory: Path) -> str:
    """Which estimator a directory holds; of one that cannot be opened, loading says why."""
    from transfuse import ModelDirectoryError, kind_of

    try:
        return kind_of(directory)
    except ModelDirectoryError:
        return ""


def _is_language_model(directory: Path) -> bool:
    return _kind(directory) == "LanguageModel"


def _print_found(model: Any, texts: list[str], as_json: bool) -> None:
    """A class or number a text, with probabilities as JSON, or a vector."""
    if hasattr(model, "transform"):
        for text, vector in zip(texts, model.transform(texts).tolist(), strict=True):
            typer.echo(json.dumps({"source": text, "vector": vector}) if as_json else "\t".join(map(str, vector)))
        return
    found = model.predict(texts).tolist()
    chances = model.predict_proba(texts).tolist() if hasattr(model, "predict_proba") else [[]] * len(texts)
    for text, one, probabilities in zip(texts, found, chances, strict=True):
        if as_json:
            named = dict(zip(map(str, model.classes_.tolist()), probabilities, strict=True)) if probabilities else {}
            typer.echo(json.dumps({"source": text, "output": one, "probabilities": named}, ensure_ascii=False))
        else:
            typer.echo(_LINE_ENDS.sub(" ", str(one)))


def _as_class(model: Any, label: str) -> Any:
    """A cell of a table as one of the model's classes, or a number, as it was when it was learned."""
    if not hasattr(model, "classes_"):
        try:
            return float(label)
        except ValueError:
            raise DataError(f"{label!r} is not a number") from None
    return next((one for one in model.classes_.tolist() if str(one) == label), label)


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


def _load(directory: Path, device: str | None) -> Any:
    from transfuse import load

    return load(directory, device=device)


def _search(
    model: Seq2Seq | LanguageModel, beams: int | None, n_best: int | None = None, settings: list[str] | None = None
) -> SearchConfig:
    changes = {name.removeprefix("search__"): value for name, value in parse_settings(model, settings or []).items()}
    unknown = sorted(set(changes) - set(model.search.to_dict()))
    if unknown:
        raise ConfigError(f"--set {unknown[0]}: only settings of search can change after training")
    if beams is not None:
        changes |= {"beams": beams, "n_best": 1}
    if n_best is not None:
        changes["n_best"] = n_best
    return model.search.replace(**changes)
