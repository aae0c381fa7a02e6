"""Long texts in overlapping windows, and which window sees most around a place."""

from __future__ import annotations

from collections.abc import Sequence

Window = tuple[int, int]
"""First place, last + 1."""


def windows(n: int, room: int, overlap: int) -> list[Window]:
    """Windows of at most `room` places that cover `n`, each sharing `overlap` with the one before it, but for the last,
    which ends where the places end."""
    assert 0 <= overlap < room, "a window must go further than the one before it"
    found = [(0, min(room, n))]
    while found[-1][1] < n:
        first = found[-1][1] - overlap
        found.append((first, min(first + room, n)))
    return found


def best_window(place: int, spans: Sequence[Window]) -> int:
    """Which window has `place` furthest from both its ends, the first of equals; an end of the text is no end."""
    last = spans[-1][1]

    def context(span: Window) -> int:
        before = last if span[0] == 0 else place - span[0]
        after = last if span[1] == last else span[1] - 1 - place
        return min(before, after) if span[0] <= place < span[1] else -1

    return max(range(len(spans)), key=lambda i: context(spans[i]))
