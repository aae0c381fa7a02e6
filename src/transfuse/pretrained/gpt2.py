"""GPT-2 as `transformers` lays it out: queries, keys and values in one matrix, every matrix transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.pretrained.family import Family
from transfuse.pretrained.renames import Rename, drop_copy, renamed_error


def _transposed(weight: Tensor) -> Tensor:
    return weight.t().contiguous() if weight.dim() == 2 else weight


_PARTS = [
    ("attention.query", "attn.query"),  # the three that `_fuse` and `_split` turn into c_attn and back
    ("attention.key", "attn.key"),
    ("attention.value", "attn.value"),
    ("attention.out", "attn.c_proj"),
    ("feed_forward.up", "mlp.c_fc"),
    ("feed_forward.down", "mlp.c_proj"),
]
_TABLE = [
    Rename("embedding.token.weight", "transformer.wte.weight"),
    Rename("embedding.positions.weight", "transformer.wpe.weight"),
    *(
        Rename(f"decoder.blocks.*.{ours}.{kind}", f"transformer.h.*.{theirs}.{kind}", _transposed, _transposed)
        for ours, theirs in _PARTS
        for kind in ("weight", "bias")
    ),
    *(
        Rename(f"{ours}.{kind}", f"{theirs}.{kind}")
        for ours, theirs in (
            ("decoder.blocks.*.attention_norm", "transformer.h.*.ln_1"),
            ("decoder.blocks.*.feed_forward_norm", "transformer.h.*.ln_2"),
            ("decoder.norm", "transformer.ln_f"),
        )
        for kind in ("weight", "bias")
    ),
    Rename("output.weight", "lm_head.weight"),
]
_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "max_positions": "n_positions",
    "norm_eps": "layer_norm_epsilon",
}
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
_VARIANTS = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
"""Switches of the architecture, with the only value that is supported."""


def _expresses(c: DecoderConfig) -> bool:
    biased = c.qkv_bias and c.out_bias and c.hidden_bias
    plain = c.positions == "learned" and c.norm == "layer" and not c.gated and c.has_plain_heads
    return biased and plain and set(c.kv_heads_by_layer) == {c.n_heads}


def _values(c: DecoderConfig) -> dict[str, Any]:
    theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    values = {name: getattr(c, ours) for ours, name in _FIELDS.items()}
    return values | {
        "n_ctx": c.max_positions,
        "n_inner": c.d_hidden,
        "activation_function": theirs[c.activation],
        "tie_word_embeddings": c.tie_output,
        "embd_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "attn_pdrop": c.attention_dropout,
        "bos_token_id": c.start_id,
        "eos_token_id": c.end_ids[0] if len(c.end_ids) == 1 else list(c.end_ids),
    }


def _config(values: Mapping[str, Any]) -> DecoderConfig:
    needed = [name for name in _FIELDS.values() if name != "layer_norm_epsilon"]
    missing = sorted(name for name in (*needed, "eos_token_id") if values.get(name) is None)
    if missing:
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    for name, supported in _VARIANTS.items():
        if values.get(name, supported) != supported:
            raise ModelDirectoryError(f"{name}={values[name]} is not supported")
    activation = values.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise ModelDirectoryError(
            f"activation_function={activation!r} is not supported; known are {', '.join(_ACTIVATIONS)}"
        )
    end_ids = values["eos_token_id"]
    try:
        return DecoderConfig(
            **{ours: values.get(name, 1e-5) for ours, name in _FIELDS.items()},
            d_hidden=values.get("n_inner") or 4 * values["n_embd"],
            activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
            gated=False,
            qkv_bias=True,
            out_bias=True,
            hidden_bias=True,
            norm="layer",
            positions="learned",
            tie_output=values.get("tie_word_embeddings", True),
            dropout=values.get("resid_pdrop", 0.1),
            attention_dropout=values.get("attn_pdrop", 0.1),
            # GPT-2 writes one token for start and end; a start token that ends texts too is never put before a prompt
            start_id=values.get("bos_token_id"),
            end_ids=tuple(end_ids) if isinstance(end_ids, list) else (end_ids,),
        )
    except ConfigError as error:
        raise renamed_error(error, _FIELDS | {"d_hidden": "n_inner"}) from error


def _fuse(config: DecoderConfig, weights: dict[str, Tensor]) -> None:
    """Queries, keys and values side by side as c_attn."""
    for i in range(config.n_layers):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"transformer.h.{i}.attn.{name}.{kind}") for name in ("query", "key", "value")]
            weights[f"transformer.h.{i}.attn.c_attn.{kind}"] = torch.cat(parts, dim=-1)


def _split(config: DecoderConfig, weights: dict[str, Tensor]) -> None:
    """c_attn as queries, keys and values, and what older files hold besides taken out."""
    for name in list(weights):
        if name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks
            del weights[name]
        elif not name.startswith(("transformer.", "lm_head.")):  # a bare GPT2Model
            weights[f"transformer.{name}"] = weights.pop(name)
    for name in [name for name in weights if ".attn.c_attn." in name]:
        fused = weights.pop(name)
        if fused.shape[-1] % 3:
            raise ModelDirectoryError(f"{name} has shape {tuple(fused.shape)}, whose last axis must divide by 3")
        for part, value in zip(("query", "key", "value"), fused.chunk(3, dim=-1), strict=True):
            weights[name.replace("c_attn", part)] = value.contiguous()
    if config.tie_output:
        drop_copy(weights, "lm_head.weight", "transformer.wte.weight")


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    model=DecoderModel,
    expresses=_expresses,
    values=_values,
    config=_config,
    table=lambda config: _TABLE,
    complete=_fuse,
    reduce=_split,
)
"""GPT-2 and every model trained here in its way with as many key/value heads as heads."""
