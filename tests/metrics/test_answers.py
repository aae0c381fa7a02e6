"""Exact match and F1 of answers against the SQuAD script that `torchmetrics` carries, and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from transfuse import DataError
from transfuse.metrics.answers import answer_scores

WORDS = st.sampled_from(["the", "Cat", "sat.", "A", "mat", "an", "hat!", "on", "(the)", "don't"])
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.tuples(st.lists(TEXTS, min_size=1, max_size=3), TEXTS), min_size=1, max_size=5))
def test_scores_are_those_of_the_script(rows: list[tuple[list[str], str]]) -> None:
    # of answers of articles alone the script's two versions say different things
    rows = [(wanted, found) for wanted, found in rows if all(map(_has_words, [*wanted, found]))]
    if not rows:
        return
    found = [{"prediction_text": text, "id": str(i)} for i, (_, text) in enumerate(rows)]
    wanted = [
        {"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": str(i)}
        for i, (texts, _) in enumerate(rows)
    ]
    expected = squad(found, wanted)
    exact, f1 = answer_scores([texts for texts, _ in rows], [text for _, text in rows])
    assert exact.value == pytest.approx(expected["exact_match"].item(), abs=1e-3)
    assert f1.value == pytest.approx(expected["f1"].item(), abs=1e-3)


def _has_words(text: str) -> bool:
    return any(word.lower() not in ("the", "a", "an", "(the)") for word in text.split())


def test_no_answer_is_right_only_where_there_is_none() -> None:
    exact, f1 = answer_scores([[], [], ["Rome"], ["the"]], ["", "Rome", "", ""])
    assert exact.value == f1.value == 50
    assert "words:squad" in f1.signature


def test_chinese_characters_are_words() -> None:
    exact, f1 = answer_scores([["北京大学"], ["《红楼梦》"]], ["北京", "红楼梦"])
    assert exact.value == 50 and f1.value == pytest.approx(100 * (2 * 2 / 6 + 1) / 2)
    assert "by character:2" in f1.signature
    mixed, _ = answer_scores([["the cat"], ["北京"]], ["cat", "北京"])  # one does not change how the other is read
    assert mixed.value == 100


def test_one_answer_a_question() -> None:
    with pytest.raises(DataError, match="1 answers for 2 questions"):
        answer_scores([["a"], ["b"]], ["a"])
