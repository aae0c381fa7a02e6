"""Positions, feed-forward, dropout, the key/value cache and blocks against closed forms and hand-written formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from transfuse.errors import ConfigError, DataError
from transfuse.nn.attention import Attention
from transfuse.nn.blocks import Block, BlockCache, Stack
from transfuse.nn.cache import GROWTH, KeyValueCache
from transfuse.nn.dropout import Dropout
from transfuse.nn.embeddings import SomeTokens, TokenEmbedding, only
from transfuse.nn.feed_forward import FeedForward
from transfuse.nn.norms import RMSNorm
from transfuse.nn.positions import Learned, Rotary, Sinusoidal

ONE_ULP = 2**-24  # of a float32 just below 1


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Sinusoidal positions


def sinusoidal(n_positions: int, d_model: int, offset: int, last: int) -> Tensor:
    """Wavelengths 2π · 10000^(i / last)."""
    half = d_model // 2
    angles = [[(offset + t) / 10_000 ** (i / last) for i in range(half)] for t in range(n_positions)]
    rows = [[math.sin(angle) for angle in row] + [math.cos(angle) for angle in row] for row in angles]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("offset", [0, 3])
def test_sinusoidal_has_the_closed_form(offset: int) -> None:
    table = Sinusoidal(26, offset=offset)(torch.arange(500))
    assert_same(table.double(), sinusoidal(500, 26, offset, last=13), ONE_ULP)


def test_closed_sinusoidal_has_the_closed_form_to_float32_angles() -> None:
    table = Sinusoidal(26, offset=2, closed=True)(torch.arange(500))
    assert_same(table.double(), sinusoidal(500, 26, 2, last=12), 5e-5)


def test_closed_and_half_open_wavelengths_differ() -> None:
    difference = Sinusoidal(26, closed=True)(torch.arange(50)) - Sinusoidal(26)(torch.arange(50))
    assert difference.abs().max() > 0.1


def test_sinusoidal_is_the_table_of_marian() -> None:
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    theirs = MarianSinusoidalPositionalEmbedding(600, 26).create_weight()
    assert_same(Sinusoidal(26)(torch.arange(600)), theirs, ONE_ULP)


@pytest.mark.parametrize("pad_id", [0, 1, 5])
def test_closed_sinusoidal_is_the_table_of_m2m100(pad_id: int) -> None:
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding

    theirs = M2M100SinusoidalPositionalEmbedding.get_embedding(600, 26, pad_id)
    ours = Sinusoidal(26, offset=pad_id + 1, closed=True)(torch.arange(600 - pad_id - 1))
    assert_same(ours, theirs[pad_id + 1 :], ONE_ULP)


@pytest.mark.parametrize("closed", [False, True])
def test_sinusoidal_rows_do_not_depend_on_how_the_table_grew(closed: bool) -> None:
    grown = Sinusoidal(26, offset=2, closed=closed)
    first = grown(torch.arange(200)).clone()
    late = grown(torch.arange(900, 1000))
    assert torch.equal(grown(torch.arange(200)), first)
    assert torch.equal(late, Sinusoidal(26, offset=2, closed=closed)(torch.arange(1000))[900:])
    assert torch.equal(late, Sinusoidal(26, offset=902, closed=closed)(torch.arange(100)))


def test_sinusoidal_grows_in_the_dtype_it_was_moved_to() -> None:
    assert Sinusoidal(26).double()(torch.arange(300)).dtype == torch.float64


def test_sinusoidal_width_must_be_even() -> None:
    with pytest.raises(ConfigError, match="d_model=13 must be even"):
        Sinusoidal(13)


# Learned and rotary positions


def test_learned_positions_are_rows_of_the_weight() -> None:
    positions = reference.draw(Learned(11, 6), seed=1)
    assert torch.equal(positions(torch.arange(3, 11)), positions.weight[3:11])


def test_learned_positions_end() -> None:
    with pytest.raises(DataError, match="a sequence of 12 tokens, but the model has 11 positions"):
        Learned(11, 6)(torch.tensor([11]))


@pytest.mark.parametrize("start", [0, 19])
def test_rotary_turns_pairs(start: int) -> None:
    x = normal(2, 3, 7, 10)
    assert_same(Rotary(10)(x, start + torch.arange(7)), reference.rotate(x, start))
    assert_same(Rotary(10, base=500.0)(x, start + torch.arange(7)), reference.rotate(x, start, base=500.0))


def test_rotary_tokens_side_by_side_stand_at_one_position() -> None:
    x = normal(2, 3, 4 * 3, 10)
    turned = Rotary(10)(x, 19 + torch.arange(4).repeat_interleave(3))
    for beam in range(3):
        assert torch.equal(turned[:, :, beam::3], Rotary(10)(x[:, :, beam::3], 19 + torch.arange(4)))


def test_rotary_dot_products_depend_on_distance_alone() -> None:
    rotary, q, k = Rotary(10), normal(1, 1, 1, 10), normal(1, 1, 1, 10, seed=2)

    def product(query_at: int, key_at: int) -> Tensor:
        return (rotary(q, torch.tensor([query_at])) * rotary(k, torch.tensor([key_at]))).sum()

    products = [product(t + 5, t) for t in (0, 1, 17, 1000)]
    for other in products[1:]:
        assert_same(other, products[0], 1e-11)
    assert product(6, 0).sub(products[0]).abs() > 0.01


def test_rotary_keeps_norms_and_leaves_position_zero() -> None:
    x = normal(2, 3, 7, 10)
    turned = Rotary(10)(x, torch.arange(7))
    assert_same(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_rotary_width_must_be_even() -> None:
    with pytest.raises(ConfigError, match="d_head=5 must be even"):
        Rotary(5)


# Embeddings and feed-forward


@pytest.mark.parametrize("scale", [False, True])
def test_embedding_scales_the_tokens_but_not_the_positions(scale: bool) -> None:
    token, positions = reference.draw(nn.Embedding(13, 6), seed=1), Sinusoidal(6)
    ids = torch.tensor([[5, 12, 0], [7, 7, 1]])
    factor = math.sqrt(6) if scale else 1.0
    expected = torch.stack([torch.stack([token.weight[i] * factor for i in row.tolist()]) for row in ids])
    assert_same(
        TokenEmbedding(token, positions, scale=scale)(ids, torch.arange(4, 7)),
        expected + positions(torch.arange(4, 7)),
        1e-6,
    )
    assert_same(TokenEmbedding(token, None, scale=scale)(ids, torch.arange(4, 7)), expected, 1e-6)


def test_embedding_tokens_side_by_side_stand_at_one_position() -> None:
    embedding = TokenEmbedding(reference.draw(nn.Embedding(13, 6), seed=1), Sinusoidal(6), scale=True)
    ids = torch.arange(12).view(2, 6)
    together = embedding(ids, torch.tensor([4, 4, 4, 5, 5, 5]))
    for beam in range(3):
        assert torch.equal(together[:, beam::3], embedding(ids[:, beam::3], torch.tensor([4, 5])))


def activation(name: str, x: Tensor) -> Tensor:
    if name == "relu":
        return (x + x.abs()) / 2
    if name == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x / (1 + (-x).exp())


@pytest.mark.parametrize("name", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("gated", [False, True])
def test_feed_forward_has_the_formula(name: str, gated: bool) -> None:
    layer = reference.draw(FeedForward(5, 11, activation=name, gated=gated).double(), seed=1)
    weights, x = dict(layer.named_parameters()), normal(2, 3, 5)
    up = reference.linear(weights, "up", x)
    hidden = activation(name, reference.linear(weights, "gate", x)) * up if gated else activation(name, up)
    assert_same(layer(x), reference.linear(weights, "down", hidden))


@pytest.mark.parametrize("gated", [False, True])
def test_feed_forward_without_bias_maps_zero_to_zero(gated: bool) -> None:
    layer = reference.draw(FeedForward(5, 11, gated=gated, bias=False), seed=1)
    assert layer(torch.zeros(1, 1, 5)).count_nonzero() == 0
    assert all(name.endswith("weight") for name, _ in layer.named_parameters())


def test_feed_forward_drops_hidden_units() -> None:
    layer = reference.draw(FeedForward(5, 11, dropout=0.5).double(), seed=1).train()
    weights, x = dict(layer.named_parameters()), normal(2, 3, 5)
    torch.manual_seed(3)
    kept = layer.dropout(torch.ones(2, 3, 11, dtype=x.dtype))
    torch.manual_seed(3)
    hidden = activation("relu", reference.linear(weights, "up", x)) * kept
    assert_same(layer(x), reference.linear(weights, "down", hidden))


# Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_zeroes_at_its_rate_and_scales_the_rest(rate: float, dtype: torch.dtype) -> None:
    n = 1_000_003  # not a multiple of the four elements of a draw
    torch.manual_seed(1)
    out = Dropout(rate)(torch.ones(n, dtype=dtype))
    exact = round(rate * 32768) / 32768
    assert abs(int((out == 0).sum()) - n * exact) < 5 * math.sqrt(n * exact * (1 - exact))
    assert out.unique().tolist() == [0, torch.tensor(1 / (1 - exact), dtype=dtype).item()]


def test_dropout_draws_every_element_of_a_word_alike_and_independently() -> None:
    n = 250_000
    torch.manual_seed(1)
    dropped = (Dropout(0.25)(torch.ones(n, 4)) == 0).double()
    five_sigma = 5 / math.sqrt(n)
    assert (dropped.mean(0) - 0.25).abs().max() < five_sigma * math.sqrt(0.25 * 0.75)
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < five_sigma


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 5), (0, 4)])
def test_dropout_keeps_any_shape(shape: tuple[int, ...]) -> None:
    out = Dropout(0.5)(torch.ones(shape))
    assert out.shape == shape
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    x = normal(3, 5)
    assert Dropout(0.9).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dropout_gradient_has_the_mask_of_the_output(dtype: torch.dtype) -> None:
    x = normal(31, 7).to(dtype).requires_grad_()
    out = Dropout(0.25)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.dtype == out.dtype == dtype
    assert torch.equal(gradient, (out != 0) * torch.tensor(4 / 3, dtype=dtype))
    assert 0 < (gradient == 0).sum() < x.numel()


def test_dropout_handles_a_strided_input() -> None:
    x = normal(7, 31).T
    torch.manual_seed(1)
    out = Dropout(0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(out, Dropout(0.5)(x.contiguous()))


def test_dropout_repeats_with_the_seed_and_only_then() -> None:
    dropout, x = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    again = dropout(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_rate_must_be_a_fraction(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate={rate} must be at least 0 and below 1"):
        Dropout(rate)


# The key/value cache


def test_cache_holds_what_was_appended_across_growth() -> None:
    cache, keys, values = KeyValueCache(), normal(2, 3, 2 * GROWTH + 15, 5), normal(2, 3, 2 * GROWTH + 15, 5, seed=2)
    seen = 0
    for size in (1, 1, GROWTH, 4, GROWTH + 9):
        stop = seen + size
        held = cache.append(keys[:, :, seen:stop], values[:, :, seen:stop])
        seen = stop
        assert len(cache) == seen
        assert torch.equal(held[0], keys[:, :, :seen])
        assert torch.equal(held[1], values[:, :, :seen])
    assert seen == keys.shape[2]


def test_cache_does_not_write_into_what_it_was_given() -> None:
    cache, first = KeyValueCache(), normal(2, 3, 4, 5)
    before = first.clone()
    cache.append(first, first)
    cache.append(normal(2, 3, 1, 5, seed=2), normal(2, 3, 1, 5, seed=3))
    assert torch.equal(first, before)


@pytest.mark.parametrize("sizes", [(4,), (4, 2)], ids=["full", "with room"])
def test_cache_selects_rows_in_the_order_given_and_goes_on(sizes: tuple[int, ...]) -> None:
    cache, rows = KeyValueCache(), torch.tensor([2, 0, 0, 1, 2])
    parts = [(normal(3, 2, size, 5, seed=size), normal(3, 2, size, 5, seed=size + 10)) for size in sizes]
    for part in parts:
        cache.append(*part)
    cache.select(rows)
    further = normal(5, 2, 3, 5, seed=7), normal(5, 2, 3, 5, seed=8)
    held = cache.append(*further)
    for which in (0, 1):
        expected = torch.cat([part[which][rows] for part in parts] + [further[which]], dim=2)
        assert torch.equal(held[which], expected)


def test_cache_counts_the_bytes_it_holds_and_not_its_reserve() -> None:
    cache = KeyValueCache()
    assert cache.n_bytes == 0
    cache.append(normal(2, 3, 4, 5), normal(2, 3, 4, 5))
    cache.append(normal(2, 3, 1, 5), normal(2, 3, 1, 5))
    assert cache.n_bytes == 2 * (2 * 3 * 5 * 5) * 8  # keys and values, 5 positions of float64
    cache.select(torch.tensor([1]))
    assert cache.n_bytes == 2 * (1 * 3 * 5 * 5) * 8


def test_cache_counts_positions_by_its_width() -> None:
    cache = KeyValueCache()
    cache.widen(3)
    assert cache.n_positions == len(cache) == 0
    cache.append(normal(2, 1, 6, 5), normal(2, 1, 6, 5))
    assert (cache.n_positions, len(cache)) == (2, 6)


def test_a_widened_cache_repeats_what_it_holds_and_goes_on() -> None:
    cache, first, further = KeyValueCache(), normal(2, 3, 2, 5), normal(2, 3, 4, 5, seed=2)
    cache.append(first, first)
    cache.widen(4)
    keys, _ = cache.append(further, further)
    assert torch.equal(keys, torch.cat([first.repeat_interleave(4, dim=2), further], dim=2))
    assert (cache.n_positions, len(cache)) == (3, 12)


def test_selecting_from_an_empty_cache_leaves_it_empty() -> None:
    cache = KeyValueCache()
    cache.select(torch.tensor([0]))
    assert len(cache) == 0


# Blocks


def make_block(norm_first: bool, cross: bool, dropout: float = 0.0) -> Block:
    block = Block(
        12,
        Attention(12, 3, causal=True),
        FeedForward(12, 17),
        Attention(12, 2) if cross else None,
        norm_first=norm_first,
        dropout=dropout,
    )
    return reference.draw(block.double(), seed=1)


def test_cross_attention_without_a_memory_is_refused() -> None:
    with pytest.raises(DataError, match="needs a memory"):
        make_block(norm_first=True, cross=True)(normal(2, 3, 12))


def by_hand(block: Block, x: Tensor, memory: Tensor, keep: Tensor, memory_keep: Tensor) -> Tensor:
    """The sub-layers in turn; `block.dropout` is drawn from as often as there are sub-layers."""
    steps: list[tuple[Any, Any]] = [(block.attention_norm, lambda y: block.attention(y, keep=keep))]
    if block.cross_attention is not None:
        cross = block.cross_attention
        steps.append((block.cross_attention_norm, lambda y: cross(y, memory, keep=memory_keep)))
    steps.append((block.feed_forward_norm, block.feed_forward))
    for norm, sublayer in steps:
        if block.norm_first:
            x = x + block.dropout(sublayer(reference.layer_norm(x, norm.weight, norm.bias)))
        else:
            x = reference.layer_norm(x + block.dropout(sublayer(x)), norm.weight, norm.bias)
    return x


def block_inputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    memory_keep = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    return normal(2, 5, 12), normal(2, 7, 12, seed=2), {"keep": keep, "memory_keep": memory_keep}


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_block_is_its_sublayers_with_residuals(norm_first: bool, cross: bool, dropout: float) -> None:
    block = make_block(norm_first, cross, dropout).train()
    x, memory, masks = block_inputs()
    torch.manual_seed(5)
    expected = by_hand(block, x, memory, **masks)
    torch.manual_seed(5)
    assert_same(block(x, memory, **masks), expected)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("bug", ["norm", "keep", "memory_keep", "dropout"])
def test_the_formula_notices_a_planted_bug(norm_first: bool, bug: str) -> None:
    block = make_block(norm_first, cross=True, dropout=0.5).train()
    x, memory, masks = block_inputs()
    torch.manual_seed(5)
    expected = by_hand(block, x, memory, **masks)
    if bug == "norm":
        block.norm_first = not norm_first
    elif bug == "dropout":
        block.eval()
    else:
        masks[bug] = torch.ones_like(masks[bug])
    torch.manual_seed(5)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(block(x, memory, **masks), expected)


@pytest.mark.parametrize("closing", [True, False])
def test_stack_is_its_blocks_and_a_closing_norm(closing: bool) -> None:
    blocks = [make_block(True, cross=True), make_block(False, cross=True)]
    norm = reference.draw(nn.LayerNorm(12, dtype=torch.float64), seed=9) if closing else None
    x, memory, masks = block_inputs()
    expected = by_hand(blocks[1], by_hand(blocks[0], x, memory, **masks), memory, **masks)
    if norm is not None:
        expected = reference.layer_norm(expected, norm.weight, norm.bias)
    assert_same(Stack(blocks, norm)(x, memory, **masks), expected)


@torch.no_grad()
def test_cached_stack_is_the_uncached_stack() -> None:
    stack = Stack([make_block(True, cross=True), make_block(False, cross=True)]).eval()
    x, memory, masks = block_inputs()
    caches, memory_keep = [BlockCache(KeyValueCache()), BlockCache(KeyValueCache())], masks["memory_keep"]
    steps = [stack(x[:, t : t + 1], memory, memory_keep=memory_keep, cache=caches) for t in range(5)]
    assert_same(torch.cat(steps, dim=1), stack(x, memory, memory_keep=memory_keep))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_root_mean_square_norm_is_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    norm, x = reference.draw(RMSNorm(7, eps=1e-3), seed=1).to(dtype), normal(2, 3, 7).to(dtype)
    expected = x / ((x**2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    with torch.inference_mode():
        quick = norm(x)
    assert quick.dtype == norm(x).dtype == dtype
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 3e-2}[dtype]
    assert_same(quick, expected, tolerance)
    assert_same(norm(x), expected, tolerance)


# Some vectors of a table


def table(n: int = 9) -> TokenEmbedding:
    return TokenEmbedding(nn.Embedding(n, 4, _weight=normal(n, 4)), None)


def test_some_tokens_stand_for_the_whole_table() -> None:
    embedding, ids = table(), torch.tensor([[7, 2, 2], [5, 7, 2]])
    whole, expected = embedding.token, embedding(ids)
    before = whole.weight.detach().clone()
    with only(embedding, [7, 2, 5, 2]) as some:
        assert embedding.token is some and some.weight.shape == (3, 4)
        assert torch.equal(embedding(ids), expected)
        embedding(ids).sum().backward()
        assert some.weight.grad is not None
        with torch.no_grad():
            some.weight += some.weight.grad
    assert embedding.token is whole
    counts = torch.bincount(ids.flatten(), minlength=9)[:, None]
    assert torch.equal(whole.weight, before + counts)


def test_some_tokens_know_no_others_and_return_after_an_error() -> None:
    embedding = table()
    embedding.token.weight.requires_grad_(False)
    whole = embedding.token
    with pytest.raises(IndexError), only(embedding, [1, 3]):
        embedding(torch.tensor([[1, 2]]))
    assert embedding.token is whole
    some = SomeTokens(whole, [3, 1])
    assert some.ids.tolist() == [1, 3]
    assert not some.weight.requires_grad
