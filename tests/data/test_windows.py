"""Windows over long texts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.data.windows import deciding_windows, windows


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_windows_cover_everything_and_overlap_as_asked(n: int, room: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, (room - 1) // 2))
    spans = windows(n, room, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == n
    assert all(last - first <= room for first, last in spans)
    assert all(one[1] - other[0] == overlap for one, other in pairwise(spans))
    decided = deciding_windows(range(n), spans)

    def context(place: int, span: tuple[int, int]) -> float:
        first, last = span
        before = np.inf if first == 0 else place - first
        after = np.inf if last == n else last - 1 - place
        return min(before, after) if first <= place < last else -1

    for place, number in enumerate(decided):
        assert context(place, spans[number]) == max(context(place, span) for span in spans)


def test_by_hand() -> None:
    assert windows(10, 6, 2) == [(0, 6), (4, 10)]
    assert deciding_windows(range(10), windows(10, 6, 2)).tolist() == [0] * 5 + [1] * 5
    with pytest.raises(AssertionError):
        windows(10, 4, 2)
