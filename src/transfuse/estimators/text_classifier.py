"""A class, or several labels, for a text or a pair of texts: BERT fine-tuned, or trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from transfuse.data.wordpiece import WordPieceConfig
from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.estimators.about import ESTIMATOR
from transfuse.estimators.fine_tuned import label_names
from transfuse.estimators.sequence_head import SequenceHead, Texts, gives_numbers
from transfuse.estimators.text_encoder import MODEL, TOKENS, TextEncoder
from transfuse.metrics.labels import alike
from transfuse.metrics.text_scores import Score
from transfuse.models.bert import BertConfig
from transfuse.pretrained.directory import CONFIG, read_json
from transfuse.training.classification import SequenceLoss
from transfuse.training.config import TrainingConfig


class TextClassifier(ClassifierMixin, SequenceHead):  # type: ignore[misc]
    """Learns to put texts, or pairs of texts, into classes.

    `encoder` is what it starts from: a `TextEncoder`, or the directory or hub id of any BERT; None starts from nothing,
    with the sizes in `model` and a vocabulary learned from the texts. `training=None` are settings that suit the case.
    `class_weight` is as in scikit-learn: None, "balanced" or {class: weight}. A two-dimensional y of zeros and ones
    (texts × labels) is several labels a text, each by itself; the columns of a data frame are their names.

    After `fit`: `classes_`, `model_` (the torch module), `tokenizer_`, `results_` (what the training came to).
    """

    def __init__(
        self,
        *,
        encoder: str | Path | TextEncoder | None = None,
        model: BertConfig = MODEL,
        tokenizer: WordPieceConfig = TOKENS,
        training: TrainingConfig | None = None,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        validation_fraction: float = 0.1,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            encoder=encoder,
            model=model,
            tokenizer=tokenizer,
            training=training,
            validation_fraction=validation_fraction,
            run_dir=run_dir,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(
        self, X: Texts, y: Iterable[Any], *, validation: tuple[Texts, Iterable[Any]] | None = None, resume: bool = False
    ) -> Self:
        """Learn the class of each text; `validation` holds texts and classes to judge by, by default a share of these.

        Raises DataError for unusable rows, fewer than two classes, or a class in `validation` that y does not have.
        """
        with self._unchanged_on_failure():
            self._check_settings()
            labels = _labels(y, "y")
            self.kind_ = "labels" if labels.ndim == 2 else "class"
            if self.kind_ == "labels":
                if self.class_weight is not None:
                    raise ConfigError(f"class_weight={self.class_weight!r} is for one class a text, and y has several")
                self.classes_ = _label_names(y, "y", labels.shape[1])
                targets, weights = _indicators(labels, "y"), None
            else:
                self.classes_, targets = np.unique(labels, return_inverse=True)
                if len(self.classes_) < 2:
                    raise DataError(
                        f"y has {len(self.classes_)} class ({self.classes_.tolist()[0]!r}); at least 2 are needed"
                    )
                weights = self._weights(labels)
            held = None if validation is None else (validation[0], self._known(validation[1]))
            self._learn(X, targets, len(self.classes_), SequenceLoss(self.kind_, weights), held, resume)
        return self

    def predict_proba(self, X: Texts) -> np.ndarray:
        """Probability of each class, (texts, classes); of several labels, that of each by itself."""
        logits = torch.from_numpy(self._logits(X))
        found: np.ndarray = (logits.sigmoid() if self.kind_ == "labels" else logits.softmax(-1)).numpy()
        return found

    def predict(self, X: Texts) -> np.ndarray:
        """The likeliest class of each text; of several labels, zeros and ones, (texts, labels)."""
        probabilities = self.predict_proba(X)
        if self.kind_ == "labels":
            return (probabilities > 0.5).astype(int)
        found: np.ndarray = self.classes_[probabilities.argmax(1)]
        return found

    def evaluate(self, X: Texts, y: Iterable[Any]) -> list[Score]:
        """Mean F1 of the classes, and accuracy (of several labels: the share of texts with all right), in percent.

        Columns of a data frame are told apart by their names; a label that the model does not know is never found.
        """
        wanted, found = self._compared(X, y)
        if self.kind_ == "labels":
            f1 = np.mean([f1_score(*column, zero_division=0) for column in zip(wanted.T, found.T, strict=True)])
            right = (wanted == found).all(1).mean()
        else:
            f1 = f1_score(wanted, found, average="macro", zero_division=0)
            right = (wanted == found).mean()
        return [
            Score("F1", 100 * float(f1), "average:macro|sklearn.metrics.f1_score"),
            Score("accuracy", 100 * float(right), "sklearn.metrics.accuracy_score"),
        ]

    def score(self, X: Texts, y: Iterable[Any], sample_weight: Iterable[float] | None = None) -> float:
        """The accuracy that `evaluate` gives, from 0 to 1; rows may weigh differently."""
        wanted, found = self._compared(X, y)
        right = (wanted == found).reshape(len(found), -1).all(1)
        return float(np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight)))

    def _compared(self, X: Texts, y: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
        """What is wanted and what is found, as it compares. Raises DataError for what cannot be wanted."""
        found = self.predict(X)
        if self.kind_ == "labels":
            return self._by_name(y, found)
        labels = _labels(y, "y")
        if labels.shape != found.shape:
            raise DataError(f"y has the shape {labels.shape}; one class for each of the {len(found)} rows is needed")
        return alike(labels, found)

    def _likeness(self, X: Sequence[Any], y: Any) -> dict[str, Any]:
        labels = np.asarray(y)
        if labels.ndim == 2:
            return {"labels": [np.flatnonzero(row).tolist() for row in labels]}
        return {"classes": np.unique(labels, return_inverse=True)[1]}

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        return targets.astype(int) if self.kind_ == "labels" else self.classes_[targets]

    def _weights(self, labels: np.ndarray) -> tuple[float, ...] | None:
        if self.class_weight is None:
            return None
        weights = compute_class_weight(self.class_weight, classes=self.classes_, y=labels)
        bad = [i for i, weight in enumerate(weights) if not 0 <= weight < np.inf]
        if bad:
            name = self.classes_.tolist()[bad[0]]
            raise ConfigError(f"class_weight of {name!r} is {weights[bad[0]]}; it must be a number from 0 up")
        return tuple(float(weight) for weight in weights)

    def _known(self, y: Iterable[Any]) -> np.ndarray:
        """Numbers of classes that y had."""
        labels = _labels(y, "validation[1]")
        if self.kind_ == "labels":
            if hasattr(y, "columns") and self.classes_.dtype.kind == "U":
                names = _label_names(y, "validation[1]", 0).tolist()
                if sorted(names) != sorted(self.classes_.tolist()):
                    raise DataError(f"validation[1] has the labels {names} and y {self.classes_.tolist()}")
                labels = labels[:, [names.index(name) for name in self.classes_.tolist()]]
            return _indicators(labels[:, None] if labels.ndim == 1 else labels, "validation[1]")
        known = set(self.classes_.tolist())
        for row, label in enumerate(labels.tolist()):
            if label not in known:
                raise DataError(f"validation[1][{row}] is {label!r}, which is not among the classes of y")
        return np.searchsorted(self.classes_, labels)

    def _by_name(self, y: Any, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is wanted and what was found, column by column; those of a frame in the order of the model's labels,
        with any that it does not know at the end. Raises DataError for a label that has no column."""
        labels = _labels(y, "y")
        if labels.ndim == 1 and self.classes_.size == 1:
            labels = labels[:, None]
        names = self.classes_.astype(str).tolist()
        if hasattr(y, "columns") and self.classes_.dtype.kind == "U":
            given = _label_names(y, "y", 0).tolist()
            missing = [name for name in names if name not in given]
            if missing:
                raise DataError(f"y has no column {missing[0]!r}, which the model knows")
            new = [name for name in given if name not in names]
            labels = labels[:, [given.index(name) for name in [*names, *new]]]
            found = np.concatenate([found, np.zeros((len(found), len(new)), found.dtype)], axis=1)
        if labels.shape != found.shape:
            raise DataError(f"y has the shape {labels.shape}; {found.shape} is needed, a column for each label")
        return _indicators(labels, "y"), found

    def _says(self) -> dict[str, Any]:
        kind = "multi_label_classification" if self.kind_ == "labels" else "single_label_classification"
        return super()._says() | {"problem_type": kind}

    def _labels(self) -> dict[str, Any]:
        return {"kind": self.kind_, "classes": self.classes_.tolist(), **self._reads()}

    def _take_labels(self, folder: Path, about: dict[str, Any]) -> None:
        problem = read_json(folder / CONFIG).get("problem_type")
        self.kind_ = about["kind"] or ("labels" if problem == "multi_label_classification" else "class")
        if self.kind_ not in ("class", "labels") or gives_numbers(folder, about["kind"], self.model_.config.n_labels):
            raise ModelDirectoryError(f"{folder}: gives numbers, not classes; open it as a TextRegressor")
        names = about["classes"] or label_names(folder, self.model_.config.n_labels)
        if len(names) != self.model_.config.n_labels:
            raise ModelDirectoryError(
                f"{folder / ESTIMATOR}: {len(names)} classes, but the model has {self.model_.config.n_labels}"
            )
        self.classes_ = np.array(names)
        self._take_reads(folder, about)


