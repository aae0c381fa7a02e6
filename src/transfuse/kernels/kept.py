"""Compiled code that later processes find on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def kept(compiler: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    """A decorator: what `compiler` (numba's `njit`, or a partial of it) makes of a function, kept on disk where there
    is a place that can be written to, and made anew in every process where there is none."""

    def compiled(function: Any) -> Any:
        try:
            return compiler(cache=True, **options)(function)
        except RuntimeError:  # neither beside the file nor in the user's own folder
            return compiler(**options)(function)

    return compiled
