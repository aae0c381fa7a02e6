"""`tree_importance` and `forest_importance`: tables, sentences, pictures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.tree import DecisionTreeClassifier

from transfuse import ConfigError, DataError, forest_importance, tree_importance
from transfuse.reports.seen_trees import SeenTrees
from transfuse.trees.decrease import Target, rows_decrease
from transfuse.trees.read import read_trees

DRAW = np.random.default_rng(0)
N = 1500
FRAME = pd.DataFrame({"true": DRAW.normal(size=N), "noise": DRAW.normal(size=N), "flat": np.zeros(N)})
FRAME["twin"] = FRAME["true"] + 0.05 * DRAW.normal(size=N)
Y = np.where(FRAME["true"] + 0.5 * DRAW.normal(size=N) > 0, "yes", "no")
TRAIN, HELD = slice(0, 250), slice(250, N)
WHOLE = DRAW.integers(0, 4, N - 250)
"""Weights of held-out rows: how often each stands there."""


@pytest.fixture(scope="module")
def forest() -> RandomForestClassifier:
    return RandomForestClassifier(30, random_state=0).fit(FRAME[TRAIN], Y[TRAIN])


def test_a_table_and_what_to_make_of_it(forest: RandomForestClassifier, tmp_path: Path) -> None:
    found = tree_importance(forest, FRAME[HELD], Y[HELD], X_train=FRAME[TRAIN], y_train=Y[TRAIN], drop=True)
    table = found.table
    assert found.score == pytest.approx(forest.score(FRAME[HELD], Y[HELD])) and found.score > found.chance
    assert table["gini_train"].sum() == pytest.approx(1) and set(table.index) == set(FRAME.columns)
    assert table.loc["true", "gini_held_out"] > 0.15 and table.loc["true", "gini_oob"] > 0.15
    assert table.loc["noise", "gini_held_out"] < 0 and not table.loc["noise", "survives"]
    assert table.loc["flat", "splits"] == 0 and table.loc["flat", "permutation"] == 0
    assert table.loc["true", "group"] == table.loc["twin", "group"] == 1 and pd.isna(table.loc["noise", "group"])
    assert table.loc["true", "group_permutation"] > table.loc["true", "permutation"] + 0.03
    assert abs(table.loc["true", "dropped"]) < 0.1  # its twin says the same
    text = found.to_text()
    assert "does not survive on held-out rows: noise." in text and "Never used: flat." in text
    assert "each hides what the others know (group 1): true, twin." in text
    record = json.loads(json.dumps(found.to_dict()))
    assert record["features"][0]["feature"] in ("true", "twin") and record["rows"] == 1250
    found.save_picture(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_out_of_bag_rows_are_those_a_tree_did_not_draw(forest: RandomForestClassifier) -> None:
    found = tree_importance(forest, FRAME[HELD], Y[HELD], X_train=FRAME[TRAIN], y_train=Y[TRAIN]).table
    trees = read_trees(forest).trees
    outside = np.array([~np.isin(np.arange(250), rows) for rows in forest.estimators_samples_], float)
    target = Target(np.eye(2)[np.searchsorted(forest.classes_, Y[TRAIN])][:, None], True)
    assert trees.learned is not None
    expected = rows_decrease(trees, trees.learned, FRAME[TRAIN].to_numpy(), target, each=True, weights=outside)
    np.testing.assert_allclose(found["gini_oob"].reindex(FRAME.columns), expected["gini"])


def test_noise_stands_beside_the_features(forest: RandomForestClassifier) -> None:
    found = tree_importance(forest, FRAME[HELD], Y[HELD], X_train=FRAME[TRAIN], y_train=Y[TRAIN], noise=3)
    assert {"noise 1", "noise 2", "noise 3"} <= set(found.table.index)
    assert any(one.startswith("No better than noise by permutation:") and "flat" in one for one in found.sentences)


def test_columns_may_stand_in_another_order_beside_others(forest: RandomForestClassifier) -> None:
    turned = FRAME[HELD].iloc[:, ::-1].assign(other="text")
    pd.testing.assert_frame_equal(
        tree_importance(forest, turned, Y[HELD]).table, tree_importance(forest, FRAME[HELD], Y[HELD]).table
    )


def test_numbers_and_several_outputs() -> None:
    y = np.column_stack([FRAME["true"], -FRAME["true"] + FRAME["noise"]])
    found = tree_importance(RandomForestRegressor(20, random_state=0).fit(FRAME[TRAIN], y[TRAIN]), FRAME[HELD], y[HELD])
    assert found.score > 0.8 and found.table.loc["noise", "variance_held_out"] > 0.1
    boosted = GradientBoostingRegressor(n_estimators=20).fit(FRAME[TRAIN], y[TRAIN, 0])
    found = tree_importance(boosted, FRAME[HELD], y[HELD, 0], X_train=FRAME[TRAIN], y_train=y[TRAIN, 0])
    assert found.scoring == "r2" and found.table.index[0] == "true" and found.chance < 0.01


SEVERAL = np.column_stack([FRAME["true"] + 0.3 * DRAW.normal(size=N), FRAME["noise"], FRAME["twin"] ** 2])
LABELS = (SEVERAL > 0.5).astype(int)


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
@pytest.mark.parametrize("kind", [xgboost.XGBRegressor, xgboost.XGBClassifier])
def test_boosted_trees_of_several_outputs(kind: Any, strategy: str) -> None:
    y = SEVERAL if kind is xgboost.XGBRegressor else LABELS
    model = kind(n_estimators=15, max_depth=3, multi_strategy=strategy).fit(FRAME[TRAIN], y[TRAIN])
    arguments = {"X_train": FRAME[TRAIN], "y_train": y[TRAIN], "sample_weight": WHOLE}
    found = tree_importance(model, FRAME[HELD], y[HELD], drop=True, noise=1, **arguments)
    measure = "variance" if kind is xgboost.XGBRegressor else "gini"
    assert set(found.table.index) == {*FRAME.columns, "noise 1"} and found.score > 0.7 > found.chance
    assert found.table[f"{measure}_train"].sum() == pytest.approx(1)
    assert (found.table.loc[["true", "noise"], f"{measure}_held_out"] > 0.02).all()
    assert found.table.loc["noise", "dropped"] > 0.1 > abs(found.table.loc["noise 1", "permutation"])
    plain = tree_importance(model, FRAME[HELD], y[HELD], **arguments)
    says = model.predict(FRAME[HELD])
    expected = (
        r2_score(y[HELD], says, sample_weight=WHOLE)
        if kind is xgboost.XGBRegressor
        else np.average((says == y[HELD]).mean(1), weights=WHOLE)
    )
    assert plain.score == pytest.approx(expected, rel=1e-6)


def test_chance_of_several_outputs_is_that_of_their_means() -> None:
    y = np.column_stack([LABELS[:, 0], LABELS[:, 1], 1 - LABELS[:, 0]])
    model = xgboost.XGBClassifier(n_estimators=2).fit(FRAME[TRAIN], y[TRAIN])
    found = tree_importance(model, FRAME[HELD], y[HELD], X_train=FRAME[TRAIN], y_train=y[TRAIN])
    assert y[TRAIN].mean(0).round().tolist() == [0, 0, 1]
    assert found.chance == pytest.approx((y[HELD] == [0, 0, 1]).mean())


def test_names_that_lightgbm_changes_within_a_model_an_output() -> None:
    spaced = FRAME.rename(columns={"true": "so true"})
    model = MultiOutputRegressor(lightgbm.LGBMRegressor(n_estimators=5, verbose=-1)).fit(spaced[TRAIN], SEVERAL[TRAIN])
    found = tree_importance(model, spaced[HELD], SEVERAL[HELD], X_train=spaced[TRAIN], y_train=SEVERAL[TRAIN])
    assert found.table.loc["so_true", "permutation"] > 0.05
    assert found.score == pytest.approx(model.score(spaced[HELD], SEVERAL[HELD]))


def test_y_of_several_outputs_that_does_not_fit_is_named() -> None:
    X, known = FRAME[HELD], {"X_train": FRAME[TRAIN], "y_train": SEVERAL[TRAIN]}
    holed, odd = SEVERAL[HELD].copy(), LABELS[HELD].copy()
    holed[5, 2], odd[7, 1] = np.nan, 2
    numbers = xgboost.XGBRegressor(n_estimators=2).fit(FRAME[TRAIN], SEVERAL[TRAIN])
    vectors = xgboost.XGBRegressor(n_estimators=2, multi_strategy="multi_output_tree")
    vectors.fit(FRAME[TRAIN], SEVERAL[TRAIN])
    labels = xgboost.XGBClassifier(n_estimators=2).fit(FRAME[TRAIN], LABELS[TRAIN])
    own = {"X_train": FRAME[TRAIN], "y_train": LABELS[TRAIN]}
    forest = RandomForestRegressor(2).fit(FRAME[TRAIN], SEVERAL[TRAIN])
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (numbers, SEVERAL[HELD, 0], known, "y has 1 columns, but the model has 3 outputs"),
        (vectors, SEVERAL[HELD, :2], known, "y has 2 columns, but the model has 3 outputs"),
        (vectors, SEVERAL[HELD], {**known, "y_train": SEVERAL[TRAIN, 0]}, "y_train has 1 columns, but the model has 3"),
        (labels, np.column_stack([LABELS[HELD]] * 2), own, "y has 6 columns, but the model has 3 outputs"),
        (forest, SEVERAL[HELD, :2], {}, "y has 2 columns, but the model has 3 outputs"),
        (numbers, holed, known, r"y\[5, 2\] is not a finite number"),
        (labels, odd, own, r"y\[7, 1\] is 2, a class that the model does not know"),
        (labels, np.where(odd == 2, np.nan, odd), own, r"y\[7, 1\] is nan, a class that the model does not know"),
        (numbers, SEVERAL[HELD], {}, "does not say what its nodes learned; give X_train"),
        (vectors, SEVERAL[HELD], {**known, "scoring": "r2"}, "scoring='r2': of several outputs only accuracy and R²"),
        (labels, LABELS[HELD], {**own, "scoring": "f1_macro"}, "scoring='f1_macro': of several outputs only accuracy"),
        (
            xgboost.XGBRegressor(n_estimators=2, objective="reg:logistic").fit(FRAME[TRAIN], LABELS[TRAIN]),
            LABELS[HELD],
            own,
            "a XGBRegressor whose predictions are not made of its trees' sums in a known way",
        ),
    ]
    for model, y, settings, message in cases:
        with pytest.raises((DataError, ConfigError), match=message):
            tree_importance(model, X, y, **settings)


def test_forests_of_outputs_with_unequally_many_classes() -> None:
    y = np.column_stack([np.digitize(FRAME["true"], [-0.5, 0.5]), LABELS[:, 1], np.digitize(FRAME["twin"], [0, 1, 2])])
    forest = RandomForestClassifier(5, random_state=0).fit(FRAME[TRAIN], y[TRAIN])
    found = tree_importance(forest, FRAME[HELD], y[HELD])
    assert found.score == pytest.approx((forest.predict(FRAME[HELD]) == y[HELD]).mean()) and found.score > found.chance


def test_an_output_that_never_changes_scores_as_in_scikit_learn() -> None:
    y = np.column_stack([SEVERAL[:, 0], np.ones(N)])
    model = RandomForestRegressor(3, random_state=0).fit(FRAME[TRAIN], y[TRAIN])
    assert tree_importance(model, FRAME[HELD], y[HELD]).score == pytest.approx(model.score(FRAME[HELD], y[HELD]))


def test_a_model_that_predicts_nothing_is_called_so() -> None:
    y = np.random.default_rng(5).integers(0, 2, N)
    model = DecisionTreeClassifier(random_state=0).fit(FRAME[["noise"]][TRAIN], y[TRAIN])
    found = tree_importance(model, FRAME[["noise"]][HELD], 1 - model.predict(FRAME[["noise"]][HELD]))
    assert any("none of these figures means anything" in one for one in found.sentences)


def test_bad_input_is_named(forest: RandomForestClassifier) -> None:
    X, y = FRAME[HELD], Y[HELD]
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (X.drop(columns="twin"), y, {}, "X: no column 'twin'"),
        (X.to_numpy()[:, :2], y, {}, "X has 2 columns, but the model learned from 4"),
        (pd.concat([X, X["true"]], axis=1), y, {}, "two columns are called 'true'"),
        (X.astype({"true": str}), y, {}, "column 'true' holds"),
        (X[:0], y[:0], {}, "X is empty"),
        (X, y[:-1], {}, "X has 1250 rows and y has 1249"),
        (X, np.where(y == "yes", "maybe", y), {}, r"is maybe, a class that the model does not know"),
        (X, y, {"n_repeats": 0}, "n_repeats=0"),
        (X, y, {"noise": 2}, "needs X_train and y_train"),
        (X, y, {"scoring": "beauty"}, "scoring='beauty'"),
    ]
    for rows, labels, settings, message in cases:
        with pytest.raises((DataError, ConfigError), match=message):
            tree_importance(forest, rows, labels, **settings)
    boosted = GradientBoostingRegressor(n_estimators=2).fit(X, FRAME["true"][HELD])
    with pytest.raises(DataError, match="does not say what its nodes learned; give X_train"):
        tree_importance(boosted, X, FRAME["true"][HELD])
    with pytest.raises(DataError, match=r"y\[1\] is not a finite number"):
        tree_importance(RandomForestRegressor(2).fit(X, FRAME["true"][HELD]), X[:2], [1.0, float("inf")])


def test_a_forest_for_a_table_with_text_and_holes() -> None:
    table = FRAME.assign(answer=Y, colour=np.where(Y == "yes", "red", None))
    found = forest_importance(table, "answer", n_trees=20)
    assert found.table.loc["colour", "permutation"] >= 0 and found.score > 0.8
    assert forest_importance(table.assign(n=table["true"]), "n", n_trees=10).scoring == "r2"
    held = table[HELD].assign(colour="never seen")
    assert forest_importance(table[TRAIN], "answer", held=held, n_trees=5).n_rows == 1250
    empty = table.assign(answer=table["answer"].where(table.index != 7))
    with pytest.raises(DataError, match=r"row 8 has no 'answer' \(1 in all\)"):
        forest_importance(empty, "answer")
    assert forest_importance(empty, "answer", n_trees=2, skip_bad_rows=True).n_rows == 375
    for rows, target, message in (
        (table, "nothing", "has no column 'nothing'"),
        (table.assign(answer="yes"), "answer", "has one value"),
        (table[["answer"]], "answer", "no column beside"),
        (table[:5], "answer", "too few"),
    ):
        with pytest.raises(DataError, match=message):
            forest_importance(rows, target)


def test_links_that_cannot_be_followed_are_refused_and_single_columns_are_columns() -> None:
    y = (FRAME["true"] > 0).astype(float)
    X, held = FRAME[["true", "noise"]][TRAIN], FRAME[["true", "noise"]][HELD]
    for model in (
        xgboost.XGBRegressor(n_estimators=3, objective="reg:logistic"),
        GradientBoostingClassifier(n_estimators=3, loss="exponential"),
    ):
        with pytest.raises(DataError, match="cannot be shuffled"):
            tree_importance(model.fit(X, y[TRAIN]), held, y[HELD], X_train=X, y_train=y[TRAIN])
    forest = RandomForestClassifier(5, random_state=0).fit(X, y[TRAIN])
    flat, column = (tree_importance(forest, held, one).score for one in (y[HELD], y[HELD].to_frame()))
    assert flat == column > 0.9
    stopped = xgboost.XGBClassifier(n_estimators=40, early_stopping_rounds=1)
    stopped.fit(X, y[TRAIN], eval_set=[(held, y[HELD])], verbose=False)
    found = tree_importance(stopped, held, y[HELD], X_train=X, y_train=y[TRAIN])
    assert found.score == pytest.approx(stopped.score(held, y[HELD]))
    with pytest.raises(DataError, match="y_train has 3"):
        tree_importance(stopped, held, y[HELD], X_train=X, y_train=y[:3])


def test_figures_do_not_depend_on_the_scale_of_weights() -> None:
    X = FRAME[["true", "noise"]]
    informed = []
    for weight in (1.0, 1 / 64):
        forest = RandomForestClassifier(5, random_state=0, bootstrap=False).fit(
            X[TRAIN], Y[TRAIN], sample_weight=np.full(250, weight)
        )
        informed.append(tree_importance(forest, X[HELD], Y[HELD]).table["information_held_out"])
    np.testing.assert_allclose(*informed, rtol=1e-9)


@pytest.mark.parametrize("of_classes", [True, False])
def test_a_weighted_row_is_so_many_rows(of_classes: bool, forest: RandomForestClassifier) -> None:
    model, y = forest, Y
    if not of_classes:
        y = (FRAME["true"] + 0.5 * DRAW.normal(size=N)).to_numpy()
        model = RandomForestRegressor(12, random_state=0).fit(FRAME[TRAIN], y[TRAIN])
    found = tree_importance(model, FRAME[HELD], y[HELD], sample_weight=WHOLE)
    repeated = np.repeat(np.arange(N - 250), WHOLE)
    plain = tree_importance(model, FRAME[HELD].iloc[repeated], y[HELD][repeated])
    for column in [name for name in plain.table if name.endswith("_held_out")]:
        pd.testing.assert_series_equal(found.table[column], plain.table[column].loc[found.table.index], rtol=1e-10)
    assert found.score == pytest.approx(model.score(FRAME[HELD], y[HELD], WHOLE), rel=1e-12)
    assert found.score == pytest.approx(plain.score, rel=1e-12) and found.chance == pytest.approx(plain.chance)
    theirs = permutation_importance(model, FRAME[HELD], y[HELD], random_state=0, sample_weight=WHOLE)
    ours = found.table["permutation"].loc[list(FRAME.columns)]
    assert np.allclose(ours, theirs.importances_mean, rtol=0, atol=1e-12)


def test_weights_of_several_outputs_count_in_their_mean() -> None:
    y = np.column_stack([FRAME["true"] + 0.3 * DRAW.normal(size=N), FRAME["noise"]])
    model = RandomForestRegressor(5, random_state=0).fit(FRAME[TRAIN], y[TRAIN])
    found = tree_importance(model, FRAME[HELD], y[HELD], sample_weight=WHOLE)
    assert found.score == pytest.approx(model.score(FRAME[HELD], y[HELD], WHOLE), rel=1e-10)
    classes = np.column_stack([Y, FRAME["noise"] > 0])
    forest = RandomForestClassifier(5, random_state=0).fit(FRAME[TRAIN], classes[TRAIN])
    right = (forest.predict(FRAME[HELD]) == classes[HELD]).mean(1)
    found = tree_importance(forest, FRAME[HELD], classes[HELD], sample_weight=WHOLE)
    assert found.score == pytest.approx(np.average(right, weights=WHOLE), rel=1e-12)
    assert abs(found.score - right.mean()) > 1e-4


def test_weights_of_training_rows_need_the_rows(forest: RandomForestClassifier) -> None:
    with pytest.raises(ConfigError, match="train_weight is of training rows; give X_train and y_train"):
        tree_importance(forest, FRAME[HELD], Y[HELD], train_weight=np.ones(250))


def test_out_of_bag_rows_have_their_weights() -> None:
    weight = DRAW.integers(1, 5, 250).astype(float)
    forest = RandomForestClassifier(9, random_state=0).fit(FRAME[TRAIN], Y[TRAIN], sample_weight=weight)
    arguments = {"X_train": FRAME[TRAIN], "y_train": Y[TRAIN]}
    found = tree_importance(forest, FRAME[HELD], Y[HELD], train_weight=weight, **arguments).table
    bags = np.array([np.bincount(rows, minlength=250) for rows in forest.estimators_samples_])
    target = Target((Y[TRAIN, None] == forest.classes_)[:, None].astype(float), True)
    trees = read_trees(forest).trees
    wanted = rows_decrease(
        trees, trees.learned, FRAME[TRAIN].to_numpy(), target, each=True, weights=(bags == 0) * weight
    )
    assert np.allclose(found["gini_oob"].loc[list(FRAME.columns)], wanted["gini"], atol=1e-12)
    plain = tree_importance(forest, FRAME[HELD], Y[HELD], **arguments).table
    assert not np.allclose(plain["gini_oob"], found["gini_oob"].loc[plain.index])


def test_what_nodes_learned_from_weighted_bags_is_what_the_forest_says() -> None:
    weight, y = DRAW.integers(1, 5, 250).astype(float), FRAME["true"].to_numpy()
    forest = RandomForestRegressor(4, criterion="absolute_error", max_depth=4, random_state=0)
    forest.fit(FRAME[TRAIN], y[TRAIN], sample_weight=weight)
    learned = SeenTrees(forest, (FRAME[TRAIN], y[TRAIN]), weight).learned
    theirs = np.concatenate([tree.tree_.weighted_n_node_samples for tree in forest.estimators_])
    assert np.allclose(learned.weight, theirs)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (np.ones(3), r"sample_weight has the shape \(3,\), expected one number for each of 1250 rows"),
        (-np.ones(N - 250), "sample_weight must be finite, not negative, and not all zero"),
        (np.zeros(N - 250), "not all zero"),
        (np.full(N - 250, np.nan), "must be finite"),
    ],
)
def test_weights_that_are_none_are_refused(weight: np.ndarray, said: str, forest: RandomForestClassifier) -> None:
    with pytest.raises(DataError, match=said):
        tree_importance(forest, FRAME[HELD], Y[HELD], sample_weight=weight)
