"""A tree ensemble with what it learned from, and its score when its trees say something else."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer

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
        self.bags = _bags(model, len(train[0])) if train is not None and self.ensemble.is_forest else None

    @cached_property
    def learned(self) -> Learned:
        """What the nodes saw in training, as the library tells or from the training rows."""
        return self.ensemble.trees.learned or self._learned()

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
        """What rows are judged by. Raises DataError for a class the model does not know or what is not a number."""
        columns = y.reshape(len(y), -1)
        if not self.of_classes:
            try:
                numbers = columns.astype(np.float64)
            except ValueError as error:
                raise DataError(f"{name} must hold numbers ({error})") from error
            if not np.isfinite(numbers).all():
                raise DataError(f"{name}[{np.flatnonzero(~np.isfinite(numbers).all(1))[0]}] is not a finite number")
            return Target(numbers[:, :, None], False)
        several = isinstance(self.model.classes_, list)
        lists = self.model.classes_ if several else [self.model.classes_]
        if len(lists) != columns.shape[1]:
            raise DataError(f"{name} has {columns.shape[1]} columns, but the model has {len(lists)} outputs")
        most = max(map(len, lists))
        values = np.zeros((len(y), columns.shape[1], most))
        for output, classes in enumerate(lists):
            known = np.isin(columns[:, output], classes)
            if not known.all():
                row = int(np.flatnonzero(~known)[0])
                raise DataError(f"{name}[{row}] is {columns[row, output]}, a class that the model does not know")
            values[np.arange(len(y)), output, np.searchsorted(classes, columns[:, output])] = 1
        return Target(values, True)

    def _learned(self) -> Learned:
        if self.train is None:
            raise DataError(
                f"a {type(self.model).__name__} does not say what its nodes learned; give X_train and y_train"
            )
        X, y = self.train
        weights = np.ones((1, len(X))) if self.weight is None else self.weight[None]
        if self.bags is not None:
            # since 1.9 scikit-learn draws a bag's rows by their weights, and then each counts the same
            drawn_by_weight = hasattr(self.model, "_sample_weight")
            weights = self.bags if drawn_by_weight else weights * self.bags
        return learned_from(self.ensemble.trees, self.rows(X), self.target(y, "y_train"), weights)


def _bags(model: Any, n: int) -> np.ndarray | None:
    """How often each tree of a forest drew each training row, (trees, n)."""
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
    """Scores sums of the trees as `scoring` scores the model on rows of these weights. Raises DataError where the sums
    are not the model's."""
    ensemble, model = seen.ensemble, seen.model
    given = X if hasattr(model, "feature_names_in_") else X.to_numpy()
    n_outputs = 1 if y.ndim == 1 else y.shape[1]
    if n_outputs > 1:
        if not ensemble.is_forest:
            raise DataError(f"a {type(model).__name__} of several outputs cannot be shuffled; give one at a time")
        return _several_outputs(seen, y, scoring, weight)
    own = summed(ensemble.trees, rows)
    base: Any = 0.0
    if not ensemble.is_forest:
        margins = np.asarray(ensemble.margins(given), np.float64).reshape(len(X), -1)
        base = np.median(margins - own, axis=0)
    _check_predictions(seen, given, own + base)
    double = _ClassSums(model.classes_) if seen.of_classes else _NumberSums()
    if scoring is None and seen.of_classes:
        codes = np.searchsorted(model.classes_, y)  # scikit-learn's accuracy compares names, which takes longer

        def accuracy(sums: np.ndarray) -> float:
            shares, _ = _predictions(ensemble, sums + base)
            assert shares is not None
            return float(np.average(shares.argmax(1) == codes, weights=weight))

        return accuracy

    def score(sums: np.ndarray) -> float:
        return _scored(seen, double.of(*_predictions(ensemble, sums + base)), y, scoring, weight)

    return score


def _scored(seen: SeenTrees, double: _Sums, y: np.ndarray, scoring: str | None, weight: np.ndarray | None) -> float:
    weights = {} if weight is None else {"sample_weight": weight}
    try:
        return float(_named_scorer(seen, scoring)(double, None, y, **weights))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scoring={scoring!r} cannot judge this y ({error})") from error


def _check_predictions(seen: SeenTrees, given: Any, margins: np.ndarray) -> None:
    """Raise DataError unless what is made of the trees' sums is what the model says."""
    model = seen.model
    if hasattr(model, "save_raw"):
        raise DataError("a bare XGBoost Booster does not say what its margins mean; give its estimator")
    shares, numbers = _predictions(seen.ensemble, margins)
    theirs = np.asarray(model.predict(given) if shares is None else model.predict_proba(given), np.float64)
    ours = numbers if shares is None else shares
    assert ours is not None
    apart = 1e-4 * max(float(np.abs(theirs).max()), 1e-300)
    if theirs.shape != ours.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=apart):
        raise DataError(
            f"a {type(model).__name__} whose predictions are not made of its trees' sums in a known way "
            "(an objective, or columns of categories, that cannot be followed) cannot be shuffled"
        )


def _named_scorer(seen: SeenTrees, scoring: str | None) -> Any:
    try:
        return get_scorer(scoring or seen.scoring)
    except ValueError as error:
        raise ConfigError(f"scoring={scoring!r}: not among scikit-learn's scorers") from error


def _predictions(ensemble: Ensemble, margins: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities of classes, or numbers."""
    if ensemble.link == "shares":
        return margins / ensemble.trees.n_trees, None
    if ensemble.link == "mean":
        return None, margins[:, 0] / ensemble.trees.n_trees
    if ensemble.link == "logits":
        if margins.shape[1] == 1:
            second = 1 / (1 + np.exp(-margins[:, 0]))
            return np.column_stack([1 - second, second]), None
        powers = np.exp(margins - margins.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True), None
    return None, np.exp(margins[:, 0]) if ensemble.link == "exponential" else margins[:, 0]


def _several_outputs(seen: SeenTrees, y: np.ndarray, scoring: str | None, weight: np.ndarray | None) -> Scorer:
    """The mean over outputs of accuracy, or of R²."""
    if scoring is not None:
        raise ConfigError(f"scoring={scoring!r}: of several outputs only accuracy and R², their mean, are known")
    n_outputs = y.shape[1]

    def score(sums: np.ndarray) -> float:
        shares = sums.reshape(len(y), n_outputs, -1) / seen.ensemble.trees.n_trees
        if seen.of_classes:
            found = [np.asarray(seen.model.classes_[o])[shares[:, o].argmax(1)] == y[:, o] for o in range(n_outputs)]
            return float(np.mean(np.average(found, axis=1, weights=weight)))
        mean = np.average(y, axis=0, weights=weight)
        wrong, spread = (np.average(part**2, axis=0, weights=weight) for part in (shares[:, :, 0] - y, y - mean))
        return float(np.mean(1 - wrong / spread))

    return score


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
    if len(says) > 1:
        sums = np.tile(says.reshape(1, -1), (len(y), 1)) * seen.ensemble.trees.n_trees
        return _several_outputs(seen, y, scoring, weight)(sums)
    double = _ClassSums(seen.model.classes_) if seen.of_classes else _NumberSums()
    constant = np.tile(says[0], (len(y), 1))
    told = double.of(constant, None) if seen.of_classes else double.of(None, constant[:, 0])
    return _scored(seen, told, y, scoring, weight)
