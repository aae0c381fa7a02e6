"""Ways of bringing sequences of unequal length together, each trained and measured."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from transfuse.data.modalities import MultimodalBatch, MultimodalDataset
from transfuse.errors import ConfigError, TruncatedWarning, UnreadableWarning
from transfuse.estimators.fine_tuned import JUDGED_TOKENS
from transfuse.estimators.learning_rows import as_frame
from transfuse.estimators.multimodal import MultimodalEstimator
from transfuse.metrics.text_scores import Score
from transfuse.models.fusion import FusionConfig, FusionModel
from transfuse.reports.page import text_table
from transfuse.training.loop import seeded

ALIGNMENTS: tuple[str, ...] = get_args(get_type_hints(FusionConfig)["align"])
"""Every way there is."""

ROUNDS = 5
ROWS = 64
"""Rows of the batch that is timed and whose memory is counted."""


@dataclass(frozen=True)
class Aligned:
    """One way: `scores` on held-out rows, seconds of training, milliseconds a held-out row, MiB that a training step of
    `ROWS` rows (or all there are) keeps for its backward pass, tokens of a row that the joint stack reads, on average,
    and the share of the tokens that was thrown away."""

    align: str
    scores: list[Score]
    seconds: float
    milliseconds: float
    mebibytes: float
    tokens: float
    thrown_away: float


@dataclass(frozen=True)
class AlignmentComparison:
    """What `compare_alignments` found; `lengths` is the mean number of tokens of each modality."""

    ways: list[Aligned]
    lengths: dict[str, float]
    n_timed: int = ROWS

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        ways = [vars(way) | {"scores": [vars(score) for score in way.scores]} for way in self.ways]
        return {"lengths": self.lengths, "ways": ways}

    def header(self) -> list[str]:
        """Column names of `rows`."""
        scores = [score.name for score in self.ways[0].scores]
        return ["align", *scores, "training, s", "ms a row", f"MiB, {self.n_timed} rows", "tokens read", "thrown away"]

    def rows(self) -> list[list[str]]:
        """A row of text for each way."""
        return [
            [
                way.align,
                *(f"{score.value:.4g}" for score in way.scores),
                f"{way.seconds:.0f}",
                f"{way.milliseconds:.3f}",
                f"{way.mebibytes:.1f}",
                f"{way.tokens:.1f}",
                f"{100 * way.thrown_away:.0f} %",
            ]
            for way in self.ways
        ]

    def to_text(self) -> str:
        """A table for a terminal."""
        lengths = ", ".join(f"{name} {length:.1f}" for name, length in self.lengths.items())
        return "\n".join([f"tokens of a row: {lengths}", *text_table(self.header(), self.rows())])


def compare_alignments(
    model: MultimodalEstimator,
    X: Any,
    y: Iterable[Any],
    *,
    held: tuple[Any, Iterable[Any]] | None = None,
    ways: Sequence[str] = ALIGNMENTS,
) -> AlignmentComparison:
    """Train a copy of `model` (fitted or not) with each way of `ways`, from the same seed on the same rows, and measure
    it on `held` (by default what the model's `validation_fraction` says), by which it is selected as well.

    Raises ConfigError for a way that is none, or that the model's fusion does not take.
    """
    unknown = [way for way in ways if way not in ALIGNMENTS]
    if unknown:
        raise ConfigError(f"align={unknown[0]!r} must be one of {', '.join(ALIGNMENTS)}")
    (X, y), held = (as_frame(X, "X"), list(y)), held
    if held is None:
        (X, y), held = model.divided(X, y)
    found, lengths = [], {}
    copies = []
    for way in ways:  # all are checked before the first is trained
        copy = clone(model).set_params(run_dir=None)
        copies.append(copy.set_params(fusion=model.fusion.replace(align=way, longest=None)))
    for copy in copies:
        copy.fit(X, y, validation=held)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreadableWarning)  # fit has told of them
            warnings.simplefilter("ignore", TruncatedWarning)
            data = copy.rows_and_media(as_frame(held[0], "held[0]"))[0]
        there = np.flatnonzero(data.lengths_NM.sum(1) > 0)
        data, wanted = data.choose(there), copy.targets_of(held[1], "held[1]")[there]
        lengths = dict(zip(copy.form_.names, data.lengths_NM.mean(0).tolist(), strict=True))
        found.append(_measured(copy, data, copy.score_of(copy.outputs_of(data), wanted)))
    return AlignmentComparison(found, lengths, min(ROWS, len(data)))


def _measured(model: MultimodalEstimator, data: MultimodalDataset, scores: list[Score]) -> Aligned:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        model.outputs_of(data)
        seconds.append(time.perf_counter() - began)
    rows = np.random.default_rng(0).permutation(len(data))[:ROWS].tolist()
    return Aligned(
        model.fusion.align,
        scores,
        model.results_["seconds"],
        1000 * statistics.median(seconds) / len(data),
        kept_bytes(model.model_, data.batch(rows)) / 2**20,
        _tokens_read(model, data),
        model.results_["trimmed"],
    )


def kept_bytes(model: FusionModel, batch: MultimodalBatch) -> int:
    """Bytes that a forward pass in training keeps for the backward pass, weights not counted."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(model.parameters()).device
    model.train()
    with seeded(0, 0, device), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch.to(device).parts)
    model.eval()
    return sum(kept.values())


@torch.inference_mode()
def _tokens_read(model: MultimodalEstimator, data: MultimodalDataset) -> float:
    """Real tokens of a row, after alignment, on average."""
    total = 0.0
    device = next(model.model_.parameters()).device
    for rows in data.in_order(JUDGED_TOKENS):
        total += float(model.model_.n_read(data.batch(rows).to(device).parts).sum())
    return total / len(data)
