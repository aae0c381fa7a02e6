"""Importance of a table's columns without a model: a forest is fitted to it first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from transfuse.data.columns import Kind, as_numbers, as_strings, day_first, days, known_dates, look
from transfuse.errors import DataError
from transfuse.estimators.fine_tuned import divided
from transfuse.reports.importance import Importance, tree_importance
from transfuse.reports.seen_trees import check_scoring

HELD_OUT = 0.25
FEW_VALUES = 20
"""A column of whole numbers with at most so many is taken for classes."""

MOST_DIFFERENT = 0.9
"""Share of different values from which a column of text is one of names of rows."""


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

    Dates are numbered by time, other text by how frequent its values are (missing stays missing, values unseen in
    training are the rarest). A class of one row is learned from. `settings` are those of `tree_importance`. Raises
    DataError for a target that is missing, constant, or has empty cells, which `skip_bad_rows` leaves out.
    """
    check_scoring(settings.get("scoring"))
    rows = _with_target(rows, target, "the table", skip_bad_rows)
    if held is not None:
        held = _with_target(held, target, "the held-out table", skip_bad_rows)
        absent = [column for column in rows.columns if column not in held.columns]
        if absent:
            raise DataError(f"the held-out table has no column {absent[0]!r}")
    classes = _is_of_classes(rows[target])
    kinds = {name: look(rows[name]) for name in rows.columns}
    if held is None:
        if len(rows) < 8:
            raise DataError(f"{len(rows)} rows are too few to hold a quarter of them out; at least 8 are needed")
        names = rows[target].map(_class_name).to_numpy(str) if classes else None
        learned, aside = divided(len(rows), HELD_OUT, random_state, classes=names)
        rows, held = rows.iloc[learned], rows.iloc[aside]
    if rows[target].nunique() < 2:
        raise DataError(f"column {target!r} has one value ({rows[target].iloc[0]!r}); there is nothing to predict")
    y, held_y = rows[target], held[target]
    if classes:
        y, held_y = y.map(_class_name), held_y.map(_class_name)
        unknown = sorted(set(held_y) - set(y))
        if unknown:
            raise DataError(f"column {target!r}: {unknown[0]!r} is among the held-out rows only")
    X, held_X, names_of_rows = _numbered(rows.drop(columns=target), held.drop(columns=target), kinds)
    kind = RandomForestClassifier if classes else RandomForestRegressor
    forest = kind(
        n_trees, min_samples_leaf=3, max_features="sqrt" if classes else 1 / 3, n_jobs=-1, random_state=random_state
    )
    forest.fit(X, y)
    found = tree_importance(
        forest, held_X, held_y.to_numpy(), X_train=X, y_train=y.to_numpy(), random_state=random_state, **settings
    )
    if names_of_rows:
        told = ", ".join(map(repr, names_of_rows))
        found.sentences.append(
            f"Text that is different in nearly every row tells a forest nothing of other rows: {told}."
        )
    return found


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
    if isinstance(value, float | np.floating):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def _numbered(
    rows: pd.DataFrame, held: pd.DataFrame, kinds: Mapping[str, Kind]
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Both tables as numbers, by the same code, and the columns of text whose values hardly recur."""
    tables: list[dict[str, np.ndarray]] = [{}, {}]
    names_of_rows = []
    for name in rows.columns:
        kind = kinds[name]
        for numbers, column in zip(tables, _codes(rows[name], held[name], kind), strict=True):
            if (most := np.nanmax(np.abs(column), initial=0)) > np.finfo(np.float32).max:
                raise DataError(f"column {name!r}: {most:g} is more than a tree's numbers (float32) hold")
            numbers[name] = column
        n_different = rows[name].nunique()
        if kind not in ("number", "date") and n_different > MOST_DIFFERENT * max(rows[name].count(), FEW_VALUES):
            names_of_rows.append(str(name))
    own, other = (pd.DataFrame(one) for one in tables)
    return own, other, names_of_rows


def _codes(column: pd.Series, held: pd.Series, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """A column and the held-out one as numbers: as they are, days of dates, or how frequent a text is, most first."""
    try:
        if kind == "number":
            return as_numbers(column), as_numbers(held)
        if kind == "date":
            by_day = day_first(column)
            own, other = (days(known_dates(one, by_day)).to_numpy(float) for one in (column, held))
            return own, other
    except DataError as error:
        # the kind is that of all rows of the table, so that it can only be a held-out table's cell
        raise DataError(f"the held-out table: {error}") from None
    texts = pd.Series(as_strings(column), dtype=object)
    code = {text: float(i) for i, text in enumerate(texts.value_counts().index)}
    own, other = (
        np.array([np.nan if text is None else code.get(text, len(code)) for text in as_strings(one)])
        for one in (column, held)
    )
    return own, other
