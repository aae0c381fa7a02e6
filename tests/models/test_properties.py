"""What must hold of every encoder–decoder: causality, indifference to padding, cached == uncached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import reference
from transfuse.errors import ConfigError
from transfuse.models.seq2seq import DecoderState, Seq2SeqConfig, Seq2SeqModel
from transfuse.nn.cache import KeyValueCache

B, S, T = 2, 7, 5
TOLERANCE = 1e-12

SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_heads": 3,
    "decoder_heads": 6,
    "encoder_hidden": 17,
    "decoder_hidden": 19,
    "dropout": 0.0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"norm_first": False, "positions": "sinusoidal"},
    "grouped": {"decoder_kv_heads": 3, "cross_kv_heads": 2, "encoder_kv_heads": 1},
    "rotary": {"positions": "rotary", "norm": "rms", "gated": True, "activation": "silu"},
    "learned": {"positions": "learned", "bias": False, "output_bias": True},
    "separate": {"share_embeddings": False, "tie_output": False, "target_vocab_size": 29},
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Seq2SeqModel:
    return make(CONFIGS[request.param])


def make(changes: dict[str, Any]) -> Seq2SeqModel:
    return reference.draw(Seq2SeqModel(Seq2SeqConfig(**SIZES | changes)), seed=1).double().eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    source, target = (torch.randint(3, 29, (B, n), generator=generator) for n in (S, T))
    keep = torch.arange(S) < torch.tensor([[S], [3]])
    return source.masked_fill(~keep, 1), keep, target


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def assert_the_future_cannot_change_the_past(model: Seq2SeqModel) -> None:
    source, keep, target = batch()
    logits = model(source, keep, target)
    for t in range(1, T):
        other = target.clone()
        other[:, t:] = (target[:, t:] + 11) % 29
        changed = model(source, keep, other)
        assert_same(changed[:, :t], logits[:, :t])
        assert (changed[:, t:] - logits[:, t:]).abs().amax(-1).min() > 1e-3  # the present and what follows it do change


@torch.no_grad()
def test_the_future_cannot_change_the_past(model: Seq2SeqModel) -> None:
    assert_the_future_cannot_change_the_past(model)


@torch.no_grad()
def test_the_property_notices_a_decoder_that_looks_ahead(model: Seq2SeqModel) -> None:
    model.decoder.blocks[1].attention.causal = False
    with pytest.raises(AssertionError, match="not close"):
        assert_the_future_cannot_change_the_past(model)


def test_gradients_do_not_reach_the_future(model: Seq2SeqModel) -> None:
    source, keep, target = batch()
    with torch.no_grad():
        memory = model.encode(source, keep)
        x_BTD = model.target_embedding(target)
    x_BTD.requires_grad_()
    logits = model.output(model.decoder(x_BTD, memory, memory_keep=keep))
    for t in range(T):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), x_BTD, retain_graph=True)
        assert gradient[:, t + 1 :].count_nonzero() == 0
        assert gradient[:, : t + 1].abs().amax(-1).min() > 0


def assert_appended_padding_changes_nothing(model: Seq2SeqModel, n_more: int) -> None:
    source, keep, target = batch()
    padding = torch.full((B, n_more), model.config.pad_id)
    longer, longer_keep = torch.cat([source, padding], 1), torch.cat([keep, torch.zeros_like(padding, dtype=bool)], 1)
    logits = model(source, keep, target)
    assert_same(model(longer, longer_keep, target), logits)
    assert_same(model(longer.masked_fill(~longer_keep, 7), longer_keep, target), logits)  # whatever the padding holds
    assert_same(model(source[1:, :3], keep[1:, :3], target[1:]), logits[1:])  # and none at all


@torch.no_grad()
@pytest.mark.parametrize("n_more", [1, 300])
def test_appended_source_padding_changes_nothing(model: Seq2SeqModel, n_more: int) -> None:
    assert_appended_padding_changes_nothing(model, n_more)


@torch.no_grad()
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_property_notices_a_forgotten_mask(
    model: Seq2SeqModel, stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in getattr(model, stack).blocks:
        attention = block.attention if stack == "encoder" else block.cross_attention
        forward = attention.forward
        monkeypatch.setattr(
            attention, "forward", lambda *parts, forward=forward, **named: forward(*parts, **named | {"keep": None})
        )
    with pytest.raises(AssertionError, match="not close"):
        assert_appended_padding_changes_nothing(model, 3)


@torch.no_grad()
def test_appended_target_tokens_do_not_change_earlier_logits(model: Seq2SeqModel) -> None:
    source, keep, target = batch()
    logits = model(source, keep, target)
    for t in range(1, T):
        assert_same(model(source, keep, target[:, :t]), logits[:, :t])


@torch.no_grad()
def test_rows_do_not_see_each_other(model: Seq2SeqModel) -> None:
    source, keep, target = batch()
    logits = model(source, keep, target)
    swapped = model(source.flip(0), keep.flip(0), target.flip(0))
    assert_same(swapped.flip(0), logits)
    assert_same(model(source[:1], keep[:1], target[:1]), logits[:1])


@torch.no_grad()
def test_steps_are_the_whole_forward_pass(model: Seq2SeqModel) -> None:
    source, keep, target = batch()
    state = model.start(source, keep)
    steps = [model.step(target[:, t : t + 1], state) for t in range(T)]
    assert_same(torch.cat(steps, 1), model(source, keep, target))


def assert_beams_are_whole_forward_passes(model: Seq2SeqModel) -> None:
    """Beams of two sources choose parents, a source leaves, and every beam's logits are those of its own history."""
    source, keep, _ = batch()
    generator = torch.Generator().manual_seed(3)
    width, rows = 3, torch.arange(B)
    state = model.start(source, keep)
    state.widen(width)
    written_BWT = torch.empty(B, width, 0, dtype=torch.long)
    for step in range(6):
        ids_BW = torch.randint(3, 29, (len(rows), width), generator=generator)
        written_BWT = torch.cat([written_BWT, ids_BW[:, :, None]], dim=2)
        logits_BWV = model.step(ids_BW, state)
        for row, written_WT, logits_WV in zip(rows.tolist(), written_BWT, logits_BWV, strict=True):
            again = [row] * width
            assert_same(logits_WV, model(source[again], keep[again], written_WT)[:, -1])
        parents_BW = torch.randint(width, (len(rows), width), generator=generator)
        state.reorder(parents_BW)
        written_BWT = written_BWT.gather(1, parents_BW[:, :, None].expand(-1, -1, step + 1))
        if step == 3:
            state.select(torch.tensor([1]))
            rows, written_BWT = rows[1:], written_BWT[1:]


