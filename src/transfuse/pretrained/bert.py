"""BERT as `transformers` lays it out, bare or with any of its heads, which `architectures` of config.json names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.models.bert import BertConfig, BertModel, Head
from transfuse.pretrained.family import Family
from transfuse.pretrained.renames import Rename, drop_copy, renamed_error

ARCHITECTURES: dict[str, Head] = {
    "BertModel": "none",
    "BertForMaskedLM": "words",
    "BertForPreTraining": "pretraining",
    "BertForSequenceClassification": "sequence",
    "BertForTokenClassification": "token",
    "BertForQuestionAnswering": "span",
}
_NAMES = {head: name for name, head in ARCHITECTURES.items()}

_PARTS = [
    ("attention.query", "attention.self.query"),
    ("attention.key", "attention.self.key"),
    ("attention.value", "attention.self.value"),
    ("attention.out", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("feed_forward.up", "intermediate.dense"),
    ("feed_forward.down", "output.dense"),
    ("feed_forward_norm", "output.LayerNorm"),
]
_LABELS = {
    "pretraining": "cls.seq_relationship",
    "sequence": "classifier",
    "token": "classifier",
    "span": "qa_outputs",
}
_HEADS = ("cls.predictions.", "cls.seq_relationship.", "classifier.", "qa_outputs.")
_HEADS_OF: dict[Head, set[str]] = {
    "words": {"cls.predictions."},
    "pretraining": {"cls.predictions.", "cls.seq_relationship."},
    "sequence": {"classifier."},
    "token": {"classifier."},
    "span": {"qa_outputs."},
}
_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_hidden": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "n_segments": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "head_dropout": "classifier_dropout",
    "pad_id": "pad_token_id",
}
_DEFAULTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0, "classifier_dropout": None}
_ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_VARIANTS = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""Switches of the architecture, with the only value that is supported."""


def _table(config: BertConfig) -> list[Rename]:
    table = [
        Rename("embedding.token.weight", "bert.embeddings.word_embeddings.weight"),
        Rename("embedding.positions.weight", "bert.embeddings.position_embeddings.weight"),
        Rename("segments.weight", "bert.embeddings.token_type_embeddings.weight"),
    ]
    pairs = [("embedding_norm", "bert.embeddings.LayerNorm"), ("pooler", "bert.pooler.dense")]
    pairs += [(f"encoder.blocks.*.{ours}", f"bert.encoder.layer.*.{theirs}") for ours, theirs in _PARTS]
    pairs += [("words.layer", "cls.predictions.transform.dense"), ("words.norm", "cls.predictions.transform.LayerNorm")]
    if config.head in _LABELS:
        pairs.append(("labels", _LABELS[config.head]))
    table += [Rename(f"{a}.{kind}", f"{b}.{kind}") for a, b in pairs for kind in ("weight", "bias")]
    return [*table, Rename("words.output.bias", "cls.predictions.bias")]


def _values(c: BertConfig) -> dict[str, Any]:
    theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    values = {name: getattr(c, ours) for ours, name in _FIELDS.items()}
    return (
        values
        | _VARIANTS
        | {
            "intermediate_size": c.d_hidden or 4 * c.d_model,
            "hidden_act": theirs[c.activation],
            "num_labels": c.n_labels,
            "id2label": {str(i): f"LABEL_{i}" for i in range(c.n_labels)},
            "label2id": {f"LABEL_{i}": i for i in range(c.n_labels)},
        }
    )


def _config(values: Mapping[str, Any]) -> BertConfig:
    missing = sorted(name for name in _FIELDS.values() if name not in values and name not in _DEFAULTS)
    if missing:
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    for name, supported in _VARIANTS.items():
        if values.get(name, supported) != supported:
            raise ModelDirectoryError(f"{name}={values[name]!r} is not supported")
    named = values.get("architectures") or ["BertModel"]
    architecture = next((name for name in named if name in ARCHITECTURES), None)
    if architecture is None:
        raise ModelDirectoryError(f"architectures={named!r} is not supported; known are {', '.join(_NAMES.values())}")
    if not values.get("tie_word_embeddings", True) and ARCHITECTURES[architecture] in ("words", "pretraining"):
        raise ModelDirectoryError("tie_word_embeddings=false is not supported: words are guessed by the token table")
    activation = values.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ModelDirectoryError(f"hidden_act={activation!r} is not supported; known are {', '.join(_ACTIVATIONS)}")
    try:
        return BertConfig(
            **{ours: values.get(name, _DEFAULTS.get(name)) for ours, name in _FIELDS.items()},
            activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
            head=ARCHITECTURES[architecture],
            n_labels=len(values.get("id2label") or {"0": "", "1": ""}),
        )
    except ConfigError as error:
        raise renamed_error(error, _FIELDS) from error


def _fitted(config: BertConfig, weights: Mapping[str, Tensor]) -> BertConfig:
    """With the pooler and the next-sentence head that published files hold, whatever architecture they name."""
    head = config.head
    if head == "words" and f"{_LABELS['pretraining']}.weight" in weights:
        head = "pretraining"
    pooled = any(name.endswith("pooler.dense.weight") for name in weights)
    return config.replace(head=head, pooler=pooled if head in ("none", "words") else None)


def _complete(config: BertConfig, weights: dict[str, Tensor]) -> None:
    """A bare model's names have no prefix."""
    if config.head == "none":
        for name in [name for name in weights if name.startswith("bert.")]:
            weights[name.removeprefix("bert.")] = weights.pop(name)


def _reduce(config: BertConfig, weights: dict[str, Tensor]) -> None:
    """Give every name its prefix, and take out what files hold besides: of older versions, or of other heads."""
    for name in list(weights):
        if name.endswith("embeddings.position_ids"):
            del weights[name]
        elif not name.startswith(("bert.", *_HEADS)):
            weights[f"bert.{name}"] = weights.pop(name)
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        for name in [name for name in weights if name.endswith(f"LayerNorm.{old}")]:
            weights[name.removesuffix(old) + new] = weights.pop(name)
    others = set(_HEADS) - _HEADS_OF.get(config.head, set())
    for name in list(weights):
        if name.startswith(tuple(others)) or (name.startswith("bert.pooler.") and not config.has_pooler):
            del weights[name]
    if "cls.predictions.decoder.weight" in weights:
        drop_copy(weights, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    if "cls.predictions.decoder.bias" in weights:
        drop_copy(weights, "cls.predictions.decoder.bias", "cls.predictions.bias")


BERT = Family(
    model_type="bert",
    architecture=lambda config: _NAMES[config.head],
    model=BertModel,
    expresses=lambda config: True,
    values=_values,
    config=_config,
    table=_table,
    fitted=_fitted,
    complete=_complete,
    reduce=_reduce,
)
"""BERT and every encoder trained here."""
