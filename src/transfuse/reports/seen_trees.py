"""A tree ensemble with what it learned from, and its score when its trees say something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, r2_score

from transfuse.errors import ConfigError, DataError
from transfuse.trees.decrease import Target, learned_from
from transfuse.trees.ensemble import Learned
from transfuse.trees.permutation import Scorer
from transfuse.trees.read import Ensemble, read_trees
from transfuse.trees.walk import summed


class SeenTrees:
    """A model, its trees, and what they learned."""

    def __init__(self, model: Any, train: tuple[pd.DataFrame, np.ndarray] | None, weight: Any) -> None:
        self.model, self.train = model, train
        self.weight = None if weight is None else np.asarray(weight, np.float64)
        self.ensemble: Ensemble = read_trees(model)
        self.of_classes = hasattr(model, "classes_")
        self.bags = None
        if train is not None and self.ensemble.is_forest:
            self.bags = _bags(model, len(train[0]))
            self._check_train(*train)

    @cached_property
    def learned(self) -> Learned:
        """What the nodes saw in training, as the library tells or from the training rows."""
        return self.ensemble.trees.learned or self._learned()

    @property
    def classes(self) -> list[np.ndarray]:
        """The classes of each output of y; of labels that may stand beside each other, the same for each."""
        told = self.model.classes_
        return told if isinstance(told, list) else [np.asarray(told)] * len(self.ensemble.outputs)

    @property
    def scoring(self) -> str:
        """What it is scored by without another wish."""
        return "accuracy" if self.of_classes else "r2"

    def rows(self, X: pd.DataFrame) -> np.ndarray:
        """A table as the numbers that the trees compare."""
        return self.ensemble.encode(X if hasattr(self.model, "feature_names_in_") else X.to_numpy())

    @property
    def out_of_bag(self) -> np.ndarray | None:
        """What each training row counts for each tree that did not draw it, (trees, n)."""
        if self.bags is None:
            return None
        unseen = (self.bags == 0).astype(np.float64)
        return unseen if self.weight is None else unseen * self.weight

    def target(self, y: np.ndarray, name: str) -> Target:
        """What rows are judged by. Raises DataError for y of another number of outputs than the model's, a class that
        the model does not know, or what is not a number."""
        columns = y.reshape(len(y), -1)
        if columns.shape[1] != (n_outputs := len(self.ensemble.outputs)):
            raise DataError(f"{name} has {columns.shape[1]} columns, but the model has {n_outputs} outputs")
        return self._of_classes(columns, name) if self.of_classes else self._of_numbers(columns, name)

    def _of_numbers(self, columns: np.ndarray, name: str) -> Target:
        try:
            numbers = columns.astype(np.float64)
        except ValueError as error:
            raise DataError(f"{name} must hold numbers ({error})") from error
        if not np.isfinite(numbers).all():
            place = _place(columns, np.argwhere(~np.isfinite(numbers))[0])
            raise DataError(f"{name}{place} is not a finite number")
        return Target(numbers[:, :, None], False)

    def _of_classes(self, columns: np.ndarray, name: str) -> Target:
        values = np.zeros((*columns.shape, max(map(len, self.classes))))
        for output, classes in enumerate(self.classes):
            known = np.isin(columns[:, output], classes)
            if not known.all():
                row = int(np.flatnonzero(~known)[0])
                place = _place(columns, (row, output))
                raise DataError(f"{name}{place} is {columns[row, output]}, a class that the model does not know")
            values[np.arange(len(columns)), output, np.searchsorted(classes, columns[:, output])] = 1
        return Target(values, True)

    def _check_train(self, X: pd.DataFrame, y: np.ndarray) -> None:
        """Raise DataError unless the first tree of a forest grew from these rows in this order, as far as it tells."""
        told = getattr(self.model, "class_weight", None)
        if isinstance(told, dict) and 0 in told.values():
            return  # rows of such a class are not counted
        first = self.model.estimators_[0] if hasattr(self.model, "estimators_") else self.model
        trees, target = read_trees(first).trees, self.target(y, "y_train")
        drawn = np.ones((1, len(X))) if self.bags is None else self.bags[:1]
        if self.weight is not None and not self._drawn_by_weight:
            drawn = drawn * self.weight
        found = learned_from(trees, self.rows(X), target, (drawn > 0).astype(np.float64))
        if not np.allclose(found.weight, first.tree_.n_node_samples):
            raise DataError("X_train and train_weight are not the rows, in their order, that the model was fitted to")

    @property
    def _drawn_by_weight(self) -> bool:
        """Whether a bag's rows were drawn by their weights, as since scikit-learn 1.9: then each counts the same."""
        return self.bags is not None and hasattr(self.model, "_sample_weight")

    def _learned(self) -> Learned:
        if self.train is None:
            raise DataError(
                f"a {type(self.model).__name__} does not say what its nodes learned; give X_train and y_train"
            )
        X, y = self.train
        weights = np.ones((1, len(X))) if self.weight is None else self.weight[None]
        if self.bags is not None:
            weights = self.bags if self._drawn_by_weight else weights * self.bags
        return learned_from(self.ensemble.trees, self.rows(X), self.target(y, "y_train"), weights)


