"""Importance of boosted trees of several outputs, and of one against all, by its definition, node by node in Python.

The trees are walked as the libraries dump them, not as we read them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor

from transfuse import tree_importance

DRAW = np.random.default_rng(11)
N, F, TRAIN = 131, 4, 71
X = DRAW.normal(size=(N, F)).astype(np.float32).astype(float)
HOLES = np.where(DRAW.random(X.shape) < 0.1, np.nan, X)
SEVERAL = np.column_stack([X[:, 0] + 5, 3 * X[:, 1] * X[:, 2], DRAW.normal(size=N)])
LABELS = (SEVERAL > [5, 0, 0.4]).astype(int)
CLASSES = np.digitize(X[:, 0] + X[:, 1], [-0.6, 0.6])
WEIGHTS = DRAW.integers(0, 4, N).astype(float)
SMALL: dict[str, Any] = {"n_estimators": 3, "max_depth": 3}
LIGHT: dict[str, Any] = {**SMALL, "verbose": -1, "min_child_samples": 4}
VECTORS = {"multi_strategy": "multi_output_tree"}

Split = tuple[int, Callable[[float], bool], Any, Any]
"""A feature, whether a value goes left, and both sides; a leaf is None."""


def of_xgboost(model: Any) -> Iterator[tuple[int | None, Split]]:
    content = json.loads(bytes(model.get_booster().save_raw("json")))["learner"]["gradient_booster"]["model"]
    for tree, output in zip(content["trees"], content["tree_info"], strict=True):

        def node(place: int, tree: Any = tree) -> Any:
            if tree["left_children"][place] < 0:
                return None
            border, default = np.float32(tree["split_conditions"][place]), tree["default_left"][place]
            sides = (node(tree[side][place]) for side in ("left_children", "right_children"))
            return (
                tree["split_indices"][place],
                lambda value: bool(default) if math.isnan(value) else np.float32(value) < border,
                *sides,
            )

        yield (None if tree["tree_param"]["size_leaf_vector"] != "1" else output), node(0)


def of_lightgbm(model: Any) -> Iterator[Split]:
    def node(told: dict[str, Any]) -> Any:
        if "split_feature" not in told:
            return None

        def goes_left(value: float) -> bool:
            if told["missing_type"] == "NaN" and math.isnan(value):
                return bool(told["default_left"])
            return (0.0 if math.isnan(value) else value) <= told["threshold"]

        return told["split_feature"], goes_left, node(told["left_child"]), node(told["right_child"])

    yield from (node(tree["tree_structure"]) for tree in model.booster_.dump_model()["tree_info"])


def of_scikit_learn(model: Any) -> Iterator[Split]:
    def node(tree: Any, place: int) -> Any:
        if tree.children_left[place] < 0:
            return None
        sides = (node(tree, int(side[place])) for side in (tree.children_left, tree.children_right))
        return int(tree.feature[place]), lambda value: np.float32(value) <= tree.threshold[place], *sides

    yield from (node(stage[0].tree_, 0) for stage in model.estimators_)


def mean(rows: list[int], values: Any, weights: np.ndarray) -> Any:
    return sum(weights[i] * np.asarray(values[i], float) for i in rows) / sum(weights[i] for i in rows)


def spent_at(measure: str, rows: list[int], y: Any, weights: np.ndarray) -> float:
    """The impurity of one output among rows, times their weight."""
    if not (weight := sum(weights[i] for i in rows)):
        return 0.0
    says = mean(rows, y, weights)
    if measure == "variance":
        return float(weight * mean(rows, [(one - says) ** 2 for one in y], weights))
    if measure == "gini":
        return float(weight * (1 - sum(share**2 for share in says)))
    return float(weight * -sum(share * math.log2(share) for share in says if share > 0))


def lost_by(measure: str, row: Any, seen: list[int], y: Any, weights: np.ndarray) -> float:
    """What one row of an output loses by what a node says that `seen` rows of training reached."""
    weight = sum(weights[i] for i in seen)
    says = mean(seen, y, weights) if weight else 0 * np.asarray(y[0], float)
    if measure == "variance":
        return float((row - says) ** 2)
    if measure == "gini":
        return float(((row - says) ** 2).sum())
    one = float(weights[weights > 0].mean())  # a row more, that is as all are
    right = int(row.argmax())
    return -math.log2((weight * says[right] + one * mean(list(range(len(y))), y, weights)[right]) / (weight + one))


def by_definition(
    trees: Sequence[tuple[int | None, Any]], rows: np.ndarray, ys: Sequence[Any], weights: np.ndarray, measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Decreases on training rows, as shares of 1, and on the others in their unit. `ys` has an item an output: numbers,
    or ones for classes; a tree is judged by its own output, or by all, and the decrease is the mean over outputs."""
    spent, gained = np.zeros(F), np.zeros(F)
    train, held = list(range(TRAIN)), [i for i in range(TRAIN, N) if weights[i] > 0]
    own = weights[:TRAIN]

    def visit(node: Any, seen: list[int], fell: list[int], judged: Sequence[int]) -> None:
        if node is None:
            return
        feature, goes_left, *children = node
        sides = [[[i for i in part if goes_left(rows[i, feature]) == left] for part in (seen, fell)] for left in (1, 0)]
        for o in judged:
            y = ys[o][:TRAIN]
            for at, fallen, sign in ((seen, fell, 1), (*sides[0], -1), (*sides[1], -1)):
                spent[feature] += sign * spent_at(measure, at, y, own) / len(ys) / own.sum()
                for i in fallen:
                    share = weights[i] / weights[TRAIN:].sum()
                    gained[feature] += sign * share * lost_by(measure, ys[o][i], at, y, own) / len(ys)
        for child, (at, fallen) in zip(children, sides, strict=True):
            visit(child, at, fallen, judged)

    for output, root in trees:
        visit(root, train, held, range(len(ys)) if output is None else [output])
    return spent / spent.sum(), gained / spent.sum()


