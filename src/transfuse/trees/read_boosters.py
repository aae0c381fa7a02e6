"""Trees of XGBoost and LightGBM, from what their boosters say of themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from transfuse.errors import DataError
from transfuse.trees.ensemble import EVERY, LEAF, Nodes, Trees, as_set, joined

XGBOOST_LOGARITHMS = ("count:poisson", "reg:gamma", "reg:tweedie")
XGBOOST_OF_ONE_COLUMN = ("reg:quantileerror", "reg:expectileerror")
"""Objectives whose several outputs all speak of the same column of y."""
LIGHTGBM_LOGARITHMS = ("poisson", "gamma", "tweedie")


@dataclass(frozen=True)
class Boosted:
    """Trees of a booster and what it tells of their sums: how many columns of y they are for, whether they are
    `logarithms` or logits of each class `against_all` others, and the `divisor` of logits. `levels` are the categories
    of each column of them, in the order of their numbers, whatever order a table has them in; None where a table's own
    numbers are taken."""

    trees: Trees
    logarithms: bool
    n_targets: int = 1
    against_all: bool = False
    divisor: float = 1.0
    levels: list[list[Any]] | None = None


def xgboost_trees(booster: Any) -> Boosted:
    """The trees of a booster.

    Raises DataError for linear models, dropped trees, and several quantiles of one column of y.
    """
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    kind = learner["gradient_booster"]["name"]
    if kind != "gbtree":
        raise DataError(f"an XGBoost model with booster={kind!r} cannot be read; gbtree can")
    objective = learner["objective"]["name"]
    n_targets = max(1, int(learner["learner_model_param"].get("num_target", 1)))
    if n_targets > 1 and objective in XGBOOST_OF_ONE_COLUMN:
        raise DataError(f"an XGBoost model with {n_targets} outputs of objective={objective!r} cannot be read; one can")
    content = learner["gradient_booster"]["model"]
    width = max((_vector(tree) for tree in content["trees"]), default=1)
    found = [
        _xgboost_nodes(tree, output, n_targets, width)
        for tree, output in zip(content["trees"], content["tree_info"], strict=True)
    ]
    n_features = int(learner["learner_model_param"]["num_feature"])
    trees = joined(found, n_features, single=True)
    return Boosted(trees, objective in XGBOOST_LOGARITHMS, n_targets, levels=_xgboost_levels(content.get("cats", {})))


def _xgboost_levels(told: dict[str, Any]) -> list[list[Any]] | None:
    """Categories of each column of them, which XGBoost keeps since 3.1: strings end to end in one list of bytes."""
    found = []
    for column in told.get("enc", []):
        values = column["values"]
        if "offsets" in column:
            values = [bytes(values[first:last]).decode() for first, last in pairwise(column["offsets"])]
        found.append(values)
    return [values for values in found if values] or None


def _vector(tree: dict[str, Any]) -> int:
    """How many numbers a leaf of XGBoost's holds."""
    return max(1, int(tree["tree_param"]["size_leaf_vector"]))


def _xgboost_nodes(tree: dict[str, Any], output: int, n_targets: int, width: int) -> Nodes:
    left, right = (np.array(tree[name]) for name in ("left_children", "right_children"))
    split = left >= 0
    numbers = np.array(tree["split_conditions"], np.float32)
    kinds = np.full(len(left), -1)
    sets = []
    starts, sizes = tree.get("categories_segments", []), tree.get("categories_sizes", [])
    for row, (node, start, size) in enumerate(zip(tree.get("categories_nodes", []), starts, sizes, strict=True)):
        kinds[node] = row
        sets.append(as_set(tree["categories"][start : start + size]))
    # it goes left below the threshold, and right where the category is in the set; here left is "at most" and "in"
    categorical = kinds >= 0
    return Nodes(
        feature=np.where(split, tree["split_indices"], LEAF),
        threshold=np.nextafter(numbers, np.float32(-np.inf)).astype(np.float64),
        left=np.where(categorical, right, left),
        right=np.where(categorical, left, right),
        missing_left=np.array(tree["default_left"], bool) ^ categorical,
        values=_xgboost_values(tree, split, output, width),
        # XGBoost records no gain of vectors before 3.2
        gain=np.where(split, tree.get("loss_changes", np.nan), 0.0),
        categories=kinds,
        sets=_stacked(sets),
        output=output if width == 1 else 0,
        grown_for=output if n_targets > 1 and _vector(tree) == 1 else EVERY,
    )


