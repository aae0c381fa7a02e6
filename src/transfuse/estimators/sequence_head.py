"""What a classifier and a regressor of texts share: texts or pairs in, numbers of a head out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.utils.validation import check_is_fitted

from transfuse.data.labelled import LabelledDataset
from transfuse.data.pairs import as_texts
from transfuse.data.text_files import MAX_CHARACTERS
from transfuse.data.wordpiece import Pieces
from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.estimators.about import ESTIMATOR
from transfuse.estimators.fine_tuned import FineTuned, divided
from transfuse.estimators.limits import cut
from transfuse.models.bert import Head, check_pairs
from transfuse.pretrained.directory import CONFIG, read_json
from transfuse.training.classification import SequenceLoss, sequence_logits

ENCODED_ROWS = 10_000
"""Rows that are encoded at a time: all that is kept of them is their ids."""

Texts = Iterable[str] | Iterable[Sequence[str]]
"""Texts, or pairs of texts."""


class SequenceHead(FineTuned):
    """An estimator that gives numbers for a text or a pair of texts."""

    HEAD: ClassVar[Head] = "sequence"
    SAID: ClassVar[dict[str, Any]] = {"kind": "", "classes": [], "mean": [], "scale": [], "reads": ""}

    kind_: Literal["class", "labels", "number"]
    pairs_: bool | None
    """Whether it learned from pairs of texts; None where a directory does not say."""

    def _learn(
        self, X: Texts, targets: np.ndarray, n_labels: int, loss: SequenceLoss, validation: Any, resume: bool
    ) -> None:
        """Train on texts and targets, (rows,) or (rows, labels)."""
        seed = self._seed()
        texts, seconds = columns(X, "X")
        if len(texts) != len(targets):
            raise DataError(f"X has {len(texts)} rows and y has {len(targets)}; they must be equally many")
        if validation is None:
            kept, aside = divided(len(targets), self.validation_fraction, seed, **self._likeness(texts, targets))
        else:
            further, further_seconds = columns(validation[0], "validation[0]")
            if (seconds is None) != (further_seconds is None):
                raise DataError("X and validation[0] must both be texts or both be pairs")
            if len(further) != len(validation[1]):
                raise DataError(
                    f"validation has {len(further)} texts and {len(validation[1])} targets; one each is needed"
                )
            if targets.shape[1:] != validation[1].shape[1:]:
                raise DataError("y and validation[1] have different numbers of columns")
            kept, aside = np.arange(len(texts)), np.arange(len(texts), len(texts) + len(further))
            texts = texts + further
            seconds = None if seconds is None or further_seconds is None else seconds + further_seconds
            targets = np.concatenate([targets, validation[1]])
        smoothing = (self.training or self.default_training).label_smoothing
        if smoothing and loss.kind != "class":
            raise ConfigError(
                f"label_smoothing={smoothing} is for one class a text; it must be 0 for several or numbers"
            )
        positions = self._begin([side[row] for side in (texts, seconds or []) for row in kept if side], n_labels, seed)
        if seconds is not None:
            check_pairs(self.model_.config)
        n = len(texts) if validation is None else len(kept)
        pieces = self._encoded(texts[:n], seconds and seconds[:n], "X")
        pieces += self._encoded(texts[n:], seconds and seconds[n:], "validation[0]")
        data, held = (LabelledDataset([pieces[row] for row in rows], targets[rows]) for rows in (kept, aside))
        weights = None if loss.weights is None else list(loss.weights)
        self.pairs_ = seconds is not None
        self._fine_tune(data, held, loss, seed, resume, positions, kind=loss.kind, class_weights=weights)
        judged = [(texts[row], seconds[row]) for row in aside] if seconds else [texts[row] for row in aside]
        self._judge(judged, self._as_given(targets[aside]))

    def _encoded(self, texts: list[str], seconds: list[str] | None, name: str) -> list[Pieces]:
        """Ids of rows of `name`, cut to the model's positions."""
        found: list[Pieces] = []
        for first in range(0, len(texts), ENCODED_ROWS):
            some = slice(first, first + ENCODED_ROWS)
            encoded = self.tokenizer_.encode(texts[some], None if seconds is None else seconds[some])
            found += [one.bare() for one in encoded]
        return cut(found, self.model_.config.max_positions, self.tokenizer_, name)

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        """Targets as `fit` was given them."""
        raise NotImplementedError

    def _loss_name(self) -> str:
        return {
            "class": "cross-entropy, nats a text",
            "labels": "cross-entropy of all labels, nats a text",
            "number": "half the squared error, in squared deviations of the numbers",
        }[self.kind_]

    def _example(self) -> str:
        return '[("a text", "another")]' if self.pairs_ else '["a text"]'

    def _reads(self) -> dict[str, str]:
        """What a saved directory says of the rows it learned from."""
        return {} if self.pairs_ is None else {"reads": "pairs" if self.pairs_ else "texts"}

    def _take_reads(self, folder: Path, about: dict[str, Any]) -> None:
        """Put back what `_reads` gave."""
        if about["reads"] not in ("", "texts", "pairs"):
            raise ModelDirectoryError(f"{folder / ESTIMATOR}: reads={about['reads']!r} must be texts or pairs")
        self.pairs_ = about["reads"] == "pairs" if about["reads"] else None

    def _logits(self, X: Texts) -> np.ndarray:
        """What the head makes of each text, (texts, labels), in float64."""
        check_is_fitted(self, "model_")
        texts, seconds = columns(X, "X")
        if self.pairs_ not in (None, seconds is not None):
            kinds = "single texts", "pairs of texts"
            raise DataError(f"X holds {kinds[not self.pairs_]}, and the model learned from {kinds[bool(self.pairs_)]}")
        if seconds is not None:
            check_pairs(self.model_.config)
        pieces = self._encoded(texts, seconds, "X")
        found = np.empty((len(pieces), self.model_.config.n_labels))
        for batch, logits in self._found(LabelledDataset(pieces, np.zeros(len(pieces))), sequence_logits):
            found[list(batch.sequences.rows)] = logits.double().cpu().numpy()
        return found


def gives_numbers(folder: Path, kind: str, n_labels: int) -> bool:
    """Whether a directory's head gives numbers: as its own file says, or, in anyone's, `transformers`' rule: what
    `problem_type` says, and without it one label is a number."""
    if kind:
        return kind == "number"
    problem = read_json(folder / CONFIG).get("problem_type")
    return n_labels == 1 if problem is None else problem == "regression"


def columns(X: Any, name: str, longest: int = MAX_CHARACTERS) -> tuple[list[str], list[str] | None]:
    """Texts, and the second ones where rows are pairs."""
    if isinstance(X, str | bytes):
        return as_texts(X, name, longest), None
    rows = X.to_numpy() if hasattr(X, "to_numpy") else X if isinstance(X, np.ndarray) else list(X)
    paired = len(rows) > 0 and not isinstance(rows[0], str) and isinstance(rows[0], tuple | list | np.ndarray)
    if not paired:
        return as_texts(rows, name, longest), None
    for row, pair in enumerate(rows):
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            n = len(pair) if isinstance(pair, tuple | list | np.ndarray) else 1
            raise DataError(f"{name}[{row}]: {n} texts; a row is one text or a pair")
    return as_texts([a for a, _ in rows], name, longest), as_texts([b for _, b in rows], name, longest)
