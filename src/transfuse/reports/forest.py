"""Importance of a table's columns without a model: a forest is fitted to it first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.model_selection import train_test_split

from transfuse.errors import DataError
from transfuse.reports.importance import Importance, tree_importance

HELD_OUT = 0.25
FEW_VALUES = 20
"""A column of whole numbers with at most so many is taken for classes."""


def forest_importance(
    rows: pd.DataFrame,
    target: str,
    *,
    held: pd.DataFrame | None = None,
    n_trees: int = 200,
    skip_bad_rows: bool = False,
    random_state: int = 0,
    **settings: Any,
) -> Importance:
    """Fit a forest to a table and judge its columns on `held`, by default a quarter of the rows.

    Text columns are numbered by how frequent their values are (missing stays missing, values unseen in training are the
    rarest); `settings` are those of `tree_importance`. Raises DataError for a target that is missing, constant, or has
    empty cells, which `skip_bad_rows` leaves out.
    """
    rows = _with_target(rows, target, "the table", skip_bad_rows)
    if held is not None:
        held = _with_target(held, target, "the held-out table", skip_bad_rows)
        absent = [column for column in rows.columns if column not in held.columns]
        if absent:
            raise DataError(f"the held-out table has no column {absent[0]!r}")
    classes = _is_of_classes(rows[target])
    if held is None:
        if len(rows) < 8:
            raise DataError(f"{len(rows)} rows are too few to hold a quarter of them out; at least 8 are needed")
        counts = rows[target].value_counts()
        by_class = rows[target] if classes and counts.min() > 1 and len(counts) < HELD_OUT * len(rows) else None
        rows, held = train_test_split(rows, test_size=HELD_OUT, random_state=random_state, stratify=by_class)
    if rows[target].nunique() < 2:
        raise DataError(f"column {target!r} has one value ({rows[target].iloc[0]!r}); there is nothing to predict")
    y, held_y = rows[target], held[target]
    if classes:
        y, held_y = y.map(_class_name), held_y.map(_class_name)
        unknown = sorted(set(held_y) - set(y))
        if unknown:
            raise DataError(f"column {target!r}: {unknown[0]!r} is among the held-out rows only")
    X, held_X = _numbered(rows.drop(columns=target), held.drop(columns=target))
    kind = RandomForestClassifier if classes else RandomForestRegressor
    forest = kind(
        n_trees, min_samples_leaf=3, max_features="sqrt" if classes else 1 / 3, n_jobs=-1, random_state=random_state
    )
    forest.fit(X, y)
    return tree_importance(
        forest, held_X, held_y.to_numpy(), X_train=X, y_train=y.to_numpy(), random_state=random_state, **settings
    )


def _with_target(rows: pd.DataFrame, target: str, name: str, skip_bad_rows: bool) -> pd.DataFrame:
    if target not in rows.columns:
        raise DataError(f"{name} has no column {target!r}; it has {', '.join(map(repr, rows.columns))}")
    if rows.shape[1] < 2:
        raise DataError(f"{name} has no column beside {target!r}")
    missing = rows[target].isna()
    if missing.any() and not skip_bad_rows:
        raise DataError(
            f"{name}: row {int(np.flatnonzero(missing)[0]) + 1} has no {target!r} ({int(missing.sum())} in all)"
        )
    return rows[~missing]


def _is_of_classes(column: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(column):
        return True
    return bool(column.nunique() <= FEW_VALUES and (column == column.round()).all())


def _class_name(value: Any) -> str:
    """A class as text, 1 and 1.0 alike."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numbered(rows: pd.DataFrame, held: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables as numbers, by the same code."""
    own, other = {}, {}
    for name in rows.columns:
        column, beside = rows[name], held[name]
        if not pd.api.types.is_numeric_dtype(column):
            code = {value: i for i, value in enumerate(column.value_counts().index)}
            column = column.map(code)
            beside = beside.map(code).where(beside.isna() | beside.isin(list(code)), len(code))
        elif beside.isna().all():
            beside = pd.Series(np.nan, index=beside.index)
        elif not pd.api.types.is_numeric_dtype(beside):
            raise DataError(f"the held-out table's column {name!r} holds text, but the table's numbers")
        own[name], other[name] = column.astype(float), beside.astype(float)
    return pd.DataFrame(own), pd.DataFrame(other)
