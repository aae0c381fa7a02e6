"""Encoder–decoders laid out as `transformers` lays out BART and its kin: Marian (post-norm) and M2M100 (pre-norm).

Both have the same weight names; M2M100 closes each stack with a norm, Marian adds a bias to the logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.pretrained.family import Family
from transfuse.pretrained.renames import Rename, drop_copy, renamed_error

_ATTENTION = [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")]
_PARTS = [
    *((f"attention.{ours}", f"self_attn.{theirs}") for ours, theirs in _ATTENTION),
    ("attention_norm", "self_attn_layer_norm"),
    *((f"cross_attention.{ours}", f"encoder_attn.{theirs}") for ours, theirs in _ATTENTION),
    ("cross_attention_norm", "encoder_attn_layer_norm"),
    ("feed_forward.up", "fc1"),
    ("feed_forward.down", "fc2"),
    ("feed_forward_norm", "final_layer_norm"),
]
_RENAMES = [
    *(
        Rename(f"{stack}.blocks.*.{ours}.{kind}", f"model.{stack}.layers.*.{theirs}.{kind}")
        for stack in ("encoder", "decoder")
        for ours, theirs in _PARTS
        for kind in ("weight", "bias")
    ),
    *(
        Rename(f"{stack}.norm.{kind}", f"model.{stack}.layer_norm.{kind}")
        for stack in ("encoder", "decoder")
        for kind in ("weight", "bias")
    ),
    Rename("output.weight", "lm_head.weight"),
    Rename("output.bias", "final_logits_bias", give=lambda bias: bias[None], take=lambda bias: bias.squeeze(0)),
]
_SHARED = [Rename("source_embedding.token.weight", "model.shared.weight")]
_SEPARATE = [
    Rename("source_embedding.token.weight", "model.encoder.embed_tokens.weight"),
    Rename("target_embedding.token.weight", "model.decoder.embed_tokens.weight"),
]
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}

_FIELDS = {
    "d_model": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads",
    "encoder_hidden": "encoder_ffn_dim",
    "decoder_hidden": "decoder_ffn_dim",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "scale_embeddings": "scale_embedding",
    "tie_output": "tie_word_embeddings",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "hidden_dropout": "activation_dropout",
    "start_id": "decoder_start_token_id",
    "pad_id": "pad_token_id",
    "end_id": "eos_token_id",
}
"""Fields that only change their name."""

_DEFAULTS = {"tie_word_embeddings": True, "attention_dropout": 0.0, "activation_dropout": 0.0}
"""Values that older directories leave out."""


def _table(config: Seq2SeqConfig) -> list[Rename]:
    return _RENAMES + (_SHARED if config.share_embeddings else _SEPARATE)


def _plain(config: Seq2SeqConfig) -> bool:
    """Whether the layers are what both families have: multi-head, biased, layer-normed, ungated."""
    multi_head = set(config.cached_heads) == {config.decoder_heads} and config.encoder_kv_heads in (
        None,
        config.encoder_heads,
    )
    return multi_head and config.bias and config.norm == "layer" and not config.gated


def _common_values(config: Seq2SeqConfig) -> dict[str, Any]:
    values = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    return values | {
        "activation_function": config.activation,
        "is_encoder_decoder": True,
        "bos_token_id": config.start_id,
        "forced_bos_token_id": config.first_id,
        "forced_eos_token_id": config.end_id,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
    }


def _common_config(values: Mapping[str, Any]) -> dict[str, Any]:
    activation = values.get("activation_function")
    if activation is not None and activation not in _ACTIVATIONS:
        raise ModelDirectoryError(
            f"activation_function={activation!r} is not supported; known are {', '.join(_ACTIVATIONS)}"
        )
    needed = [theirs for theirs in (*_FIELDS.values(), "activation_function") if theirs not in _DEFAULTS]
    missing = sorted(theirs for theirs in needed if values.get(theirs) is None)
    if missing:
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    found = {ours: values.get(theirs, _DEFAULTS.get(theirs)) for ours, theirs in _FIELDS.items()}
    given = [found["pad_id"], found["start_id"], found["end_id"]]
    banned = tuple(one for one in _banned(values.get("bad_words_ids") or []) if one not in given)
    written = {"first_id": values.get("forced_bos_token_id"), "banned_ids": banned}
    return found | written | {"activation": _ACTIVATIONS[values["activation_function"]]}


def _banned(words: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that are bad words by themselves. A warning says how many others there are, which are ignored."""
    several = sum(len(word) > 1 for word in words)
    if several:
        warnings.warn(f"{several} bad_words_ids of more than one token are ignored", UserWarning, stacklevel=2)
    return [word[0] for word in words if len(word) == 1]


