"""What each modality and each column is worth to a multimodal model, and whether combining them helped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.metrics import confusion_matrix

from transfuse.data.columns import Kind
from transfuse.data.modalities import Chosen, Modality, MultimodalDataset
from transfuse.errors import DataError, TruncatedWarning, UnreadableWarning
from transfuse.estimators.learning_rows import as_frame
from transfuse.estimators.multimodal import MultimodalEstimator
from transfuse.estimators.trained import scratch_folder
from transfuse.metrics.labels import alike
from transfuse.metrics.text_scores import Score
from transfuse.reports.page import html_table, new_figure, page, paragraph, picture, text_table, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drop:
    """By how much the score fell when something was shuffled among the rows: mean and deviation over shuffles."""

    name: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class Alone:
    """A model of one modality on the `n_rows` held-out rows that have it, and the fused model on the same rows; where
    none could be trained, `why`."""

    n_rows: int
    scores: list[Score]
    fused: list[Score]
    seconds: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class ModalityReport:
    """Of held-out rows the `scores` of the fused model and of models of one modality each (by name), drops of the first
    measure, and what was predicted: `wanted` and `found`."""

    n_rows: int
    scores: list[Score]
    alone: dict[str, Alone]
    modalities: list[Drop]
    columns: list[Drop]
    wanted: list[Any]
    found: list[Any]
    classes: list[Any] | None
    seconds: float

    @property
    def sentence(self) -> str:
        """Whether combining helped, in plain words: against the modality that comes nearest to the fused model, or
        furthest above it, on the rows that have it."""
        known = {name: one for name, one in self.alone.items() if one.scores}
        if not known:
            return "There is one modality, so nothing was combined." if len(self.modalities) == 1 else ""
        best = min(known, key=lambda name: known[name].fused[0].value - known[name].scores[0].value)
        n, fused, single = known[best].n_rows, known[best].fused[0].value, known[best].scores[0].value
        measure = self.scores[0].name
        if fused > single:
            return (
                f"Combining helped: {measure} {fused:.4g} against {single:.4g} of the best single modality, {best}, "
                f"on {n:,} held-out rows{self._noise(fused, single, n)}."
            )
        return (
            f"Combining did not help: {measure} {fused:.4g}, no better than the {single:.4g} of {best} alone, "
            f"on {n:,} held-out rows."
        )

    def _noise(self, fused: float, single: float, n: int) -> str:
        """Of accuracies, whether the difference is within what chance makes of so many rows."""
        if self.scores[0].name != "accuracy":
            return ""
        share = (fused + single) / 200
        two_errors = 200 * (2 * share * (1 - share) / n) ** 0.5
        return "" if fused - single > two_errors else ", a difference that so few rows do not tell from chance"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "rows": self.n_rows,
            "fused": [vars(score) for score in self.scores],
            "alone": {
                name: {
                    "rows": one.n_rows,
                    "scores": [vars(score) for score in one.scores],
                    "fused": [vars(score) for score in one.fused],
                    "seconds": one.seconds,
                    "why": one.why,
                }
                for name, one in self.alone.items()
            },
            "modalities": [vars(drop) for drop in self.modalities],
            "columns": [vars(drop) for drop in self.columns],
            "sentence": self.sentence,
            "seconds": self.seconds,
        }

    def score_rows(self) -> list[list[str]]:
        """A row for the fused model, and two for each modality: alone, and all together on the rows that have it."""
        rows = [_score_row("all together", self.n_rows, self.scores, f"{self.seconds:.0f}")]
        for name, one in self.alone.items():
            if one.why:
                rows.append([f"{name} alone", "", *("–" for _ in self.scores), one.why])
                continue
            rows.append(_score_row(f"{name} alone", one.n_rows, one.scores, f"{one.seconds:.0f}"))
            if one.n_rows < self.n_rows:
                rows.append(_score_row(f"all together where {name} is", one.n_rows, one.fused, ""))
        return rows

    def drop_rows(self, drops: list[Drop]) -> list[list[str]]:
        """A row for each thing that was shuffled, the dearest first."""
        ordered = sorted(drops, key=lambda drop: -drop.mean)
        return [[drop.name, f"{drop.mean:.4g}", f"± {drop.deviation:.2g}"] for drop in ordered]

    @property
    def _headers(self) -> tuple[list[str], list[str]]:
        measures = [score.name for score in self.scores]
        return ["model", "rows", *measures, "seconds"], ["shuffled", f"drop in {measures[0]}", "deviation"]

    def to_text(self) -> str:
        """Tables for a terminal."""
        models, shuffled = self._headers
        parts = [text_table(models, self.score_rows()), text_table(shuffled, self.drop_rows(self.modalities))]
        parts += [text_table(shuffled, self.drop_rows(self.columns)), [self.sentence]]
        return "\n\n".join("\n".join(lines) for lines in parts if lines != [""])

    def to_html(self) -> str:
        """One page with tables and pictures that needs nothing beside it."""
        models, shuffled = self._headers
        return page(
            "transfuse multimodal",
            "What each modality is worth",
            [
                paragraph(self.sentence),
                html_table(models, self.score_rows()),
                *(paragraph(f"{score.name}: {score.signature}") for score in self.scores),
                "<h2>Shuffled among the held-out rows</h2>",
                html_table(shuffled, self.drop_rows(self.modalities)),
                "<br>",
                html_table(shuffled, self.drop_rows(self.columns)),
                picture(self.outcome_picture()),
            ],
        )

    def save(self, path: str | Path) -> Path:
        """Write `to_html`. Raises TransfuseError if the disk refuses."""
        return write_page(path, self.to_html())

    def outcome_picture(self) -> Figure:
        """How often each class was taken for which, or how far predictions are from numbers."""
        figure, axes = new_figure(6, 5)
        if self.classes is None:
            axes.scatter(self.wanted, np.array(self.found) - np.array(self.wanted), s=6, alpha=0.5)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set(xlabel="true", ylabel="predicted minus true")
            return figure
        names = list(map(str, self.classes))
        # held-out labels may be spelled otherwise, as 1 and 1.0
        wanted, classes = alike(np.array(self.wanted), np.array(self.classes))
        found = alike(np.array(self.found), np.array(self.wanted))[0]
        matrix = confusion_matrix(wanted, found, labels=classes)
        axes.imshow(matrix / np.maximum(matrix.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        if len(names) <= 20:
            for (row, column), count in np.ndenumerate(matrix):
                colour = "white" if count > matrix[row].sum() / 2 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        return figure


def modality_report(
    model: MultimodalEstimator,
    X: Any,
    y: Iterable[Any],
    *,
    held: tuple[Any, Iterable[Any]],
    sample_weight: Iterable[float] | str | None = None,
    n_repeats: int = 5,
    alone: bool = True,
    random_state: int = 0,
) -> ModalityReport:
    """How a fitted model does on `held` rows, beside a model of each modality alone (trained on `X`, `y` and
    `sample_weight` as it was, and selected by `held` as well; not with `alone=False`), and what it loses there when
    modalities and columns are shuffled, `n_repeats` times each.

    A model of one modality has the settings of the fused one and sees the rows that have the modality; both are scored
    on the held-out rows that do.
    """
    frame, wanted = as_frame(held[0], "held[0]"), model.as_learned(model.targets_of(held[1], "held[1]"))
    if len(frame) != len(wanted):
        raise DataError(f"held has {len(frame)} rows and {len(wanted)} targets; one each is needed")
    check_judged(model, len(frame))
    with warnings.catch_warnings(), ExitStack() as scratch:
        warnings.simplefilter("ignore", UnreadableWarning)  # fit has told of them
        warnings.simplefilter("ignore", TruncatedWarning)
        # their pixels and frames may be more than memory holds
        folder = Path(scratch.enter_context(scratch_folder()))
        data, media = model.rows_and_media(frame, scratch=folder)
        there = np.flatnonzero(data.lengths_NM.sum(1) > 0)
        outputs = model.outputs_of(data.choose(there))
        whole = Held(frame.iloc[there].reset_index(drop=True), wanted[there], data.choose(there), outputs)
        scores = model.score_of(outputs, whole.wanted)
        single: dict[str, Alone] = {}
        if alone and len(model.form_.names) > 1:
            weights: Any = sample_weight
            if sample_weight is not None and not isinstance(sample_weight, str):
                weights = np.asarray(list(sample_weight))
            learned = as_frame(X, "X"), list(y), weights
            lengths_NM = model.rows_and_media(learned[0], scratch=folder)[0].lengths_NM
            for i, name in enumerate(model.form_.names):
                single[name] = _alone(model, name, learned, lengths_NM[:, i] > 0, whole)
    judge = _Judge(model, wanted)
    draw = np.random.default_rng(random_state)
    orders = [draw.permutation(len(frame)) for _ in range(n_repeats)]
    modalities, columns = [], []
    for name in model.form_.names:
        shuffled = [_with(data, name, Chosen(data.modalities[name], order)) for order in orders]
        modalities.append(judge.drop(name, data, shuffled))
        for column in model.form_.columns_of[name] if len(model.form_.columns_of[name]) > 1 else []:
            changed = [_shuffled_column(frame, column, order) for order in orders]
            parts = [model.modality_of(name, one, media) for one in changed]
            columns.append(judge.drop(column, data, [_with(data, name, part) for part in parts]))
    classes = model.classes_.tolist() if hasattr(model, "classes_") else None
    found, told = model.decided(outputs).tolist(), whole.wanted.tolist()
    return ModalityReport(
        len(there), scores, single, modalities, columns, told, found, classes, model.results_["seconds"]
    )


def check_judged(model: MultimodalEstimator, n: int) -> None:
    """Raise DataError for fewer held-out rows than the first measure of the model's kind is defined for."""
    if model.KIND == "number" and n < 2:
        raise DataError(f"{n} held-out row; R² of numbers needs at least 2")


