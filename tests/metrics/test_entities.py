"""Entities in tags against `seqeval`, on sequences that keep the rules and on those that break them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from transfuse import DataError
from transfuse.metrics.entities import entities_of, entity_scores, tags_of

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))]
ROWS = st.lists(st.sampled_from(TAGS), min_size=1, max_size=12)


@given(ROWS)
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    expected = [(first, last + 1, kind) for kind, first, last in get_entities(tags)]
    assert entities_of(tags) == expected


@given(st.lists(st.tuples(ROWS, ROWS), min_size=1, max_size=5))
def test_scores_are_those_of_seqeval(rows: list[tuple[list[str], list[str]]]) -> None:
    wanted = [one[: min(len(one), len(other))] for one, other in rows]
    found = [other[: min(len(one), len(other))] for one, other in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [100 * score(wanted, found) for score in (f1_score, precision_score, recall_score)]
    np.testing.assert_allclose([score.value for score in entity_scores(wanted, found)], expected, atol=1e-9)


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
@given(tags=ROWS)
def test_tags_hold_the_entities_they_were_made_of(scheme: str, tags: list[str]) -> None:
    again = tags_of(entities_of(tags), len(tags), scheme)  # type: ignore[arg-type]
    assert entities_of(again) == entities_of(tags)
    assert tags_of(entities_of(again), len(tags), scheme) == again  # type: ignore[arg-type]


def test_a_kind_may_have_a_hyphen() -> None:
    assert entities_of(["B-PER-NAM", "I-PER-NAM", "I-PER"]) == [(0, 2, "PER-NAM"), (2, 3, "PER")]
    assert tags_of([(0, 3, "X"), (3, 4, "Y")], 5, "bioes") == ["B-X", "I-X", "E-X", "S-Y", "O"]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(DataError, match="1 sequences of tags for 2"):
        entity_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(DataError, match="row 1: 1 tags for 2"):
        entity_scores([["O"], ["O", "O"]], [["O"], ["O"]])