def ones(y: np.ndarray) -> list[np.ndarray]:
    """For each output, ones for the classes of the rows."""
    return [(column[:, None] == np.unique(column)).astype(float) for column in y.reshape(N, -1).T]


def numbered(found: Iterator[Split]) -> list[tuple[int | None, Split]]:
    return [(None, tree) for tree in found]


def parts(model: Any, read: Callable[[Any], Iterator[Split]]) -> list[tuple[int | None, Split]]:
    return [(output, tree) for output, part in enumerate(model.estimators_) for tree in read(part)]


@pytest.mark.parametrize("weights", [np.ones(N), WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize(
    ("model", "rows", "y", "read"),
    [
        (xgboost.XGBRegressor(**SMALL), HOLES, SEVERAL, of_xgboost),
        (xgboost.XGBRegressor(**SMALL, **VECTORS), HOLES, SEVERAL, of_xgboost),
        (xgboost.XGBClassifier(**SMALL), HOLES, LABELS, of_xgboost),
        (xgboost.XGBClassifier(**SMALL, **VECTORS), HOLES, LABELS, of_xgboost),
        (
            MultiOutputRegressor(GradientBoostingRegressor(n_estimators=3)),
            X,
            SEVERAL,
            lambda model: parts(model, of_scikit_learn),
        ),
        (
            MultiOutputClassifier(lightgbm.LGBMClassifier(**LIGHT)),
            HOLES,
            np.column_stack([LABELS[:, 1], CLASSES]),
            lambda model: parts(model, of_lightgbm),
        ),
        (
            lightgbm.LGBMClassifier(**LIGHT, objective="multiclassova"),
            HOLES,
            CLASSES,
            lambda model: numbered(of_lightgbm(model)),
        ),
    ],
    ids=["numbers", "vectors", "labels", "vectors of labels", "one an output", "classes an output", "against all"],
)
def test_decreases_by_definition(model: Any, rows: np.ndarray, y: np.ndarray, read: Any, weights: np.ndarray) -> None:
    check(model.fit(rows[:TRAIN], y[:TRAIN], sample_weight=weights[:TRAIN]), rows, y, read, weights)


def test_trees_of_one_output_and_of_all_in_one_model() -> None:
    """Vectors that go on where trees of one output stopped: the mean over outputs is what makes them one unit."""
    first = xgboost.XGBRegressor(**SMALL).fit(HOLES[:TRAIN], SEVERAL[:TRAIN])
    model = xgboost.XGBRegressor(**SMALL, **VECTORS).fit(HOLES[:TRAIN], SEVERAL[:TRAIN], xgb_model=first.get_booster())
    assert [output for output, _ in of_xgboost(model)] == [0, 1, 2] * 3 + [None] * 3
    check(model, HOLES, SEVERAL, of_xgboost, np.ones(N))


def check(model: Any, rows: np.ndarray, y: np.ndarray, read: Any, weights: np.ndarray) -> None:
    """That the table of a fitted model says what the definition says."""
    trees = list(read(model))
    found = tree_importance(
        model,
        rows[TRAIN:],
        y[TRAIN:],
        X_train=rows[:TRAIN],
        y_train=y[:TRAIN],
        train_weight=weights[:TRAIN],
        sample_weight=weights[TRAIN:],
        n_repeats=1,
    ).table.sort_index()
    of_classes = hasattr(model, "classes_")
    ys: Any = ones(y) if of_classes else list(y.T)
    for measure in ("gini", "information") if of_classes else ("variance",):
        train, held = by_definition(trees, rows, ys, weights, measure)
        assert (train > 0).sum() > 2 and train.sum() == pytest.approx(1)
        np.testing.assert_allclose(found[f"{measure}_train"], train, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[f"{measure}_held_out"], held, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        xgboost.XGBRegressor(n_estimators=5),
        xgboost.XGBRegressor(n_estimators=5, **VECTORS),
        MultiOutputRegressor(xgboost.XGBRegressor(n_estimators=5)),
    ],
    ids=["numbers", "vectors", "one an output"],
)
def test_an_output_twice_matters_as_it_does_once(model: Any) -> None:
    y = SEVERAL[:, 1]
    tables = [
        tree_importance(
            fitted.fit(HOLES[:TRAIN], own[:TRAIN]),
            HOLES[TRAIN:],
            own[TRAIN:],
            X_train=HOLES[:TRAIN],
            y_train=own[:TRAIN],
        ).table
        for fitted, own in ((model, np.column_stack([y, y])), (xgboost.XGBRegressor(n_estimators=5), y))
    ]
    names = ["variance_train", "variance_held_out", "permutation", "permutation_std"]
    pd.testing.assert_frame_equal(tables[0][names], tables[1][names], rtol=1e-4)


def test_a_tree_of_one_output_is_not_judged_by_another() -> None:
    """The first output depends on the first column alone, the second on the second, ten times as far spread."""
    y = np.column_stack([np.sign(X[:, 0]), 10 * np.sign(X[:, 1])])
    model = xgboost.XGBRegressor(n_estimators=3, max_depth=1, base_score=0.0).fit(X[:TRAIN], y[:TRAIN])
    found = tree_importance(model, X[TRAIN:], y[TRAIN:], X_train=X[:TRAIN], y_train=y[:TRAIN]).table
    variance = y[:TRAIN].var(0)
    np.testing.assert_allclose(found["variance_train"].loc[[0, 1]], variance / variance.sum(), rtol=1e-12)
    assert (found.loc[[2, 3], ["variance_train", "variance_held_out", "permutation"]] == 0).all(axis=None)
