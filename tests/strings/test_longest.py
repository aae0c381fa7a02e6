"""The longest window without a repeat: known answers, brute force, every kind of sequence, streams, matrices."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse import (
    ConfigError,
    DataError,
    DistinctStream,
    Reading,
    all_longest_distinct,
    longest_distinct,
    longest_distinct_rows,
)
from transfuse.strings import longest as subject


def brute(x: str) -> list[tuple[int, int]]:
    """Every longest window, from looking at all of them."""
    found = [(a, b) for a in range(len(x) + 1) for b in range(a, len(x) + 1) if len(set(x[a:b])) == b - a]
    longest = max(b - a for a, b in found)
    return [(a, b) for a, b in found if b - a == longest] if longest else [(0, 0)]


KNOWN = [("abcabcbb", 3), ("bbbbb", 1), ("pwwkew", 3), ("", 0), ("abba", 2), (" ", 1)]


@pytest.mark.parametrize(("text", "length"), KNOWN)
def test_known_answers(text: str, length: int) -> None:
    found = longest_distinct(text)
    assert len(found) == length and found.window == text[found.start : found.end] and found.start == brute(text)[0][0]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One after the other: as short texts go, and compiled, as long ones do."""

    def both() -> Iterator[str]:
        yield "plain"
        monkeypatch.setattr(subject, "SHORT", 0)
        yield "compiled"

    return both()


def test_every_short_string(ways: Iterator[str]) -> None:
    texts = ["".join(letters) for length in range(9) for letters in itertools.product("abcd", repeat=length)]
    expected = {text: brute(text) for text in texts}
    for way in ways:
        for text in texts:
            found = longest_distinct(text)
            assert (found.start, found.end) == expected[text][0], (way, text)
            if way == "plain" and len(text) < 7:
                assert [(one.start, one.end) for one in all_longest_distinct(text)] == expected[text]


def test_ten_thousand_random_strings(ways: Iterator[str]) -> None:
    draw = random.Random(0)
    alphabet = [chr(i) for i in (97, 98, 99, 233, 0x4E00, 0x1F600, 0xD800, 0x10FFFF, 0, 10)]
    texts = ["".join(draw.choices(alphabet, k=draw.randrange(14))) for _ in range(10_000)]
    expected = [brute(text)[0] for text in texts]
    for way in ways:
        for text, (start, end) in zip(texts, expected, strict=True):
            found = longest_distinct(text)
            assert (found.start, found.end, found.window) == (start, end, text[start:end]), (way, text)


@given(st.lists(st.text(max_size=700), max_size=6))
def test_pieces_of_a_stream_are_one_text(pieces: list[str]) -> None:
    readings = [Reading(), Reading(graphemes=True, normalise="NFC", casefold=True)]
    readings += [Reading(normalise="NFKC"), Reading(graphemes=True, normalise="NFKD")]
    for reading in readings:
        stream = DistinctStream(reading)
        for piece in pieces:
            stream.feed(piece)
        found, whole = stream.result(), reading.elements("".join(pieces))
        expected = longest_distinct(list(whole))
        assert (found.start, found.end) == (expected.start, expected.end)
        assert found.window == "".join(whole[found.start : found.end])


@pytest.mark.parametrize("normalise", ["NFKC", "NFKD"])
def test_characters_that_join_when_taken_apart_are_not_cut_between_pieces(normalise: Literal["NFKC", "NFKD"]) -> None:
    text = "\u3131\u314f\u3134\u3131\u314f"  # letters of Hangul by themselves, two of which make a syllable
    for cut in range(len(text) + 1):
        stream = DistinctStream(Reading(normalise=normalise))
        stream.feed(text[:cut])
        stream.feed(text[cut:])
        assert stream.result() == longest_distinct(text, normalise=normalise)


@pytest.mark.parametrize("n", [0, 1, 999, 1000, 5000])
def test_compiled_and_plain_agree(n: int) -> None:
    draw = np.random.default_rng(n)
    ids = draw.integers(0, 50, n)
    expected = longest_distinct(ids.tolist())
    for other in (
        ids,
        ids.astype(np.int32),
        ids - 1000,
        ids * 10**12,
        bytes(ids.tolist()),
        "".join(map(chr, ids + 97)),
    ):
        found = longest_distinct(other)
        assert (found.start, found.end) == (expected.start, expected.end)
    assert longest_distinct(ids).window == expected.window == ids[expected.start : expected.end].tolist()


def test_what_a_reader_sees_as_one() -> None:
    family, flag = "👩‍👩‍👧", "🇩🇪"
    assert len(longest_distinct(family)) == 3 and len(longest_distinct(family, graphemes=True)) == 1
    assert longest_distinct(f"a{family}b{flag}{flag}", graphemes=True).window == f"a{family}b{flag}"
    assert len(longest_distinct("e\u0301\u00e9")) == 3
    assert len(longest_distinct("e\u0301\u00e9", normalise="NFC")) == 1
    assert len(longest_distinct("aAbB", casefold=True)) == 2
    assert len(longest_distinct("e\u0301\u00e9", graphemes=True, normalise="NFD")) == 1


def test_any_elements() -> None:
    assert longest_distinct([None, 1, None, "a", (2, 3)]).window == [1, None, "a", (2, 3)]
    assert longest_distinct(iter([1, 2, 1])).window == [1, 2]
    assert longest_distinct(["ab", "c"]).window == ["ab", "c"]
    with pytest.raises(DataError, match=r"element 1 is list \[2\], which cannot be hashed"):
        longest_distinct([1, [2]])  # type: ignore[list-item]
    with pytest.raises(DataError, match="2 dimensions"):
        longest_distinct(np.zeros((2, 2), int))
    with pytest.raises(ConfigError, match="are for strings"):
        longest_distinct([1], casefold=True)
    with pytest.raises(ConfigError, match="normalise='NFX'"):
        longest_distinct("a", normalise="NFX")  # type: ignore[arg-type]


def test_rows_of_a_matrix() -> None:
    draw = np.random.default_rng(0)
    ids, keep = draw.integers(0, 6, (23, 17)), draw.random((23, 17)) < 0.8
    keep[3] = False
    lengths, starts = longest_distinct_rows(ids, keep)
    for row in range(23):
        expected = longest_distinct(ids[row][keep[row]])
        columns = np.flatnonzero(keep[row])
        assert lengths[row] == len(expected)
        assert starts[row] == (columns[expected.start] if len(columns) else 0)
    np.testing.assert_array_equal(longest_distinct_rows(ids)[0], longest_distinct_rows(ids, np.ones_like(ids))[0])
    assert longest_distinct_rows(np.array([[-5, 10**15, -5]]))[0].tolist() == [2]
    with pytest.raises(DataError, match="expected two matrices of one shape"):
        longest_distinct_rows(ids, keep[:3])
    with pytest.raises(DataError, match="float64"):
        longest_distinct_rows(ids.astype(float))


@pytest.mark.alone
def test_fifty_thousand_characters_in_a_millisecond() -> None:
    text = "".join(random.Random(0).choices([chr(i) for i in range(32, 127)], k=50_000))
    longest_distinct(text)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        longest_distinct(text)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1e-3


def test_memory_is_that_of_the_alphabet() -> None:
    stream = DistinctStream()
    for _ in range(50):
        stream.feed("the quick brown fox jumps over the lazy dog " * 100)
    assert sys.getsizeof(stream._tail) < 2000 and stream.result().window == "quick brown"
