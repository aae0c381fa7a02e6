"""A number for each row of a table, whatever its columns hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from transfuse.errors import DataError
from transfuse.estimators.learning_rows import LearningRows
from transfuse.estimators.multimodal import MultimodalEstimator
from transfuse.metrics.text_scores import Score
from transfuse.training.multimodal import MultimodalLoss


class MultimodalRegressor(RegressorMixin, MultimodalEstimator):  # type: ignore[misc]
    """Learns a number of each row of a table, as `MultimodalClassifier` learns a class; arguments as it has them.

    Numbers are brought to mean 0 and deviation 1 for training and back afterwards.
    """

    KIND = "number"

    def fit(
        self,
        X: Any,
        y: Iterable[Any],
        *,
        sample_weight: Iterable[float] | None = None,
        validation: tuple[Any, Iterable[Any]] | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn the numbers `y` of the rows of a DataFrame (or of a 2-D array); see `MultimodalClassifier.fit`."""
        with self._unchanged_on_failure():
            self._check_settings()
            numbers = self.targets_of(y, "y")
            held = None if validation is None else (validation[0], self.targets_of(validation[1], "validation[1]"))
            self._learn(X, numbers, 1, held, sample_weight, resume)
        return self

    def _settled(self, rows: LearningRows) -> tuple[MultimodalLoss, np.ndarray]:
        known, weights = rows.targets[rows.kept], rows.weights[rows.kept].astype(np.float64)
        self.mean_ = float(np.average(known, weights=weights))
        self.scale_ = float(np.sqrt(np.average((known - self.mean_) ** 2, weights=weights))) or 1.0
        return MultimodalLoss("number"), self._scaled(rows.targets)

    def _tree_targets(self, targets: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._scaled(targets)[:, 0].astype(np.float64)
        return found

    def predict(self, X: Any, *, without: Sequence[str] = ()) -> np.ndarray:
        """A number a row; `without` names modalities to leave out."""
        return self.decided(self._predicted(X, without))

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs brought back to the range of the targets."""
        found: np.ndarray = outputs[:, 0] * self.scale_ + self.mean_
        return found

    def score_of(self, outputs: np.ndarray, wanted: np.ndarray) -> list[Score]:
        """R² (of at least two rows), root mean squared error and mean absolute error."""
        found = self.decided(outputs)
        r2 = [Score("R²", float(r2_score(wanted, found)), "sklearn.metrics.r2_score")] if len(found) > 1 else []
        return [
            *r2,
            Score("RMSE", float(root_mean_squared_error(wanted, found)), "sklearn.metrics.root_mean_squared_error"),
            Score("MAE", float(mean_absolute_error(wanted, found)), "sklearn.metrics.mean_absolute_error"),
        ]

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        found: np.ndarray = targets[:, 0].astype(np.float64) * self.scale_ + self.mean_
        return found

    def targets_of(self, y: Iterable[Any], name: str) -> np.ndarray:
        """Numbers as an array. Raises DataError naming the row of one that is not finite."""
        rows = list(y)
        try:
            numbers = np.asarray(y if hasattr(y, "__array__") else rows, dtype=np.float64)
        except (TypeError, ValueError):
            row = next((row for row, one in enumerate(rows) if not _is_number(one)), 0)
            raise DataError(f"{name}[{row}] is {rows[row]!r}, not a number") from None
        if numbers.ndim != 1 or not len(numbers):
            raise DataError(f"{name} has shape {numbers.shape}; expected one number a row, and at least one row")
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise DataError(f"{name}[{bad[0]}] is not a finite number")
        return numbers

    def _scaled(self, numbers: np.ndarray) -> np.ndarray:
        found: np.ndarray = ((numbers - self.mean_) / self.scale_).astype(np.float32)[:, None]
        return found

    def _labels(self) -> dict[str, Any]:
        return {"mean": [self.mean_], "scale": [self.scale_]}

    def _take_labels(self, about: dict[str, Any]) -> None:
        (self.mean_,), (self.scale_,) = about["mean"], about["scale"]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
