"""Rows sent through trees, compiled: what reaches each leaf, what the trees say, and what they would say if one column
were shuffled.

Shapes: n rows, F features, C numbers a row, R repeats, P outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numba import njit, prange

from transfuse.kernels.kept import kept
from transfuse.trees.ensemble import Trees

ROWS = 128
"""Rows that are walked together, so that what belongs to them stays in the cache."""

NODE = np.dtype([("threshold", "f8"), ("feature", "i4"), ("left", "i4"), ("right", "i4"), ("categories", "i4")])
"""What a walk reads of a node, side by side; the threshold of a split by categories is not a number."""


@kept(njit)
def _unusual_left(value, node, nodes, missing_left, sets):  # type: ignore[no-untyped-def]
    """Whether a missing value, or one of a split by categories, goes left."""
    if np.isnan(value):
        return missing_left[node]
    if value < 0 or value >= 32 * sets.shape[1]:
        return False
    place = int(value)
    return (sets[nodes[node].categories, place // 32] >> np.uint32(place % 32)) & np.uint32(1) != 0


@kept(njit, inline="always")
def _goes_left(value, node, nodes, missing_left, sets):  # type: ignore[no-untyped-def]
    threshold = nodes[node].threshold
    if value <= threshold:
        return True
    if value > threshold:
        return False
    return _unusual_left(value, node, nodes, missing_left, sets)


@kept(njit)
def _leaf(x, node, column, value, nodes, missing_left, sets):  # type: ignore[no-untyped-def]
    """The leaf that a row reaches from `node`, if its `column` held `value`."""
    while nodes[node].feature >= 0:
        here = nodes[node].feature
        known = value if here == column else x[here]
        node = nodes[node].left if _goes_left(known, node, nodes, missing_left, sets) else nodes[node].right
    return node


@kept(njit, parallel=True)
def _gather(X, numbers, weights, roots, nodes, missing_left, sets, found):  # type: ignore[no-untyped-def]
    for tree in prange(len(roots) - 1):
        for i in range(len(X)):
            weight = weights[tree % len(weights), i]
            if weight == 0:
                continue
            node = _leaf(X[i], roots[tree], -1, 0.0, nodes, missing_left, sets)
            for c in range(numbers.shape[1]):
                found[node, c] += weight * numbers[i, c]
        for node in range(roots[tree + 1] - 1, roots[tree] - 1, -1):  # children stand behind their parent
            if nodes[node].feature >= 0:
                for c in range(numbers.shape[1]):
                    found[node, c] = found[nodes[node].left, c] + found[nodes[node].right, c]


@kept(njit, parallel=True)
def _sum(X, roots, outputs, values, nodes, missing_left, sets, found):  # type: ignore[no-untyped-def]
    for block in prange((len(X) + ROWS - 1) // ROWS):
        for tree in range(len(roots) - 1):
            for i in range(block * ROWS, min(len(X), (block + 1) * ROWS)):
                node = _leaf(X[i], roots[tree], -1, 0.0, nodes, missing_left, sets)
                for v in range(values.shape[1]):
                    found[i, outputs[tree] + v] += values[node, v]


@kept(njit, parallel=True)
def _shuffled(  # type: ignore[no-untyped-def]
    X, orders, first, n_columns, roots, outputs, values, nodes, missing_left, sets, found
):
    n_repeats = len(orders)
    for block in prange((len(X) + ROWS - 1) // ROWS):
        begin, end = block * ROWS, min(len(X), (block + 1) * ROWS)
        moved = np.empty((end - begin, n_columns, n_repeats))  # beside each other, not all over the table
        for i in range(begin, end):
            for column in range(n_columns):
                for r in range(n_repeats):
                    moved[i - begin, column, r] = X[orders[r, i], first + column]
        done = np.full((n_columns, n_repeats), -1, np.int64)
        for tree in range(len(roots) - 1):
            for i in range(begin, end):
                stamp = tree * len(X) + i
                node = roots[tree]
                last = _leaf(X[i], node, -1, 0.0, nodes, missing_left, sets)
                while nodes[node].feature >= 0:
                    here = nodes[node].feature
                    goes = _goes_left(X[i, here], node, nodes, missing_left, sets)
                    column = here - first
                    if 0 <= column < n_columns:
                        for r in range(n_repeats):
                            if done[column, r] == stamp:
                                continue
                            value = moved[i - begin, column, r]
                            if _goes_left(value, node, nodes, missing_left, sets) == goes:
                                continue
                            done[column, r] = stamp  # the row leaves its path here, and never meets it again
                            turn = nodes[node].right if goes else nodes[node].left
                            other = _leaf(X[i], turn, here, value, nodes, missing_left, sets)
                            for v in range(values.shape[1]):
                                found[i, column, r, outputs[tree] + v] += values[other, v] - values[last, v]
                    node = nodes[node].left if goes else nodes[node].right


def gathered(trees: Trees, X: np.ndarray, numbers: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted sums of `numbers` (n, C) over the rows of `X` (n, F) that reach each node: (nodes, C).

    `weights` is one row a tree (trees, n), or one for all (1, n), by default 1.
    """
    found = np.zeros((len(trees.feature), numbers.shape[1]))
    weights = np.ones((1, len(X))) if weights is None else np.ascontiguousarray(weights, np.float64)
    numbers = np.ascontiguousarray(numbers, np.float64)
    _apart(_gather, trees.prepared(X), numbers, weights, trees.roots, *_shape(trees), found)
    return found


def summed(trees: Trees, X: np.ndarray) -> np.ndarray:
    """What the trees say of each row together, (n, P)."""
    found = np.zeros((len(X), trees.n_outputs))
    _apart(_sum, trees.prepared(X), trees.roots, trees.outputs, trees.values, *_shape(trees), found)
    return found


def changes(trees: Trees, X: np.ndarray, orders: np.ndarray, first: int, n_columns: int) -> np.ndarray:
    """How far the trees' sum for each row moves if one of the columns from `first` on takes its values in each of
    `orders` (R, n): (n, columns, R, P).

    A row is walked once a tree; only where a shuffled value takes another turn than its own does it go on, from there.
    """
    found = np.zeros((len(X), n_columns, len(orders), trees.n_outputs))
    walked = trees.prepared(X), orders, first, n_columns
    _apart(_shuffled, *walked, trees.roots, trees.outputs, trees.values, *_shape(trees), found)
    return found


def n_threads() -> int:
    """Cores to walk on: OMP_NUM_THREADS, or all that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is of nested loops
    most: int = numba.config.NUMBA_NUM_THREADS
    return min(int(asked), most) if asked.isdecimal() and int(asked) else most


def _apart(kernel: Callable[..., None], *arguments: object) -> None:
    """Call it in a thread of its own: a parallel loop sets how many OpenMP threads its caller has ever after, and with
    that how many PyTorch and scikit-learn use there."""

    def call() -> None:
        numba.set_num_threads(n_threads())
        kernel(*arguments)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def _shape(trees: Trees) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    nodes = np.empty(len(trees.feature), NODE)
    nodes["threshold"] = np.where(trees.categories >= 0, np.nan, trees.threshold)
    for name in ("feature", "left", "right", "categories"):
        nodes[name] = getattr(trees, name)
    return nodes, trees.missing_left, trees.sets
