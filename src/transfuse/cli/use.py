"""`transfuse predict` and `inspect`: a saved model put to use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from transfuse.cli.found import LINE_ENDS, print_found, print_rows
from transfuse.cli.messages import say
from transfuse.cli.options import (
    AsJson,
    Beams,
    Device,
    Dtype,
    FilesOption,
    ModelDir,
    SearchSettings,
    SecondColumn,
    SourceColumn,
    UnreadableRows,
    read_sources,
)
from transfuse.cli.saved import kind_of, load_model, search_of
from transfuse.errors import ConfigError, DataError, TransfuseError

if TYPE_CHECKING:
    from transfuse import LanguageModel


def predict(
    directory: ModelDir,
    data: Annotated[str, typer.Argument(help="A text file (a text a line), .tsv, .csv, .jsonl, or - for stdin.")] = "-",
    source: SourceColumn = None,
    second: SecondColumn = None,
    beams: Beams = None,
    n_best: Annotated[int | None, typer.Option(min=1, help="Outputs for each text. Default: as trained with.")] = None,
    settings: SearchSettings = None,
    files: FilesOption = None,
    unreadable: UnreadableRows = None,
    as_json: AsJson = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Print the model's output for each text, one a line (tabs and line ends in it become spaces): a text, a class, a
    number, a vector, entities or tags, or an answer.

    A language model takes all of standard input for one prompt, and prints its continuation as it is written.
    """
    if data == "-" and not as_json and kind_of(directory) == "LanguageModel":
        _stream(directory, beams, n_best, settings, device, dtype)
        return
    if kind_of(directory) not in ("Seq2Seq", "LanguageModel", ""):
        if beams or n_best or settings:
            raise ConfigError("--beams, --n-best and --set are for models that write text")
        if kind_of(directory).startswith("Multimodal"):
            if source or second:
                raise ConfigError("--source and --second are for models of texts")
            print_rows(directory, Path(data), files, unreadable, as_json, device, dtype)
            return
        if files or unreadable:
            raise ConfigError("--files and --unreadable are for multimodal models")
        print_found(directory, data, source, second, as_json, device, dtype)
        return
    if second is not None:
        raise ConfigError("--second is for models of two texts")
    if files or unreadable:
        raise ConfigError("--files and --unreadable are for multimodal models")
    texts = read_sources(data, source)
    model = load_model(directory, device, dtype)
    search = search_of(model, beams, n_best, settings)
    for text, candidates in zip(texts, model.predict_n_best(texts, search), strict=True):
        if as_json:
            outputs = [one.to_dict() for one in candidates]
            typer.echo(json.dumps({"source": text, "outputs": outputs}, ensure_ascii=False))
        else:
            typer.echo("\t".join(LINE_ENDS.sub(" ", one.text) for one in candidates))


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

    model = load_model(directory, device)
    if not isinstance(model, transfuse.Seq2Seq):
        raise ConfigError(f"{directory} is a {type(model).__name__}; inspect shows encoder–decoders")
    found = transfuse.inspect(model, text, target)
    typer.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else found.to_text())
    if picture is not None:
        try:
            found.save_picture(picture, attention)  # type: ignore[arg-type]
        except OSError as error:
            raise TransfuseError(f"cannot draw {picture}: {error.strerror or error}") from error
        say(f"attention drawn to {picture}")


def _stream(
    directory: Path,
    beams: int | None,
    n_best: int | None,
    settings: list[str] | None,
    device: str | None,
    dtype: str,
) -> None:
    """Print the continuation of the prompt on standard input as it is written."""
    prompt = _prompt()
    model = cast("LanguageModel", load_model(directory, device, dtype))
    for piece in model.stream(prompt, search_of(model, beams, n_best, settings)):
        typer.echo(piece, nl=False)
    typer.echo()


def _prompt() -> str:
    """All of standard input, without the line end that closes it."""
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: byte {error.start + 1} is 0x{content[error.start]:02x}, which is not UTF-8") from error
