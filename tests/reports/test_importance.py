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
from scipy.sparse import csr_matrix
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    RandomTreesEmbedding,
)
from sklearn.inspection import permutation_importance
from sklearn.metrics import log_loss, r2_score
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
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
    logistic = xgboost.XGBRegressor(n_estimators=3, objective="reg:logistic").fit(X, y[TRAIN])
    with pytest.raises(DataError, match="cannot be shuffled"):
        tree_importance(logistic, held, y[HELD], X_train=X, y_train=y[TRAIN])
    doubled = GradientBoostingClassifier(n_estimators=3, loss="exponential", random_state=0).fit(X, y[TRAIN])
    found = tree_importance(doubled, held, y[HELD], X_train=X, y_train=y[TRAIN], scoring="neg_log_loss")
    assert found.score == pytest.approx(-log_loss(y[HELD], doubled.predict_proba(held)))
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


def test_training_rows_must_be_those_of_the_forest(forest: RandomForestClassifier) -> None:
    X, y, held = FRAME[TRAIN], Y[TRAIN], (FRAME[HELD], Y[HELD])
    for rows, labels, message in (
        (X[::-1], y[::-1], "not the rows, in their order"),
        (FRAME[:300], Y[:300], "X_train has 300 rows, but the model was fitted to 250"),
        (X[:100], y[:100], "X_train has 100 rows, but the model was fitted to 250"),
    ):
        with pytest.raises(DataError, match=message):
            tree_importance(forest, *held, X_train=rows, y_train=labels)
    one_sided = DecisionTreeClassifier(class_weight={"no": 0, "yes": 1}, random_state=0).fit(X, y)
    tree_importance(one_sided, *held, X_train=X, y_train=y)
    weight = DRAW.random(250) * (DRAW.random(250) > 0.2)
    for settings in ({"class_weight": "balanced"}, {"max_samples": 0.5}, {"bootstrap": False}):
        weighted = RandomForestClassifier(3, random_state=0, **settings).fit(X, y, weight)
        tree_importance(weighted, *held, X_train=X, y_train=y, train_weight=weight)
        other = X[::-1] if settings.get("bootstrap", True) else X + 1.0
        with pytest.raises(DataError, match="not the rows, in their order"):
            tree_importance(weighted, *held, X_train=other, y_train=y, train_weight=weight)


def test_shares_that_constraints_bent_are_not_what_nodes_learned() -> None:
    X, y = FRAME[["true", "noise"]].to_numpy(), Y
    bent = RandomForestClassifier(20, random_state=0, monotonic_cst=[1, -1]).fit(X[TRAIN], y[TRAIN])
    with pytest.raises(DataError, match="does not say what its nodes learned"):
        tree_importance(bent, X[HELD], y[HELD])
    table = tree_importance(bent, X[HELD], y[HELD], X_train=X[TRAIN], y_train=y[TRAIN]).table
    np.testing.assert_allclose(table["gini_train"].sort_index(), bent.feature_importances_, rtol=0, atol=1e-12)


COLOURS = pd.DataFrame({"x": DRAW.normal(size=N), "c": DRAW.choice(list("pqrs"), N), "n": DRAW.choice([3, 1, 7], N)})
COLOURS = COLOURS.astype({"c": "category", "n": "category"})
OF_COLOURS = COLOURS["c"].isin(["p", "r"]).to_numpy() ^ (COLOURS["n"] == 7).to_numpy()


