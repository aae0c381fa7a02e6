"""Which features matter to a tree ensemble: by what its splits decrease, by shuffling, and by leaving out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.utils import check_random_state

from transfuse.errors import ConfigError, DataError
from transfuse.estimators.multimodal import MultimodalEstimator
from transfuse.reports.seen_trees import SeenTrees, chance_of, scorer_of
from transfuse.trees.decrease import rows_decrease, training_decrease
from transfuse.trees.permutation import correlated_groups, group_losses, permutation_losses, shuffles
from transfuse.trees.walk import summed

MANY_VALUES = 0.2
"""Share of the rows above which a column's number of distinct values is called high."""


@dataclass(frozen=True)
class Importance:
    """`table` has a row a feature, the most important first; `score` is the model's on the held-out rows and `chance`
    that of a model that knows only how y is distributed, both by `scoring`; `sentences` say what to make of it.

    Columns of the table: `gini` and `information`, or `variance`, each `_train` (shares of 1), `_held_out` and, for
    forests with bootstrap, `_oob`: what is left of them on rows not learned from, in the same unit; below zero, splits
    on the feature made predictions worse. `splits`, `gain` (as the library adds it up), `permutation` and
    `permutation_std`, `survives` (False where neither held-out rows nor shuffling show a use), `group`,
    `group_permutation` and `group_permutation_std` where columns are correlated, `dropped` where asked.
    """

    table: pd.DataFrame
    score: float
    chance: float
    scoring: str
    n_rows: int
    sentences: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it; what is missing is None."""
        rows = self.table.reset_index().astype(object).where(self.table.reset_index().notna(), None)
        return {
            "score": _or_none(self.score),
            "chance": _or_none(self.chance),
            "scoring": self.scoring,
            "rows": self.n_rows,
            "features": rows.to_dict("records"),
            "sentences": self.sentences,
        }

    def to_text(self) -> str:
        """The table and the sentences."""
        return "\n".join(
            [self.table.to_string(float_format=lambda value: f"{value:.4f}", na_rep=""), "", *self.sentences]
        )

    def save_picture(self, path: str | Path, most: int = 20) -> None:
        """Draw the `most` important features: on training rows, on held-out rows, and by permutation."""
        from matplotlib.figure import Figure

        shown = self.table.head(most).iloc[::-1]
        places = np.arange(len(shown))
        figure = Figure(figsize=(9, 1.2 + 0.32 * len(shown)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        measure = "gini" if "gini_train" in shown else "variance"
        left.barh(places + 0.2, shown[f"{measure}_train"], 0.4, label="training rows", color="#b8b8b8")
        left.barh(places - 0.2, shown[f"{measure}_held_out"], 0.4, label="held-out rows", color="#2a6f97")
        left.set(title=f"{measure} importance", yticks=places, yticklabels=[str(name) for name in shown.index])
        left.legend(fontsize=8)
        right.barh(places, shown["permutation"], 0.6, xerr=shown["permutation_std"], color="#2a6f97")
        right.set(title=f"{self.scoring} lost when shuffled (held-out rows)")
        for panel in (left, right):
            panel.locator_params(axis="x", nbins=6)
            panel.axvline(0, color="black", linewidth=0.6)
        figure.savefig(path, dpi=120)


def tree_importance(
    model: Any,
    X: Any,
    y: Any,
    *,
    X_train: Any = None,
    y_train: Any = None,
    sample_weight: Any = None,
    train_weight: Any = None,
    scoring: str | None = None,
    n_repeats: int = 5,
    correlated: float = 0.7,
    drop: bool = False,
    noise: int = 0,
    random_state: Any = 0,
) -> Importance:
    """How much each feature of held-out rows `X`, `y` matters to a fitted tree ensemble.

    `model` is a tree, random forest, extra trees, gradient boosting or histogram gradient boosting of scikit-learn, or
    one of XGBoost or LightGBM. Boosted ones, and forests of numbers grown by other than squared errors, need their
    training rows. These also give out-of-bag figures, and are what `drop` (refit without each column) and `noise`
    (refit beside so many columns of noise) learn from. `sample_weight` is of the held-out rows, `train_weight` of the
    training rows. `scoring` is as in scikit-learn, by default accuracy or R²; columns whose rank correlation is at
    least `correlated` are also shuffled together. None of these figures says what causes y.

    y may have several outputs (n, k), of a forest, of XGBoost, or of a MultiOutputRegressor or MultiOutputClassifier
    around boosted trees. Impurity is then the mean of the outputs' impurities, in which a numeric output of larger
    variance weighs more, as in scikit-learn's forests; a tree grown for one output is judged by that output alone. The
    score is the mean of the outputs' accuracies or R².

    Of a `MultimodalClassifier` or `MultimodalRegressor` whose table tower is trees, the columns are those of its table,
    and figures of numbers are those of targets brought to deviation 1.

    Raises DataError for tables without the model's columns, with equally named or non-numeric ones, and for y that does
    not fit; ConfigError for settings that contradict each other.
    """
    if n_repeats < 1 or noise < 0 or not 0 < correlated <= 1:
        raise ConfigError(f"n_repeats={n_repeats}, noise={noise}, correlated={correlated}: at least 1, 0 and above 0")
    if (noise or drop) and X_train is None:
        raise ConfigError("noise and drop fit the model again, which needs X_train and y_train")
    if train_weight is not None and X_train is None:
        raise ConfigError("train_weight is of training rows; give X_train and y_train")
    if isinstance(model, MultimodalEstimator):
        if noise or drop:
            raise ConfigError("noise and drop fit the model again, which trees inside of a model of modalities cannot")
        if X_train is not None:
            _, X_train, y_train = model.trees_of(X_train, y_train, ("X_train", "y_train"))
        model, X, y = model.trees_of(X, y)
    X, y = _table(X, "X", model), _column(y)
    if len(X) != len(y):
        raise DataError(f"X has {len(X)} rows and y has {len(y)}; they must be equally many")
    if len(X) < 2 and not hasattr(model, "classes_"):
        raise DataError("X has 1 row; at least 2 are needed to judge numbers by")
    train = None if X_train is None else (_table(X_train, "X_train", model), _column(y_train))
    if train is not None and len(train[0]) != len(train[1]):
        raise DataError(f"X_train has {len(train[0])} rows and y_train has {len(train[1])}; they must be equally many")
    weight = _weight(sample_weight, "sample_weight", X)
    own_weight = None if train is None else _weight(train_weight, "train_weight", train[0])
    draw = check_random_state(random_state)
    seed = int(draw.randint(np.iinfo(np.int32).max + 1))
    if noise and train is not None:
        extra = np.random.default_rng(seed)
        X, wider = _with_noise(X, noise, extra), _with_noise(train[0], noise, extra)
        train = wider, train[1]
        model = _refitted(model, *train, own_weight)
    seen = SeenTrees(model, train, own_weight)
    table = _decreases(seen, X, y, weight)
    score, losses, groups = _shuffled(seen, X, y, weight, scoring, n_repeats, seed, correlated, table)
    table["permutation"], table["permutation_std"] = losses.mean(1), losses.std(1)
    measure = "gini" if seen.of_classes else "variance"
    costs = table["permutation"] > 2 * table["permutation_std"]
    # one shuffle has no spread to stand against
    table["survives"] = (table[f"{measure}_held_out"] > 0) | (costs & (table["permutation"] > 0) & (n_repeats > 1))
    if drop and train is not None:
        table["dropped"] = _dropped(seen, X, y, weight, scoring, score)
    name = scoring or seen.scoring
    table = table.sort_values("permutation", ascending=False, kind="stable")
    known, known_weight = (y, weight) if train is None else (train[1], own_weight)
    chance = chance_of(seen, known, y, scoring, known_weight, weight)
    sentences = _sentences(table, X, score, chance, name, groups, [str(c) for c in X.columns][len(X.columns) - noise :])
    if n_repeats == 1:
        sentences.append("One shuffle has no spread, so by itself it shows no use of a column.")
    return Importance(table, score, chance, name, len(X), sentences)


def _table(X: Any, name: str, model: Any) -> pd.DataFrame:
    """A frame in the model's order of columns, checked."""
    if hasattr(X, "toarray"):
        raise DataError(f"{name} is sparse; give {name}.toarray()")
    if not isinstance(X, pd.DataFrame) and np.ndim(X) != 2:
        raise DataError(f"{name} has {np.ndim(X)} dimensions; a table has 2")
    frame = X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X))
    if frame.empty:
        raise DataError(f"{name} is empty; at least one row and one column are needed")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{name}: two columns are called {twice[0]!r}")
    known = getattr(model, "feature_names_in_", None)
    inner = getattr(model, "estimators_", [model])[0]
    if hasattr(inner, "booster_") and isinstance(X, pd.DataFrame):  # LightGBM takes spaces out of names
        frame = frame.rename(columns={column: str(column).replace(" ", "_") for column in frame.columns})
    if known is not None and isinstance(X, pd.DataFrame):
        missing = [column for column in known if column not in frame.columns]
        if missing:
            raise DataError(f"{name}: no column {str(missing[0])!r}, which the model learned from")
        frame = frame[list(known)]  # in its order, without what it never saw
    elif frame.shape[1] != (n := getattr(model, "n_features_in_", frame.shape[1])):
        raise DataError(f"{name} has {frame.shape[1]} columns, but the model learned from {n}")
    for column in frame.columns:
        kind = frame[column].dtype
        if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind) or str(kind) == "category"):
            raise DataError(f"{name}: column {column!r} holds {kind}, expected numbers; encode it as for the model")
    # pandas' own kinds of numbers, whose gaps are no numbers
    own = {
        c: float
        for c in frame.columns
        if pd.api.types.is_extension_array_dtype(kind := frame[c].dtype) and str(kind) != "category"
    }
    return frame.astype(own) if own else frame


