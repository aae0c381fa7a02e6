"""Compiled code with and without a place to keep it."""

from __future__ import annotations

from typing import Any

from numba import njit

from transfuse.kernels.kept import kept


def test_without_a_place_code_is_compiled_all_the_same() -> None:
    asked: list[bool] = []

    def nowhere(cache: bool = False, **options: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    assert kept(nowhere, nogil=True)(lambda x: x + 1)(2) == 3
    assert asked == [True, False]