@torch.no_grad()
def test_beams_are_whole_forward_passes(model: Seq2SeqModel) -> None:
    assert_beams_are_whole_forward_passes(model)


@torch.no_grad()
@pytest.mark.parametrize("bug", ["reorder", "select", "positions"])
def test_the_whole_forward_passes_notice_a_planted_bug(
    model: Seq2SeqModel, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    select = DecoderState.select
    if bug == "reorder":
        monkeypatch.setattr(DecoderState, "reorder", lambda self, parents: None)
    elif bug == "select":
        monkeypatch.setattr(DecoderState, "select", lambda self, rows: select(self, torch.arange(len(rows))))
    elif model.config.positions == "rotary":
        monkeypatch.setattr(KeyValueCache, "n_positions", property(len))
    else:
        monkeypatch.setattr(DecoderState, "n_positions", 0)
    with pytest.raises(AssertionError, match="not close"):
        assert_beams_are_whole_forward_passes(model)


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 3])
def test_decoder_state_counts_keys_and_values_of_all_layers(model: Seq2SeqModel, width: int) -> None:
    source, keep, target = batch()
    state = model.start(source, keep)
    state.widen(width)
    assert state.n_bytes == 0
    for t in range(3):
        model.step(target[:, t : t + 1].expand(-1, width), state)
    config, d_head = model.config, 12 // 6
    own, cross = config.decoder_kv_heads or 6, config.cross_kv_heads or 6
    # 2 · layers · heads · d_head · keys · batch · bytes a number; the beams share the keys of the memory
    assert state.n_bytes == 2 * 2 * d_head * (own * 3 * width + cross * S) * B * 8


def test_hidden_vectors_come_before_the_output_projection(model: Seq2SeqModel) -> None:
    inputs = batch()
    assert_same(model.output(model.hidden(*inputs)), model(*inputs))


def test_initialise_is_a_function_of_the_seed(model: Seq2SeqModel) -> None:
    first, again, other = (dict(make({}).initialise(seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, weight in first.items():
        constant = "norm" in name or weight.dim() == 1
        assert torch.equal(weight, other[name]) == constant, name


def test_initialise_draws_the_stated_distributions() -> None:
    config = Seq2SeqConfig(vocab_size=500, d_model=64, encoder_hidden=128, share_embeddings=False, tie_output=False)
    model = Seq2SeqModel(config).initialise(3)
    weights = dict(model.named_parameters())
    for side in ("source", "target"):
        table = weights[f"{side}_embedding.token.weight"]
        assert table.std().item() == pytest.approx(64**-0.5, rel=0.02)  # 32,000 draws: 5 sigma
    for name, fan_in, fan_out in (("up", 64, 128), ("down", 128, 64)):
        matrix = weights[f"encoder.blocks.0.feed_forward.{name}.weight"]
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.99 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert weights["encoder.blocks.0.feed_forward.up.bias"].count_nonzero() == 0
    assert torch.equal(weights["decoder.norm.weight"], torch.ones(64))
    assert weights["decoder.norm.bias"].count_nonzero() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 13}, "d_model=13 must be a multiple of n_heads=3"),
        ({"decoder_kv_heads": 4}, "n_heads=6 must be a multiple of n_kv_heads=4"),
        ({"cross_kv_heads": 5}, "n_heads=6 must be a multiple of n_kv_heads=5"),
        ({"encoder_kv_heads": 2}, "n_heads=3 must be a multiple of n_kv_heads=2"),
        ({"target_vocab_size": 29}, "vocab_size=31, target_vocab_size=29"),
        ({"dropout": 1.0}, r"dropout=1\.0 must be at least 0 and below 1"),
        ({"encoder_layers": 0}, "encoder_layers=0 must be greater than 0"),
        ({"positions": "absolute"}, "positions='absolute' must be one of 'sinusoidal'"),
        ({"norm_first": 1}, "norm_first=1 must be bool"),
    ],
    ids=str,
)
def test_configs_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Seq2SeqConfig(**SIZES | changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive_json(name: str) -> None:
    config = Seq2SeqConfig(**SIZES | CONFIGS[name])
    assert Seq2SeqConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", ["encoder_kv_heads", "decoder_kv_heads", "cross_kv_heads"])
def test_no_kv_heads_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a multiple of n_kv_heads=0|must be greater than 0"):
        Seq2SeqConfig(**SIZES | {name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 15, "decoder_heads": 3}, "d_model=15 must be even for sinusoidal positions"),
        ({"d_model": 15, "decoder_heads": 3, "positions": "sinusoidal"}, "d_model=15 must be even"),
        ({"d_model": 18, "positions": "rotary"}, "d_head=3 must be even for rotary positions"),
    ],
    ids=str,
)
def test_sizes_that_positions_cannot_have_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Seq2SeqConfig(**SIZES | changes)