def _weight(given: Any, name: str, X: pd.DataFrame) -> np.ndarray | None:
    """Weights of the rows of `X`, checked."""
    if given is None:
        return None
    weight = np.asarray(given, np.float64)
    if weight.shape != (len(X),):
        raise DataError(f"{name} has the shape {weight.shape}, expected one number for each of {len(X)} rows")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
        raise DataError(f"{name} must be finite, not negative, and not all zero")
    return weight


def _column(y: Any) -> np.ndarray:
    """y as an array; of a single column, that column."""
    if y is None:
        raise DataError("X_train is given without y_train")
    values = np.asarray(y)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _with_noise(X: pd.DataFrame, n: int, draw: np.random.Generator) -> pd.DataFrame:
    """The table with columns of noise: one of normal numbers, then integers of 2, 10, 50, … values, as many as rows at
    most."""
    taken = set(map(str, X.columns))
    names = itertools.islice((name for i in itertools.count(1) if (name := f"noise {i}") not in taken), n)
    columns = {next(names): draw.normal(size=len(X))}
    n_values = 2
    for name in names:
        columns[name] = draw.integers(0, n_values, len(X)).astype(np.float64)
        n_values = min(5 * n_values, max(2, len(X)))
    return pd.concat([X, pd.DataFrame(columns, index=X.index)], axis=1)


