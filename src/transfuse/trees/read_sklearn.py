"""Trees of scikit-learn: single ones, forests, gradient boosting and histogram gradient boosting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from transfuse.trees.ensemble import Learned, Nodes, Trees, joined


def forest_trees(model: Any) -> Trees:
    """A tree or a forest, each tree giving a class's share or a number, with what its nodes learned, where they tell:
    under monotonic constraints a node's shares of classes are not those of its rows."""
    members = model.estimators_ if hasattr(model, "estimators_") else [model]
    n_drawn = len(model.estimators_samples_[0]) if getattr(model, "bootstrap", False) else None
    clipped = getattr(model, "monotonic_cst", None) is not None
    found = []
    for member in members:
        tree = member.tree_
        nodes = _nodes(tree, tree.value.reshape(tree.node_count, -1))  # outputs one behind another
        weight = tree.weighted_n_node_samples
        if hasattr(model, "classes_") and not clipped:
            row = np.full(len(weight), weight[0] / (n_drawn or tree.n_node_samples[0]))
            nodes.learned = Learned(weight, tree.value, row=row)
        elif not hasattr(model, "classes_") and member.criterion in (
            "squared_error",
            "friedman_mse",
        ):  # whose impurity is the variance
            nodes.learned = Learned(weight, tree.value, weight * tree.impurity)
        found.append(nodes)
    return joined(found, members[0].n_features_in_, single=True)


def boosted_trees(model: Any) -> Trees:
    """Gradient boosting, where each tree adds to the margin of one class, or to the number."""
    rate = model.learning_rate
    found = []
    for stage in model.estimators_:
        for output, member in enumerate(stage):
            nodes = _nodes(member.tree_, rate * member.tree_.value[:, :, 0])
            nodes.output = output
            found.append(nodes)
    return joined(found, model.n_features_in_, single=True)


def histogram_trees(model: Any) -> tuple[Trees, Callable[[Any], np.ndarray], bool]:
    """Histogram gradient boosting, how a table is encoded for it, and whether its sums are logarithms."""
    order = np.arange(model.n_features_in_)
    categorical = model.is_categorical_
    if model._preprocessor is not None and categorical is not None:
        order = np.concatenate([np.flatnonzero(categorical), np.flatnonzero(~categorical)])

    def encode(X: Any) -> np.ndarray:
        coded = np.asarray(model._preprocess_X(X, reset=False), np.float64)
        found = np.empty_like(coded)
        found[:, order] = coded
        return found

    found = []
    for stage in model._predictors:
        for output, predictor in enumerate(stage):
            nodes = predictor.nodes
            leaf = nodes["is_leaf"].astype(bool)
            kind = np.where(nodes["is_categorical"].astype(bool) & ~leaf, nodes["bitset_idx"].astype(np.int64), -1)
            found.append(
                Nodes(
                    feature=np.where(leaf, -1, order[np.where(leaf, 0, nodes["feature_idx"])]),
                    threshold=nodes["num_threshold"],
                    left=nodes["left"].astype(np.int64),
                    right=nodes["right"].astype(np.int64),
                    missing_left=nodes["missing_go_to_left"].astype(bool),
                    values=nodes["value"][:, None],
                    gain=np.where(leaf, 0.0, nodes["gain"]),
                    categories=kind,
                    sets=np.asarray(predictor.raw_left_cat_bitsets, np.uint32).reshape(-1, 8),
                    output=output,
                )
            )
    logarithm = getattr(model, "loss", None) in ("poisson", "gamma")
    return joined(found, model.n_features_in_, single=False), encode, logarithm


def _nodes(tree: Any, values: np.ndarray) -> Nodes:
    left, right = tree.children_left, tree.children_right
    split = left >= 0
    lost = tree.weighted_n_node_samples * tree.impurity
    gain = np.where(split, lost - lost[left] - lost[right], 0.0)
    return Nodes(
        feature=np.where(split, tree.feature, -1),
        threshold=tree.threshold,
        left=left,
        right=right,
        missing_left=np.asarray(tree.missing_go_to_left, bool),
        values=values,
        gain=gain,
    )
