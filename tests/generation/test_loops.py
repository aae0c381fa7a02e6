"""Loops against comparing every token with the one a period before it."""

from __future__ import annotations

import random

import pytest

from transfuse.errors import ConfigError
from transfuse.generation.config import SearchConfig
from transfuse.generation.loops import NGRAM, Loop, LoopFinder


def first_loop(ids: list[int], repeats: int) -> tuple[int, Loop] | None:
    """How many tokens it takes to find a loop, and the loop."""
    finder = LoopFinder(repeats)
    for i, token in enumerate(ids, start=1):
        loop = finder.push(token)
        if loop is not None:
            return i, loop
    return None


@pytest.mark.parametrize("period", range(NGRAM, 12))
@pytest.mark.parametrize("repeats", [2, 3, 5])
@pytest.mark.parametrize("before", [0, 1, 7, 30])
def test_a_loop_is_found_at_its_last_repeat_and_not_before(period: int, repeats: int, before: int) -> None:
    ids = [*range(100, 100 + before), *list(range(period)) * (repeats + 2)]
    assert first_loop(ids, repeats) == (before + repeats * period, Loop(before + period, period))


@pytest.mark.parametrize("period", range(1, NGRAM))
def test_a_loop_shorter_than_an_n_gram_is_found_when_an_n_gram_recurs(period: int) -> None:
    ids = [50, 51, *list(range(period)) * 20]
    found = first_loop(ids, 2)
    assert found == (2 + period + NGRAM, Loop(2 + period, period))


def test_what_is_found_is_what_the_tokens_are() -> None:
    draw = random.Random(0)
    found = 0
    for _ in range(2000):
        ids = [draw.randrange(3) for _ in range(40)]
        result = first_loop(ids, 2)
        if result is None:
            continue
        n, loop = result
        found += 1
        before = loop.start - 1  # the loop did not begin sooner
        assert before < loop.period or ids[before] != ids[before - loop.period]
        assert all(ids[i] == ids[i - loop.period] for i in range(loop.start, n))
        assert n - loop.start + loop.period >= 2 * loop.period
    assert found > 100


@pytest.mark.parametrize(
    ("ids", "repeats", "n", "start"),
    [(b"abcdabcdXYZ" + b"abcd" * 10, 3, 23, 15), (b"abcdef" * 7 + b"XYZ" + b"abcdef" * 20, 8, 93, 51)],
)
def test_a_loop_that_occurred_before_is_found_as_soon(ids: bytes, repeats: int, n: int, start: int) -> None:
    assert first_loop(list(ids), repeats) == (n, Loop(start, len(set(ids)) - 3))


def test_text_that_does_not_repeat_has_no_loop() -> None:
    assert first_loop(list(range(1000)), 2) is None
    draw = random.Random(0)
    assert first_loop([draw.randrange(1000) for _ in range(5000)], 2) is None


@pytest.mark.parametrize("changes", [{"loop_repeats": 1}, {"loop_repeats": 3, "beams": 4}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="loop_repeats="):
        SearchConfig(**{"beams": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "period", [list(b"abcdabcdx"), list(b"I do not know what to do . I do not know what to say . ")]
)
def test_a_loop_that_repeats_itself_inside_is_found(period: list[int]) -> None:
    n, loop = first_loop([7, 8, *period * 9], 3) or (0, Loop(0, 1))
    assert loop.period == len(period)
    assert n <= 2 + 5 * len(period)