@dataclass(frozen=True)
class Held:
    """Held-out rows: as a table, what is wanted of them, as the fused model takes them, and what it gives for them."""

    frame: pd.DataFrame
    wanted: np.ndarray
    data: MultimodalDataset
    outputs: np.ndarray


@dataclass(frozen=True)
class _Judge:
    model: MultimodalEstimator
    wanted: np.ndarray

    def drop(self, name: str, data: MultimodalDataset, changed: list[MultimodalDataset]) -> Drop:
        """Scores of rows as they are less those of changed ones, on the rows that have anything either way."""
        found = []
        for one in changed:
            rows = np.flatnonzero((one.lengths_NM.sum(1) > 0) & (data.lengths_NM.sum(1) > 0))
            if len(rows) < 2:
                continue  # nothing to shuffle
            found.append(self._score(data, rows) - self._score(one, rows))
        return Drop(name, mean(found or [0.0]), stdev(found) if len(found) > 1 else 0.0)

    def _score(self, data: MultimodalDataset, rows: np.ndarray) -> float:
        return self.model.score_of(self.model.outputs_of(data.choose(rows)), self.wanted[rows])[0].value


def _with(data: MultimodalDataset, name: str, modality: Modality) -> MultimodalDataset:
    return replace(data, modalities={**data.modalities, name: modality})


