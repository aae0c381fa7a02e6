"""The pass of `longest`, compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from transfuse.kernels.kept import kept


@kept(njit)
def scan(codes, last, state):  # type: ignore[no-untyped-def]
    """Read `codes` on. `last` is where each code stood last, -1 at first; `state` is where the window that ends here
    begins, how many elements were read, the longest window's length and where it begins."""
    start, n, best, best_start = state[0], state[1], state[2], state[3]
    for code in codes:
        seen = last[code]
        if seen >= start:  # an older one is outside: the window never moves back
            start = seen + 1
        last[code] = n
        n += 1
        if n - start > best:
            best, best_start = n - start, start
    state[0], state[1], state[2], state[3] = start, n, best, best_start


@kept(njit)
def scan_rows(codes, keep, n_codes):  # type: ignore[no-untyped-def]
    """The longest window's length in each row, and the column where it begins."""
    n_rows, n_columns = codes.shape
    lengths, starts = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
    last = np.full(n_codes, -1, np.int64)
    columns = np.zeros(n_columns, np.int64)
    n = 0  # goes on over the rows, so that the table need not be emptied
    for row in range(n_rows):
        first = start = n
        for column in range(n_columns):
            if not keep[row, column]:
                continue
            code = codes[row, column]
            if last[code] >= start:
                start = last[code] + 1
            last[code] = n
            columns[n - first] = column
            n += 1
            if n - start > lengths[row]:
                lengths[row], starts[row] = n - start, columns[start - first]
    return lengths, starts