def _refitted(model: Any, X: pd.DataFrame, y: np.ndarray, weight: Any) -> Any:
    rows = X if hasattr(model, "feature_names_in_") else X.to_numpy()
    return clone(model).fit(rows, y, **({} if weight is None else {"sample_weight": weight}))


def _decreases(seen: SeenTrees, X: pd.DataFrame, y: np.ndarray, weight: np.ndarray | None) -> pd.DataFrame:
    trees, each = seen.ensemble.trees, seen.ensemble.is_forest
    target = seen.target(y, "y")
    found: dict[str, np.ndarray] = {}
    weights = None if weight is None else weight[None]
    held = rows_decrease(trees, seen.learned, seen.rows(X), target, each=each, weights=weights)
    bag: dict[Any, np.ndarray] = {}
    if seen.out_of_bag is not None and seen.train is not None:
        rows, own = seen.rows(seen.train[0]), seen.target(seen.train[1], "y_train")
        bag = rows_decrease(trees, seen.learned, rows, own, each=each, weights=seen.out_of_bag)
    for measure in target.measures:
        found[f"{measure}_train"] = training_decrease(trees, seen.learned, measure, each=each)
        found[f"{measure}_held_out"] = held[measure]
        if bag:
            found[f"{measure}_oob"] = bag[measure]
    found["splits"] = trees.per_feature(np.ones(len(trees.feature))).astype(int)
    found["gain"] = trees.per_feature(trees.gain)
    return pd.DataFrame(found, index=pd.Index(X.columns, name="feature"))