def _xgboost_values(tree: dict[str, Any], split: np.ndarray, output: int, width: int) -> np.ndarray:
    """What leaves add to the sums (nodes, width); one number a leaf is that of `output`, where others hold vectors."""
    values = np.zeros((len(split), width))
    if _vector(tree) == 1:
        numbers = np.array(tree["split_conditions"], np.float32)
        values[~split, output if width > 1 else 0] = numbers[~split]
    elif "leaf_weights" in tree:  # since 3.2, and the right child of a leaf says where
        weights = np.array(tree["leaf_weights"], np.float32).reshape(-1, width)
        values[~split] = weights[np.array(tree["right_children"])[~split]]
    else:
        values[~split] = np.array(tree["base_weights"], np.float32).reshape(-1, width)[~split]
    return values


def lightgbm_trees(booster: Any) -> Boosted:
    """The trees of a booster.

    Raises DataError for linear trees, zeros taken as missing, and forests.
    """
    content = booster.dump_model()
    if content.get("average_output"):
        raise DataError("a LightGBM model with boosting='rf' cannot be read")
    n_outputs = content["num_tree_per_iteration"]
    found = []
    for number, tree in enumerate(content["tree_info"]):
        nodes = _lightgbm_nodes(tree["tree_structure"])
        nodes.output = number % n_outputs
        found.append(nodes)
    trees = joined(found, content["max_feature_idx"] + 1, single=False)
    objective, *settings = content.get("objective", "").split(" ")  # as "multiclassova num_class:3 sigmoid:1"
    told = dict(setting.split(":") for setting in settings if ":" in setting)
    return Boosted(
        trees,
        objective in LIGHTGBM_LOGARITHMS,
        against_all=objective == "multiclassova",
        divisor=1 / float(told.get("sigmoid", 1)),
        levels=booster.pandas_categorical,
    )


def _lightgbm_nodes(root: dict[str, Any]) -> Nodes:
    order: list[dict[str, Any]] = []
    children: list[tuple[int, int]] = []
    waiting = [(root, -1, 0)]
    while waiting:
        node, parent, side = waiting.pop()
        place = len(order)
        order.append(node)
        children.append((LEAF, LEAF))
        if parent >= 0:
            first, second = children[parent]
            children[parent] = (place, second) if side == 0 else (first, place)
        if "split_feature" in node:
            waiting += [(node["right_child"], place, 1), (node["left_child"], place, 0)]
        elif "leaf_coeff" in node:
            raise DataError("a LightGBM model with linear trees cannot be read")
    n = len(order)
    threshold, kinds, missing_left, gain, values = (
        np.zeros(n),
        np.full(n, -1),
        np.zeros(n, bool),
        np.zeros(n),
        np.zeros(n),
    )
    sets: list[np.ndarray] = []
    for place, node in enumerate(order):
        if "split_feature" not in node:
            values[place] = node["leaf_value"]
            continue
        gain[place] = node["split_gain"]
        if node["missing_type"] == "Zero":
            raise DataError("a LightGBM model with zero_as_missing cannot be read")
        if node["decision_type"] == "==":
            kinds[place] = len(sets)
            sets.append(as_set([int(one) for one in str(node["threshold"]).split("||")]))
            continue
        threshold[place] = node["threshold"]
        # without missing values in training, one is taken for 0
        missing_left[place] = node["default_left"] if node["missing_type"] == "NaN" else threshold[place] >= 0
    left, right = np.array(children).T
    feature = np.array([node.get("split_feature", LEAF) for node in order])
    return Nodes(feature, threshold, left, right, missing_left, values[:, None], gain, kinds, _stacked(sets))


def _stacked(sets: list[np.ndarray]) -> np.ndarray:
    width = max((len(one) for one in sets), default=1)
    return np.array([np.pad(one, (0, width - len(one))) for one in sets], np.uint32).reshape(len(sets), width)
