"""Rows sent through trees, compiled: what reaches each leaf, what the trees say, and what they would say if one column
were shuffled.

Shapes: n rows, F features, C numbers a row, R repeats, P outputs.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from transfuse.trees.ensemble import Trees

ROWS = 256
"""Rows that are walked together, so that what belongs to them stays in the cache."""


@njit(cache=True, inline="always")
def _goes_left(value, node, threshold, missing_left, categories, sets):  # type: ignore[no-untyped-def]
    if np.isnan(value):
        return missing_left[node]
    row = categories[node]
    if row < 0:
        return value <= threshold[node]
    if value < 0 or value >= 32 * sets.shape[1]:
        return False
    place = int(value)
    return (sets[row, place // 32] >> np.uint32(place % 32)) & np.uint32(1) != 0


@njit(cache=True)
def _leaf(x, node, column, value, feature, threshold, left, right, missing_left, categories, sets):  # type: ignore[no-untyped-def]
    """The leaf that a row reaches from `node`, if its `column` held `value`."""
    while feature[node] >= 0:
        here = feature[node]
        known = value if here == column else x[here]
        node = left[node] if _goes_left(known, node, threshold, missing_left, categories, sets) else right[node]
    return node


@njit(cache=True, parallel=True)
def _gather(  # type: ignore[no-untyped-def]
    X, numbers, weights, roots, feature, threshold, left, right, missing_left, categories, sets, found
):
    for tree in prange(len(roots) - 1):
        for i in range(len(X)):
            weight = weights[tree % len(weights), i]
            if weight == 0:
                continue
            node = _leaf(X[i], roots[tree], -1, 0.0, feature, threshold, left, right, missing_left, categories, sets)
            for c in range(numbers.shape[1]):
                found[node, c] += weight * numbers[i, c]
        for node in range(roots[tree + 1] - 1, roots[tree] - 1, -1):  # children stand behind their parent
            if feature[node] >= 0:
                for c in range(numbers.shape[1]):
                    found[node, c] = found[left[node], c] + found[right[node], c]


@njit(cache=True, parallel=True)
def _sum(  # type: ignore[no-untyped-def]
    X, roots, outputs, values, feature, threshold, left, right, missing_left, categories, sets, found
):
    for block in prange((len(X) + ROWS - 1) // ROWS):
        for tree in range(len(roots) - 1):
            for i in range(block * ROWS, min(len(X), (block + 1) * ROWS)):
                node = _leaf(
                    X[i], roots[tree], -1, 0.0, feature, threshold, left, right, missing_left, categories, sets
                )
                for v in range(values.shape[1]):
                    found[i, outputs[tree] + v] += values[node, v]


@njit(cache=True, parallel=True)
def _shuffled(  # type: ignore[no-untyped-def]
    X, orders, first, n_columns, roots, outputs, values, feature, threshold, left, right, missing_left,
    categories, sets, found
):  # fmt: skip
    n_repeats = len(orders)
    for block in prange((len(X) + ROWS - 1) // ROWS):
        done = np.full(n_columns * n_repeats, -1, np.int64)
        for tree in range(len(roots) - 1):
            for i in range(block * ROWS, min(len(X), (block + 1) * ROWS)):
                stamp = tree * len(X) + i
                node = roots[tree]
                last = _leaf(X[i], node, -1, 0.0, feature, threshold, left, right, missing_left, categories, sets)
                while feature[node] >= 0:
                    here = feature[node]
                    goes = _goes_left(X[i, here], node, threshold, missing_left, categories, sets)
                    column = here - first
                    if 0 <= column < n_columns:
                        for r in range(n_repeats):
                            pair = column * n_repeats + r
                            if done[pair] == stamp:
                                continue
                            value = X[orders[r, i], here]
                            if _goes_left(value, node, threshold, missing_left, categories, sets) == goes:
                                continue
                            done[pair] = stamp  # the row leaves its path here, and never meets it again
                            other = _leaf(
                                X[i], right[node] if goes else left[node], here, value,
                                feature, threshold, left, right, missing_left, categories, sets,
                            )  # fmt: skip
                            for v in range(values.shape[1]):
                                found[column, r, i, outputs[tree] + v] += values[other, v] - values[last, v]
                    node = left[node] if goes else right[node]


def gathered(trees: Trees, X: np.ndarray, numbers: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted sums of `numbers` (n, C) over the rows of `X` (n, F) that reach each node: (nodes, C).

    `weights` is one row a tree (trees, n), or one for all (1, n), by default 1.
    """
    found = np.zeros((len(trees.feature), numbers.shape[1]))
    weights = np.ones((1, len(X))) if weights is None else np.ascontiguousarray(weights, np.float64)
    numbers = np.ascontiguousarray(numbers, np.float64)
    _gather(trees.prepared(X), numbers, weights, trees.roots, *_shape(trees), found)
    return found


def summed(trees: Trees, X: np.ndarray) -> np.ndarray:
    """What the trees say of each row together, (n, P)."""
    found = np.zeros((len(X), trees.n_outputs))
    _sum(trees.prepared(X), trees.roots, trees.outputs, trees.values, *_shape(trees), found)
    return found


def changes(trees: Trees, X: np.ndarray, orders: np.ndarray, first: int, n_columns: int) -> np.ndarray:
    """How far the trees' sum for each row moves if one of the columns from `first` on takes its values in each of
    `orders` (R, n): (columns, R, n, P).

    A row is walked once a tree; only where a shuffled value takes another turn than its own does it go on, from there.
    """
    found = np.zeros((n_columns, len(orders), len(X), trees.n_outputs))
    _shuffled(
        trees.prepared(X), orders, first, n_columns, trees.roots, trees.outputs, trees.values, *_shape(trees), found
    )
    return found


def _shape(trees: Trees) -> tuple[np.ndarray, ...]:
    return (
        trees.feature, trees.threshold, trees.left, trees.right, trees.missing_left, trees.categories, trees.sets
    )  # fmt: skip
