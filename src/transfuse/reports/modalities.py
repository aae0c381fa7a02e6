"""What each modality and each column is worth to a multimodal model, and whether combining them helped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.metrics import confusion_matrix

from transfuse.data.modalities import Chosen, Modality, MultimodalDataset
from transfuse.errors import DataError, UnreadableWarning
from transfuse.estimators.multimodal import MultimodalEstimator, as_frame
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
class ModalityReport:
    """Of held-out rows the `scores` of the fused model and of models of one modality each (by name, the same measures
    in the same order), drops of the first measure, and what was predicted: `wanted` and `found`."""

    n_rows: int
    scores: list[Score]
    alone: dict[str, list[Score]]
    modalities: list[Drop]
    columns: list[Drop]
    wanted: list[Any]
    found: list[Any]
    classes: list[Any] | None
    seconds: dict[str, float]

    @property
    def sentence(self) -> str:
        """Whether combining helped, in plain words."""
        if not self.alone:
            return "There is one modality, so nothing was combined." if len(self.modalities) == 1 else ""
        measure, fused = self.scores[0].name, self.scores[0].value
        best = max(self.alone, key=lambda name: self.alone[name][0].value)
        single = self.alone[best][0].value
        if fused > single:
            return (
                f"Combining helped: {measure} {fused:.4g} against {single:.4g} of the best single modality, {best}, "
                f"on {self.n_rows:,} held-out rows{self._noise(fused, single)}."
            )
        return (
            f"Combining did not help: {measure} {fused:.4g}, no better than the {single:.4g} of {best} alone, "
            f"on {self.n_rows:,} held-out rows."
        )

    def _noise(self, fused: float, single: float) -> str:
        """Of accuracies, whether the difference is within what chance makes of so many rows."""
        if self.scores[0].name != "accuracy":
            return ""
        share = (fused + single) / 200
        two_errors = 200 * (2 * share * (1 - share) / self.n_rows) ** 0.5
        return "" if fused - single > two_errors else ", a difference that so few rows do not tell from chance"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "rows": self.n_rows,
            "fused": [vars(score) for score in self.scores],
            "alone": {name: [vars(score) for score in scores] for name, scores in self.alone.items()},
            "modalities": [vars(drop) for drop in self.modalities],
            "columns": [vars(drop) for drop in self.columns],
            "sentence": self.sentence,
            "seconds": self.seconds,
        }

    def score_rows(self) -> list[list[str]]:
        """A row for the fused model and for each modality alone."""
        rows = {"all together": self.scores} | {f"{name} alone": scores for name, scores in self.alone.items()}
        return [
            [
                name,
                *(f"{score.value:.4g}" for score in scores),
                f"{self.seconds.get(name.removesuffix(' alone'), 0):.0f}",
            ]
            for name, scores in rows.items()
        ]

    def drop_rows(self, drops: list[Drop]) -> list[list[str]]:
        """A row for each thing that was shuffled, the dearest first."""
        ordered = sorted(drops, key=lambda drop: -drop.mean)
        return [[drop.name, f"{drop.mean:.4g}", f"± {drop.deviation:.2g}"] for drop in ordered]

    @property
    def _headers(self) -> tuple[list[str], list[str]]:
        measures = [score.name for score in self.scores]
        return ["model", *measures, "seconds"], ["shuffled", f"drop in {measures[0]}", "deviation"]

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
        matrix = confusion_matrix(list(map(str, self.wanted)), list(map(str, self.found)), labels=names)
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
    n_repeats: int = 5,
    alone: bool = True,
    random_state: int = 0,
) -> ModalityReport:
    """How a fitted model does on `held` rows, beside a model of each modality alone (trained on `X` and `y` as it was,
    and selected by `held` as well; not with `alone=False`), and what it loses there when modalities and columns are
    shuffled, `n_repeats` times each.

    The models of one modality have its settings, but no modality missing in training.
    """
    frame, wanted = as_frame(held[0], "held[0]"), model.targets_of(held[1], "held[1]")
    if len(frame) != len(wanted):
        raise DataError(f"held has {len(frame)} rows and {len(wanted)} targets; one each is needed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableWarning)  # fit has told of them
        data, media = model.rows_and_media(frame)
        outputs = model.outputs_of(data)
        scores = model.score_of(outputs, wanted)
        singles, seconds = _alone(model, X, y, held) if alone and len(model.form_.names) > 1 else ({}, {})
    seconds["all together"] = model.results_["seconds"]
    judge = _Judge(model, wanted, scores[0].value)
    draw = np.random.default_rng(random_state)
    orders = [draw.permutation(len(frame)) for _ in range(n_repeats)]
    modalities, columns = [], []
    for name in model.form_.names:
        modalities.append(
            judge.drop(name, [_with(data, name, Chosen(data.modalities[name], order)) for order in orders])
        )
        for column in model.form_.columns_of[name] if len(model.form_.columns_of[name]) > 1 else []:
            changed = [_shuffled_column(frame, column, order) for order in orders]
            parts = [model.modality_of(name, one, media) for one in changed]
            columns.append(judge.drop(column, [_with(data, name, part) for part in parts]))
    classes = model.classes_.tolist() if hasattr(model, "classes_") else None
    found = model.decided(outputs).tolist()
    return ModalityReport(len(frame), scores, singles, modalities, columns, wanted.tolist(), found, classes, seconds)


@dataclass(frozen=True)
class _Judge:
    model: MultimodalEstimator
    wanted: np.ndarray
    best: float

    def drop(self, name: str, changed: list[MultimodalDataset]) -> Drop:
        found = [self.best - self._score(data) for data in changed]
        return Drop(name, mean(found), stdev(found) if len(found) > 1 else 0.0)

    def _score(self, data: MultimodalDataset) -> float:
        there = data.lengths_NM.sum(1) > 0  # shuffling may leave a row without anything
        rows = np.flatnonzero(there)
        kept = data if there.all() else data.choose(rows)
        return self.model.score_of(self.model.outputs_of(kept), self.wanted[rows])[0].value


def _with(data: MultimodalDataset, name: str, modality: Modality) -> MultimodalDataset:
    return replace(data, modalities={**data.modalities, name: modality})


def _shuffled_column(frame: pd.DataFrame, name: str, order: np.ndarray) -> pd.DataFrame:
    changed = frame.copy()
    changed[name] = frame[name].to_numpy()[order]
    return changed


def _alone(
    model: MultimodalEstimator, X: Any, y: Iterable[Any], held: tuple[Any, Iterable[Any]]
) -> tuple[dict[str, list[Score]], dict[str, float]]:
    """The scores of a model of each modality on held-out rows, and how long it trained."""
    scores, seconds = {}, {}
    frame, y = as_frame(X, "X"), list(y)
    for name, columns in model.form_.columns_of.items():
        single = clone(model)
        ignored = {column: "ignored" for column in model.form_.kinds if column not in columns}
        single.set_params(kinds={**model.form_.kinds, **ignored}, run_dir=None)
        single.set_params(fusion=model.fusion.replace(longest=None))
        there = [rows_with(one, columns) for one in (frame, as_frame(held[0], "held[0]"))]
        (own_X, own_y), own_held = (
            (table.iloc[rows], [targets[row] for row in rows])
            for table, targets, rows in ((frame, y, there[0]), (as_frame(held[0], ""), list(held[1]), there[1]))
        )
        single.fit(own_X, own_y, validation=own_held)
        scores[name] = single.evaluate(*own_held)
        seconds[name] = single.results_["seconds"]
    return scores, seconds


def rows_with(frame: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Rows of which any of these columns is known."""
    return np.flatnonzero(frame[columns].notna().any(axis=1).to_numpy())
