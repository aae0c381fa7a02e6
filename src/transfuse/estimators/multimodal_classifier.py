"""A class for each row of a table, whatever its columns hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from transfuse.data.features import as_classes
from transfuse.errors import DataError
from transfuse.estimators.learning_rows import LearningRows
from transfuse.estimators.multimodal import MultimodalEstimator
from transfuse.metrics.labels import alike
from transfuse.metrics.text_scores import Score
from transfuse.training.multimodal import MultimodalLoss


class MultimodalClassifier(ClassifierMixin, MultimodalEstimator):  # type: ignore[misc]
    """Learns the class of each row of a table whose columns hold text, images, sounds, numbers, categories or dates."""

    KIND = "class"

    def fit(
        self,
        X: Any,
        y: Iterable[Any],
        *,
        sample_weight: Iterable[float] | Literal["balanced"] | None = None,
        validation: tuple[Any, Iterable[Any]] | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn the classes `y` of the rows of a DataFrame (or of a 2-D array).

        `sample_weight` is a number of at least 0 for each row, or "balanced" for classes to weigh alike however rare
        they are. Judged by `validation`, or by `validation_fraction` of the rows. Raises DataError naming row and
        column, and ConfigError for settings that contradict each other.
        """
        with self._unchanged_on_failure():
            self._check_settings()
            labels = self.targets_of(y, "y")
            self.classes_, targets = np.unique(labels, return_inverse=True)
            if len(self.classes_) < 2:
                raise DataError(
                    f"y has {len(self.classes_)} class ({self.classes_.tolist()[0]!r}); at least 2 are needed"
                )
            held = None if validation is None else (validation[0], self._numbered(validation[1]))
            self._learn(X, targets, len(self.classes_), held, sample_weight, resume)
        return self

    def _row_weights(self, sample_weight: Any, targets: np.ndarray) -> np.ndarray:
        if isinstance(sample_weight, str) and sample_weight == "balanced":
            return self._held_weights(sample_weight, targets, targets)
        return super()._row_weights(sample_weight, targets)

    def _held_weights(self, sample_weight: Any, targets: np.ndarray, held: np.ndarray) -> np.ndarray:
        if not isinstance(sample_weight, str):
            return super()._held_weights(sample_weight, targets, held)
        classes = np.arange(len(self.classes_))
        found: np.ndarray = compute_class_weight("balanced", classes=classes, y=targets)[held]
        return found

    def _check_tree_targets(self, targets: np.ndarray) -> None:
        unlearned = np.flatnonzero(np.bincount(targets, minlength=len(self.classes_)) == 0)
        if len(unlearned):
            raise DataError(f"class {self.classes_.tolist()[unlearned[0]]!r} has no row that trees could learn it from")

    def _settled(self, rows: LearningRows) -> tuple[MultimodalLoss, np.ndarray]:
        return MultimodalLoss("class"), rows.targets

    def predict_proba(self, X: Any, *, without: Sequence[str] = ()) -> np.ndarray:
        """Probability of each class, (rows, classes); `without` names modalities to leave out."""
        return _softmax(self._predicted(X, without))

    def predict(self, X: Any, *, without: Sequence[str] = ()) -> np.ndarray:
        """The likeliest class of each row; `without` names modalities to leave out."""
        return self.decided(self._predicted(X, without))

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """The likeliest class of each row of logits."""
        found: np.ndarray = self.classes_[outputs.argmax(1)]
        return found

    def score_of(self, outputs: np.ndarray, wanted: np.ndarray) -> list[Score]:
        """Accuracy and mean F1 of the classes, and of two classes the area under the ROC curve, in percent."""
        found = self.decided(outputs)
        wanted, found = alike(self.as_learned(wanted), found)
        f1 = 100 * float(f1_score(wanted, found, average="macro", zero_division=0))
        accuracy = 100 * float(accuracy_score(wanted, found))
        scores = [
            Score("accuracy", accuracy, "sklearn.metrics.accuracy_score"),
            Score("F1", f1, "average:macro|sklearn.metrics.f1_score"),
        ]
        if len(self.classes_) == 2 and len(set(wanted.tolist())) == 2:
            second = alike(self.classes_[1:], found)[0]
            area = roc_auc_score(wanted == second, outputs[:, 1] - outputs[:, 0])
            scores.append(Score("ROC AUC", 100 * float(area), "sklearn.metrics.roc_auc_score"))
        return scores

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.classes_[targets]
        return found

    def targets_of(self, y: Iterable[Any], name: str) -> np.ndarray:
        """Classes as an array. Raises DataError naming the row of a missing one."""
        rows = list(y.to_numpy() if hasattr(y, "to_numpy") else y)
        missing = [row for row, label in enumerate(rows) if np.ndim(label) == 0 and pd.isna(label)]
        if missing:
            raise DataError(f"{name}[{missing[0]}] is missing")
        if not rows:
            raise DataError(f"{name} is empty; at least 2 rows are needed")
        if any(isinstance(label, np.ndarray | list | tuple) for label in rows):
            raise DataError(f"{name} has several targets a row; expected one class")
        strings = {isinstance(label, str) for label in rows}
        labels = np.asarray(rows)
        if len(strings) > 1 or labels.dtype.kind not in "biufU":
            kinds = sorted({type(label).__name__ for label in rows})
            raise DataError(f"{name} holds {', '.join(kinds)}; classes are strings, or numbers and booleans")
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise DataError(f"{name}[{int(np.flatnonzero(~np.isfinite(labels))[0])}] is not a finite number")
        if labels.dtype.kind == "f" and (labels != labels.round()).any():
            row = int(np.flatnonzero(labels != labels.round())[0])
            raise DataError(
                f"{name}[{row}] is {labels[row]}, a number and no class; MultimodalRegressor learns numbers"
            )
        return labels

    def _numbered(self, y: Iterable[Any]) -> np.ndarray:
        known = self.classes_.tolist()
        labels = as_classes(self.targets_of(y, "validation[1]").tolist(), known)
        unknown = [label for label in labels if label not in set(known)]
        if unknown:
            raise DataError(f"validation[1] has {unknown[0]!r}, which is not among the classes of y")
        return np.searchsorted(self.classes_, labels)

    def score(self, X: Any, y: Iterable[Any], sample_weight: Any = None) -> float:
        """Accuracy, from 0 to 1."""
        wanted, found = alike(self.as_learned(self.targets_of(y, "y")), self.predict(X))
        return float(accuracy_score(wanted, found, sample_weight=sample_weight))

    def as_learned(self, targets: np.ndarray) -> np.ndarray:
        """Labels as classes of the model, where they are any."""
        found = as_classes(targets.tolist(), self.classes_.tolist())
        kinds = {isinstance(label, str) for label in found}
        return np.array(list(map(str, found)) if len(kinds) > 1 else found)

    def _labels(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist()}

    def _take_labels(self, about: dict[str, Any]) -> None:
        self.classes_ = np.array(about["classes"])


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = powers / powers.sum(1, keepdims=True)
    return found
