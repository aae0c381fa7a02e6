"""Trees of every library in one form say what the library says, missing values and categories included."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier

from transfuse import DataError
from transfuse.trees.read import read_trees
from transfuse.trees.walk import summed

DRAW = np.random.default_rng(0)
N = 223
X = DRAW.normal(size=(N, 5))
X[:, 4] = DRAW.integers(0, 9, N)
NUMBERS = X[:, 0] + X[:, 1] * X[:, 2] + (X[:, 4] % 3) + 0.1 * DRAW.normal(size=N)
CLASSES = np.digitize(NUMBERS, [0.0, 1.5])
TWO = (NUMBERS > 1).astype(int)
SEVERAL = np.column_stack([NUMBERS, 10 * X[:, 3] - X[:, 0], DRAW.normal(size=N)])
LABELS = (SEVERAL > 0).astype(int)
VECTORS = {"n_estimators": 7, "multi_strategy": "multi_output_tree"}
HOLES = np.where(DRAW.random(X.shape) < 0.1, np.nan, X)
HOLES[:, 4] = X[:, 4]
FRAME = pd.DataFrame(HOLES, columns=list("abcde")).astype({"e": int}).astype({"e": "category"})
FRAME.loc[::7, "e"] = np.nan  # a category may be missing, too
QUIET = {"n_estimators": 7, "verbose": -1, "min_child_samples": 5}


@pytest.mark.parametrize(
    ("model", "rows", "y"),
    [
        (DecisionTreeClassifier(random_state=0), HOLES, CLASSES),
        (ExtraTreeClassifier(random_state=0), X, CLASSES),
        (DecisionTreeRegressor(random_state=0, max_depth=5), HOLES, NUMBERS),
        (RandomForestClassifier(7, random_state=0), HOLES, CLASSES),
        (RandomForestClassifier(7, random_state=0), FRAME.astype(float), TWO),
        (ExtraTreesClassifier(7, random_state=0), X, CLASSES),
        (RandomForestRegressor(7, random_state=0), HOLES, NUMBERS),
        (ExtraTreesRegressor(7, random_state=0), X, np.column_stack([NUMBERS, NUMBERS**2])),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_forests(model: Any, rows: Any, y: np.ndarray) -> None:
    model.fit(rows, y)
    ensemble = read_trees(model)
    found = summed(ensemble.trees, ensemble.encode(rows)) / ensemble.trees.n_trees
    expected = model.predict_proba(rows) if hasattr(model, "classes_") else model.predict(rows).reshape(N, -1)
    assert ensemble.is_forest
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "rows", "y", "tolerance"),
    [
        (GradientBoostingClassifier(n_estimators=7, random_state=0), X, CLASSES, 1e-12),
        (GradientBoostingClassifier(n_estimators=7, random_state=0), X, TWO, 1e-12),
        (GradientBoostingRegressor(n_estimators=7, random_state=0), X, NUMBERS, 1e-12),
        (HistGradientBoostingClassifier(max_iter=7, categorical_features=[4]), HOLES, CLASSES, 1e-12),
        (HistGradientBoostingClassifier(max_iter=7, categorical_features="from_dtype"), FRAME, TWO, 1e-12),
        (HistGradientBoostingRegressor(max_iter=7, categorical_features=[1, 4]), np.abs(HOLES).round(), NUMBERS, 1e-12),
        (HistGradientBoostingRegressor(max_iter=7, loss="poisson"), HOLES, np.exp(NUMBERS), 1e-12),
        (xgboost.XGBClassifier(n_estimators=7), HOLES, CLASSES, 1e-5),
        (xgboost.XGBClassifier(n_estimators=7), HOLES, TWO, 1e-5),
        (xgboost.XGBRegressor(n_estimators=7, enable_categorical=True, max_cat_to_onehot=2), FRAME, NUMBERS, 1e-5),
        (xgboost.XGBRegressor(n_estimators=7, enable_categorical=True), FRAME, NUMBERS, 1e-5),
        (lightgbm.LGBMClassifier(**QUIET), HOLES, CLASSES, 1e-12),
        (lightgbm.LGBMClassifier(**QUIET), X, TWO, 1e-12),
        (lightgbm.LGBMRegressor(**QUIET, min_data_per_group=2, cat_smooth=1), FRAME, NUMBERS, 1e-12),
        (lightgbm.LGBMClassifier(**QUIET, objective="multiclassova", sigmoid=1.7), HOLES, CLASSES, 1e-12),
        (xgboost.XGBRegressor(n_estimators=7, enable_categorical=True), FRAME, SEVERAL, 1e-5),
        (xgboost.XGBRegressor(**VECTORS), HOLES, SEVERAL, 1e-5),
        (xgboost.XGBRFRegressor(**VECTORS), HOLES, SEVERAL, 1e-5),
        (xgboost.XGBRegressor(**VECTORS, objective="count:poisson"), HOLES, np.exp(SEVERAL / 9), 1e-5),
        (xgboost.XGBClassifier(n_estimators=7), HOLES, LABELS, 1e-5),
        (xgboost.XGBClassifier(**VECTORS), HOLES, LABELS, 1e-5),
        (xgboost.XGBClassifier(**VECTORS), HOLES, CLASSES, 1e-5),
        (MultiOutputRegressor(lightgbm.LGBMRegressor(**QUIET)), FRAME, SEVERAL, 1e-12),
        (MultiOutputRegressor(GradientBoostingRegressor(n_estimators=7)), X, SEVERAL, 1e-12),
        (MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=7)), FRAME, SEVERAL, 1e-12),
        (MultiOutputClassifier(xgboost.XGBClassifier(n_estimators=7)), HOLES, np.column_stack([TWO, CLASSES]), 1e-5),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_boosted_ones_up_to_a_constant(model: Any, rows: Any, y: np.ndarray, tolerance: float) -> None:
    model.fit(rows, y)
    ensemble = read_trees(model)
    sums = summed(ensemble.trees, ensemble.encode(rows))
    difference = np.asarray(ensemble.margins(rows), float).reshape(N, -1) - sums
    assert not ensemble.is_forest and ensemble.trees.splits.size > 7
    np.testing.assert_allclose(difference, np.broadcast_to(difference[0], difference.shape), rtol=0, atol=tolerance)
    told = model.predict_proba(rows) if hasattr(model, "classes_") else model.predict(rows)
    if y.ndim == 1:
        told = [told]
    elif not isinstance(told, list):  # a label's share alone, or numbers
        told = [np.column_stack([1 - one, one]) if hasattr(model, "classes_") else one for one in told.T]
    for output, theirs in zip(ensemble.outputs, told, strict=True):
        np.testing.assert_allclose(output.predicted(sums + difference[0]), theirs, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_several_outputs_stop_where_they_stopped(strategy: str) -> None:
    model = xgboost.XGBRegressor(n_estimators=60, multi_strategy=strategy, early_stopping_rounds=1, learning_rate=1)
    model.fit(X[:150], SEVERAL[:150], eval_set=[(X[150:], SEVERAL[150:])], verbose=False)
    rounds = model.get_booster().num_boosted_rounds()
    trees = read_trees(model).trees
    assert (
        trees.n_trees == (model.best_iteration + 1) * (3 if strategy[0] == "o" else 1)
        and model.best_iteration + 1 < rounds
    )
    difference = model.predict(X, output_margin=True) - summed(trees, X)
    np.testing.assert_allclose(difference, np.broadcast_to(difference[0], (N, 3)), rtol=0, atol=1e-5)


def test_leaves_of_numbers_and_of_vectors_may_follow_each_other() -> None:
    rows = xgboost.DMatrix(HOLES, SEVERAL)
    first = xgboost.train({}, rows, 3)
    both = xgboost.train({"multi_strategy": "multi_output_tree"}, rows, 3, xgb_model=first)
    ensemble = read_trees(both)
    assert ensemble.trees.grown_for is not None and ensemble.trees.grown_for.tolist() == [0, 1, 2] * 3 + [-1] * 3
    difference = both.predict(rows, output_margin=True) - summed(ensemble.trees, HOLES)
    np.testing.assert_allclose(difference, np.broadcast_to(difference[0], (N, 3)), rtol=0, atol=1e-5)


def test_vectors_as_xgboost_wrote_them_before_3_2() -> None:
    """Among the weights of all nodes, and without gains."""
    model = xgboost.XGBRegressor(**VECTORS).fit(HOLES, SEVERAL)
    content = json.loads(bytes(model.get_booster().save_raw("json")))
    for tree in content["learner"]["gradient_booster"]["model"]["trees"]:
        assert tree.pop("leaf_weights") and tree.pop("loss_changes")
        tree["right_children"] = [
            right if left >= 0 else -1
            for left, right in zip(tree["left_children"], tree["right_children"], strict=True)
        ]
    older = read_trees(SimpleNamespace(attributes=dict, save_raw=lambda _: json.dumps(content).encode())).trees
    trees = read_trees(model).trees
    np.testing.assert_array_equal(older.values, trees.values)
    assert np.isnan(older.gain[older.splits]).all() and (trees.gain[trees.splits] > 0).all()


def test_counts_and_gains_are_those_of_the_library() -> None:
    for booster, y in (
        (xgboost.XGBClassifier(n_estimators=7), TWO),
        (xgboost.XGBClassifier(n_estimators=7), LABELS),
        (xgboost.XGBClassifier(**VECTORS), CLASSES),
        (xgboost.XGBRegressor(n_estimators=7), SEVERAL),
        (xgboost.XGBRegressor(**VECTORS), SEVERAL),
    ):
        trees = read_trees(booster.fit(HOLES, y)).trees
        for kind, ours in (("weight", np.ones(len(trees.feature))), ("total_gain", trees.gain)):
            theirs = booster.get_booster().get_score(importance_type=kind)
            expected = [theirs.get(f"f{i}", 0.0) for i in range(5)]
            np.testing.assert_allclose(trees.per_feature(ours), expected, rtol=1e-5)
    pair = MultiOutputRegressor(lightgbm.LGBMRegressor(**QUIET)).fit(HOLES, SEVERAL)
    trees = read_trees(pair).trees
    for kind, ours in (("split", np.ones(len(trees.feature))), ("gain", trees.gain)):
        expected = sum(one.booster_.feature_importance(kind) for one in pair.estimators_)
        np.testing.assert_allclose(trees.per_feature(ours), expected, rtol=1e-5)
    for objective in ("multiclass", "multiclassova"):
        light = lightgbm.LGBMClassifier(**QUIET, objective=objective).fit(HOLES, CLASSES)
        trees = read_trees(light).trees
        for kind, ours in (("split", np.ones(len(trees.feature))), ("gain", trees.gain)):
            np.testing.assert_allclose(trees.per_feature(ours), light.booster_.feature_importance(kind), rtol=1e-5)
    forest = RandomForestClassifier(7, random_state=0).fit(X, TWO)
    expected = [sum((tree.tree_.feature == i).sum() for tree in forest.estimators_) for i in range(5)]
    trees = read_trees(forest).trees
    np.testing.assert_array_equal(trees.per_feature(np.ones(len(trees.feature))), expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (RandomForestClassifier(), "a RandomForestClassifier is not a fitted tree"),
        (xgboost.XGBClassifier(), "a XGBClassifier is not a fitted tree"),
        (lightgbm.LGBMClassifier(), "a LGBMClassifier is not a fitted tree"),
        (LogisticRegression().fit(X, TWO), "a LogisticRegression is not a fitted tree"),
        (make_pipeline(DecisionTreeClassifier()), "of a pipeline, give its last step"),
        (xgboost.XGBRegressor(booster="gblinear").fit(X, NUMBERS), "booster='gblinear' cannot be read"),
        (lightgbm.LGBMRegressor(**QUIET, zero_as_missing=True).fit(X, NUMBERS), "zero_as_missing cannot be read"),
        (lightgbm.LGBMRegressor(**QUIET, linear_tree=True).fit(X, NUMBERS), "linear trees cannot be read"),
        (
            xgboost.XGBRegressor(n_estimators=2, objective="reg:quantileerror", quantile_alpha=[0.1, 0.9]).fit(X, TWO),
            "2 outputs of objective='reg:quantileerror' cannot be read; one can",
        ),
        (
            MultiOutputRegressor(RandomForestRegressor(2)).fit(X, SEVERAL),
            "MultiOutputRegressor of RandomForestRegressor cannot be read; fit the RandomForestRegressor itself to all",
        ),
        (MultiOutputRegressor(xgboost.XGBRegressor(n_estimators=2)).fit(X, TWO[:, None]), r"give its estimators_\[0\]"),
        (
            MultiOutputRegressor(xgboost.XGBClassifier(n_estimators=2)).fit(X, LABELS),
            "MultiOutputRegressor of XGBClassifier cannot be read: one is of classes, the other of numbers",
        ),
        (MultiOutputRegressor(LogisticRegression()).fit(X, LABELS), "a LogisticRegression is not a fitted tree"),
        (MultiOutputRegressor(xgboost.XGBRegressor()), "a MultiOutputRegressor is not a fitted tree"),
        (
            MultiOutputClassifier(xgboost.XGBClassifier(**VECTORS)).fit(X, np.column_stack([TWO, CLASSES])),
            "trees with 1 numbers a leaf cannot be read beside trees with 3",
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_what_cannot_be_read_is_named(model: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_trees(model)


def test_adaboost_is_read_as_no_forest() -> None:
    model = AdaBoostClassifier(n_estimators=3).fit(X, TWO)
    with pytest.raises(DataError, match="a AdaBoostClassifier is not a fitted tree"):
        read_trees(model)
