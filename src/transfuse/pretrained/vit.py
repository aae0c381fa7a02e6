"""The vision Transformer as `transformers` lays it out, without what is put on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.models.towers import ImageTower, ImageTowerConfig
from transfuse.pretrained.family import Family
from transfuse.pretrained.renames import Rename, renamed_error

_PARTS = [
    ("attention.query", "attention.attention.query"),
    ("attention.key", "attention.attention.key"),
    ("attention.value", "attention.attention.value"),
    ("attention.out", "attention.output.dense"),
    ("attention_norm", "layernorm_before"),
    ("feed_forward.up", "intermediate.dense"),
    ("feed_forward.down", "output.dense"),
    ("feed_forward_norm", "layernorm_after"),
]
_FIELDS = {
    "size": "image_size",
    "patch": "patch_size",
    "channels": "num_channels",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_hidden": "intermediate_size",
    "bias": "qkv_bias",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_DEFAULTS = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

ON_TOP = ("pooler.", "classifier.", "vit.pooler.", "decoder.", "embeddings.mask_token", "vit.embeddings.mask_token")
"""What heads of other tasks have besides; a tower has no use for them."""


def _table(config: ImageTowerConfig) -> list[Rename]:
    pairs = [("patches", "embeddings.patch_embeddings.projection"), ("encoder.norm", "layernorm")]
    pairs += [(f"encoder.blocks.*.{ours}", f"encoder.layer.*.{theirs}") for ours, theirs in _PARTS]
    return [
        # theirs have axes for the rows of a batch
        Rename("first", "embeddings.cls_token", lambda own: own[None, None], torch.flatten),
        Rename("positions.weight", "embeddings.position_embeddings", lambda own: own[None], lambda own: own.squeeze(0)),
        *(Rename(f"{a}.{kind}", f"{b}.{kind}") for a, b in pairs for kind in ("weight", "bias")),
    ]


def _values(c: ImageTowerConfig) -> dict[str, Any]:
    theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    values = {name: getattr(c, ours) for ours, name in _FIELDS.items()}
    return values | {"intermediate_size": c.d_hidden or 4 * c.d_model, "hidden_act": theirs[c.activation]}


def _config(values: Mapping[str, Any]) -> ImageTowerConfig:
    missing = sorted(name for name in _FIELDS.values() if name not in values and name not in _DEFAULTS)
    if missing:
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    activation = values.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ModelDirectoryError(f"hidden_act={activation!r} is not supported; known are {', '.join(_ACTIVATIONS)}")
    try:
        own = {ours: values.get(name, _DEFAULTS.get(name)) for ours, name in _FIELDS.items()}
        return ImageTowerConfig(**own, activation=_ACTIVATIONS[activation])  # type: ignore[arg-type]
    except ConfigError as error:
        raise renamed_error(error, _FIELDS) from error


def _reduce(config: ImageTowerConfig, weights: dict[str, Tensor]) -> None:
    """Take out the head, and the prefix that models with one have."""
    for name in list(weights):
        if name.startswith(ON_TOP):
            del weights[name]
        elif name.startswith("vit."):
            weights[name.removeprefix("vit.")] = weights.pop(name)


VIT = Family(
    model_type="vit",
    architecture="ViTModel",
    model=ImageTower,
    expresses=lambda config: config.stem == "patches",
    values=_values,
    config=_config,
    table=_table,
    reduce=_reduce,
)
"""ViT, as image towers may start from."""
