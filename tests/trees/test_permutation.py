"""Permutation importance against scikit-learn's, from the same shuffles, and groups of correlated columns."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.inspection import permutation_importance
from sklearn.metrics import get_scorer
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor

from transfuse import tree_importance
from transfuse.trees.permutation import correlated_groups, group_losses, shuffles
from transfuse.trees.read import read_trees
from transfuse.trees.walk import summed

DRAW = np.random.default_rng(2)
N = 301
X = DRAW.normal(size=(N, 5))
X[:, 4] = DRAW.integers(0, 9, N)
X[DRAW.random(N) < 0.1, 1] = np.nan
NUMBERS = X[:, 0] + np.nan_to_num(X[:, 1]) * X[:, 2] + (X[:, 4] % 3)
CLASSES = np.digitize(NUMBERS, [0.0, 1.5])
QUIET = {"n_estimators": 9, "verbose": -1}
SEVERAL = np.column_stack([NUMBERS, 9 * X[:, 0] - X[:, 2]])
LABELS = (SEVERAL > 0).astype(int)
NAMES = np.column_stack([np.array(["low", "mid", "top"])[CLASSES], np.array(["no", "yes"])[LABELS[:, 1]]])


def mean_accuracy(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Of several outputs scikit-learn's accuracy wants all to be right; this is the mean of theirs."""
    return float((model.predict(X) == y).mean())


@pytest.mark.parametrize(
    ("model", "y", "scoring"),
    [
        (RandomForestClassifier(9, random_state=0), CLASSES, None),
        (RandomForestClassifier(9, random_state=0), CLASSES, "neg_log_loss"),
        (RandomForestRegressor(9, random_state=0), NUMBERS, None),
        (RandomForestRegressor(9, random_state=0), NUMBERS, "neg_mean_absolute_error"),
        (GradientBoostingClassifier(n_estimators=9, random_state=0), CLASSES, "f1_macro"),
        (HistGradientBoostingClassifier(max_iter=9, categorical_features=[4]), CLASSES > 0, "roc_auc"),
        (HistGradientBoostingRegressor(max_iter=9, loss="poisson"), np.exp(NUMBERS), None),
        (xgboost.XGBClassifier(n_estimators=9), CLASSES, None),
        (lightgbm.LGBMRegressor(**QUIET), NUMBERS, None),
        (lightgbm.LGBMClassifier(**QUIET, objective="multiclassova"), CLASSES, None),
        (lightgbm.LGBMClassifier(**QUIET, objective="multiclassova", sigmoid=2.0), CLASSES, "f1_macro"),
        (lightgbm.LGBMClassifier(**QUIET, sigmoid=2.0), CLASSES > 0, "neg_log_loss"),
        (xgboost.XGBRegressor(n_estimators=9), SEVERAL, None),
        (xgboost.XGBRegressor(n_estimators=9, multi_strategy="multi_output_tree"), SEVERAL, None),
        (MultiOutputRegressor(HistGradientBoostingRegressor(max_iter=9)), SEVERAL, None),
        (xgboost.XGBClassifier(n_estimators=9), LABELS, None),
        (xgboost.XGBClassifier(n_estimators=9, multi_strategy="multi_output_tree"), LABELS, None),
        (MultiOutputClassifier(lightgbm.LGBMClassifier(**QUIET)), NAMES, None),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else str(value)[:12],
)
def test_losses_are_those_of_scikit_learn(model: Any, y: np.ndarray, scoring: str | None) -> None:
    rows = np.nan_to_num(X) if isinstance(model, GradientBoostingClassifier) else X
    model.fit(rows[:200], y[:200])
    found = tree_importance(
        model, rows[200:], y[200:], X_train=rows[:200], y_train=y[:200], scoring=scoring, n_repeats=4, random_state=3
    )
    judged: Any = mean_accuracy if y.ndim > 1 and hasattr(model, "classes_") else scoring
    expected = permutation_importance(model, rows[200:], y[200:], scoring=judged, n_repeats=4, random_state=3)
    assert found.score == pytest.approx(
        (judged if callable(judged) else get_scorer(scoring or found.scoring))(model, rows[200:], y[200:]), rel=1e-5
    )
    table = found.table.sort_index()
    np.testing.assert_allclose(table["permutation"], expected.importances_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table["permutation_std"], expected.importances_std, rtol=1e-4, atol=1e-6)


def test_columns_in_a_group_are_shuffled_together() -> None:
    twins = np.column_stack([X[:, [0]], X[:, [0]] + 1e-3 * DRAW.normal(size=(N, 1)), X[:, 2:]])
    model = RandomForestRegressor(9, random_state=0).fit(twins, NUMBERS)
    trees = read_trees(model).trees

    def score(sums: np.ndarray) -> float:
        return -float(((sums[:, 0] / 9 - NUMBERS) ** 2).mean())

    orders = shuffles(N, 3, 0)
    (losses,) = group_losses(trees, twins, score, orders, [[0, 1]])
    for order, loss in zip(orders, losses, strict=True):
        moved = np.column_stack([twins[order][:, :2], twins[:, 2:]])
        expected = ((model.predict(moved) - NUMBERS) ** 2).mean() - ((model.predict(twins) - NUMBERS) ** 2).mean()
        assert loss == pytest.approx(expected)
    assert score(summed(trees, twins)) > -1


def test_groups_are_found_by_ranks() -> None:
    table = np.column_stack([X[:, 0], np.exp(X[:, 0]), X[:, 2], -X[:, 0], X[:, 1], np.zeros(N), np.full(N, np.nan)])
    assert correlated_groups(table, 0.9) == [[0, 1, 3]]
    frame = pd.DataFrame(table).drop(columns=[1, 4, 5, 6])
    expected = frame.corr("spearman").abs().to_numpy()
    assert (expected > 0.9).sum() == 3 + 2  # three with themselves, and one pair
    assert correlated_groups(frame.to_numpy(), 0.9) == [[0, 2]]
