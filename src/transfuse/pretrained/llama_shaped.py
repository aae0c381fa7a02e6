"""Language models laid out as `transformers` lays out Llama and its kin: Llama, Mistral, Qwen2.

They differ in which projections have biases: Llama all or none, Mistral none, Qwen2 queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.pretrained.family import Family
from transfuse.pretrained.renames import Rename, drop_copy, renamed_error

_PARTS = [
    ("attention.query", "self_attn.q_proj"),
    ("attention.key", "self_attn.k_proj"),
    ("attention.value", "self_attn.v_proj"),
    ("attention.out", "self_attn.o_proj"),
    ("feed_forward.gate", "mlp.gate_proj"),
    ("feed_forward.up", "mlp.up_proj"),
    ("feed_forward.down", "mlp.down_proj"),
]
_TABLE = [
    Rename("embedding.token.weight", "model.embed_tokens.weight"),
    *(
        Rename(f"decoder.blocks.*.{ours}.{kind}", f"model.layers.*.{theirs}.{kind}")
        for ours, theirs in _PARTS
        for kind in ("weight", "bias")
    ),
    Rename("decoder.blocks.*.attention_norm.weight", "model.layers.*.input_layernorm.weight"),
    Rename("decoder.blocks.*.feed_forward_norm.weight", "model.layers.*.post_attention_layernorm.weight"),
    Rename("decoder.norm.weight", "model.norm.weight"),
    Rename("output.weight", "lm_head.weight"),
]
_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_hidden": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
}
"""Fields that only change their name and that every config.json has."""

WINDOW = 4096
"""The sliding window of a config.json that names none, as `transformers` has it."""

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def _expresses(c: DecoderConfig) -> bool:
    return c.positions == "rotary" and c.norm == "rms" and c.gated and len(set(c.kv_heads_by_layer)) == 1


def _values(c: DecoderConfig) -> dict[str, Any]:
    theirs = {ours: name for name, ours in _ACTIVATIONS.items()}
    values = {name: getattr(c, ours) for ours, name in _FIELDS.items()}
    return values | {
        "num_key_value_heads": c.kv_heads_by_layer[0],
        "head_dim": c.head_width,
        "hidden_act": theirs[c.activation],
        "tie_word_embeddings": c.tie_output,
        "attention_dropout": c.attention_dropout,
        "dropout": c.dropout,  # not a key of theirs: dropout elsewhere, which changes nothing after training
        "rope_theta": c.rotary_base,
        "rope_scaling": _scaling_values(c),
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rotary_base} | (_scaling_values(c) or {}),
        "bos_token_id": c.start_id,
        "eos_token_id": c.end_ids[0] if len(c.end_ids) == 1 else list(c.end_ids),
    }


def _scaling_values(c: DecoderConfig) -> dict[str, Any] | None:
    if c.rotary_factor is None:
        return None
    if c.rotary_low is None:
        return {"rope_type": "linear", "factor": c.rotary_factor}
    return {
        "rope_type": "llama3",
        "factor": c.rotary_factor,
        "original_max_position_embeddings": c.rotary_original_positions,
        "low_freq_factor": c.rotary_low,
        "high_freq_factor": c.rotary_high,
    }


def _config(values: Mapping[str, Any], **biases: Any) -> DecoderConfig:
    missing = sorted(name for name in _FIELDS.values() if values.get(name) is None)
    if missing:
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    activation = values.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise ModelDirectoryError(f"hidden_act={activation!r} is not supported; known are {', '.join(_ACTIVATIONS)}")
    end_ids = values.get("eos_token_id")
    if end_ids is None:
        raise ModelDirectoryError("config.json has no eos_token_id, so that no text could end")
    fields = {ours: values[name] for ours, name in _FIELDS.items()}
    try:
        return DecoderConfig(
            **fields,
            n_kv_heads=values.get("num_key_value_heads"),
            d_head=values.get("head_dim"),
            activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
            tie_output=values.get("tie_word_embeddings", False),
            attention_dropout=values.get("attention_dropout", 0.0),
            dropout=values.get("dropout", 0.0),
            start_id=values.get("bos_token_id"),
            end_ids=tuple(end_ids) if isinstance(end_ids, list) else (end_ids,),
            **_rotary_fields(values),
            **biases,
        )
    except ConfigError as error:
        raise renamed_error(error, _FIELDS | {"n_kv_heads": "num_key_value_heads", "d_head": "head_dim"}) from error


def _rotary_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary positions; kinds of scaling that are not known here are refused by name."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    base = scaling.get("rope_theta", values.get("rope_theta", 10_000.0))
    if scaling.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelDirectoryError("partial_rotary_factor: rotary positions on a part of each head are not supported")
    fields = {"rotary_base": base}
    if kind == "default":
        return fields
    if kind == "linear":
        return fields | {"rotary_factor": scaling["factor"]}
    if kind == "llama3":
        return fields | {
            "rotary_factor": scaling["factor"],
            "rotary_original_positions": scaling["original_max_position_embeddings"],
            "rotary_low": scaling["low_freq_factor"],
            "rotary_high": scaling["high_freq_factor"],
        }
    raise ModelDirectoryError(f"rope_type={kind!r} is not supported; known are default, linear, llama3")


def _refuse_sliding_window(values: Mapping[str, Any], window: int | None) -> None:
    if window is not None and window < values.get("max_position_embeddings", 0):
        raise ModelDirectoryError(
            f"sliding_window={window} is shorter than max_position_embeddings={values['max_position_embeddings']}: "
            "attention to a sliding window is not supported"
        )


def _llama_config(values: Mapping[str, Any]) -> DecoderConfig:
    attention, hidden = values.get("attention_bias", False), values.get("mlp_bias", False)
    return _config(values, qkv_bias=attention, out_bias=attention, hidden_bias=hidden)


def _mistral_config(values: Mapping[str, Any]) -> DecoderConfig:
    config = _config(values)
    _refuse_sliding_window(values, values.get("sliding_window", WINDOW))
    return config


def _qwen2_config(values: Mapping[str, Any]) -> DecoderConfig:
    config = _config(values, qkv_bias=True)
    if values.get("use_sliding_window", False):
        _refuse_sliding_window(values, values.get("sliding_window", WINDOW))
    return config


def _reduce(config: DecoderConfig, weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if name.endswith("rotary_emb.inv_freq")]:
        del weights[name]  # a table that older `transformers` saved
    if config.tie_output:
        drop_copy(weights, "lm_head.weight", "model.embed_tokens.weight")


def _family(model_type: str, architecture: str, **parts: Any) -> Family[DecoderConfig]:
    return Family(
        model_type=model_type,
        architecture=architecture,
        model=DecoderModel,
        table=lambda config: _TABLE,
        reduce=_reduce,
        **parts,
    )


LLAMA = _family(
    "llama",
    "LlamaForCausalLM",
    expresses=lambda c: _expresses(c) and c.qkv_bias == c.out_bias,
    values=lambda c: _values(c) | {"attention_bias": c.qkv_bias, "mlp_bias": c.hidden_bias},
    config=_llama_config,
)
"""Llama 1 to 3, and every model trained here in its way."""

MISTRAL = _family(
    "mistral",
    "MistralForCausalLM",
    expresses=lambda c: _expresses(c) and not (c.qkv_bias or c.out_bias or c.hidden_bias),
    values=lambda c: _values(c) | {"sliding_window": None},
    config=_mistral_config,
)
"""Mistral, where its attention is not limited to a window."""

QWEN2 = _family(
    "qwen2",
    "Qwen2ForCausalLM",
    expresses=lambda c: _expresses(c) and c.qkv_bias and not (c.out_bias or c.hidden_bias) and c.has_plain_heads,
    values=lambda c: _values(c) | {"use_sliding_window": False},
    config=_qwen2_config,
)
"""Qwen2 and 2.5: biases on queries, keys and values alone."""
