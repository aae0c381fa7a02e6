"""Gradient-boosted trees in the place of a Transformer on the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

from transfuse.trees.ensemble import Trees
from transfuse.trees.output import Output
from transfuse.trees.read import Ensemble, read_trees
from transfuse.trees.walk import summed

FOLDS = 5
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
    """scikit-learn's histogram gradient boosting, read into arrays, and what it says of rows before any link function:
    (rows, K), K being 1 for two classes or a number.

    `model` is the fitted ensemble itself, until the tower is saved: it is written as arrays, not pickled.
    """

    def __init__(self, trees: Trees, base: np.ndarray, model: Any = None) -> None:
        self.trees, self.base, self.model = trees, base, model

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
        model = made(categorical_features=categorical, random_state=seed, early_stopping=False)
        n_folds = min(FOLDS, len(X))
        folds: Any = KFold(n_folds, shuffle=True, random_state=seed)
        if kind == "class":
            counts = np.bincount(y)
            if counts.min() >= 2:
                folds = StratifiedKFold(min(n_folds, int(counts.min())), shuffle=True, random_state=seed)
        unseen = cross_val_predict(
            model,
            X,
            y,
            cv=folds,
            params={"sample_weight": weights},
            method="decision_function" if kind == "class" else "predict",
        )
        model.fit(X, y, sample_weight=weights)
        ensemble = read_trees(model)
        first = ensemble.encode(X[:1])
        base = np.atleast_1d(ensemble.margins(X[:1])[0]) - summed(ensemble.trees, first)[0]
        return cls(ensemble.trees, base, model), unseen.reshape(len(X), -1)

    def scores(self, X: np.ndarray) -> np.ndarray:
        """What the trees say of each row, (rows, K)."""
        found: np.ndarray = summed(self.trees, np.ascontiguousarray(X, np.float64)) + self.base
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, exactly."""
        arrays = {name: getattr(self.trees, name) for name in _ARRAYS}
        kept = {
            name: {"dtype": str(one.dtype), "shape": one.shape, "values": one.ravel().tolist()}
            for name, one in arrays.items()
        }
        return {"n_features": self.trees.n_features, "base": self.base.tolist(), "arrays": kept}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TreeTower:
        """The tower that `to_dict` wrote."""
        arrays: dict[str, Any] = {
            name: np.array(one["values"], one["dtype"]).reshape(one["shape"]) for name, one in values["arrays"].items()
        }
        return cls(Trees(n_features=values["n_features"], single=False, **arrays), np.array(values["base"]))


class ToldTrees:
    """Trees read into arrays that answer as scikit-learn's own would, for numbers."""

    def __init__(self, tower: TreeTower, classes: np.ndarray | None, names: list[str]) -> None:
        self.tower = tower
        self.feature_names_in_, self.n_features_in_ = np.array(names, dtype=object), len(names)
        width = tower.trees.n_outputs
        output = Output("identity") if classes is None else Output("logits", width)
        self.ensemble_ = Ensemble(tower.trees, _values, self._margins, (output,))

    def predict(self, X: Any) -> np.ndarray:
        """A number a row."""
        return self._margins(X)

    def _margins(self, X: Any) -> np.ndarray:
        scores = self.tower.scores(_values(X))
        return scores[:, 0] if scores.shape[1] == 1 else scores


class ToldClassTrees(ToldTrees):
    """The same for classes."""

    def __init__(self, tower: TreeTower, classes: np.ndarray | None, names: list[str]) -> None:
        super().__init__(tower, classes, names)
        assert classes is not None
        self.classes_ = classes

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares of the classes."""
        return self.ensemble_.outputs[0].predicted(self.tower.scores(_values(X)))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class."""
        found: np.ndarray = self.classes_[self.predict_proba(X).argmax(1)]
        return found


def _values(X: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(X, np.float64))