def _labels(y: Iterable[Any], name: str) -> np.ndarray:
    """Classes, or zeros and ones, as an array. Raises DataError naming the row of a missing one, and for no classes."""
    rows = list(y.to_numpy() if hasattr(y, "to_numpy") else y)
    if not rows or np.size(rows[0]) == 0:
        raise DataError(f"{name} is empty; at least 2 rows are needed, and a column in each")
    for row, label in enumerate(rows):
        if pd.api.types.is_scalar(label) and pd.isna(label):
            raise DataError(f"{name}[{row}] is missing")
        if isinstance(label, bytes) or isinstance(label, str) != isinstance(rows[0], str):
            raise DataError(
                f"{name}[{row}] is {label!r} and {name}[0] {rows[0]!r}; classes are all text or all numbers"
            )
    try:
        labels = np.asarray(rows)
        check_classification_targets(labels[:, 0] if labels.ndim == 2 else labels)
    except ValueError as error:
        raise DataError(f"{name} does not hold classes, or as many labels in every row ({error})") from error
    # a column of its own is no more than a list, unless it says what it is the label of
    named = hasattr(y, "columns") and labels.dtype.kind in "biuf" and bool(np.isin(labels, (0, 1)).all())
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 and not named else labels


def _label_names(y: Any, name: str, n_labels: int) -> np.ndarray:
    """The columns of a data frame, or numbers. Raises DataError for two columns of one name."""
    if not hasattr(y, "columns"):
        return np.arange(n_labels)
    names = [str(column).strip() for column in y.columns]
    twice = [column for column in names if names.count(column) > 1]
    if twice:
        raise DataError(f"{name} has two columns called {twice[0]!r}")
    return np.array(names)


def _indicators(labels: np.ndarray, name: str) -> np.ndarray:
    if not np.isin(labels, (0, 1)).all() or labels.ndim != 2 or not labels.shape[1]:
        raise DataError(f"{name}: several labels a text are zeros and ones, one column a label")
    return labels.astype(np.float32)
