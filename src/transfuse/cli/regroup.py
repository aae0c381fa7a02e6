"""`transfuse regroup` and `compare`: a model with fewer key/value heads, and what that costs and gains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfuse.cli.fit_multimodal import HeldOutTable, new_model, read_rows, set_up
from transfuse.cli.messages import say, stoppable
from transfuse.cli.options import (
    AsJson,
    Device,
    FilesOption,
    KindOption,
    ModelDir,
    Out,
    Resume,
    Seed,
    Settings,
    SkipBadRows,
    SourceColumn,
    TargetColumn,
    UnreadableFiles,
    check_ours,
    parse_kinds,
    read_pairs,
)
from transfuse.errors import ConfigError

if TYPE_CHECKING:
    from transfuse import Comparison, LanguageModel, Seq2Seq

DataOption = Annotated[
    list[Path], typer.Option("--data", help="Pairs or text, as for fit; repeatable. For parallel files give it twice.")
]
Key = Annotated[str, typer.Option(help="Key of the text in .jsonl, for a language model.")]


def regroup(
    directory: ModelDir,
    kv_heads: Annotated[str, typer.Option(help="Key/value heads to have: a number, or one a layer as 4,4,2.")],
    data: DataOption,
    out: Out,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to train on after the conversion. Default: none.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="The same as a share of the tokens that the model was trained on.")
    ] = None,
    method: Annotated[str, typer.Option(help="aligned, procrustes, mean, first or random.")] = "aligned",
    refit: Annotated[bool, typer.Option(help="Fit output projections to the converted heads.")] = True,
    divergence: Annotated[float, typer.Option(help="Weight of KL(original || new) in the training.")] = 1.0,
    cross_entropy: Annotated[
        float, typer.Option(help="Weight of the data's own loss; the original is then trained alike, as a control.")
    ] = 0.0,
    trains: Annotated[str, typer.Option(help="Weights that train: attention, decoder or all.")] = "attention",
    validation: Annotated[
        list[Path] | None, typer.Option(help="Held-out data, as --data. Default: what fit held out of it.")
    ] = None,
    source: SourceColumn = None,
    target: TargetColumn = None,
    skip_bad_rows: SkipBadRows = False,
    key: Key = "text",
    expand: Annotated[
        Path | None, typer.Option(help="Also write an equal multi-head model here, for programs without grouped heads.")
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Turn a multi-head model into a grouped-query or multi-query one, train it a little, and compare the two.

    Works on directories written by fit and on Llama, Mistral, Qwen2, GPT-2, Marian and M2M100 directories or hub ids.
    """
    import transfuse

    written = {"--out": out, "--expand": expand} if expand is not None else {"--out": out}
    for name, folder in written.items():
        check_ours(folder)
        for other, path in [("the model itself", directory), *written.items()]:
            if other != name and path.resolve() == folder.resolve():
                raise ConfigError(f"{name} {folder} is {other}; a model would be lost")
        if (folder / "config.json").exists() and not resume:
            raise ConfigError(f"{name} {folder}: holds a model already; choose another folder")
    heads = _heads(kv_heads)
    if tokens is None and alpha is None:
        say("neither --tokens nor --alpha: the model is converted, and not trained")
    loss = transfuse.DistillationConfig(divergence=divergence, cross_entropy=cross_entropy)
    if tokens is not None and alpha is not None:
        raise ConfigError(f"--tokens {tokens} and --alpha {alpha}: give one of them")
    original = transfuse.load(directory, device=device)
    columns = _columns(original, data, key, source, target, skip_bad_rows)
    held = _columns(original, validation, key, source, target, skip_bad_rows) if validation else None
    say(f"{directory}: converting to {kv_heads} key/value heads by {method}")
    converted = transfuse.regroup(
        original,
        heads,
        *columns,
        method=method,  # type: ignore[arg-type]
        refit=refit,
        random_state=seed,
    )
    models: dict[str, Any] = {"original": original, "converted": converted}
    result = converted
    if tokens is not None or alpha is not None:
        budget: dict[str, Any] = {
            "tokens": tokens,
            "alpha": alpha,
            "trains": trains,
            "resume": resume,
            "random_state": seed,
        }
        budget["validation"] = None if held is None else held if isinstance(original, transfuse.Seq2Seq) else held[0]
        with stoppable():
            result = models["trained"] = transfuse.uptrain(
                converted, original, *columns, **budget, distillation=loss, run_dir=out / "training"
            )
            if cross_entropy:
                alone = transfuse.DistillationConfig(divergence=0, cross_entropy=cross_entropy)
                models["original, trained alike"] = transfuse.uptrain(
                    original, original, *columns, **budget, distillation=alone, run_dir=out / "control"
                )
    found = transfuse.compare(models, *(held or original.held_out(*columns)))
    result.results_["comparison"] = found.to_markdown()
    result.save(out)
    report = found.save(out / "comparison.html")
    if expand is not None:
        transfuse.expand_heads(result).save(expand)
        say(f"the same with all heads: {expand}")
    say(found.to_text())
    say(f"report: {report}")
    typer.echo(str(out))