def _place(columns: np.ndarray, place: Sequence[int]) -> str:
    """A row as y[row], and a column's, if there are several, as y[row, column]."""
    return f"[{', '.join(str(int(one)) for one in place[: min(2, columns.shape[1])])}]"


def _bags(model: Any, n: int) -> np.ndarray | None:
    """How often each tree of a forest drew each training row, (trees, n)."""
    n_fitted = getattr(model, "_n_samples", n)
    if n != n_fitted:
        raise DataError(f"X_train has {n} rows, but the model was fitted to {n_fitted}")
    if not getattr(model, "bootstrap", False):
        return None
    return np.array([np.bincount(rows, minlength=n) for rows in model.estimators_samples_], np.float64)


class _Sums(BaseEstimator):  # type: ignore[misc]
    """Predictions made of given sums of the trees, as scorers ask a model for them."""

    def __init__(self, classes: np.ndarray | None = None) -> None:
        self.classes = classes
        if classes is not None:
            self.classes_ = classes

    def of(self, probabilities: np.ndarray | None, numbers: np.ndarray | None) -> _Sums:
        self.probabilities_, self.numbers_ = probabilities, numbers
        return self

    def predict(self, X: Any) -> np.ndarray:
        if self.probabilities_ is None:
            assert self.numbers_ is not None
            return self.numbers_
        found: np.ndarray = self.classes_[self.probabilities_.argmax(1)]
        return found


class _ClassSums(ClassifierMixin, _Sums):  # type: ignore[misc]
    def predict_proba(self, X: Any) -> np.ndarray:
        assert self.probabilities_ is not None
        return self.probabilities_


class _NumberSums(RegressorMixin, _Sums):  # type: ignore[misc]
    pass


def scorer_of(
    seen: SeenTrees,
    X: pd.DataFrame,
    y: np.ndarray,
    scoring: str | None,
    rows: np.ndarray,
    weight: np.ndarray | None = None,
) -> Scorer:
    """Scores sums of the trees as `scoring` scores the model on rows of these weights, by default accuracy or R², of
    several outputs their mean. Raises DataError where the sums are not the model's."""
    ensemble, model = seen.ensemble, seen.model
    given = X if hasattr(model, "feature_names_in_") else X.to_numpy()
    own = summed(ensemble.trees, rows)
    base: Any = 0.0
    if not ensemble.is_forest:
        margins = np.asarray(ensemble.margins(given), np.float64).reshape(len(X), -1)
        base = np.median(margins - own, axis=0)
    _check_predictions(seen, given, own + base)
    if seen.train is not None and not ensemble.is_forest:
        learned = seen.train[0]
        _check_predictions(
            seen, learned if given is X else learned.to_numpy(), summed(ensemble.trees, seen.rows(learned)) + base
        )
    judge = _judge(seen, y, scoring, weight)
    return lambda sums: judge([output.predicted(sums + base) for output in ensemble.outputs])


Judge = Callable[[list[np.ndarray]], float]
"""What is predicted of each output, shares of classes (n, C) or numbers (n,), to a score."""


