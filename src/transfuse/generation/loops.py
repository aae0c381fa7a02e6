"""Noticing that a generation repeats itself.

Over a sequence's n-grams, the window without a repeat that ends at the newest one stops growing when an n-gram recurs;
the distance to where it occurred before is the period that a loop would have. The period is kept for as long as every
further token equals the one a period before it, and a loop is a period that has been kept long enough. Constant time a
token, but for looking back from where a period is found to where it began.
"""

from __future__ import annotations

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
        self._ids: list[int] = []
        self._window = DistinctWindow()
        self._period, self._n_equal = 0, 0

    def push(self, token: int) -> Loop | None:
        """Add a token; return the loop that it closes, if it does."""
        self._ids.append(token)
        if len(self._ids) < NGRAM:
            return None
        self._window.push(tuple(self._ids[-NGRAM:]))
        if self._period and token == self._ids[-1 - self._period]:
            self._n_equal += 1
        elif self._window.previous is None:
            self._period = 0
        else:
            self._period = self._window.n - 1 - self._window.previous
            self._n_equal = self._equal(self._period)
        if not self._period or self._n_equal + self._period < self.repeats * self._period:
            return None
        return Loop(len(self._ids) - self._n_equal, self._period)

    def _equal(self, period: int) -> int:
        """How many of the last tokens equal the one a period before them."""
        n, ids = NGRAM, self._ids
        while n + period < len(ids) and ids[-1 - n] == ids[-1 - n - period]:
            n += 1
        return n