@pytest.mark.parametrize(
    "model",
    [
        xgboost.XGBClassifier(n_estimators=5, enable_categorical=True),
        lightgbm.LGBMClassifier(n_estimators=5, verbose=-1),
        MultiOutputClassifier(xgboost.XGBClassifier(n_estimators=5, enable_categorical=True)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_categories_are_those_of_the_model_in_whatever_order_a_table_has_them(model: Any) -> None:
    y = np.column_stack([OF_COLOURS, ~OF_COLOURS]) if hasattr(model, "estimator") else OF_COLOURS
    X, held = COLOURS[TRAIN], COLOURS[HELD]
    model.fit(X, y[TRAIN])
    expected = tree_importance(model, held, y[HELD], X_train=X, y_train=y[TRAIN])
    assert expected.score > 0.99 and expected.table.loc["c", "gini_held_out"] > 0.05

    def turned(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(c=rows["c"].cat.reorder_categories(list("sqpr")), n=rows["n"].cat.set_categories([7, 3, 1]))

    found = tree_importance(model, turned(held), y[HELD], X_train=turned(X), y_train=y[TRAIN])
    pd.testing.assert_frame_equal(found.table, expected.table)
    few = (held["c"] != "q").to_numpy()
    lacking = held[few].assign(c=held["c"][few].cat.remove_unused_categories())
    assert tree_importance(model, lacking, y[HELD][few], X_train=X, y_train=y[TRAIN]).score > 0.99
    codes = held.assign(c=held["c"].cat.codes)
    with pytest.raises(DataError, match="1 columns of categories, but the model learned from 2"):
        tree_importance(model, codes, y[HELD], X_train=X, y_train=y[TRAIN])


def test_the_number_that_stands_for_a_gap_is_one() -> None:
    X = np.where(DRAW.random((N, 3)) < 0.2, np.nan, DRAW.normal(size=(N, 3)))
    y = np.nan_to_num(X[:, 0]) + 3 * np.isnan(X[:, 1])
    tables = []
    for rows, missing in ((X, np.nan), (np.nan_to_num(X, nan=-999), -999)):
        model = xgboost.XGBRegressor(n_estimators=5, missing=missing).fit(rows[TRAIN], y[TRAIN])
        tables.append(tree_importance(model, rows[HELD], y[HELD], X_train=rows[TRAIN], y_train=y[TRAIN]).table)
    pd.testing.assert_frame_equal(*tables)


def test_pandas_own_numbers_and_what_is_no_table(forest: RandomForestClassifier) -> None:
    own = FRAME[["true", "noise"]].astype("Float64")
    own.loc[::9, "noise"] = pd.NA
    plain = own.astype(float)
    found = [
        tree_importance(
            RandomForestClassifier(5, random_state=0).fit(plain[TRAIN], Y[TRAIN]), rows[HELD], Y[HELD]
        ).table
        for rows in (own, plain)
    ]
    pd.testing.assert_frame_equal(*found)
    with pytest.raises(DataError, match=r"X is sparse; give X\.toarray\(\)"):
        tree_importance(forest, csr_matrix(FRAME), Y)
    with pytest.raises(DataError, match="X has 3 dimensions"):
        tree_importance(forest, np.zeros((2, 4, 1)), Y[:2])
    with pytest.raises(DataError, match="a RandomTreesEmbedding is not"):
        tree_importance(RandomTreesEmbedding(2).fit(FRAME), FRAME, Y)
    empty = xgboost.XGBRegressor(n_estimators=0).fit(FRAME, FRAME["true"])
    with pytest.raises(DataError, match="the model has no trees"):
        tree_importance(empty, FRAME, FRAME["true"], X_train=FRAME, y_train=FRAME["true"])


def test_classes_that_look_alike_when_rounded_and_classes_of_one_row() -> None:
    table = FRAME[:400].assign(y=np.where(Y[:400] == "yes", 20230101.0, 20230102.0))
    found = forest_importance(table, "y", n_trees=10)
    assert found.score > 0.8 and found.chance < 0.7
    kinds = table.assign(y=np.where(Y[:400] == "yes", 1.0, 2.5))
    assert forest_importance(kinds.assign(y=kinds["y"].map(str)), "y", n_trees=10).score == (
        forest_importance(table, "y", n_trees=10).score
    )
    rare = FRAME[:400].assign(y=[*Y[:397], "a", "b", "c"])
    for seed in range(5):
        assert forest_importance(rare, "y", n_trees=3, random_state=seed).n_rows == 100


def test_dates_are_numbered_by_time_and_names_of_rows_are_told() -> None:
    days = pd.Timestamp("2000-01-01") + pd.to_timedelta(DRAW.permutation(400) * 20, unit="D")
    table = pd.DataFrame({"when": days.strftime("%Y-%m-%d"), "name": [f"row {i}" for i in range(400)]})
    table["new"] = np.where(days > pd.Timestamp("2010-06-01"), "yes", "no")
    found = forest_importance(table, "new", n_trees=20)
    assert found.score > 0.98 and found.table.loc["when", "gini_held_out"] > 0.9
    assert found.sentences[-1] == (
        "Text that is different in nearly every row tells a forest nothing of other rows: 'name'."
    )
    odd = table.assign(when=table["when"].where(table.index != 7, "unknown"))
    for seed in range(6):  # whichever side it falls on
        forest_importance(odd, "new", n_trees=2, random_state=seed)
    held = table[:50].assign(when="tomorrow")
    with pytest.raises(DataError, match="the held-out table: column 'when', row 1: tomorrow is not a date"):
        forest_importance(table, "new", held=held, n_trees=2)


def test_one_shuffle_says_that_it_has_no_spread(forest: RandomForestClassifier) -> None:
    said = "One shuffle has no spread, so by itself it shows no use of a column."
    one, two = (tree_importance(forest, FRAME[HELD], Y[HELD], n_repeats=n).sentences for n in (1, 2))
    assert one[-1] == said and said not in two
