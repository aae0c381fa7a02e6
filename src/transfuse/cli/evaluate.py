"""`transfuse evaluate`: a saved model's scores on data it was not trained on."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import typer

from transfuse.cli.fit_multimodal import read_rows
from transfuse.cli.options import (
    AsJson,
    Beams,
    Data,
    Device,
    Dtype,
    FilesOption,
    MismatchedAnswers,
    ModelDir,
    SecondColumn,
    SeveralLabels,
    SkipBadRows,
    SourceColumn,
    TagColumn,
    TargetColumn,
    TokenColumn,
    UnreadableRows,
    one_file,
    read_labelled,
    read_pairs,
    read_questions,
    read_tags,
    with_labels,
)
from transfuse.cli.saved import kind_of, load_model, search_of
from transfuse.errors import ConfigError

Found = tuple[list[Any], dict[str, Any]]
"""Scores, and what else there is to say of them."""

USED: dict[str, set[str]] = {
    "LanguageModel": {"--key"},
    "Seq2Seq": {"--source", "--target", "--skip-bad-rows", "--metric", "--beams"},
    "TextClassifier": {"--source", "--second", "--target", "--skip-bad-rows", "--several"},
    "TextRegressor": {"--source", "--second", "--target", "--skip-bad-rows"},
    "TokenTagger": {"--token-column", "--tag-column"},
    "QuestionAnswerer": {"--mismatched"},
    "MultimodalClassifier": {"--target", "--skip-bad-rows", "--files", "--unreadable"},
    "MultimodalRegressor": {"--target", "--skip-bad-rows", "--files", "--unreadable"},
}
"""Options that mean something to each kind of model."""


def evaluate(
    directory: ModelDir,
    data: Data,
    source: SourceColumn = None,
    second: SecondColumn = None,
    target: TargetColumn = None,
    skip_bad_rows: SkipBadRows = False,
    several: SeveralLabels = None,
    token_column: TokenColumn = 1,
    tag_column: TagColumn = -1,
    mismatched: MismatchedAnswers = "refuse",
    metric: Annotated[
        list[str] | None, typer.Option(help="bleu, bleu-lc, bleu-char, chrf, rouge, exact, exact-lc; repeatable.")
    ] = None,
    key: Annotated[str, typer.Option(help="Key of the text in .jsonl, for a language model.")] = "text",
    beams: Beams = None,
    files: FilesOption = None,
    unreadable: UnreadableRows = None,
    as_json: AsJson = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Score the model, with signatures, on data like that it was trained on: pairs, text, tagged words, questions."""
    kind = kind_of(directory)
    given = {
        "--source": source,
        "--second": second,
        "--target": target,
        "--skip-bad-rows": skip_bad_rows,
        "--several": several is not None,
        "--token-column": token_column != 1,
        "--tag-column": tag_column != -1,
        "--mismatched": mismatched != "refuse",
        "--metric": metric,
        "--key": key != "text",
        "--beams": beams,
        "--files": files,
        "--unreadable": unreadable,
    }
    if kind == "TextEncoder":
        raise ConfigError(f"{directory} is an encoder: its vectors have no score of their own")
    idle = [name for name, value in given.items() if value and kind in USED and name not in USED[kind]]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: not for a {kind}")
    load = partial(load_model, directory, device, dtype)
    scores: list[Any]
    if kind == "LanguageModel":
        from transfuse import Corpus

        scores, about = load().evaluate(Corpus(data, key=key)), {}
    elif kind in ("TextClassifier", "TextRegressor"):
        model = load()
        _check_several(model, several)
        X, labels = read_labelled(
            data,
            source,
            second,
            target,
            skip_bad_rows,
            numbers=kind == "TextRegressor",
            several=several,
        )
        scores, about = model.evaluate(X, _as_learned(model, labels)), {"rows": len(X)}
    elif kind.startswith("Multimodal"):
        if target is None:
            raise ConfigError(f"--target: {directory} is scored against a column of the table, which has to be named")
        table = one_file(data)
        frame, labels = read_rows(table, target, skip_bad_rows, number=kind == "MultimodalRegressor")
        model = load().set_params(files=files or table.parent)
        if unreadable is not None:
            model.set_params(unreadable=unreadable)
        scores, about = model.evaluate(frame, labels), {"rows": len(frame)}
    elif kind == "TokenTagger":
        tagged = read_tags(data, token_column, tag_column)
        scores, about = load().evaluate(tagged.X, tagged.y), {"rows": len(tagged)}
    elif kind == "QuestionAnswerer":
        questions = read_questions(one_file(data), mismatched)
        scores, about = load().evaluate(questions.X, questions.y), {"rows": len(questions)}
    else:
        pairs = read_pairs(data, source, target, skip_bad_rows)
        model = load()
        model.set_params(search=search_of(model, beams))
        scores, about = model.evaluate(pairs.sources, pairs.targets, metric or model.metric), {"rows": len(pairs)}
    if as_json:
        typer.echo(json.dumps({**about, "scores": [vars(score) for score in scores]}))
    else:
        for score in scores:
            typer.echo(str(score))


def _check_several(model: Any, several: str | None) -> None:
    """Raise ConfigError unless cells are read as what the model gives: one class, or labels with a mark between."""
    gives_several = getattr(model, "kind_", "") == "labels"
    if gives_several and several is None:
        raise ConfigError("--several: this model knows several labels a text; say what is between them in a cell")
    if several is not None and not (gives_several and several):
        raise ConfigError(f"--several {several!r} is for models of several labels, and is what stands between them")


def _as_learned(model: Any, labels: Any) -> Any:
    """Cells of a table as the model's classes, as they were when it learned them; numbers as they are."""
    if not hasattr(model, "classes_"):
        return labels
    known = {str(one): one for one in model.classes_.tolist()}
    if model.kind_ == "labels":
        return with_labels(labels, [*known])
    return [known[label] for label in labels] if known.keys() >= set(labels) else labels
