"""Kinds of columns, and the encodings of numbers, categories and dates."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from transfuse.data.columns import as_dates, as_numbers, as_paths, as_strings, day_first, find_kinds, look
from transfuse.data.features import DATE_PARTS, FIRST_LEVEL, MISSING, UNKNOWN, FeatureForm, plain_columns
from transfuse.errors import ConfigError, DataError

LONG = [f"this is review number {i} of many" for i in range(50)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3], "number"),
        ([1.5, None, 3.0], "number"),
        ([True, False, True], "category"),
        (["a", "b", "a", "b", None], "category"),
        (LONG, "text"),
        (["2024-01-05", "2023-12-31 10:00", None], "date"),
        (["5 Jan 2024", "31 Dec 2023", "1 Feb 2024"], "date"),
        (["a.png", "b.JPG", "c/d.jpeg"], "image"),
        (["a.wav", "b.flac", None], "audio"),
        ([None, None], "ignored"),
        ([f"id{i}" for i in range(400)], "ignored"),
        (["1-2", "3-4", "5-6"] * 5, "category"),
        (["1 2020", "2 2021", "3 2022", "4 2022"], "text"),
        (["13/02/2020", "02/03/2020"], "date"),
        (["March 5, 2024", "Tue 6 Mar 2024"], "date"),
        (["13/02/2020", "02/13/2020"] * 2, "category"),
        (["1", "2.5", None], "number"),
        (pd.Categorical(["1", "2", "1"]), "category"),
        (pd.to_datetime(["2024-01-05", None]), "date"),
    ],
)
def test_kinds_are_as_they_look(values: object, kind: str) -> None:
    assert look(pd.Series(values)) == kind


def test_a_given_kind_wins() -> None:
    frame = pd.DataFrame({"code": [1, 2, 3], "note": LONG[:3]})
    assert find_kinds(frame, {"code": "category"}) == {"code": "category", "note": "text"}
    with pytest.raises(ConfigError, match="'cod' is not a column; there are code, note"):
        find_kinds(frame, {"cod": "category"})
    with pytest.raises(ConfigError, match="'video' must be one of text, image"):
        find_kinds(frame, {"code": "video"})  # type: ignore[dict-item]


def test_equally_named_columns_are_refused() -> None:
    with pytest.raises(DataError, match="two columns are called 'a'"):
        find_kinds(pd.DataFrame([[1, 2]], columns=["a", "a"]), {})


def test_mixed_cells_and_infinities_are_named_by_row() -> None:
    with pytest.raises(DataError, match="column 'x', row 2: three is not a finite number"):
        as_numbers(pd.Series([1, "three", 2.0], name="x"))
    with pytest.raises(DataError, match="column 'x', row 3: -inf is not a finite number"):
        as_numbers(pd.Series([1, 2, -np.inf], name="x"))


def test_day_and_month_stand_in_one_order() -> None:
    """What can only be read one way says how the others are read; points mean the day first."""
    european, american = ["13/02/2020", "02/03/2020"], ["02/13/2020", "02/03/2020"]
    for values, by_day, month in (
        (european, True, 3),
        (american, False, 2),
        (["02.03.2020"], True, 3),
        (["02/03/2020"], False, 2),
    ):
        assert day_first(pd.Series(values)) == by_day
        assert as_dates(pd.Series(values), by_day).iloc[-1].month == month
    form = FeatureForm.learn(pd.DataFrame({"d": european}), {"d": "date"})
    with pytest.raises(DataError, match="row 1: 02/13/2020 is not a date"):
        form.encode(pd.DataFrame({"d": ["02/13/2020"]}))


def test_clocks_are_read_as_they_show() -> None:
    zoned = pd.Series(pd.date_range("2024-01-01 22:00", periods=3, freq="7h", tz="America/New_York"))
    assert as_dates(zoned, False).tolist() == as_dates(zoned.astype(str), False).tolist()
    named = ["2024-01-01T22:00:00Z", "2024-01-01 22:00 UTC", "Mon, 01 Jan 2024 22:00:00 GMT", "2024-01-01 22:00+02:00"]
    named += ["2024-01-01 22:00 CET", "2024-01-01 22:00:00 GMT+0100", "2024-01-01 10:00 PM", "2024-01-01 22:00"]
    named += [
        "2024-01-01 10:00 PM -05:00",
        "2024-01-01 10:00 PM EST",
        "2024-01-01 22:00 +02",
        "2024-01-01 10:00 PM -05",
    ]
    assert look(pd.Series(named)) == "date"
    for some in ([one] * 3 for one in named):
        assert as_dates(pd.Series(some), False).tolist() == [pd.Timestamp("2024-01-01 22:00")] * 3
    assert as_dates(pd.Series(named), False).tolist() == [pd.Timestamp("2024-01-01 22:00")] * len(named)
    FeatureForm.learn(pd.DataFrame({"d": named}), {"d": "date"})
    days = pd.Series(["2024-01-05", "05-01-2024", "5 Jan 2024"])
    assert as_dates(days, True).tolist() == [pd.Timestamp("2024-01-05")] * 3


def test_a_column_may_not_be_called_as_a_part_of_a_date() -> None:
    frame = pd.DataFrame({"when": ["2024-03-01"], "when (day)": [5]})
    with pytest.raises(DataError, match=r"called 'when \(day\)'"):
        FeatureForm.learn(frame, {"when": "date", "when (day)": "number"})


def test_what_is_no_date_is_named() -> None:
    form = FeatureForm.learn(pd.DataFrame({"d": ["2024-03-01", "2020-01-01"]}), {"d": "date"})
    with pytest.raises(DataError, match="column 'd', row 2: soon is not a date"):
        form.encode(pd.DataFrame({"d": ["2024-03-01", "soon"]}))


def test_whole_numbers_are_the_same_category_with_and_without_gaps() -> None:
    assert as_strings(pd.Series([1, 2])) == ["1", "2"]
    assert as_strings(pd.Series([1, None])) == ["1", None]
    kinds = {"code": "category"}
    form = FeatureForm.learn(pd.DataFrame({"code": ["1", "01", "7.0", "x"]}), kinds)  # type: ignore[arg-type]
    given = pd.DataFrame({"code": ["1", "01", "1.0", "7", "7.00", "x", "x.0", "2", None]})
    codes = form.encode(given).codes_NC[:, 0].tolist()
    one, other, seven, letter = (FIRST_LEVEL + form.levels["code"].index(level) for level in ("1", "01", "7.0", "x"))
    assert codes == [one, other, one, seven, seven, letter, UNKNOWN, UNKNOWN, MISSING]
    plain = FeatureForm.learn(pd.DataFrame({"code": ["1", "2"]}), kinds)  # type: ignore[arg-type]
    first = plain.levels["code"].index("1") + FIRST_LEVEL
    assert plain.encode(pd.DataFrame({"code": ["01", "2.5", "1.0.0"]})).codes_NC[:, 0].tolist() == [
        first,
        UNKNOWN,
        UNKNOWN,
    ]
    versions = FeatureForm.learn(pd.DataFrame({"code": ["2.1.0", "v1.0", "7.000"]}), kinds)  # type: ignore[arg-type]
    seven = versions.levels["code"].index("7.000") + FIRST_LEVEL
    codes = versions.encode(pd.DataFrame({"code": ["2.1", "v1", "7.00", "007"]})).codes_NC[:, 0].tolist()
    assert codes == [UNKNOWN, UNKNOWN, seven, seven]
    truth = FeatureForm.learn(pd.DataFrame({"code": [True, False]}), kinds)  # type: ignore[arg-type]
    codes = truth.encode(pd.DataFrame({"code": [1, 0]})).codes_NC[:, 0].tolist()
    assert (
        codes == truth.encode(pd.DataFrame({"code": ["True", "False"]})).codes_NC[:, 0].tolist()
        and UNKNOWN not in codes
    )


def test_paths_may_not_leave_the_folder(tmp_path: Path) -> None:
    names = pd.Series(["a.png", "../a.png", None, "/etc/passwd.png", "sub/../b.png", "a\0.png"])
    paths, refused = as_paths(names, tmp_path)
    assert [path is not None for path in paths] == [True, False, False, False, True, False]
    assert set(refused) == {1, 3, 5} and "outside" in refused[1] and "no name of a file" in refused[5]


def test_links_in_the_folder_lead_where_they_do(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "photos").symlink_to(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "table")
    paths, refused = as_paths(pd.Series(["photos/a.png", "photos/../../b.png"]), tmp_path / "link")
    assert paths == [tmp_path / "link" / "photos" / "a.png", None] and set(refused) == {1}
    for name, folder in ((tmp_path / "table" / "a.png", "link"), (tmp_path / "link" / "a.png", "table")):
        assert as_paths(pd.Series([str(name)]), tmp_path / folder) == ([name], {})
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert set(as_paths(pd.Series([str(tmp_path / "circle" / "a.png")]), tmp_path / "table")[1]) == {0}


def test_lengths_of_time_are_seconds() -> None:
    times = pd.Series(pd.to_timedelta(["1 min", None, "2 h"]))
    np.testing.assert_array_equal(as_numbers(times), [60, np.nan, 7200])


def test_numbers_fill_their_bins() -> None:
    """From the definition: a bin below the value is full, the one it is in linearly, those above empty."""
    frame = pd.DataFrame({"x": np.linspace(0.0, 100.0, 101)})
    form = FeatureForm.learn(frame, {"x": "number"}, n_bins=4)
    assert form.edges["x"] == [0.0, 25.0, 50.0, 75.0, 100.0]
    found = form.encode(pd.DataFrame({"x": [60.0, -5.0, 1e9, None, 25.0]}))
    wanted = [[1, 1, 0.4, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(found.numbers_NFE[:, 0], wanted, atol=1e-6)
    assert found.known_NF[:, 0].tolist() == [True, True, True, False, True]


def test_repeated_values_have_fewer_bins() -> None:
    form = FeatureForm.learn(
        pd.DataFrame({"x": [0.0] * 90 + [5.0] * 10, "y": [3.0] * 100}), {"x": "number", "y": "number"}
    )
    assert all(a < b for edges in form.edges.values() for a, b in itertools.pairwise(edges))
    assert form.edges["y"] == [2.5, 3.5]


def test_levels_are_numbered_by_frequency_and_new_ones_are_unknown() -> None:
    form = FeatureForm.learn(pd.DataFrame({"c": ["b", "a", "b", None]}), {"c": "category"})
    assert form.levels == {"c": ["b", "a"]}
    codes = form.encode(pd.DataFrame({"c": ["a", "b", "z", None]})).codes_NC[:, 0].tolist()
    assert codes == [FIRST_LEVEL + 1, FIRST_LEVEL, UNKNOWN, MISSING]


def test_dates_are_taken_apart() -> None:
    form = FeatureForm.learn(pd.DataFrame({"d": ["2024-03-01 18:30", "2020-01-01"]}), {"d": "date"})
    assert list(form.edges) == [f"d ({part})" for part in DATE_PARTS]
    columns = plain_columns(pd.DataFrame({"d": ["2024-03-01 18:30", None]}), form)
    day = (pd.Timestamp("2024-03-01 18:30") - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)
    np.testing.assert_allclose(columns[0], [day, 61, 1, 4, 18.5])
    assert np.isnan(columns[1]).all()


def test_trees_see_what_is_missing_or_new_as_missing() -> None:
    form = FeatureForm.learn(pd.DataFrame({"x": [1.0, 2.0], "c": ["u", "v"]}), {"x": "number", "c": "category"})
    found = plain_columns(pd.DataFrame({"c": ["v", "new", None], "x": [None, 5.0, 1.0]}), form)
    np.testing.assert_array_equal(found, [[np.nan, 1], [5, np.nan], [1, np.nan]])


def test_the_order_of_columns_does_not_matter() -> None:
    frame = pd.DataFrame({"b": [1.0, 2.0, 3.0], "a": [3.0, None, 1.0], "c": ["u", "v", "u"]})
    kinds = {"b": "number", "a": "number", "c": "category"}
    turned = frame[["c", "a", "b"]]
    first = FeatureForm.learn(frame, kinds)  # type: ignore[arg-type]
    second = FeatureForm.learn(turned, {name: kinds[name] for name in turned.columns})  # type: ignore[misc]
    np.testing.assert_array_equal(first.encode(frame).numbers_NFE, second.encode(turned).numbers_NFE)
    assert list(first.edges) == list(second.edges) and FeatureForm.from_dict(first.to_dict()) == first


def test_a_row_without_any_cell_is_missing() -> None:
    form = FeatureForm.learn(pd.DataFrame({"x": [1.0, 2.0], "c": ["u", "v"]}), {"x": "number", "c": "category"})
    found = form.encode(pd.DataFrame({"x": [None, 1.0, None], "c": [None, None, "z"]}))
    assert found.any_N.tolist() == [False, True, True]
