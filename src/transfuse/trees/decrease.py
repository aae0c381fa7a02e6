"""Importance by decrease: how much better a node's children speak for its rows than the node did.

Each node says what it learned in training, shares of classes or a mean, and rows are judged by it: by the squared error
of the shares (Brier), by the negative logarithm of the share of their class (in bits), or by squared error. On the rows
of the training that is the usual definition: the mean loss at a node is its Gini impurity, entropy (but for one row
that `_loss` adds to each node) or variance.
On other rows, unlike impurities counted anew, it is honest: a split that only fitted noise makes it worse, so its
decrease is below zero (the same idea as MDI-oob, arXiv 1906.10845, and UFI, arXiv 1903.05179).

Of several outputs of y the impurity is the mean of theirs, as in scikit-learn's forests. A tree that was grown for one
output of a boosted ensemble says nothing of the others: its splits change that output's impurity alone, in that mean.

Shapes: n rows, O outputs, C classes (1 of numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from transfuse.trees.ensemble import EVERY, Learned, Trees
from transfuse.trees.walk import gathered

Measure = Literal["gini", "information", "variance"]


@dataclass(frozen=True)
class Target:
    """What rows are judged by: ones for classes, (n, O, C), or numbers, (n, O, 1), `of_classes` or not."""

    values: np.ndarray
    of_classes: bool

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures that make sense."""
        return ("gini", "information") if self.of_classes else ("variance",)


def learned_from(trees: Trees, X: np.ndarray, target: Target, weights: np.ndarray | None = None) -> Learned:
    """What nodes learn from rows, each with its weight."""
    centre = _centre(target)
    sums = _sums(trees, X, target, weights, centre)
    weight = sums[:, :, :1].mean(1)[:, 0] if not target.of_classes else sums.sum(2).mean(1)
    full = np.maximum(weight, np.finfo(float).tiny)[:, None, None]
    if target.of_classes:
        used = 1.0 if weights is None else np.asarray(weights)[np.asarray(weights) > 0].mean()
        return Learned(weight, sums / full, row=np.full(len(weight), used))
    mean = sums[:, :, 1:2] / full
    lost = sums[:, :, 2] - sums[:, :, 1] * mean[:, :, 0]
    return Learned(weight, mean + centre, _over_outputs(trees, lost))


def training_decrease(trees: Trees, learned: Learned, measure: Measure, *, each: bool) -> np.ndarray:
    """Importance on the training rows, summing to 1. With `each`, every tree counts the same, as in a forest."""
    found = _per_tree(trees, _learned_loss(trees, learned, measure))
    totals = found.sum(1)
    if each:
        found = found[totals > 0] / totals[totals > 0, None]
    together = found.sum(0)
    return together / total if (total := together.sum()) > 0 else together


def rows_decrease(
    trees: Trees,
    learned: Learned,
    X: np.ndarray,
    target: Target,
    *,
    each: bool,
    weights: np.ndarray | None = None,
) -> dict[Measure, np.ndarray]:
    """Importance on other rows by each measure, in the unit of that on the training rows: what is left of it.

    `weights` is one row for all trees, (1, n), or one a tree.
    """
    centre = _centre(target)
    sums = _sums(trees, X, target, weights, centre)
    roots = trees.roots[:-1]
    reached = sums.sum(2).mean(1)[roots] if target.of_classes else sums[:, :, 0].mean(1)[roots]
    found: dict[Measure, np.ndarray] = {}
    for measure in target.measures:
        spent = _per_tree(trees, _learned_loss(trees, learned, measure)) / learned.weight[roots, None]
        gained = _per_tree(trees, _loss(trees, learned, sums, measure, centre)) / np.maximum(reached, 1e-300)[:, None]
        totals = spent.sum(1)
        used = (totals > 0) & (reached > 0)
        if each:
            found[measure] = (gained[used] / totals[used, None]).mean(0) if used.any() else gained.sum(0)
        else:
            total = totals[used].sum()
            found[measure] = gained[used].sum(0) / total if total > 0 else gained.sum(0)
    return found


def _centre(target: Target) -> np.ndarray:
    """The mean of numbers, (O, 1), which is taken from them before they are squared; nothing of classes."""
    mean: np.ndarray = target.values.mean(0)
    return np.zeros_like(mean) if target.of_classes else mean


def _sums(trees: Trees, X: np.ndarray, target: Target, weights: np.ndarray | None, centre: np.ndarray) -> np.ndarray:
    """Of the rows that reach each node: weights of classes, (nodes, O, C), or sums of 1, y and y² (nodes, O, 3)."""
    values = target.values - centre
    if not target.of_classes:
        values = np.concatenate([np.ones_like(values), values, values**2], axis=2)
    flat = gathered(trees, X, values.reshape(len(values), -1), weights)
    return flat.reshape(len(flat), *values.shape[1:])


def _over_outputs(trees: Trees, lost: np.ndarray) -> np.ndarray:
    """The mean over outputs of what nodes lose of each (nodes, O), where others than a tree's own count as nothing."""
    mean: np.ndarray = lost.mean(1)
    if trees.grown_for is None:
        return mean
    own = trees.grown_for[trees.tree_of]
    return np.where(own == EVERY, mean, lost[np.arange(len(lost)), own] / lost.shape[1])


def _learned_loss(trees: Trees, learned: Learned, measure: Measure) -> np.ndarray:
    """Loss of the training rows at each node, summed over them."""
    p = learned.says
    if measure == "gini":
        return learned.weight * _over_outputs(trees, 1 - (p**2).sum(2))
    if measure == "information":
        bits = -np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(2)
        return learned.weight * _over_outputs(trees, bits)
    assert learned.lost is not None, "numbers come with their squared distances"
    return learned.lost


def _loss(trees: Trees, learned: Learned, sums: np.ndarray, measure: Measure, centre: np.ndarray) -> np.ndarray:
    """Loss of other rows at each node, summed over them."""
    p = learned.says
    if measure == "gini":
        return _over_outputs(trees, (sums * (1 - 2 * p)).sum(2) + sums.sum(2) * (p**2).sum(2))
    if measure == "information":
        # one row that is as all rows are, or a class a node never saw would cost infinitely much
        roots = trees.roots[:-1][trees.tree_of]
        weight = learned.weight[:, None, None]
        row = 1.0 if learned.row is None else learned.row[:, None, None]
        shares = (weight * p + row * p[roots]) / (weight + row)
        bits = -np.where(sums > 0, sums * np.log2(np.where(shares > 0, shares, 2.0**-53)), 0).sum(2)
        return _over_outputs(trees, bits)
    mean = p[:, :, 0] - centre[:, 0]
    return _over_outputs(trees, sums[:, :, 2] - 2 * mean * sums[:, :, 1] + mean**2 * sums[:, :, 0])


def _per_tree(trees: Trees, lost: np.ndarray) -> np.ndarray:
    """What each tree's splits on each feature take from a loss, (trees, features)."""
    nodes = trees.splits
    taken = lost[nodes] - lost[trees.left[nodes]] - lost[trees.right[nodes]]
    place = trees.tree_of[nodes] * trees.n_features + trees.feature[nodes]
    return np.bincount(place, taken, trees.n_trees * trees.n_features).reshape(trees.n_trees, -1)