def _shuffled(
    seen: SeenTrees,
    X: pd.DataFrame,
    y: np.ndarray,
    weight: np.ndarray | None,
    scoring: str | None,
    n_repeats: int,
    seed: int,
    correlated: float,
    table: pd.DataFrame,
) -> tuple[float, np.ndarray, list[list[str]]]:
    """The score, losses by column and repeat, and groups of correlated columns, whose own losses go into the table."""
    rows = seen.rows(X)
    score = scorer_of(seen, X, y, scoring, rows, weight)
    trees = seen.ensemble.trees
    orders = shuffles(len(X), n_repeats, seed)
    losses = permutation_losses(trees, rows, score, orders)
    groups = correlated_groups(rows, correlated)
    if groups:
        together = group_losses(trees, rows, score, orders, groups)
        table["group"] = pd.array([None] * len(table), dtype="Int64")
        table["group_permutation"] = table["group_permutation_std"] = np.nan
        for number, (group, values) in enumerate(zip(groups, together, strict=True), start=1):
            own = table.index[group]
            table.loc[own, "group"] = number
            table.loc[own, "group_permutation"], table.loc[own, "group_permutation_std"] = values.mean(), values.std()
    names = [[str(X.columns[column]) for column in group] for group in groups]
    return score(summed(trees, rows)), losses, names


def _dropped(
    seen: SeenTrees, X: pd.DataFrame, y: np.ndarray, weight: np.ndarray | None, scoring: str | None, score: float
) -> list[float]:
    """What the score loses when the model never had the column."""
    assert seen.train is not None
    if X.shape[1] < 2:
        raise ConfigError("drop=True with one column leaves nothing to learn from")
    found = []
    for column in X.columns:
        model = _refitted(seen.model, seen.train[0].drop(columns=column), seen.train[1], seen.weight)
        rest = X.drop(columns=column)
        other = SeenTrees(model, None, None)
        rows = other.rows(rest)
        found.append(score - scorer_of(other, rest, y, scoring, rows, weight)(summed(other.ensemble.trees, rows)))
    return found


def _sentences(
    table: pd.DataFrame,
    X: pd.DataFrame,
    score: float,
    chance: float,
    scoring: str,
    groups: Sequence[Sequence[str]],
    noise: Sequence[str],
) -> list[str]:
    measure = "gini" if "gini_train" in table else "variance"
    found = [
        f"The model scores {scoring} {score:.4f} on {len(X):,} held-out rows; one that knows no feature {chance:.4f}."
    ]
    if score <= chance:
        found.append("It predicts no better than that, so none of these figures means anything.")
    used = table.index[table["splits"] > 0]
    lost = used[~table.loc[used, "survives"]]
    if len(lost):
        found.append(f"Importance on training rows does not survive on held-out rows: {_listed(lost)}.")
    mixed = [name for name in used if table["survives"][name] and table[f"{measure}_held_out"][name] <= 0]
    if mixed:
        found.append(f"More of their splits fit noise than not, though shuffling them costs: {_listed(mixed)}.")
    unused = table.index[table["splits"] == 0]
    if len(unused):
        found.append(f"Never used: {_listed(unused)}.")
    distinct = X.nunique()
    many = [name for name in used if distinct[name] > MANY_VALUES * len(X) and distinct[name] > 20]
    if many and len(many) < len(used):
        found.append(f"Impurity favours columns of many values, on training rows above all: {_listed(many)}.")
    ranks = pd.DataFrame({name: table[name].rank(ascending=False) for name in (f"{measure}_train", "permutation")})
    apart = (ranks[f"{measure}_train"] - ranks["permutation"]).abs()
    if len(table) > 2 and apart.max() > max(1, len(table) / 4):
        place = int(apart.to_numpy().argmax())
        by_training, by_shuffling = (int(rank) for rank in ranks.iloc[place])
        found.append(
            f"The measures disagree most on {table.index[place]}: {by_training} of {len(table)} by {measure} on "
            f"training rows, {by_shuffling} by permutation."
        )
    for number, group in enumerate(groups, start=1):
        found.append(f"Correlated, so that each hides what the others know (group {number}): {_listed(group)}.")
    if len(noise):
        border = max(0.0, table.loc[list(noise), "permutation"].max())
        idle = [name for name in table.index if name not in set(noise) and table.loc[name, "permutation"] <= border]
        found.append(f"No better than noise by permutation: {_listed(idle) if idle else 'none'}.")
    return found


def _or_none(value: float) -> float | None:
    """A number as JSON has it."""
    return value if math.isfinite(value) else None


def _listed(names: Any) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
