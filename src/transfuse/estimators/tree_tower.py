"""Gradient-boosted trees in the place of a Transformer on the columns of a table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import KFold, StratifiedKFold

from transfuse.trees.ensemble import Trees
from transfuse.trees.output import Output
from transfuse.trees.read import Ensemble, read_trees
from transfuse.trees.walk import summed

FOLDS = 5
LEAST = 1e-6
"""Share of a class below which it makes no difference."""

MOST_LEVELS = 255
"""Levels above which a category's numbers, given by frequency, are taken as numbers."""

_ARRAYS = (
    "roots",
    "feature",
    "threshold",
    "left",
    "right",
    "missing_left",
    "categories",
    "sets",
    "values",
    "outputs",
    "gain",
)


class TreeTower:
    """scikit-learn's histogram gradient boosting of a "class" or a "number", read into arrays.

    `model` is the fitted ensemble itself, until the tower is saved: it is written as arrays, not pickled.
    """

    def __init__(self, trees: Trees, base: np.ndarray, kind: str, model: Any = None) -> None:
        self.trees, self.base, self.kind, self.model = trees, base, kind, model

    def told(self, classes: np.ndarray | None, names: list[str]) -> ToldTrees:
        """The trees as a model by itself, for `tree_importance`; `names` are its columns."""
        return (ToldTrees if classes is None else ToldClassTrees)(self, classes, names)

    @classmethod
    def fit(
        cls, X: np.ndarray, y: np.ndarray, weights: np.ndarray, n_levels: list[int], kind: str, seed: int
    ) -> tuple[TreeTower, np.ndarray]:
        """The tower, and its scores of the training rows, each by trees that did not see the row.

        `n_levels` are those of the last columns, which are categories.
        """
        categorical = np.zeros(X.shape[1], bool)
        categorical[X.shape[1] - len(n_levels) :] = np.array(n_levels, dtype=int) < MOST_LEVELS
        made = HistGradientBoostingClassifier if kind == "class" else HistGradientBoostingRegressor
        new = partial(made, categorical_features=categorical, random_state=seed, early_stopping=False)
        unseen = _unseen(new, X, y, weights, kind, seed)
        model = new().fit(X, y, sample_weight=weights)
        ensemble = read_trees(model)
        base = np.atleast_1d(ensemble.margins(X[:1])[0]) - summed(ensemble.trees, ensemble.encode(X[:1]))[0]
        return cls(ensemble.trees, base, kind, model), unseen

    def margins(self, X: np.ndarray) -> np.ndarray:
        """What the trees say of each row, before any link: (rows, 1) of two classes or a number, else (rows, K)."""
        found: np.ndarray = summed(self.trees, np.ascontiguousarray(X, np.float64)) + self.base
        return found

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Logarithms of the classes' shares, at least log(`LEAST`), or numbers, (rows, K)."""
        margins = self.margins(X)
        return margins if self.kind == "number" else np.log(np.maximum(self._output.predicted(margins), LEAST))

    @property
    def _output(self) -> Output:
        return Output("identity") if self.kind == "number" else Output("logits", self.trees.n_outputs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, exactly."""
        arrays = {name: getattr(self.trees, name) for name in _ARRAYS}
        kept = {
            name: {"dtype": str(one.dtype), "shape": one.shape, "values": one.ravel().tolist()}
            for name, one in arrays.items()
        }
        return {"n_features": self.trees.n_features, "base": self.base.tolist(), "kind": self.kind, "arrays": kept}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TreeTower:
        """The tower that `to_dict` wrote."""
        arrays: dict[str, Any] = {
            name: np.array(one["values"], one["dtype"]).reshape(one["shape"]) for name, one in values["arrays"].items()
        }
        trees = Trees(n_features=values["n_features"], single=False, **arrays)
        return cls(trees, np.array(values["base"]), values["kind"])


class ToldTrees:
    """Trees read into arrays that answer as scikit-learn's own would, for numbers."""

    def __init__(self, tower: TreeTower, classes: np.ndarray | None, names: list[str]) -> None:
        self.tower = tower
        self.feature_names_in_, self.n_features_in_ = np.array(names, dtype=object), len(names)
        self.output = tower._output
        self.ensemble_ = Ensemble(tower.trees, _values, self._margins, (self.output,))

    def predict(self, X: Any) -> np.ndarray:
        """A number a row."""
        return self._margins(X)

    def _margins(self, X: Any) -> np.ndarray:
        margins = self.tower.margins(_values(X))
        return margins[:, 0] if margins.shape[1] == 1 else margins


class ToldClassTrees(ToldTrees):
    """The same for classes."""

    def __init__(self, tower: TreeTower, classes: np.ndarray | None, names: list[str]) -> None:
        super().__init__(tower, classes, names)
        assert classes is not None
        self.classes_ = classes

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares of the classes."""
        return self.output.predicted(self.tower.margins(_values(X)))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class."""
        found: np.ndarray = self.classes_[self.predict_proba(X).argmax(1)]
        return found


def _unseen(
    new: Callable[[], Any], X: np.ndarray, y: np.ndarray, weights: np.ndarray, kind: str, seed: int
) -> np.ndarray:
    """Scores of each row by trees that were grown without it; a class that those did not see has a share of `LEAST`."""
    n_classes = int(y.max()) + 1 if kind == "class" else 1
    found = np.full((len(X), n_classes), np.log(LEAST) if kind == "class" else 0.0)
    if len(X) < 2:
        return found
    n_folds = min(FOLDS, len(X))
    folds: Any = KFold(n_folds, shuffle=True, random_state=seed)
    if kind == "class" and np.bincount(y).max() >= n_folds:
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer rows than folds
        parts = list(folds.split(X, y))
    for learned, rows in parts:
        if kind == "number":
            found[rows, 0] = new().fit(X[learned], y[learned], sample_weight=weights[learned]).predict(X[rows])
            continue
        classes = np.unique(y[learned])
        if len(classes) == 1:
            found[rows, classes[0]] = 0.0
            continue
        model = new().fit(X[learned], y[learned], sample_weight=weights[learned])
        found[np.ix_(rows, classes)] = np.log(np.maximum(model.predict_proba(X[rows]), LEAST))
    return found


def _values(X: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(X, np.float64))