def _judge(seen: SeenTrees, y: np.ndarray, scoring: str | None, weight: np.ndarray | None) -> Judge:
    several = len(seen.ensemble.outputs) > 1
    if several and scoring is not None:
        raise ConfigError(f"scoring={scoring!r}: of several outputs only accuracy and R², their mean, are known")
    if scoring is None and seen.of_classes:
        return _mean_accuracy(seen, y, weight)
    if several:
        return lambda predicted: float(r2_score(y, np.column_stack(predicted), sample_weight=weight))
    return lambda predicted: _scored(seen, _double(seen, predicted[0]), y, scoring, weight)


def _mean_accuracy(seen: SeenTrees, y: np.ndarray, weight: np.ndarray | None) -> Judge:
    columns = y.reshape(len(y), -1)
    # scikit-learn's accuracy compares names, which takes longer
    codes = [np.searchsorted(classes, columns[:, output]) for output, classes in enumerate(seen.classes)]

    def judge(predicted: list[np.ndarray]) -> float:
        right = [shares.argmax(1) == own for shares, own in zip(predicted, codes, strict=True)]
        return float(np.mean([np.average(one, weights=weight) for one in right]))

    return judge


def _double(seen: SeenTrees, predicted: np.ndarray) -> _Sums:
    """A model that predicts these shares of classes, or these numbers."""
    if not seen.of_classes:
        return _NumberSums().of(None, predicted)
    return _ClassSums(seen.model.classes_).of(predicted, None)


def _scored(seen: SeenTrees, double: _Sums, y: np.ndarray, scoring: str | None, weight: np.ndarray | None) -> float:
    weights = {} if weight is None else {"sample_weight": weight}
    scorer = check_scoring(scoring or seen.scoring)
    try:
        return float(scorer(double, None, y, **weights))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scoring={scoring!r} cannot judge this y ({error})") from error


def _check_predictions(seen: SeenTrees, given: Any, margins: np.ndarray) -> None:
    """Raise DataError unless what is made of the trees' sums is what the model says."""
    model = seen.model
    if hasattr(model, "save_raw"):
        raise DataError("a bare XGBoost Booster does not say what its margins mean; give its estimator")
    ours, theirs = [output.predicted(margins) for output in seen.ensemble.outputs], _told(seen, given)
    if len(ours) != len(theirs) or not all(map(_are_equal, ours, theirs)):
        raise DataError(
            f"a {type(model).__name__} whose predictions are not made of its trees' sums in a known way "
            "(an objective, a model it began with, or columns of categories that cannot be followed) cannot be shuffled"
        )


def _told(seen: SeenTrees, given: Any) -> list[np.ndarray]:
    """What the model itself says of each output."""
    told = seen.model.predict_proba(given) if seen.of_classes else seen.model.predict(given)
    if isinstance(told, list):
        return told
    if len(seen.ensemble.outputs) == 1:
        return [told]
    columns = list(np.asarray(told, np.float64).T)
    # of labels that may stand beside each other, XGBoost tells the share of the second of two classes
    return [np.column_stack([1 - column, column]) for column in columns] if seen.of_classes else columns


def _are_equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    theirs = np.asarray(theirs, np.float64)
    apart = 1e-4 * max(float(np.abs(theirs).max()), 1e-300)
    return theirs.shape == ours.shape and np.allclose(ours, theirs, rtol=1e-4, atol=apart)


def check_scoring(scoring: str | None) -> Any:
    """scikit-learn's scorer of that name, if it is one. Raises ConfigError for what is none."""
    try:
        return None if scoring is None else get_scorer(scoring)
    except ValueError as error:
        raise ConfigError(f"scoring={scoring!r}: not among scikit-learn's scorers") from error


def chance_of(
    seen: SeenTrees,
    known: np.ndarray,
    y: np.ndarray,
    scoring: str | None,
    known_weight: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> float:
    """The score on `y` of a model that says the same of every row: shares of the classes, or the mean, of `known`."""
    says = np.average(seen.target(known, "y").values, axis=0, weights=known_weight)
    constant = [np.tile(one, (len(y), 1)) if seen.of_classes else np.full(len(y), one[0]) for one in says]
    return _judge(seen, y, scoring, weight)(constant)
