"""Long texts in overlapping windows, and which window sees most around a place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Window = tuple[int, int]
"""First place, last + 1."""


def windows(n: int, room: int, overlap: int) -> list[Window]:
    """Windows of at most `room` places that cover `n`, each sharing `overlap` with the one before it, but for the last,
    which ends where the places end."""
    assert 0 <= 2 * overlap < room, "a place is in two windows at most"
    found = [(0, min(room, n))]
    while found[-1][1] < n:
        first = found[-1][1] - overlap
        found.append((first, min(first + room, n)))
    return found


def deciding_windows(places: Sequence[int], spans: Sequence[Window]) -> np.ndarray:
    """Which window has each place furthest from its ends, the first of equals."""
    borders = [(one[1] - 1 + other[0]) / 2 for one, other in pairwise(spans)]
    return np.searchsorted(borders, places)
