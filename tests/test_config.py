"""Settings survive JSON unchanged, and a wrong one is refused with its value and the rule."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from transfuse import ConfigError, SearchConfig, Seq2SeqConfig, TokenizerConfig, TrainingConfig
from transfuse.config import Config

CHANGED = [
    Seq2SeqConfig(
        vocab_size=500,
        target_vocab_size=300,
        d_model=24,
        encoder_heads=6,
        decoder_heads=12,
        encoder_kv_heads=3,
        decoder_kv_heads=1,
        cross_kv_heads=4,
        activation="silu",
        gated=True,
        norm="rms",
        norm_first=False,
        positions="rotary",
        share_embeddings=False,
        dropout=0.25,
        pad_id=3,
    ),
    TrainingConfig(max_steps=7, learning_rate=3e-5, schedule="cosine", precision="bfloat16", patience=2, average=1),
    SearchConfig(beams=1, sample=True, n_best=5, temperature=0.7, top_k=9, top_p=0.9, seed=3, max_tokens=11),
    TokenizerConfig(lowercase=True, split_digits=False),
]
CLASSES = [type(config) for config in CHANGED]


def refusal(kind: type[Config], **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    return str(caught.value)


@pytest.mark.parametrize("config", [*CHANGED, *(kind() for kind in CLASSES)], ids=repr)
def test_a_config_is_equal_after_json(config: Config) -> None:
    again = type(config).from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert json.loads(config.to_json()) == config.to_dict()
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("config", CHANGED, ids=lambda config: type(config).__name__)
def test_the_changed_configs_differ_from_the_default(config: Config) -> None:
    assert config != type(config)()


@pytest.mark.parametrize("kind", CLASSES)
def test_configs_are_frozen_and_keyword_only(kind: type[Config]) -> None:
    name = dataclasses.fields(kind)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), name, 1)
    with pytest.raises(TypeError, match="positional argument"):
        kind(1)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", CLASSES)
def test_unknown_fields_are_named(kind: type[Config]) -> None:
    rule = rf"^{kind.__name__} has no field named epoch, widht$"
    with pytest.raises(ConfigError, match=rule):
        kind.from_dict({"widht": 3, "epoch": 1})
    with pytest.raises(ConfigError, match=rule):
        kind.from_json('{"widht": 3, "epoch": 1}')


def test_replace_changes_a_copy_and_checks_it() -> None:
    config = TrainingConfig()
    assert config.replace(epochs=3) == TrainingConfig(epochs=3)
    assert config == TrainingConfig()
    with pytest.raises(ConfigError, match=r"^epochs=0 must be greater than 0$"):
        config.replace(epochs=0)


@pytest.mark.parametrize(
    ("kind", "values", "rule"),
    [
        (TrainingConfig, {"epochs": True}, "epochs=True must be int"),
        (TrainingConfig, {"epochs": "3"}, "epochs='3' must be int"),
        (TrainingConfig, {"epochs": 3.0}, "epochs=3.0 must be int"),
        (TrainingConfig, {"epochs": None}, "epochs=None must be int"),
        (TrainingConfig, {"max_steps": False}, "max_steps=False must be int or None"),
        (TrainingConfig, {"max_steps": "7"}, "max_steps='7' must be int or None"),
        (TrainingConfig, {"learning_rate": True}, "learning_rate=True must be float"),
        (TrainingConfig, {"learning_rate": "1e-3"}, "learning_rate='1e-3' must be float"),
        (TrainingConfig, {"schedule": "linear"}, "schedule='linear' must be one of 'inverse_sqrt', 'cosine'"),
        (TrainingConfig, {"schedule": None}, "schedule=None must be one of 'inverse_sqrt', 'cosine'"),
        (TrainingConfig, {"precision": "float16"}, "precision='float16' must be one of 'float32', 'bfloat16'"),
        (TrainingConfig, {"select_by": "bleu"}, "select_by='bleu' must be one of 'loss', 'metric'"),
        (SearchConfig, {"sample": 1}, "sample=1 must be bool"),
        (SearchConfig, {"sample": "true"}, "sample='true' must be bool"),
        (TokenizerConfig, {"lowercase": "yes"}, "lowercase='yes' must be bool"),
        (TokenizerConfig, {"split_digits": 0}, "split_digits=0 must be bool"),
        (Seq2SeqConfig, {"encoder_kv_heads": "2"}, "encoder_kv_heads='2' must be int or None"),
        (Seq2SeqConfig, {"gated": 1}, "gated=1 must be bool"),
        (Seq2SeqConfig, {"activation": "tanh"}, "activation='tanh' must be one of 'relu', 'gelu', 'silu'"),
        (Seq2SeqConfig, {"activation": ["relu"]}, "activation=['relu'] must be one of 'relu', 'gelu', 'silu'"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: type[Config], values: dict[str, Any], rule: str) -> None:
    assert refusal(kind, **values) == rule


def test_a_whole_number_serves_as_a_float_and_stays_equal() -> None:
    config = TrainingConfig(clip_norm=2)
    assert TrainingConfig.from_json(config.to_json()) == config == TrainingConfig(clip_norm=2.0)


POSITIVE = {
    Seq2SeqConfig: [
        *("vocab_size", "target_vocab_size", "d_model", "encoder_layers", "decoder_layers"),
        *("encoder_hidden", "decoder_hidden", "max_positions"),
    ],
    TrainingConfig: [
        *("epochs", "max_steps", "batch_tokens", "accumulate", "learning_rate", "clip_norm"),
        *("validate_every", "patience", "average", "keep"),
    ],
    SearchConfig: ["beams", "n_best", "temperature", "top_k", "top_p", "max_tokens", "batch_tokens"],
}


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in POSITIVE.items() for name in names])
def test_sizes_and_counts_must_be_positive(kind: type[Config], name: str, value: int) -> None:
    assert refusal(kind, **{name: value}) == f"{name}={value} must be greater than 0"


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Seq2SeqConfig, "dropout"),
        (Seq2SeqConfig, "attention_dropout"),
        (Seq2SeqConfig, "hidden_dropout"),
        (TrainingConfig, "label_smoothing"),
    ],
)
def test_fractions_lie_from_0_to_below_1(kind: type[Config], name: str, value: float) -> None:
    assert refusal(kind, **{name: value}) == f"{name}={value} must be at least 0 and below 1"
    assert getattr(kind(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *(
            (TrainingConfig, name, value)
            for name in ("learning_rate", "weight_decay")
            for value in (math.nan, math.inf)
        ),
        *((SearchConfig, name, value) for name in ("temperature", "length_penalty") for value in (math.nan, math.inf)),
        (TrainingConfig, "clip_norm", math.nan),  # infinity is a way to say: do not clip
        (SearchConfig, "top_p", math.nan),
        (SearchConfig, "top_p", math.inf),
    ],
)
def test_what_is_not_a_finite_number_is_refused(kind: type[Config], name: str, value: float) -> None:
    assert f"{name}={value}" in refusal(kind, **{name: value})


@pytest.mark.parametrize(
    ("kind", "values", "rule"),
    [
        (
            TrainingConfig,
            {"warmup_steps": -1},
            "warmup_steps=-1 and weight_decay=0.01 must not be negative",
        ),
        (
            TrainingConfig,
            {"warmup_steps": 3, "weight_decay": -0.5},
            "warmup_steps=3 and weight_decay=-0.5 must not be negative",
        ),
        (SearchConfig, {"top_p": 1.5}, "top_p=1.5 must be at most 1"),
        (
            SearchConfig,
            {"sample": True, "beams": 3},
            "sample=True draws single sequences and needs beams=1, not beams=3",
        ),
        (SearchConfig, {"n_best": 5, "beams": 3}, "n_best=5 must be at most beams=3"),
        (Seq2SeqConfig, {"d_model": 30}, "d_model=30 must be a multiple of n_heads=4"),
        (Seq2SeqConfig, {"d_model": 30, "encoder_heads": 5}, "d_model=30 must be a multiple of n_heads=4"),
        (Seq2SeqConfig, {"d_model": 30, "decoder_heads": 5}, "d_model=30 must be a multiple of n_heads=4"),
        (Seq2SeqConfig, {"encoder_kv_heads": 3}, "n_heads=4 must be a multiple of n_kv_heads=3"),
        (Seq2SeqConfig, {"decoder_kv_heads": 3}, "n_heads=4 must be a multiple of n_kv_heads=3"),
        (Seq2SeqConfig, {"cross_kv_heads": 8}, "n_heads=4 must be a multiple of n_kv_heads=8"),
        (
            Seq2SeqConfig,
            {"target_vocab_size": 70},
            "share_embeddings needs one vocabulary: vocab_size=8000, target_vocab_size=70",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(
    kind: type[Config], values: dict[str, Any], rule: str
) -> None:
    assert refusal(kind, **values) == rule


@pytest.mark.parametrize("value", [0, -2])
@pytest.mark.parametrize(
    "name", ["encoder_heads", "decoder_heads", "encoder_kv_heads", "decoder_kv_heads", "cross_kv_heads"]
)
def test_heads_must_be_positive(name: str, value: int) -> None:
    assert f"={value}" in refusal(Seq2SeqConfig, **{name: value})


def test_target_vocabulary_follows_the_source_unless_given() -> None:
    assert Seq2SeqConfig(vocab_size=70).n_target_tokens == 70
    assert Seq2SeqConfig(target_vocab_size=70, share_embeddings=False).n_target_tokens == 70
