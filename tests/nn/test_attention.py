"""`Attention` against a loop over rows, heads, queries and keys, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import reference
import transfuse.nn.attention as subject
from transfuse.errors import ConfigError
from transfuse.nn.attention import Attention
from transfuse.nn.cache import GROWTH, KeyValueCache
from transfuse.nn.positions import Rotary

B, T, S, H = 2, 5, 7, 6


@dataclass(frozen=True)
class Case:
    """What an attention is asked to do; `keep` is the rank of its mask, 0 for none."""

    n_kv_heads: int = H
    cross: bool = False
    keep: int = 0
    causal: bool = False
    rotary: bool = False

    @property
    def d_head(self) -> int:
        return 10 if self.rotary else 11  # rotary pairs coordinates

    def __str__(self) -> str:
        flags = [name for name in ("cross", "causal", "rotary") if getattr(self, name)]
        return "-".join([f"kv{self.n_kv_heads}", *flags, *[f"keep{self.keep}"] * bool(self.keep)])


KINDS = [
    Case(),
    Case(keep=2),
    Case(keep=3),
    Case(causal=True),
    Case(causal=True, keep=2),
    Case(causal=True, keep=3),
    Case(causal=True, rotary=True),
    Case(keep=2, rotary=True),
    Case(cross=True),
    Case(cross=True, keep=2),
    Case(cross=True, keep=3),
]
CASES = [replace(kind, n_kv_heads=n_kv_heads) for kind in KINDS for n_kv_heads in (6, 3, 2, 1)]


@pytest.fixture(params=["two products", "blocks of queries", "fused kernel"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fused kernel":
        monkeypatch.setattr(subject, "FUSED_FROM", 0)
    if request.param == "blocks of queries":
        monkeypatch.setattr(subject, "BLOCK", 3)
    return request.param


def make(case: Case, dropout: float = 0.0) -> Attention:
    rotary = Rotary(case.d_head) if case.rotary else None
    d_model = H * case.d_head
    attention = Attention(d_model, H, case.n_kv_heads, causal=case.causal, dropout=dropout, rotary=rotary)
    return reference.draw(attention.double(), seed=3)


def inputs(case: Case) -> tuple[Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    d_model = H * case.d_head
    x = torch.randn(B, T, d_model, dtype=torch.float64, generator=generator)
    memory = torch.randn(B, S, d_model, dtype=torch.float64, generator=generator) if case.cross else None
    n_keys = S if case.cross else T
    keep = torch.rand((B, T, n_keys) if case.keep == 3 else (B, n_keys), generator=generator) < 0.6
    keep[..., 0] = True  # every query, the first one under a causal mask too, has something to see
    return x, memory, keep if case.keep else None


def expected(attention: Attention, case: Case, x: Tensor, memory: Tensor | None, keep: Tensor | None) -> Tensor:
    weights = dict(attention.named_parameters())
    return reference.attention(weights, H, case.n_kv_heads, x, memory, keep, case.causal, case.rotary)


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_like_the_loop(case: Case) -> None:
    attention = make(case).eval()
    x, memory, keep = inputs(case)
    with torch.no_grad():
        assert_same(attention(x, memory, keep=keep), expected(attention, case, x, memory, keep))


@pytest.mark.parametrize("case", [case for case in CASES if case.n_kv_heads in (6, 2)], ids=str)
def test_like_the_loop(case: Case, path: str) -> None:
    assert_like_the_loop(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_like_the_loop_in_training(case: Case, path: str) -> None:
    attention = make(case).train()
    x, memory, keep = inputs(case)
    wanted = [x.requires_grad_(), *attention.parameters()]
    if memory is not None:
        wanted.append(memory.requires_grad_())
    out, oracle = attention(x, memory, keep=keep), expected(attention, case, x, memory, keep)
    assert_same(out, oracle)
    direction = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    ours = torch.autograd.grad((out * direction).sum(), wanted)
    theirs = torch.autograd.grad((oracle * direction).sum(), wanted)
    for mine, other in zip(ours, theirs, strict=True):
        assert_same(mine, other, 1e-11)  # sums of hundreds of terms of size 10


@pytest.mark.parametrize("n_kv_heads", [6, 3, 1])
def test_dropout_scales_the_attention_weights(n_kv_heads: int, path: str) -> None:
    if path == "blocks of queries":
        pytest.skip("each block draws masks of its own shape; that they scale is what the other path shows")
    case = Case(n_kv_heads, causal=True, keep=2)
    attention = make(case, dropout=0.5).train()
    x, memory, keep = inputs(case)
    weights = dict(attention.named_parameters())
    with torch.no_grad():
        torch.manual_seed(11)
        factors = attention.dropout(torch.ones(B, n_kv_heads, H // n_kv_heads, T, T, dtype=x.dtype)).flatten(1, 2)
        oracle = reference.attention(weights, H, n_kv_heads, x, memory, keep, causal=True, factors_BHTS=factors)
        torch.manual_seed(11)
        assert_same(attention(x, keep=keep), oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_bfloat16_longer_sequences_take_two_products(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, calls = subject.F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        subject.F, "scaled_dot_product_attention", lambda *parts, **named: calls.append(1) or kernel(*parts, **named)
    )
    q, k, v = torch.randn(3, 1, 2, 300, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = subject.attend(q, k, v, causal=True)
    assert len(calls) == (dtype == torch.float32)
    expected = kernel(q.double(), k.double(), v.double(), is_causal=True)
    assert (found.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("n_keys", [5, subject.SHORT, subject.SHORT + 1])
def test_in_bfloat16_weights_are_rounded_once(n_keys: int) -> None:
    q, k = torch.randn(2, 1, 2, n_keys, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = subject.attention_weights(q, k, None, causal=False)
    scores = (q * 0.25).float() @ k.float().transpose(2, 3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), scores.bfloat16().float().softmax(-1), rtol=2**-8, atol=1e-6)


def test_long_sequences_take_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "FUSED_FROM", T * T)
    kernel, calls = subject.F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        subject.F, "scaled_dot_product_attention", lambda *parts, **named: calls.append(1) or kernel(*parts, **named)
    )
    attention, (x, _, _) = make(Case()), inputs(Case())
    attention(x)
    attention(x[:, : T - 1])
    assert len(calls) == 1


# Mutants: each bug is planted in a copy of the behaviour, and the check above must notice it.


def plant_scale_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = subject.attend
    monkeypatch.setattr(subject, "attend", lambda q, k, v, **named: attend(q * math.sqrt(q.shape[-1]), k, v, **named))


def plant_mask_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = subject.attend
    monkeypatch.setattr(subject, "attend", lambda q, k, v, **named: attend(q, k, v, **named | {"keep": None}))


def plant_mask_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = subject.attend
    monkeypatch.setattr(subject, "attend", lambda q, k, v, **named: attend(q, k, v, **named | {"keep": ~named["keep"]}))


def plant_heads_read_kv_modulo(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = subject.attend

    def modulo(q: Tensor, k: Tensor, v: Tensor, **named: object) -> Tensor:
        each = torch.arange(q.shape[1]) % k.shape[1]
        return attend(q, k[:, each], v[:, each], **named)

    monkeypatch.setattr(subject, "attend", modulo)


def plant_causal_one_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = subject.attend

    def too_far(q: Tensor, k: Tensor, v: Tensor, **named: object) -> Tensor:
        seen = torch.ones(1, q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2] + 1)
        return attend(q, k, v, **named | {"causal": False, "keep": seen})

    monkeypatch.setattr(subject, "attend", too_far)


def plant_causal_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = subject.attend
    monkeypatch.setattr(subject, "attend", lambda q, k, v, **named: attend(q, k, v, **named | {"causal": False}))


def plant_rotary_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Rotary.forward

    def interleaved(self: Rotary, x: Tensor, positions: Tensor) -> Tensor:
        halves = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
        return torch.stack(turn(self, halves, positions).chunk(2, dim=-1), dim=-1).flatten(-2)

    monkeypatch.setattr(Rotary, "forward", interleaved)


def plant_rotary_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rotary, "forward", lambda self, x, positions: x)


def plant_rotary_start_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Rotary.forward
    monkeypatch.setattr(Rotary, "forward", lambda self, x, positions: turn(self, x, positions - positions[0]))


def plant_causal_aligned_to_the_first_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subject, "_causal", lambda T, S, device: torch.ones(1, 1, T, S, dtype=torch.bool, device=device).tril()
    )


Plant = Callable[[pytest.MonkeyPatch], None]
MUTANTS = [
    (plant_scale_forgotten, Case()),
    (plant_scale_forgotten, Case(2, cross=True)),
    (plant_mask_forgotten, Case(keep=2)),
    (plant_mask_forgotten, Case(3, cross=True, keep=3)),
    (plant_mask_inverted, Case(keep=2)),
    (plant_heads_read_kv_modulo, Case(3)),
    (plant_heads_read_kv_modulo, Case(2, cross=True)),
    (plant_causal_one_too_far, Case(causal=True)),
    (plant_causal_forgotten, Case(causal=True, keep=2)),
    (plant_rotary_interleaved, Case(causal=True, rotary=True)),
    (plant_rotary_removed, Case(1, causal=True, rotary=True)),
]


@pytest.mark.parametrize(("plant", "case"), MUTANTS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_the_loop_notices_a_planted_bug(plant: Plant, case: Case, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        assert_like_the_loop(case)


# Cached steps

LENGTH = 2 * GROWTH + 7
CHUNKS = {
    "one at a time": [1] * LENGTH,
    "across growth": [GROWTH - 1, 1, 2, GROWTH + 3, 2],
    "at once": [1, LENGTH - 1],
}


def assert_cached_like_uncached(case: Case, chunks: list[int], keep: Tensor | None = None) -> None:
    attention = make(case).eval()
    x = torch.randn(B, LENGTH, H * case.d_head, dtype=torch.float64, generator=torch.Generator().manual_seed(13))
    cache, parts, seen = KeyValueCache(), [], 0
    with torch.no_grad():
        for chunk in x.split(chunks, dim=1):
            seen += chunk.shape[1]
            parts.append(attention(chunk, keep=None if keep is None else keep[:, :seen], cache=cache))
        assert len(cache) == seen == LENGTH
        assert_same(torch.cat(parts, dim=1), attention(x, keep=keep))


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
@pytest.mark.parametrize("rotary", [False, True])
def test_cached_like_uncached(n_kv_heads: int, rotary: bool, chunks: list[int], path: str) -> None:
    assert_cached_like_uncached(Case(n_kv_heads, causal=True, rotary=rotary), chunks)


def test_cached_like_uncached_with_left_padding(path: str) -> None:
    keep = torch.arange(LENGTH) >= torch.tensor([[0], [7]])
    keep[1, 0] = True
    for chunks in CHUNKS.values():
        assert_cached_like_uncached(Case(3, causal=True), chunks, keep)


@pytest.mark.parametrize("plant", [plant_rotary_start_ignored, plant_causal_aligned_to_the_first_key])
def test_the_uncached_pass_notices_a_planted_bug(plant: Plant, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        assert_cached_like_uncached(Case(3, causal=True, rotary=True), CHUNKS["across growth"])


# Beams: tokens side by side in one row

WIDTH, STEPS = 3, 30


@pytest.mark.parametrize("n_kv_heads", [6, 3, 1])
def test_beams_read_one_memory_as_if_it_were_repeated(n_kv_heads: int, path: str) -> None:
    case = Case(n_kv_heads, cross=True, keep=2)
    attention, cache = make(case).eval(), KeyValueCache()
    _, memory, keep = inputs(case)
    assert memory is not None
    assert keep is not None
    repeated, repeated_keep = memory.repeat_interleave(WIDTH, dim=0), keep.repeat_interleave(WIDTH, dim=0)
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for step in range(3):
            x_BWD = torch.randn(B, WIDTH, memory.shape[2], dtype=torch.float64, generator=generator)
            # after the first step the cache answers, whatever the memory
            out = attention(x_BWD, memory if step == 0 else torch.zeros_like(memory), keep=keep, cache=cache)
            apart = attention(x_BWD.flatten(0, 1)[:, None], repeated, keep=repeated_keep)
            assert_same(out, apart.view(out.shape))
    assert cache.n_bytes == 2 * B * n_kv_heads * S * case.d_head * 8  # keys and values once, not once a beam


def assert_beams_like_separate_rows(case: Case) -> None:
    """Beams choose their parents at random; each must see its own history and nothing else."""
    attention, cache = make(case).eval(), KeyValueCache()
    cache.widen(WIDTH)
    generator = torch.Generator().manual_seed(19)
    seen_BWS = torch.zeros(B, WIDTH, 0, dtype=torch.bool)
    histories_BWTD = torch.zeros(B, WIDTH, 0, H * case.d_head, dtype=torch.float64)
    rows = torch.arange(B)[:, None]
    with torch.no_grad():
        for _ in range(STEPS):
            parents_BW = torch.randint(WIDTH, (B, WIDTH), generator=generator)
            x_BWD = torch.randn(B, WIDTH, H * case.d_head, dtype=torch.float64, generator=generator)
            itself = torch.eye(WIDTH, dtype=torch.bool).expand(B, -1, -1)
            seen_BWS = torch.cat([seen_BWS[rows, parents_BW], itself], dim=2)
            histories_BWTD = torch.cat([histories_BWTD[rows, parents_BW], x_BWD[:, :, None]], dim=2)
            out = attention(x_BWD, keep=seen_BWS, cache=cache)
            assert_same(out, attention(histories_BWTD.flatten(0, 1))[:, -1].view(out.shape))
    assert cache.n_positions == STEPS


@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
@pytest.mark.parametrize("rotary", [False, True])
def test_beams_side_by_side_are_separate_rows(n_kv_heads: int, rotary: bool, path: str) -> None:
    assert_beams_like_separate_rows(Case(n_kv_heads, causal=True, rotary=rotary))


def plant_every_key_a_position(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Rotary.forward
    monkeypatch.setattr(
        Rotary, "forward", lambda self, x, positions: turn(self, x, positions[0] + torch.arange(x.shape[2]))
    )


@pytest.mark.parametrize("plant", [plant_mask_forgotten, plant_rotary_start_ignored, plant_every_key_a_position])
def test_the_separate_rows_notice_a_planted_bug(plant: Plant, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        assert_beams_like_separate_rows(Case(2, causal=True, rotary=True))


# Weights and sizes


@pytest.mark.parametrize("case", [case for case in CASES if case.n_kv_heads in (6, 2)], ids=str)
def test_weights_are_distributions_and_reproduce_the_forward_pass(case: Case, path: str) -> None:
    attention = make(case).eval()
    x, memory, keep = inputs(case)
    with torch.no_grad():
        weights_BHTS = attention.weights(x, memory, keep=keep)
        assert_same(weights_BHTS.sum(-1), torch.ones_like(weights_BHTS[..., 0]))
        source = x if memory is None else memory
        v_BGSK = reference.heads(attention.value(source), case.n_kv_heads)
        each = [h // (H // case.n_kv_heads) for h in range(H)]
        heads_BHTK = weights_BHTS @ v_BGSK[:, each]
        assert_same(attention.out(heads_BHTK.transpose(1, 2).flatten(2)), attention(x, memory, keep=keep))


def test_masked_keys_have_no_weight_at_all() -> None:
    case = Case(2, causal=True, keep=3)
    x, _, keep = inputs(case)
    assert keep is not None
    hidden = ~(keep & torch.ones(T, T, dtype=torch.bool).tril())
    weights_BHTS = make(case).weights(x, keep=keep)
    assert weights_BHTS.transpose(0, 1)[:, hidden].count_nonzero() == 0
    assert hidden.any()


@pytest.mark.parametrize(
    ("d_model", "n_heads", "n_kv_heads", "message"),
    [
        (64, 6, None, "d_model=64 must be a multiple of n_heads=6"),
        (64, 0, None, "d_model=64 must be a multiple of n_heads=0"),
        (64, 8, 3, "n_heads=8 must be a multiple of n_kv_heads=3"),
        (64, 4, 8, "n_heads=4 must be a multiple of n_kv_heads=8"),
        (64, 4, 0, "n_heads=4 must be a multiple of n_kv_heads=0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(d_model: int, n_heads: int, n_kv_heads: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Attention(d_model, n_heads, n_kv_heads)