def compare(
    directories: Annotated[list[Path], typer.Argument(help="Directories; the first is what others stand beside.")],
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Pairs or text, as for fit; for parallel files give it twice.")
    ] = None,
    source: SourceColumn = None,
    target: TargetColumn = None,
    skip_bad_rows: SkipBadRows = False,
    key: Key = "text",
    align: Annotated[
        str | None,
        typer.Option(help="Of one TABLE instead: train each of these alignments, as pad,trim,attend, or all."),
    ] = None,
    kinds: KindOption = None,
    files: FilesOption = None,
    number: Annotated[bool, typer.Option("--number", help="With --align: the target is a number.")] = False,
    validation: HeldOutTable = None,
    unreadable: UnreadableFiles = "refuse",
    settings: Settings = None,
    seed: Seed = 0,
    contexts: Annotated[
        list[int] | None, typer.Option("--context", min=1, help="Positions behind a timed step; repeatable.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes.")] = None,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Quality on held-out data, speed and memory of several models of one vocabulary, as a table and a report.

    With --align, of ways to bring a table's text, images, sounds and columns to one length, each trained.
    """
    import transfuse

    if align is not None:
        if len(directories) != 1 or target is None or data or contexts or report:
            raise ConfigError(
                "--align is for one TABLE and its --target; --data, --context and --report are not for it"
            )
        model = new_model(
            number,
            kinds=parse_kinds(kinds),
            files=files or directories[0].parent,
            unreadable=unreadable,
            device=device,
            random_state=seed,
            verbose=True,
        )
        set_up(model, settings, None, None)
        X, y = read_rows(directories[0], target, skip_bad_rows, number=number)
        held = None if validation is None else read_rows(validation, target, skip_bad_rows, number=number)
        ways: dict[str, Any] = {} if align == "all" else {"ways": align.split(",")}
        with stoppable():
            measured = transfuse.compare_alignments(model, X, y, held=held, **ways)
        typer.echo(json.dumps(measured.to_dict()) if as_json else measured.to_text())
        return
    if not data:
        raise ConfigError("compare needs --data FILE, held-out data to judge by")
    if kinds or number or settings or validation or files or unreadable != "refuse":
        raise ConfigError("--kind, --files, --number, --validation, --unreadable and --set are for --align")
    names = [str(directory) for directory in directories]
    if len(set(names)) < len(names):
        raise ConfigError(f"{' '.join(names)}: each directory once")
    models: dict[str, Any] = {name: transfuse.load(name, device=device) for name in names}
    columns = _columns(models[names[0]], data, key, source, target, skip_bad_rows)
    more = {"contexts": contexts} if contexts else {}
    found: Comparison = transfuse.compare(models, *columns, **more)
    if report is not None:
        say(f"report: {found.save(report)}")
    typer.echo(json.dumps(found.to_dict()) if as_json else found.to_text())


def _columns(
    model: Seq2Seq | LanguageModel,
    paths: list[Path],
    key: str,
    source: str | None,
    target: str | None,
    skip_bad_rows: bool,
) -> Any:
    """The data as the model's methods take it: (sources, targets), or (documents, None)."""
    import transfuse

    if isinstance(model, transfuse.LanguageModel):
        return transfuse.Corpus(paths, key=key), None
    pairs = read_pairs(paths, source, target, skip_bad_rows)
    return pairs.sources, pairs.targets


def _heads(text: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--kv-heads {text}: expected a number, or numbers with commas between them") from None
    if min(numbers) < 1:
        raise ConfigError(f"--kv-heads {text}: at least 1 is needed")
    return numbers[0] if len(numbers) == 1 else numbers