def _shuffled_column(frame: pd.DataFrame, name: str, order: np.ndarray) -> pd.DataFrame:
    changed = frame.copy()
    changed[name] = frame[name].to_numpy()[order]
    return changed


def _alone(
    model: MultimodalEstimator,
    name: str,
    learned: tuple[pd.DataFrame, list[Any], Any],
    there: np.ndarray,
    held: Held,
) -> Alone:
    """A model of one modality, trained on the rows that have it and judged by the held-out ones that do."""
    columns = model.form_.columns_of[name]
    ignored: dict[str, Kind] = {column: "ignored" for column in model.form_.kinds if column not in columns}
    single = clone(model).set_params(kinds={**model.form_.kinds, **ignored}, run_dir=None)
    single.set_params(fusion=model.fusion.replace(longest=None))
    (frame, y, weights), rows = learned, np.flatnonzero(there)
    judged = np.flatnonzero(held.data.lengths_NM[:, model.form_.names.index(name)] > 0)
    own_held = held.frame.iloc[judged], held.wanted[judged]
    try:
        if not len(rows) or not len(judged):
            raise DataError("no row to learn from, or none to judge by, has it")
        check_judged(model, len(judged))
        single.fit(
            frame.iloc[rows],
            [y[row] for row in rows],
            sample_weight=weights[rows] if isinstance(weights, np.ndarray) else weights,
            validation=own_held,
        )
        scores = single.evaluate(*own_held)
    except DataError as error:  # as where rows with it are of one class
        return Alone(len(judged), [], [], why=str(error))
    fused = model.score_of(held.outputs[judged], held.wanted[judged])
    return Alone(len(judged), scores, fused, single.results_["seconds"])


def _score_row(name: str, n_rows: int, scores: list[Score], seconds: str) -> list[str]:
    return [name, f"{n_rows:,}", *(f"{score.value:.4g}" for score in scores), seconds]
