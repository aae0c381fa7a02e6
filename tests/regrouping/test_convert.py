"""Conversion: what must stay exactly as it was, what must be found exactly, and the bugs that must show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transfuse.data.batches import PairBatch, PairDataset
from transfuse.data.packing import PackedBatch
from transfuse.errors import ConfigError, DataError
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.nn.attention import Attention
from transfuse.regrouping import convert as module
from transfuse.regrouping.convert import METHODS, _shares, convert
from transfuse.regrouping.statistics import HeadStatistics

HEADS, WIDTH = 8, 8
D = HEADS * WIDTH
LLAMA = DecoderConfig(
    vocab_size=61, d_model=D, n_layers=2, n_heads=HEADS, d_hidden=37, max_positions=32, tie_output=False
)
GPT2 = DecoderConfig(
    vocab_size=61,
    d_model=D,
    n_layers=2,
    n_heads=HEADS,
    d_hidden=37,
    max_positions=32,
    activation="gelu_tanh",
    gated=False,
    qkv_bias=True,
    out_bias=True,
    hidden_bias=True,
    norm="layer",
    positions="learned",
)
MARIAN = Seq2SeqConfig(
    vocab_size=61,
    d_model=D,
    encoder_layers=1,
    decoder_layers=2,
    encoder_heads=4,
    decoder_heads=HEADS,
    encoder_hidden=37,
    decoder_hidden=37,
    max_positions=32,
    norm_first=False,
    positions="sinusoidal",
)
CONFIGS = {
    "llama": LLAMA,
    "qwen2": LLAMA.replace(qkv_bias=True),
    "gpt2": GPT2,
    "marian": MARIAN,
    "pre-norm": MARIAN.replace(norm_first=True),
}


@pytest.fixture(autouse=True)
def _float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(config: Any, seed: int = 0, std: float = 0.3) -> Any:
    """A model with random weights that leave no term small, biases and norms among them."""
    generator = torch.Generator().manual_seed(seed)
    model = (DecoderModel if isinstance(config, DecoderConfig) else Seq2SeqModel)(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
            if any(f"{part}.weight" in name for part in ("query", "key", "value", "out")):
                weight.div_(math.sqrt(D) * std)
    return model.eval()


def batches(config: Any, n: int = 3, seed: int = 1) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    found: list[Any] = []
    for number in range(n):
        T = 11 + number
        ids = torch.randint(3, config.vocab_size, (7, T), generator=generator)
        if isinstance(config, DecoderConfig):
            found.append(PackedBatch(ids, ids.roll(-1, 1)))
        else:
            rows = [row[: T - i].tolist() for i, row in enumerate(ids)]
            found.append(PairDataset(rows, rows[::-1], 0, 1).batch(range(7)))
    return found


def logits(model: Any, batch: PackedBatch | PairBatch) -> Tensor:
    with torch.no_grad():
        if isinstance(batch, PackedBatch):
            return model(batch.ids_BT, batch.keep_BTT, batch.positions_BT)[batch.real_BT]
        return model(batch.source_BS, batch.source_keep_BS, batch.target_BT)[batch.real_BT]


def difference(one: Any, other: Any, config: Any) -> float:
    """Of the logits on data that calibration did not see."""
    return max(float((logits(one, b) - logits(other, b)).abs().max()) for b in batches(config, seed=2))


def attentions(model: Any) -> list[Attention]:
    return [
        attention
        for block in model.decoder.blocks
        for attention in (block.attention, block.cross_attention)
        if attention is not None
    ]


def by_head(layer: nn.Linear) -> Tensor:
    """The rows of each head, a view (H, K, D)."""
    return layer.weight.data.view(-1, WIDTH, layer.in_features)


def columns(layer: nn.Linear) -> Tensor:
    """The columns of each head, a view (D, H, K)."""
    return layer.weight.data.view(layer.out_features, -1, WIDTH)


def agreeing(config: Any, n_groups: int) -> Any:
    """A model whose neighbouring heads have the same keys and values."""
    model = make(config)
    for attention in attentions(model):
        for layer in (attention.key, attention.value):
            rows = by_head(layer)
            rows.copy_(rows[:: HEADS // n_groups].repeat_interleave(HEADS // n_groups, 0))
            if layer.bias is not None:
                biases = layer.bias.data.view(-1, WIDTH)
                biases.copy_(biases[:: HEADS // n_groups].repeat_interleave(HEADS // n_groups, 0))
    return model


def turned(model: Any, seed: int = 3) -> Any:
    """The same function with heads hidden behind maps that cancel out, and in another order."""
    generator = torch.Generator().manual_seed(seed)
    for attention in attentions(model):
        for h in range(HEADS):
            hidden = _pair_map(generator) if attention.rotary is not None else _map(generator)
            _turn(attention.key, h, hidden)
            _turn(attention.query, h, hidden.inverse().T)
            free = _map(generator)
            _turn(attention.value, h, free)
            out = columns(attention.out)
            out[:, h] = out[:, h] @ free.inverse()
        shuffle(attention, torch.randperm(HEADS, generator=generator))
    return model


def shuffle(attention: Attention, order: Tensor) -> None:
    for layer in (attention.query, attention.key, attention.value):
        by_head(layer).copy_(by_head(layer)[order])
        if layer.bias is not None:
            layer.bias.data.view(-1, WIDTH).copy_(layer.bias.data.view(-1, WIDTH)[order])
    columns(attention.out).copy_(columns(attention.out)[:, order])


def _turn(layer: nn.Linear, h: int, by_KK: Tensor) -> None:
    by_head(layer)[h] = by_KK @ by_head(layer)[h]
    if layer.bias is not None:
        layer.bias.data.view(-1, WIDTH)[h] = by_KK @ layer.bias.data.view(-1, WIDTH)[h]


def _map(generator: torch.Generator) -> Tensor:
    return torch.eye(WIDTH) + 0.3 * torch.randn(WIDTH, WIDTH, generator=generator)


def _pair_map(generator: torch.Generator) -> Tensor:
    """A rotation and a scale of coordinates i and i + K / 2."""
    angle = 2 * math.pi * torch.rand(WIDTH // 2, generator=generator)
    scale = 0.5 + torch.rand(WIDTH // 2, generator=generator)
    cos, sin = (scale * angle.cos()).diag(), (scale * angle.sin()).diag()
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)], 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_heads_as_before_is_the_identity(name: str, method: Any) -> None:
    config = CONFIGS[name]
    model = make(config)
    assert difference(model, convert(model, HEADS, method, batches(config)), config) < 1e-12


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("n_groups", [4, 2, 1])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "random"])
@pytest.mark.parametrize("name", CONFIGS)
def test_heads_that_agree_are_shared_exactly(name: str, method: Any, n_groups: int, refit: bool) -> None:
    config = CONFIGS[name]
    model = agreeing(config, n_groups)
    converted = convert(model, n_groups, method, batches(config), refit=refit)
    assert {attention.n_kv_heads for attention in attentions(converted)} == {n_groups}
    assert difference(model, converted, config) < 1e-9


@pytest.mark.parametrize("n_groups", [4, 2, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_aligned_finds_heads_behind_maps_and_out_of_order(name: str, n_groups: int) -> None:
    config = CONFIGS[name]
    model = turned(agreeing(config, n_groups))
    assert difference(model, convert(model, n_groups, "aligned", batches(config), refit=False), config) < 1e-7
    # which the others do not
    assert difference(model, convert(model, n_groups, "mean", refit=False), config) > 1e-2


def test_procrustes_finds_heads_behind_rotations() -> None:
    model = agreeing(GPT2, 2)
    generator = torch.Generator().manual_seed(5)
    for attention in attentions(model):
        for h in range(HEADS):
            rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
            for layer in (attention.key, attention.query, attention.value):
                _turn(layer, h, rotation)
            columns(attention.out)[:, h] = columns(attention.out)[:, h] @ rotation.T
    converted = convert(model, 2, "procrustes", batches(GPT2), refit=False)
    assert difference(model, converted, GPT2) < 1e-7


@pytest.mark.parametrize("name", ["gpt2", "marian"])
def test_constants_of_keys_vanish_and_those_of_values_move_to_the_output(name: str) -> None:
    config = CONFIGS[name]
    model = agreeing(config, 2)
    for attention in attentions(model):
        for layer in (attention.key, attention.value):
            layer.bias.data += torch.randn(D, generator=torch.Generator().manual_seed(7))
    assert difference(model, convert(model, 2, "aligned", batches(config), refit=False), config) < 1e-7


@pytest.mark.parametrize("name", ["llama", "marian"])
def test_pooling_twice_is_pooling_once(name: str) -> None:
    model = make(CONFIGS[name])
    twice = convert(convert(model, 4, "mean", refit=False), 2, "mean", refit=False)
    assert difference(convert(model, 2, "mean", refit=False), twice, CONFIGS[name]) < 1e-12


@pytest.mark.parametrize("n_groups", [4, 2, 1])
@pytest.mark.parametrize("name", ["llama", "marian"])
def test_the_order_of_heads_does_not_matter(name: str, n_groups: int) -> None:
    config = CONFIGS[name]
    model, other = make(config), make(config)
    for attention in attentions(other):
        shuffle(attention, torch.randperm(HEADS, generator=torch.Generator().manual_seed(11)))
    one, two = (convert(m, n_groups, "aligned", batches(config)) for m in (model, other))
    assert difference(one, two, config) < 1e-7
    assert difference(model, one, config) > 1e-3


@pytest.mark.parametrize("out", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("queries", "groups"), [(0.01, [[0, 1], [2, 3]]), (1.0, [[0, 2], [1, 3]])])
@torch.no_grad()
def test_keys_decide_who_shares_as_far_as_the_output_moves_with_them(queries: float, out: float, groups: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    attention = Attention(32, 4, 4, causal=True)
    drawn = torch.randn(2, 4, 8, 32, generator=generator) / 32**0.5
    keys, values = drawn[0, [0, 1, 0, 1]], 0.9 * drawn[1, [0, 0, 2, 2]] + 0.4 * drawn[1, [0, 1, 2, 3]]
    attention.key.weight.data, attention.value.weight.data = keys.flatten(0, 1), values.flatten(0, 1)
    attention.query.weight.data = 10 * queries * torch.randn(32, 32, generator=generator) / 32**0.5
    attention.out.weight *= out
    statistics = HeadStatistics(attention)
    statistics.add(attention, torch.randn(8, 32, 32, generator=generator), real_BT=torch.ones(8, 32, dtype=torch.bool))
    assert sorted(map(sorted, _shares(attention, 2, statistics, "aligned")[0])) == groups


@pytest.mark.parametrize("name", CONFIGS)
def test_alignment_and_refit_both_help(name: str) -> None:
    config = CONFIGS[name]
    model, calibration = make(config), batches(config, 20)

    def error(method: Any, refit: bool) -> float:
        converted = convert(model, 2, method, calibration, refit=refit)
        return sum(float((logits(model, b) - logits(converted, b)).square().mean()) for b in batches(config, seed=2))

    assert error("aligned", False) < error("mean", False)
    assert error("mean", True) < error("mean", False)
    assert error("aligned", True) < error("mean", True)


def test_another_number_of_heads_in_each_layer() -> None:
    model = make(LLAMA)
    converted = convert(model, (8, 2), "aligned", batches(LLAMA))
    assert [attention.n_kv_heads for attention in attentions(converted)] == [8, 2]
    same = [
        torch.equal(a.key.weight, b.key.weight)
        for a, b in zip(*map(attentions, (model, converted)), strict=False)
        if a.n_kv_heads == b.n_kv_heads
    ]
    assert same == [True]


def test_the_model_is_unchanged_and_ties_survive() -> None:
    config = GPT2.replace(dropout=0.1, attention_dropout=0.1)
    model = make(config).train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    converted = convert(model, 2, "aligned", batches(config))
    assert model.training and all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert converted.output.weight is converted.embedding.token.weight
    assert converted.config == dataclasses.replace(config, n_kv_heads=2)


@pytest.mark.parametrize("name", ["llama", "pre-norm"])
@pytest.mark.parametrize("counts", [1, (HEADS, 1)])
def test_the_result_shares_no_memory_with_the_model(name: str, counts: Any) -> None:
    model = make(CONFIGS[name])
    before = [weight.clone() for weight in model.parameters()]
    converted = convert(model, counts, "aligned", batches(CONFIGS[name]))
    own = {weight.data_ptr() for weight in model.parameters()}
    assert not own & {weight.data_ptr() for weight in converted.parameters()}
    for weight in converted.parameters():
        weight.data.zero_()
    assert all(torch.equal(weight, was) for weight, was in zip(model.parameters(), before, strict=True))


def test_random_heads_are_a_function_of_the_seed() -> None:
    model = make(LLAMA)
    one, same, other = (convert(model, 2, "random", refit=False, seed=seed) for seed in (1, 1, 2))
    assert difference(one, same, LLAMA) == 0
    assert difference(one, other, LLAMA) > 1e-3


def test_half_precision_is_converted_in_single() -> None:
    model = make(LLAMA).bfloat16()
    converted = convert(model, 2, "aligned", batches(LLAMA))
    assert {weight.dtype for weight in converted.parameters()} == {torch.bfloat16}
    wide = convert(make(LLAMA).bfloat16().double(), 2, "aligned", batches(LLAMA))
    key, reference = attentions(converted)[0].key.weight.double(), attentions(wide)[0].key.weight
    torch.testing.assert_close(key.abs(), reference.abs(), rtol=0, atol=0.02)


def test_double_precision_stays_double_where_torch_would_make_single() -> None:
    model = agreeing(LLAMA, 2)
    with_double = convert(model, 2, "aligned", batches(LLAMA))
    torch.set_default_dtype(torch.float32)
    converted = convert(model, 2, "aligned", batches(LLAMA))
    assert {weight.dtype for weight in converted.parameters()} == {torch.float64}
    assert difference(with_double, converted, LLAMA) < 1e-12


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("refit", [False, True])
def test_documents_in_one_row_are_as_good_as_rows_of_their_own(name: str, refit: bool) -> None:
    config = CONFIGS[name]
    model, apart = make(config), batches(config, n=2)
    document = torch.cat([torch.full((batch.ids_BT.shape[1],), i) for i, batch in enumerate(apart)])
    packed = PackedBatch(
        torch.cat([batch.ids_BT for batch in apart], dim=1),
        torch.cat([batch.labels_BT for batch in apart], dim=1),
        (document[:, None] == document).expand(len(apart[0].ids_BT), -1, -1),
        torch.cat([torch.arange(batch.ids_BT.shape[1]) for batch in apart]).expand(len(apart[0].ids_BT), -1),
    )
    one, other = (convert(model, 2, "aligned", data, refit=refit) for data in (apart, [packed]))
    assert difference(one, other, config) < 1e-8


def test_positions_without_movement_do_no_harm() -> None:
    """A covariance of low rank: the residual stream has as many dimensions as there are tokens."""
    config = GPT2.replace(vocab_size=5, positions="learned")
    model = make(config)
    model.embedding.positions.weight.data.zero_()
    converted = convert(model, 1, "aligned", batches(config))
    assert all(weight.isfinite().all() for weight in converted.parameters())


def _unpermuted(write: Callable[..., None]) -> Callable[..., None]:
    def mutant(self: Any, attention: Attention, *parts: Tensor) -> None:
        write(self, attention, *parts)
        attention.out.weight.copy_(self.out.flatten(0, 1).T)

    return mutant


def _without_shift(write: Callable[..., None]) -> Callable[..., None]:
    def mutant(self: Any, attention: Attention, *parts: Tensor) -> None:
        write(self, attention, *parts[:-1], torch.zeros_like(parts[-1]))

    return mutant


def _strided(groups: Any, owners: Any) -> list[int]:
    """Query head h reads group h % number of groups."""
    flat = [h for group in groups for head in group for h, owner in enumerate(owners) if owner == head]
    return [flat[i] for start in range(len(groups)) for i in range(start, len(flat), len(groups))]


@pytest.mark.parametrize("mutant", ["output not reordered", "means not folded", "another layout of heads"])
def test_planted_bugs_show(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = turned(agreeing(MARIAN, 2))
    for attention in attentions(model):
        attention.value.bias.data += torch.randn(D, generator=torch.Generator().manual_seed(7))
    assert difference(model, convert(model, 2, "aligned", batches(MARIAN), refit=False), MARIAN) < 1e-7
    if mutant == "output not reordered":
        monkeypatch.setattr(module._Wide, "write", _unpermuted(module._Wide.write))
    elif mutant == "means not folded":
        monkeypatch.setattr(module._Wide, "write", _without_shift(module._Wide.write))
    else:
        monkeypatch.setattr(module, "_query_order", _strided)
    assert difference(model, convert(model, 2, "aligned", batches(MARIAN), refit=False), MARIAN) > 1e-2


def test_what_cannot_be_converted_is_refused() -> None:
    model = make(LLAMA)
    with pytest.raises(ConfigError, match="n_kv_heads=3"):
        convert(model, 3, "mean", refit=False)
    grouped = convert(model, 2, "mean", refit=False)
    with pytest.raises(ConfigError, match="2 key/value heads cannot become n_kv_heads=4"):
        convert(grouped, 4, "mean", refit=False)
    with pytest.raises(ConfigError, match="one for each of 2 layers"):
        convert(model, (2, 2, 2), "mean", refit=False)
    with pytest.raises(ConfigError, match="method='median' must be one of"):
        convert(model, 2, "median", refit=False)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="0 calibration tokens; at least d_model=64"):
        convert(model, 2, "aligned")
    with pytest.raises(ConfigError, match="no decoder"):
        convert(nn.Linear(2, 2), 1)  # type: ignore[type-var]
