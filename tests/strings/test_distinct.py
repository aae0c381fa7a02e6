"""The window without a repeat, as it grows, against looking at every window."""

from __future__ import annotations

import itertools

import pytest

from transfuse.strings.distinct import DistinctWindow


def longest_ending_here(text: str) -> int:
    return next(n for n in range(len(text), -1, -1) if len(set(text[len(text) - n :])) == n)


@pytest.mark.parametrize(("text", "longest"), [("abcabcbb", 3), ("bbbbb", 1), ("pwwkew", 3), ("abba", 2), (" ", 1)])
def test_known_answers(text: str, longest: int) -> None:
    window = DistinctWindow()
    assert max(window.push(character) for character in text) == longest


def test_every_short_string_against_every_window() -> None:
    for length in range(1, 7):
        for text in itertools.product("abcd", repeat=length):
            window = DistinctWindow()
            for i, character in enumerate(text):
                assert window.push(character) == len(window) == longest_ending_here("".join(text[: i + 1]))
            assert window.start == length - len(window)
