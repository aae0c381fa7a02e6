"""The longest window without a repeat, as its elements arrive.

The window that ends at the newest element and holds nothing twice begins just after the last earlier occurrence of
that element, or where it began before, whichever is later: its left end never moves back. One look-up an element, so
linear time, with memory for one position a distinct element.
"""

from __future__ import annotations

from collections.abc import Hashable


class DistinctWindow:
    """The window without a repeat that ends at the newest element of a stream: elements `start` to `n` - 1.

    `previous` is where the newest element occurred before, None where it is new.
    """

    def __init__(self) -> None:
        self.start, self.n = 0, 0
        self.previous: int | None = None
        self._last: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return self.n - self.start

    def push(self, element: Hashable) -> int:
        """Add an element; return the window's length."""
        # "abba": the second a is not in the window, which must not move back to the first
        self.previous = self._last.get(element)
        if self.previous is not None:
            self.start = max(self.start, self.previous + 1)
        self._last[element] = self.n
        self.n += 1
        return len(self)
