"""Inspection: what it counts against the model and closed forms, what it draws, and what it says."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.exceptions import NotFittedError

from transfuse import Inspection, SearchConfig, Seq2Seq, Seq2SeqConfig, TrainingConfig, inspect
from transfuse.reports.inspection import LARGEST_PANEL

SOURCES = ["one two three", "four five", "six seven eight nine"] * 4
TARGETS = ["1 2 3", "4 5", "6 7 8 9"] * 4
SOURCE, TARGET = "four two one", "4 2"

CONFIG = Seq2SeqConfig(
    vocab_size=280,
    d_model=24,
    encoder_layers=2,
    decoder_layers=3,
    encoder_heads=2,
    decoder_heads=6,
    encoder_hidden=20,
    decoder_hidden=28,
    max_positions=64,
)
VARIANTS = {
    "multi-head": CONFIG,
    "grouped": CONFIG.replace(decoder_kv_heads=3, cross_kv_heads=2),
    "multi-query, rotary, gated": CONFIG.replace(
        encoder_kv_heads=1, decoder_kv_heads=1, cross_kv_heads=1, positions="rotary", gated=True, norm="rms"
    ),
    "learned, post-norm, untied": CONFIG.replace(
        positions="learned", norm_first=False, tie_output=False, share_embeddings=False, output_bias=True
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small to share among cores; waiting for a busy one takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request: pytest.FixtureRequest) -> Seq2Seq:
    training = TrainingConfig(max_steps=2, warmup_steps=1)
    return Seq2Seq(model=request.param, training=training, search=SearchConfig(beams=2, max_tokens=6)).fit(
        SOURCES, TARGETS
    )


@pytest.fixture(scope="module")
def found(model: Seq2Seq) -> Inspection:
    return inspect(model, SOURCE, TARGET)


@pytest.fixture
def drawing() -> Inspection:
    """Two heads that attend evenly from two tokens to three, in two layers."""
    maps = [torch.full((2, 2, 3), 1 / 3)] * 2
    return Inspection("a b c", "d e", ["a", "b", "c"], ["d", "e"], [], {"encoder": 1}, 1, 1, {"cross": maps})


def test_texts_and_tokens(model: Seq2Seq, found: Inspection) -> None:
    assert (found.source, found.target) == (SOURCE, TARGET)
    assert found.source_tokens[-1] == found.target_tokens[-1] == "</s>"
    assert "".join(found.source_tokens[:-1]) == SOURCE
    assert "".join(found.target_tokens[:-1]) == TARGET


def test_the_target_is_the_model_s_own_output_unless_given(model: Seq2Seq) -> None:
    assert inspect(model, SOURCE).target == model.predict([SOURCE])[0]


def test_an_empty_target_is_only_its_end_token(model: Seq2Seq) -> None:
    assert inspect(model, SOURCE, "").target_tokens == ["</s>"]


def test_parameters_add_up_to_the_model_s(model: Seq2Seq, found: Inspection) -> None:
    assert sum(found.parameters.values()) == sum(weight.numel() for weight in model.model_.parameters())
    for part in ("encoder", "decoder"):
        own = sum(weight.numel() for weight in getattr(model.model_, part).parameters())
        assert found.parameters[part] == own


def test_cache_bytes_are_the_closed_form(model: Seq2Seq, found: Inspection) -> None:
    config = model.model_.config
    T, S = len(found.target_tokens), len(found.source_tokens)
    own, cross = config.decoder_kv_heads or 6, config.cross_kv_heads or 6
    d_head = config.d_model // config.decoder_heads
    # keys and values, 4 bytes a number
    assert found.cache_bytes == 2 * config.decoder_layers * d_head * (own * T + cross * S) * 4
    assert found.cache_bytes_per_token == 2 * config.decoder_layers * d_head * own * 4


def test_attention_maps_have_a_row_for_every_token_written(model: Seq2Seq, found: Inspection) -> None:
    T, S = len(found.target_tokens), len(found.source_tokens)
    assert T != S
    assert {kind: [tuple(one.shape) for one in maps] for kind, maps in found.attention.items()} == {
        "encoder": [(2, S, S)] * 2,
        "decoder": [(6, T, T)] * 3,
        "cross": [(6, T, S)] * 3,
    }


def test_attention_rows_sum_to_one(found: Inspection) -> None:
    for maps in found.attention.values():
        for weights_HTS in maps:
            assert (weights_HTS >= 0).all()
            torch.testing.assert_close(weights_HTS.sum(-1), torch.ones(weights_HTS.shape[:2]), rtol=0, atol=1e-6)


def test_the_decoder_sees_nothing_of_the_future_and_the_encoder_everything(found: Inspection) -> None:
    assert all((weights_HTT.triu(1) == 0).all() for weights_HTT in found.attention["decoder"])
    assert all((weights_HSS > 0).all() for weights_HSS in found.attention["encoder"])


def test_attention_is_that_of_the_model_in_evaluation_mode(model: Seq2Seq, found: Inspection) -> None:
    training = copy.deepcopy(model)
    training.model_.train()
    again = inspect(training, SOURCE, TARGET)
    for kind, maps in found.attention.items():
        assert all(one.equal(other) for one, other in zip(maps, again.attention[kind], strict=True))


def test_every_stage_has_its_shapes(model: Seq2Seq, found: Inspection) -> None:
    T, S = len(found.target_tokens), len(found.source_tokens)
    stages = {stage.name: (stage.inputs, stage.output) for stage in found.stages}
    assert len(stages) == len(found.stages) == 2 + 2 * 2 + 3 * 3 + 2 + 1
    assert stages["source_embedding"] == ([(1, S)], (1, S, 24))
    assert stages["target_embedding"] == ([(1, T)], (1, T, 24))
    assert stages["encoder.blocks.1.attention"] == ([(1, S, 24)], (1, S, 24))
    assert stages["decoder.blocks.2.cross_attention"] == ([(1, T, 24), (1, S, 24)], (1, T, 24))
    assert stages["encoder"] == ([(1, S, 24)], (1, S, 24))
    assert stages["output"] == ([(1, T, 24)], (1, T, model.model_.config.vocab_size))


def test_inspecting_leaves_no_hooks(model: Seq2Seq, found: Inspection) -> None:
    assert not [part for part in model.model_.modules() if part._forward_hooks]


def test_to_dict_is_json(found: Inspection) -> None:
    values = json.loads(json.dumps(found.to_dict()))
    assert values["cache_bytes"] == found.cache_bytes
    assert values["parameters"] == found.parameters
    assert [stage["name"] for stage in values["stages"]] == [stage.name for stage in found.stages]
    assert values.keys() == {field.name for field in dataclasses.fields(Inspection)} - {"attention"}


def test_to_text_names_everything(found: Inspection) -> None:
    text = found.to_text()
    for stage in found.stages:
        assert stage.name in text
    for part, count in found.parameters.items():
        assert f"{count:,} parameters  {part}\n" in text
    assert f"{sum(found.parameters.values()):,} parameters  in all\n" in text
    assert f"{found.cache_bytes:,} bytes of keys and values at the last token\n" in text
    assert text.endswith(f"{found.cache_bytes_per_token:,} bytes more for every target token")
    assert SOURCE in text
    assert TARGET in text


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_a_picture_of_every_kind_is_written(found: Inspection, tmp_path: Path, kind: Any) -> None:
    from matplotlib.image import imread

    path = found.save_picture(tmp_path / "attention.png", kind)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 100
    assert pixels.std() > 0  # not one colour


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_other_kinds_of_picture(drawing: Inspection, tmp_path: Path, ending: str, start: bytes) -> None:
    assert drawing.save_picture(tmp_path / f"attention.{ending}").read_bytes().startswith(start)


@pytest.mark.parametrize("token", ["$$", "$x_", "$\\frac$", "a_b^c", "\\", "%"])
def test_tokens_are_drawn_as_they_are_not_as_formulas(drawing: Inspection, tmp_path: Path, token: str) -> None:
    inspection = dataclasses.replace(drawing, source_tokens=[token, "b", token])
    figure = inspection._figure("cross")
    inspection.save_picture(tmp_path / "attention.png")
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == [token, "b", token]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["d", "e"]


def test_control_characters_are_drawn_so_that_they_can_be_seen(drawing: Inspection, tmp_path: Path) -> None:
    inspection = dataclasses.replace(drawing, source_tokens=["\n", "\x0c", "b"])
    inspection.save_picture(tmp_path / "attention.png")
    for axes in inspection._figure("cross").axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["\\n", "\\x0c", "b"]


def test_a_text_longer_than_the_model_is_inspected_as_it_is_predicted(model: Seq2Seq) -> None:
    long = "one two " * 40
    with pytest.warns(UserWarning, match="more than 64 tokens and are cut"):
        found = inspect(model, long, TARGET)
    assert len(found.source_tokens) == 64


def test_an_unfitted_model_is_refused() -> None:
    for target in (None, TARGET):
        with pytest.raises(NotFittedError):
            inspect(Seq2Seq(), SOURCE, target)


def test_a_picture_of_many_tokens_keeps_its_size_and_labels_some() -> None:
    tokens = [f"t{i}" for i in range(500)]
    found = Inspection(
        source="",
        target="",
        source_tokens=tokens,
        target_tokens=tokens[:3],
        stages=[],
        parameters={},
        cache_bytes=0,
        cache_bytes_per_token=0,
        attention={"encoder": [torch.rand(2, 500, 500)] * 2, "cross": [torch.rand(2, 3, 500)]},
    )
    figure = found._figure("encoder")
    assert figure.get_size_inches().tolist() == [2 * LARGEST_PANEL, LARGEST_PANEL]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == tokens[::8]
    assert [label.get_text() for label in found._figure("cross").axes[0].get_yticklabels()] == tokens[:3]
