"""Noticing that a generation repeats itself.

Over a sequence's n-grams, take the window without a repeat that ends at the newest one. When a new n-gram moves the
window's left end, it equals the n-gram as many places back as the window is then long. So while the left end moves at
every token and the length stays p, the text has the period p: a loop is a window that has stopped growing, and is
found in constant time a token.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from transfuse.strings.distinct import DistinctWindow

NGRAM = 4
"""Tokens that are compared at a time. Words recur in any text; runs of four do so where it repeats itself."""


@dataclass(frozen=True)
class Loop:
    """From token `start` on, every token equals the one `period` places before it."""

    start: int
    period: int


class LoopFinder:
    """Reads a sequence token by token, and reports when its last `repeats` periods are equal."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self._recent: deque[int] = deque(maxlen=NGRAM)
        self._window = DistinctWindow()
        self._n_tokens, self._period, self._n_equal = 0, 0, 0

    def push(self, token: int) -> Loop | None:
        """Add a token; return the loop that it closes, if it does."""
        self._recent.append(token)
        self._n_tokens += 1
        if len(self._recent) < NGRAM:
            return None
        start = self._window.start
        period = self._window.push(tuple(self._recent))
        if self._window.start == start:
            self._n_equal = 0
            return None
        self._n_equal = self._n_equal + 1 if period == self._period else 1
        self._period = period
        equal_tokens = self._n_equal + NGRAM - 1  # to those a period before
        if equal_tokens + period < self.repeats * period:
            return None
        return Loop(self._n_tokens - equal_tokens, period)
