"""Fitted ensembles of scikit-learn, XGBoost and LightGBM as `Trees`, and how their sums become predictions.

Only what an estimator carries is read; none of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transfuse.errors import DataError
from transfuse.trees.ensemble import Trees, side_by_side
from transfuse.trees.output import Link, Output
from transfuse.trees.read_boosters import Boosted, lightgbm_trees, xgboost_trees
from transfuse.trees.read_sklearn import boosted_trees, forest_trees, histogram_trees

ONE_AN_OUTPUT = {"MultiOutputRegressor", "MultiOutputClassifier"}
"""scikit-learn's models that hold one for each output of y."""


@dataclass(frozen=True)
class Ensemble:
    """Trees, `encode`, which makes of a table the numbers they compare, `margins` of a table as the library gives them,
    and `outputs`, what becomes of the trees' sums for each output of y."""

    trees: Trees
    encode: Callable[[Any], np.ndarray]
    margins: Callable[[Any], np.ndarray]
    outputs: tuple[Output, ...]

    @property
    def is_forest(self) -> bool:
        """Whether trees vote, each for itself."""
        return all(output.is_vote for output in self.outputs)


def read_trees(model: Any) -> Ensemble:
    """The trees of a fitted model. Raises DataError for one that has none, or of a kind that cannot be read."""
    if hasattr(model, "ensemble_"):  # read before, as the trees of a saved directory are
        return model.ensemble_
    # a Booster of LightGBM can say itself as a string, one of XGBoost can save itself raw
    if hasattr(model, "get_booster") or hasattr(model, "save_raw"):
        booster = _xgboost_booster(model)
        best = booster.attributes().get("best_iteration")  # predictions stop there
        told = xgboost_trees(booster if best is None else booster[: int(best) + 1])
        return _boosted(model, told, lambda X: _xgboost_margins(model, booster, X))
    if hasattr(model, "booster_") or hasattr(model, "model_to_string"):
        booster = model.booster_ if hasattr(model, "booster_") else model
        return _boosted(model, lightgbm_trees(booster), lambda X: booster.predict(X, raw_score=True))
    if hasattr(model, "_predictors") and hasattr(model, "_preprocess_X"):
        trees, encode, logarithm = histogram_trees(model)
        if hasattr(model, "classes_"):
            return Ensemble(trees, encode, model.decision_function, (Output("logits", trees.n_outputs),))
        if logarithm:
            return Ensemble(trees, encode, lambda X: np.log(model.predict(X)), (Output("exponential"),))
        return Ensemble(trees, encode, model.predict, (Output("identity"),))
    if hasattr(model, "estimators_") and hasattr(model, "init_"):
        trees, of_classes = boosted_trees(model), hasattr(model, "classes_")
        margins = model.decision_function if of_classes else model.predict
        # AdaBoost's loss: its sums are half the logits
        divisor = 0.5 if getattr(model, "loss", None) == "exponential" else 1.0
        output = Output("logits" if of_classes else "identity", trees.n_outputs, divisor=divisor)
        return Ensemble(trees, _values, margins, (output,))
    # others that hold trees, as AdaBoost and bagging do, weigh them or show each other columns; they have no `apply`
    if (
        hasattr(model, "apply")
        and hasattr(model, "predict")
        and (hasattr(model, "tree_") or hasattr(getattr(model, "estimators_", [None])[0], "tree_"))
    ):
        trees = forest_trees(model)
        return Ensemble(trees, _values, model.predict, _votes(model, trees))
    if hasattr(model, "estimators_") and {one.__name__ for one in type(model).__mro__} & ONE_AN_OUTPUT:
        return _one_an_output(model)
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


def _boosted(model: Any, told: Boosted, margins: Callable[[Any], np.ndarray]) -> Ensemble:
    link: Link = "exponential" if told.logarithms else "identity"
    if hasattr(model, "classes_"):
        link = "sigmoids" if told.against_all else "logits"
    width = told.trees.n_outputs // told.n_targets
    outputs = tuple(Output(link, width, number * width, told.divisor) for number in range(told.n_targets))
    missing = getattr(model, "missing", None)  # the number that XGBoost was told to take for a gap

    def encode(X: Any) -> np.ndarray:
        numbers = _codes(X, told.levels)
        return numbers if missing is None else np.where(numbers == missing, np.nan, numbers)

    return Ensemble(told.trees, encode, margins, outputs)


def _votes(model: Any, trees: Trees) -> tuple[Output, ...]:
    """Of a forest, whose outputs all have as many numbers as that of the most classes."""
    if not hasattr(model, "classes_"):
        return tuple(Output("mean", first=number, divisor=trees.n_trees) for number in range(trees.n_outputs))
    lists = model.classes_ if isinstance(model.classes_, list) else [model.classes_]
    most = trees.n_outputs // len(lists)
    return tuple(Output("shares", len(own), number * most, trees.n_trees) for number, own in enumerate(lists))


def _one_an_output(model: Any) -> Ensemble:
    """Boosted ensembles, each fitted to an output of y of its own."""
    parts = [read_trees(part) for part in model.estimators_]
    kind, inner = type(model).__name__, type(model.estimators_[0]).__name__
    if len(parts) == 1:
        raise DataError(f"a {kind} of one output is a {inner}: give its estimators_[0]")
    if any(part.is_forest for part in parts):
        raise DataError(f"a {kind} of {inner} cannot be read; fit the {inner} itself to all outputs")
    if any(part.outputs[0].of_classes != hasattr(model, "classes_") for part in parts):
        raise DataError(f"a {kind} of {inner} cannot be read: one is of classes, the other of numbers")
    first = np.cumsum([0, *(part.trees.n_outputs for part in parts)])
    return Ensemble(
        side_by_side([part.trees for part in parts]),
        parts[0].encode,
        lambda X: np.column_stack([part.margins(X) for part in parts]),
        tuple(replace(part.outputs[0], first=int(by)) for part, by in zip(parts, first, strict=False)),
    )


def _values(X: Any) -> np.ndarray:
    return np.asarray(X, np.float64)


def _codes(X: Any, levels: list[list[Any]] | None) -> np.ndarray:
    """A table as numbers; of a column of categories, their numbers in `levels`, or in the table.

    Raises DataError for other columns of categories than the model has.
    """
    if not (hasattr(X, "dtypes") and hasattr(X, "items")):
        return _values(X)
    of_categories = [str(dtype) == "category" for dtype in X.dtypes]
    if levels is not None and sum(of_categories) != len(levels):
        raise DataError(f"{sum(of_categories)} columns of categories, but the model learned from {len(levels)}")
    known, columns = iter(levels or ()), []
    for (_, column), is_category in zip(X.items(), of_categories, strict=True):
        if is_category:
            own = column.cat if levels is None else column.cat.set_categories(next(known)).cat
            column = own.codes.replace(-1, np.nan)
        columns.append(np.asarray(column, np.float64))
    return np.column_stack(columns)


def _xgboost_margins(model: Any, booster: Any, X: Any) -> np.ndarray:
    if model is not booster:
        found: np.ndarray = model.predict(X, output_margin=True)
        return found
    return booster.inplace_predict(X, predict_type="margin")
