"""Trees of any library in one form: flat arrays, parents before children.

A row goes left at a node where its value is at most the threshold, or among the node's categories; a missing value goes
where the node says. Trees give numbers at their leaves, which are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from transfuse.errors import DataError

LEAF = -1
EVERY = -1
"""In place of an output of y: all of them."""


@dataclass(frozen=True)
class Learned:
    """What each node saw in training: the `weight` of its rows, what it `says` of them (nodes, O outputs, C): shares of
    classes, or a mean (C is 1), and for numbers the summed squares of their distances to it (`lost`, over outputs the
    mean). `row` is the weight of one row, 1 where it is None."""

    weight: np.ndarray
    says: np.ndarray
    lost: np.ndarray | None = None
    row: np.ndarray | None = None


@dataclass(frozen=True)
class Trees:
    """All nodes of an ensemble, one tree behind another.

    `roots` (trees + 1) is where each tree begins, and the end. Of each node: `feature` (LEAF at a leaf), `threshold`,
    `left` and `right` (nodes), `missing_left`, `categories` (a row of `sets`, or -1 where the split is of numbers),
    `gain` as the library reports it, and `values` (nodes, V), which at a leaf of tree t are added to outputs
    `outputs[t]` to `outputs[t]` + V. `learned` is what nodes saw in training, where the library tells. Values are
    compared as float32 where `single`. `grown_for` is the output of y that each tree was grown for and speaks of, or
    EVERY; where it is None, all trees were grown for every output.
    """

    n_features: int
    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    categories: np.ndarray
    sets: np.ndarray
    values: np.ndarray
    outputs: np.ndarray
    gain: np.ndarray
    single: bool
    learned: Learned | None = None
    grown_for: np.ndarray | None = None

    @property
    def n_trees(self) -> int:
        """How many there are."""
        return len(self.outputs)

    @property
    def n_outputs(self) -> int:
        """Numbers that the trees give together for a row."""
        return int(self.outputs.max()) + self.values.shape[1]

    @property
    def splits(self) -> np.ndarray:
        """The nodes that are not leaves."""
        return np.flatnonzero(self.feature != LEAF)

    @property
    def tree_of(self) -> np.ndarray:
        """Which tree each node is of."""
        return np.repeat(np.arange(self.n_trees), np.diff(self.roots))

    def per_feature(self, numbers: np.ndarray) -> np.ndarray:
        """Sums over each feature's splits of a number a node, (features,)."""
        nodes = self.splits
        return np.bincount(self.feature[nodes], numbers[nodes], self.n_features)

    def prepared(self, X: np.ndarray) -> np.ndarray:
        """Rows as the trees compare them, in float64."""
        rows = np.asarray(X, np.float32) if self.single else np.asarray(X)
        return np.ascontiguousarray(rows, np.float64)


@dataclass
class Nodes:
    """The nodes of one tree, numbered from its root, 0."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    values: np.ndarray
    gain: np.ndarray
    categories: np.ndarray | None = None
    sets: np.ndarray | None = None
    learned: Learned | None = None
    output: int = 0
    grown_for: int = EVERY


def joined(trees: Sequence[Nodes], n_features: int, *, single: bool) -> Trees:
    """Trees as one. Raises DataError for none."""
    if not trees:
        raise DataError("the model has no trees")
    sizes = [len(tree.feature) for tree in trees]
    roots = np.concatenate([[0], np.cumsum(sizes)])
    sets = [np.zeros((0, 1), np.uint32) if tree.sets is None else tree.sets for tree in trees]
    width = max(one.shape[1] for one in sets)
    first_sets = np.concatenate([[0], np.cumsum([len(one) for one in sets])])
    inner = [tree.feature != LEAF for tree in trees]
    grown_for = np.array([tree.grown_for for tree in trees])
    kinds = [
        np.full(n, -1) if tree.categories is None else tree.categories for tree, n in zip(trees, sizes, strict=True)
    ]
    learned = [tree.learned for tree in trees if tree.learned is not None]

    def flat(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.ascontiguousarray(np.concatenate(parts), dtype)

    def placed(name: str) -> np.ndarray:
        parts = zip(trees, inner, roots, strict=False)
        return flat([np.where(split, getattr(tree, name) + root, LEAF) for tree, split, root in parts], np.int32)

    return Trees(
        n_features=n_features,
        roots=roots,
        feature=flat([np.where(split, tree.feature, LEAF) for tree, split in zip(trees, inner, strict=True)], np.int32),
        threshold=flat([tree.threshold for tree in trees], np.float64),
        left=placed("left"),
        right=placed("right"),
        missing_left=flat([tree.missing_left for tree in trees], np.bool_),
        categories=flat(
            [np.where(kind >= 0, kind + first, -1) for kind, first in zip(kinds, first_sets, strict=False)], np.int32
        ),
        sets=flat([np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in sets], np.uint32),
        values=flat([tree.values for tree in trees], np.float64),
        outputs=np.array([tree.output for tree in trees]),
        gain=flat([tree.gain for tree in trees], np.float64),
        single=single,
        learned=_joined_learned(learned) if len(learned) == len(trees) else None,
        grown_for=None if (grown_for == EVERY).all() else grown_for,
    )


def side_by_side(parts: Sequence[Trees]) -> Trees:
    """Trees of several models, each grown for an output of y of its own, its sums behind those of the one before.

    Raises DataError for leaves that do not hold equally many numbers.
    """
    widths = sorted({part.values.shape[1] for part in parts})
    if len(widths) > 1:
        raise DataError(f"trees with {widths[0]} numbers a leaf cannot be read beside trees with {widths[-1]}")
    # each model's nodes are moved as those of one tree are
    whole = joined(
        [
            Nodes(p.feature, p.threshold, p.left, p.right, p.missing_left, p.values, p.gain, p.categories, p.sets)
            for p in parts
        ],
        parts[0].n_features,
        single=parts[0].single,
    )
    first_sums = np.cumsum([0, *(part.n_outputs for part in parts)])
    roots = [part.roots[:-1] + by for part, by in zip(parts, whole.roots, strict=False)]
    return replace(
        whole,
        roots=np.concatenate([*roots, whole.roots[-1:]]),
        outputs=np.concatenate([part.outputs + by for part, by in zip(parts, first_sums, strict=False)]),
        grown_for=np.repeat(np.arange(len(parts)), [part.n_trees for part in parts]),
    )


def _joined_learned(parts: Sequence[Learned]) -> Learned:
    lost = [part.lost for part in parts if part.lost is not None]
    return Learned(
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.says for part in parts]),
        np.concatenate(lost) if len(lost) == len(parts) else None,
        np.concatenate([np.ones(len(part.weight)) if part.row is None else part.row for part in parts]),
    )


def as_set(categories: Sequence[int]) -> np.ndarray:
    """Categories as bits of 32-bit words."""
    words = np.zeros(max(categories, default=0) // 32 + 1, np.uint32)
    for one in categories:
        words[one // 32] |= np.uint32(1 << (one % 32))
    return words
