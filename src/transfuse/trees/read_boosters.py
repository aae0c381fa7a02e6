"""Trees of XGBoost and LightGBM, from what their boosters say of themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from transfuse.errors import DataError
from transfuse.trees.ensemble import LEAF, Nodes, Trees, as_set, joined

XGBOOST_LOGARITHMS = ("count:poisson", "reg:gamma", "reg:tweedie")
LIGHTGBM_LOGARITHMS = ("poisson", "gamma", "tweedie")


def xgboost_trees(booster: Any) -> tuple[Trees, bool]:
    """The trees of a booster, and whether their sum is a logarithm.

    Raises DataError for linear models and leaves of vectors.
    """
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    kind = learner["gradient_booster"]["name"]
    if kind != "gbtree":
        raise DataError(f"an XGBoost model with booster={kind!r} cannot be read; gbtree can")
    content = learner["gradient_booster"]["model"]
    found = []
    for tree, output in zip(content["trees"], content["tree_info"], strict=True):
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise DataError("an XGBoost model with vector leaves (multi_output_tree) cannot be read")
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
        found.append(
            Nodes(
                feature=np.where(split, tree["split_indices"], LEAF),
                threshold=np.nextafter(numbers, np.float32(-np.inf)).astype(np.float64),
                left=np.where(categorical, right, left),
                right=np.where(categorical, left, right),
                missing_left=np.array(tree["default_left"], bool) ^ categorical,
                values=np.where(split, 0.0, numbers)[:, None],
                gain=np.where(split, tree["loss_changes"], 0.0),
                categories=kinds,
                sets=_stacked(sets),
                output=output,
            )
        )
    n_features = int(learner["learner_model_param"]["num_feature"])
    return joined(found, n_features, single=True), learner["objective"]["name"] in XGBOOST_LOGARITHMS


def lightgbm_trees(booster: Any) -> tuple[Trees, bool]:
    """The trees of a booster, and whether their sum is a logarithm.

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
    objective = content.get("objective", "").split(" ")[0]
    return joined(found, content["max_feature_idx"] + 1, single=False), objective in LIGHTGBM_LOGARITHMS


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