def _marian_values(config: Seq2SeqConfig) -> dict[str, Any]:
    return _common_values(config) | {
        "share_encoder_decoder_embeddings": config.share_embeddings,
        "decoder_vocab_size": config.n_target_tokens,
        "output_bias": config.output_bias,  # not a Marian key: whether final_logits_bias is more than zeros
    }


def _marian_config(values: Mapping[str, Any]) -> Seq2SeqConfig:
    shared = values.get("share_encoder_decoder_embeddings", True)
    target = values.get("decoder_vocab_size")
    return _checked(
        **_common_config(values),
        positions="sinusoidal",
        norm_first=False,
        share_embeddings=shared,
        target_vocab_size=None if target == values["vocab_size"] else target,
        output_bias=values.get("output_bias", True),
    )


def _m2m100_config(values: Mapping[str, Any]) -> Seq2SeqConfig:
    config = _checked(**_common_config(values), positions="closed-sinusoidal", norm_first=True)
    if config.start_id == config.pad_id:
        raise ModelDirectoryError(
            f"decoder_start_token_id={config.start_id} must differ from pad_token_id={config.pad_id}: "
            "M2M100 gives padding no position"
        )
    return config


def _checked(**fields: Any) -> Seq2SeqConfig:
    """The config with these fields; what is wrong with one is said of the key that the file has for it."""
    try:
        return Seq2SeqConfig(**fields)
    except ConfigError as error:
        raise renamed_error(error, _FIELDS) from error


def _add_zero_bias(config: Seq2SeqConfig, weights: dict[str, Tensor]) -> None:
    if not config.output_bias:
        table = weights.get("lm_head.weight", weights.get("model.shared.weight"))
        table = weights["model.decoder.embed_tokens.weight"] if table is None else table
        weights["final_logits_bias"] = table.new_zeros(1, len(table))


def _drop_copies(config: Seq2SeqConfig, weights: dict[str, Tensor]) -> None:
    """Remove what older `transformers` wrote more than once: position tables and tied copies.

    Raises ModelDirectoryError if a copy that config.json calls tied holds something else.
    """
    for name in [name for name in weights if name.endswith("embed_positions.weight")]:
        del weights[name]
    copies = []
    if config.share_embeddings:
        copies += [(f"model.{side}.embed_tokens.weight", "model.shared.weight") for side in ("encoder", "decoder")]
    if config.tie_output:
        tied = "model.shared.weight" if config.share_embeddings else "model.decoder.embed_tokens.weight"
        copies.append(("lm_head.weight", tied))
    for copy, original in copies:
        drop_copy(weights, copy, original)
    if not config.output_bias and weights.pop("final_logits_bias", torch.zeros(1)).any():
        raise ModelDirectoryError("config.json says output_bias=false, but final_logits_bias holds more than zeros")


MARIAN = Family(
    model_type="marian",
    architecture="MarianMTModel",
    model=Seq2SeqModel,
    expresses=lambda c: (
        _plain(c)
        and not c.norm_first
        and c.positions == "sinusoidal"
        and (c.tie_output or not c.share_embeddings)  # a table shared but not tied is three tables there
    ),
    values=_marian_values,
    config=_marian_config,
    table=_table,
    complete=_add_zero_bias,
    reduce=_drop_copies,
)
"""Marian translation models (and every post-norm model trained here with the paper's positions)."""

M2M100 = Family(
    model_type="m2m_100",
    architecture="M2M100ForConditionalGeneration",
    model=Seq2SeqModel,
    expresses=lambda c: (
        _plain(c)
        and c.norm_first
        and c.positions == "closed-sinusoidal"
        and c.share_embeddings
        and c.tie_output
        and not c.output_bias
        and c.start_id != c.pad_id  # padding has no position there
    ),
    values=_common_values,
    config=_m2m100_config,
    table=_table,
    reduce=_drop_copies,
)
"""M2M100 translation models (and every pre-norm model trained here with fairseq's positions)."""
