"""Importance by decrease against scikit-learn, against its definition row by row, and against noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from transfuse.trees.decrease import Target, learned_from, rows_decrease, training_decrease
from transfuse.trees.read import read_trees

DRAW = np.random.default_rng(1)
N = 211
X = DRAW.normal(size=(N, 5)).astype(np.float32).astype(float)
NUMBERS = X[:, 0] + X[:, 1] * X[:, 2] + 0.3 * DRAW.normal(size=N)
CLASSES = np.digitize(NUMBERS, [-0.5, 0.5])
WEIGHTS = DRAW.random(N)
SEVERAL = np.column_stack([CLASSES, X[:, 3] > 0]).astype(int)


def ones(y: np.ndarray) -> Target:
    columns = y.reshape(N, -1)
    most = columns.max() + 1
    return Target(np.stack([np.eye(most)[columns[:, o]] for o in range(columns.shape[1])], 1), True)


@pytest.mark.parametrize("criterion", ["gini", "entropy"])
@pytest.mark.parametrize("y", [CLASSES, SEVERAL], ids=["one output", "two outputs"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier(random_state=0, max_depth=7),
        ExtraTreeClassifier(random_state=0),
        RandomForestClassifier(7, random_state=0, max_depth=6),
        RandomForestClassifier(7, random_state=0, class_weight="balanced_subsample"),
        ExtraTreesClassifier(7, random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_classes_are_as_in_scikit_learn(model: Any, weights: Any, y: np.ndarray, criterion: str) -> None:
    if model.get_params().get("class_weight") and y.ndim > 1:
        y = CLASSES
    model.set_params(criterion=criterion).fit(X, y, sample_weight=weights)
    ensemble = read_trees(model)
    assert ensemble.trees.learned is not None
    measure: Any = "gini" if criterion == "gini" else "information"
    found = training_decrease(ensemble.trees, ensemble.trees.learned, measure, each=True)
    np.testing.assert_allclose(found, model.feature_importances_, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeRegressor(random_state=0, max_depth=7),
        ExtraTreeRegressor(random_state=0),
        RandomForestRegressor(7, random_state=0),
        ExtraTreesRegressor(7, random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_numbers_are_as_in_scikit_learn(model: Any, weights: Any) -> None:
    model.fit(X, NUMBERS + 1000, sample_weight=weights)
    ensemble = read_trees(model)
    assert ensemble.trees.learned is not None
    found = training_decrease(ensemble.trees, ensemble.trees.learned, "variance", each=True)
    np.testing.assert_allclose(found, model.feature_importances_, rtol=0, atol=1e-12)


def test_gain_of_gradient_boosting_is_what_scikit_learn_shares_out() -> None:
    """Its trees are grown on residuals, and so is its `feature_importances_`: not the Gini impurity of y."""
    for model in (GradientBoostingClassifier(n_estimators=5), GradientBoostingRegressor(n_estimators=5)):
        model.fit(X, CLASSES, sample_weight=WEIGHTS)
        trees = read_trees(model).trees
        gain = trees.per_feature(trees.gain)
        np.testing.assert_allclose(gain / gain.sum(), model.feature_importances_, rtol=0, atol=1e-12)


@pytest.mark.parametrize("measure", ["gini", "information"])
def test_training_rows_sent_through_the_trees_give_the_same(measure: Any) -> None:
    model = RandomForestClassifier(7, random_state=0, criterion="gini" if measure == "gini" else "entropy").fit(
        X, CLASSES
    )
    trees = read_trees(model).trees
    bags = np.array([np.bincount(rows, minlength=N) for rows in model.estimators_samples_])
    learned = learned_from(trees, X, ones(CLASSES), bags)
    assert trees.learned is not None
    np.testing.assert_allclose(learned.says, trees.learned.says, rtol=0, atol=1e-12)
    found = training_decrease(trees, learned, measure, each=True)
    np.testing.assert_allclose(found, model.feature_importances_, rtol=0, atol=1e-12)
    if measure == "gini":  # judged by itself, a node's Brier score is its impurity
        again = rows_decrease(trees, learned, X, ones(CLASSES), each=True, weights=bags)["gini"]
        np.testing.assert_allclose(again, model.feature_importances_, rtol=0, atol=1e-12)


@pytest.mark.parametrize("boosted", [False, True])
def test_other_rows_by_the_definition(boosted: bool) -> None:
    half = N // 2
    model: Any = GradientBoostingClassifier(n_estimators=5) if boosted else DecisionTreeClassifier(max_depth=5)
    model.fit(X[:half], CLASSES[:half])
    ensemble = read_trees(model)
    trees, target = ensemble.trees, ones(CLASSES)
    learned = learned_from(trees, X[:half], Target(target.values[:half], True))
    held = Target(target.values[half:], True)
    found = rows_decrease(trees, learned, X[half:], held, each=not boosted)
    gained, spent = {"gini": np.zeros(5), "information": np.zeros(5)}, {"gini": 0.0, "information": 0.0}
    members = [member for stage in model.estimators_ for member in stage] if boosted else [model]
    for member in members:
        reached, fell = (member.decision_path(rows).toarray().astype(bool) for rows in (X[:half], X[half:]))
        tree = member.tree_
        prior = np.eye(3)[CLASSES[:half]].mean(0)
        for node in np.flatnonzero(tree.children_left >= 0):
            sides = tree.children_left[node], tree.children_right[node]
            for i in np.flatnonzero(fell[:, node]):
                own = CLASSES[half + i]
                below = sides[0] if fell[i, sides[0]] else sides[1]
                for at, sign in ((node, 1), (below, -1)):
                    seen = CLASSES[:half][reached[:, at]]
                    shares = np.eye(3)[seen].mean(0)
                    gained["gini"][tree.feature[node]] += sign * ((np.eye(3)[own] - shares) ** 2).sum() / (N - half)
                    smooth = (len(seen) * shares[own] + prior[own]) / (len(seen) + 1)
                    gained["information"][tree.feature[node]] -= sign * np.log2(smooth) / (N - half)
            for at, sign in ((node, 1), (sides[0], -1), (sides[1], -1)):
                shares = np.eye(3)[CLASSES[:half][reached[:, at]]].mean(0)
                weight = sign * reached[:, at].sum() / half
                spent["gini"] += weight * (1 - (shares**2).sum())
                spent["information"] -= weight * (shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    for measure in ("gini", "information"):
        np.testing.assert_allclose(found[measure], gained[measure] / spent[measure], rtol=0, atol=1e-12)  # type: ignore[index]


def test_noise_of_many_values_leads_on_training_rows_and_not_on_others() -> None:
    for seed in range(3):
        draw = np.random.default_rng(seed)
        n = 600
        true = draw.integers(0, 2, n)
        y = (draw.random(n) < np.where(true == 1, 0.62, 0.38)).astype(int)
        rows = np.column_stack(
            [true, *(draw.integers(0, values, n) for values in (2, 4, 10, 20, 50)), draw.normal(size=n)]
        )
        forest = RandomForestClassifier(100, random_state=0).fit(rows[:300], y[:300])
        trees = read_trees(forest).trees
        assert trees.learned is not None
        assert training_decrease(trees, trees.learned, "gini", each=True).argmax() == 6  # the normal noise
        held = rows_decrease(trees, trees.learned, rows[300:], Target(np.eye(2)[y[300:]][:, None], True), each=True)
        assert held["gini"].argmax() == 0 and held["information"].argmax() == 0
        assert (held["gini"][1:] < 0).all()


def test_numbers_far_from_zero_lose_nothing() -> None:
    model = DecisionTreeRegressor(max_depth=4, random_state=0).fit(X[:100], NUMBERS[:100])
    trees = read_trees(model).trees
    found = []
    for offset in (0.0, 1e8):
        learned = learned_from(trees, X[:100], Target((NUMBERS[:100] + offset)[:, None, None], False))
        held = Target((NUMBERS[100:] + offset)[:, None, None], False)
        found.append(rows_decrease(trees, learned, X[100:], held, each=True)["variance"])
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-7)
