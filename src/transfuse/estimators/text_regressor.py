"""A number, or several, for a text or a pair of texts: BERT fine-tuned, or trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import mean_absolute_error, r2_score

from transfuse.errors import DataError, ModelDirectoryError
from transfuse.estimators.about import ESTIMATOR
from transfuse.estimators.sequence_head import SequenceHead, Texts, gives_numbers
from transfuse.metrics.text_scores import Score
from transfuse.training.classification import SequenceLoss


class TextRegressor(RegressorMixin, SequenceHead):  # type: ignore[misc]
    """Learns a number, or several, for each text or pair of texts; arguments as `TextClassifier` has them.

    Numbers are brought to mean 0 and deviation 1 for training and back afterwards.
    """

    def fit(
        self, X: Texts, y: Iterable[Any], *, validation: tuple[Texts, Iterable[Any]] | None = None, resume: bool = False
    ) -> Self:
        """Learn the numbers of each text. Raises DataError for unusable rows and numbers that are not finite."""
        with self._unchanged_on_failure():
            self._check_settings()
            self.kind_ = "number"
            numbers = _numbers(y, "y")
            self._one = numbers.ndim == 1 or numbers.shape[1] == 1
            columns = numbers.reshape(len(numbers), -1)
            self.mean_, self.scale_ = columns.mean(0), columns.std(0)
            self.scale_ = np.where(self.scale_ > 0, self.scale_, 1.0)
            held = None
            if validation is not None:
                further = _numbers(validation[1], "validation[1]")
                if further.shape[1:] != numbers.shape[1:]:
                    raise DataError("y and validation[1] have different numbers of columns")
                held = validation[0], self._scaled(further)
            self._learn(X, self._scaled(numbers), columns.shape[1], SequenceLoss("number"), held, resume)
        return self

    def predict(self, X: Texts) -> np.ndarray:
        """A number a text, (texts,), or several, (texts, numbers)."""
        found: np.ndarray = self._logits(X) * self.scale_ + self.mean_
        return found[:, 0] if self._one else found

    def evaluate(self, X: Texts, y: Iterable[Any]) -> list[Score]:
        """Mean absolute error, and R², which takes two rows."""
        wanted, found = _numbers(y, "y"), self.predict(X)
        if wanted.size != found.size or len(wanted) != len(found):
            raise DataError(f"y has the shape {wanted.shape}; {found.shape} is needed")
        wanted = wanted.reshape(found.shape)
        scores = [Score("mean absolute error", float(mean_absolute_error(wanted, found)), "sklearn.metrics")]
        if len(found) > 1:
            scores.append(Score("R²", float(r2_score(wanted, found)), "sklearn.metrics.r2_score"))
        return scores

    def _likeness(self, X: Sequence[Any], y: Any) -> dict[str, Any]:
        return {}

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = targets * self.scale_ + self.mean_
        return numbers[:, 0] if self._one else numbers

    def _scaled(self, numbers: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = ((numbers.reshape(len(numbers), -1) - self.mean_) / self.scale_).astype(np.float32)
        return scaled

    def _says(self) -> dict[str, Any]:
        return {"problem_type": "regression"}

    def _labels(self) -> dict[str, Any]:
        return {"kind": "number", "mean": self.mean_.tolist(), "scale": self.scale_.tolist(), **self._reads()}

    def _take_labels(self, folder: Path, about: dict[str, Any]) -> None:
        n = self.model_.config.n_labels
        if not gives_numbers(folder, about["kind"], n):
            raise ModelDirectoryError(f"{folder}: gives classes, not numbers; open it as a TextClassifier")
        self.kind_, self._one = "number", n == 1
        self.mean_, self.scale_ = np.array(about["mean"] or [0.0] * n), np.array(about["scale"] or [1.0] * n)
        if not len(self.mean_) == len(self.scale_) == n:
            raise ModelDirectoryError(
                f"{folder / ESTIMATOR}: {len(self.mean_)} means and {len(self.scale_)} scales, but the model gives {n} "
                "numbers"
            )
        self._take_reads(folder, about)


def _numbers(y: Iterable[Any], name: str) -> np.ndarray:
    try:
        numbers = np.asarray(y if hasattr(y, "__array__") else list(y), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers ({error})") from error
    if not len(numbers):
        raise DataError(f"{name} is empty; at least one row is needed")
    bad = np.flatnonzero(~np.isfinite(numbers.reshape(len(numbers), -1)).all(1))
    if len(bad):
        raise DataError(f"{name}[{bad[0]}] is not a finite number")
    return numbers
