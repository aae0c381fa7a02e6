"""Importance by permutation: what a model's score loses when a column is shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from transfuse.trees.ensemble import Trees
from transfuse.trees.walk import changes, summed

MEMORY = 2**29
"""Bytes of the sums that are held at once."""

GRAIN = 1e-12
"""Share of the largest sum of trees that sums are rounded to: above their rounding errors, below what they mean."""

Scorer = Callable[[np.ndarray], float]
"""Sums of the trees, (rows, outputs), to a score, higher is better."""


def shuffles(n: int, n_repeats: int, seed: int) -> np.ndarray:
    """Orders of rows (repeats, n) as scikit-learn's `permutation_importance` shuffles every column: each repeat what
    the one before has left."""
    draw = np.random.RandomState(seed)
    index, order = np.arange(n), np.arange(n)
    found = []
    for _ in range(n_repeats):
        draw.shuffle(index)
        order = order[index]
        found.append(order)
    return np.array(found)


def permutation_losses(trees: Trees, X: np.ndarray, score: Scorer, orders: np.ndarray) -> np.ndarray:
    """What the score loses for each column in each order, (columns, repeats)."""
    own = summed(trees, X)
    grain = max(float(np.abs(own).max()) * GRAIN, 1e-300)
    whole = score(np.round(own / grain) * grain)
    block = max(1, MEMORY // (len(orders) * own.nbytes))
    found = np.zeros((trees.n_features, len(orders)))
    for first in range(0, trees.n_features, block):
        n = min(block, trees.n_features - first)
        moved = changes(trees, X, orders, first, n)
        for column in range(n):
            # equal sums must stay equal, added up in whatever order: scores by rank care
            found[first + column] = [
                whole - score(np.round((own + part) / grain) * grain) for part in moved[:, column].swapaxes(0, 1)
            ]
    return found


def group_losses(
    trees: Trees, X: np.ndarray, score: Scorer, orders: np.ndarray, groups: Sequence[Sequence[int]]
) -> np.ndarray:
    """What the score loses when the columns of a group are shuffled together, (groups, repeats)."""
    whole = score(summed(trees, X))
    found = np.zeros((len(groups), len(orders)))
    for row, group in enumerate(groups):
        for repeat, order in enumerate(orders):
            moved = X.copy()
            moved[:, group] = X[np.ix_(order, group)]
            found[row, repeat] = whole - score(summed(trees, moved))
    return found


def correlated_groups(X: np.ndarray, least: float) -> list[list[int]]:
    """Columns that are tied by rank correlations of at least `least`, in groups of two and more; a missing value counts
    as the median."""
    filled = np.where(np.isnan(X), np.nanmedian(np.where(np.isnan(X).all(0), 0.0, X), axis=0), X)
    ranks = np.apply_along_axis(_ranks, 0, filled)
    ranks -= ranks.mean(0)
    length = np.linalg.norm(ranks, axis=0)
    ranks /= np.where(length > 0, length, 1)
    tied = np.abs(ranks.T @ ranks) >= least
    groups: list[list[int]] = []
    seen: set[int] = set()
    for column in range(X.shape[1]):
        if column in seen:
            continue
        group, waiting = {column}, [column]
        while waiting:
            new = set(np.flatnonzero(tied[waiting.pop()]).tolist()) - group
            group |= new
            waiting += sorted(new)
        seen |= group
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


def _ranks(column: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean."""
    _, index, counts = np.unique(column, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts + 1) / 2)[index]
    return ranks
