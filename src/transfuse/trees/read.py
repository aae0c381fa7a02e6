"""Fitted ensembles of scikit-learn, XGBoost and LightGBM as `Trees`, and how their sums become predictions.

Only what an estimator carries is read; none of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from transfuse.errors import DataError
from transfuse.trees.ensemble import Trees
from transfuse.trees.read_boosters import lightgbm_trees, xgboost_trees
from transfuse.trees.read_sklearn import boosted_trees, forest_trees, histogram_trees

Link = Literal["shares", "mean", "logits", "identity", "exponential"]


@dataclass(frozen=True)
class Ensemble:
    """Trees, `encode`, which makes of a table the numbers they compare, `margins` of a table as the library gives them,
    and `link`, what becomes of the trees' sum: shares of classes or a mean (divided by the number of trees), logits of
    classes, a number, or its logarithm."""

    trees: Trees
    encode: Callable[[Any], np.ndarray]
    margins: Callable[[Any], np.ndarray]
    link: Link

    @property
    def is_forest(self) -> bool:
        """Whether trees vote, each for itself."""
        return self.link in ("shares", "mean")


def read_trees(model: Any) -> Ensemble:
    """The trees of a fitted model. Raises DataError for one that has none, or of a kind that cannot be read."""
    # a Booster of LightGBM can say itself as a string, one of XGBoost can save itself raw
    if hasattr(model, "get_booster") or hasattr(model, "save_raw"):
        booster = _xgboost_booster(model)
        best = booster.attributes().get("best_iteration")  # predictions stop there
        trees, logarithm = xgboost_trees(booster if best is None else booster[: int(best) + 1])
        return _boosted(model, trees, lambda X: _xgboost_margins(model, booster, X), logarithm)
    if hasattr(model, "booster_") or hasattr(model, "model_to_string"):
        booster = model.booster_ if hasattr(model, "booster_") else model
        trees, logarithm = lightgbm_trees(booster)
        return _boosted(model, trees, lambda X: booster.predict(X, raw_score=True), logarithm)
    if hasattr(model, "_predictors") and hasattr(model, "_preprocess_X"):
        trees, encode, logarithm = histogram_trees(model)
        if hasattr(model, "classes_"):
            return Ensemble(trees, encode, model.decision_function, "logits")
        if logarithm:
            return Ensemble(trees, encode, lambda X: np.log(model.predict(X)), "exponential")
        return Ensemble(trees, encode, model.predict, "identity")
    if hasattr(model, "estimators_") and hasattr(model, "init_"):
        margins = model.decision_function if hasattr(model, "classes_") else model.predict
        link: Link = "logits" if hasattr(model, "classes_") else "identity"
        return Ensemble(boosted_trees(model), _values, margins, link)
    # others that hold trees, as AdaBoost and bagging do, weigh them or show each other columns; they have no `apply`
    if hasattr(model, "apply") and (
        hasattr(model, "tree_") or hasattr(getattr(model, "estimators_", [None])[0], "tree_")
    ):
        link = "shares" if hasattr(model, "classes_") else "mean"
        return Ensemble(forest_trees(model), _values, model.predict, link)
    raise _unreadable(model)


def _unreadable(model: Any) -> DataError:
    kind = type(model).__name__
    return DataError(
        f"a {kind} is not a fitted tree, forest or boosted ensemble of scikit-learn, XGBoost or LightGBM"
        + ("; of a pipeline, give its last step and the rows as they reach it" if hasattr(model, "steps") else "")
    )


def _xgboost_booster(model: Any) -> Any:
    if not hasattr(model, "get_booster"):
        return model
    try:
        return model.get_booster()
    except ValueError as error:  # scikit-learn's NotFittedError is one
        raise _unreadable(model) from error


def _boosted(model: Any, trees: Trees, margins: Callable[[Any], np.ndarray], logarithm: bool) -> Ensemble:
    link: Link = "logits" if hasattr(model, "classes_") else "exponential" if logarithm else "identity"
    return Ensemble(trees, _codes, margins, link)


def _values(X: Any) -> np.ndarray:
    return np.asarray(X, np.float64)


def _codes(X: Any) -> np.ndarray:
    """A table as numbers; of a column of categories, their numbers."""
    if hasattr(X, "dtypes") and hasattr(X, "items"):
        columns = [
            column.cat.codes.replace(-1, np.nan) if str(column.dtype) == "category" else column
            for _, column in X.items()
        ]
        return np.column_stack([np.asarray(column, np.float64) for column in columns])
    return _values(X)


def _xgboost_margins(model: Any, booster: Any, X: Any) -> np.ndarray:
    if model is not booster:
        found: np.ndarray = model.predict(X, output_margin=True)
        return found
    return booster.inplace_predict(X, predict_type="margin")
