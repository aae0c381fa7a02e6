"""The second moments of heads, against loops over queries and keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from transfuse.nn.attention import Attention
from transfuse.nn.positions import Rotary
from transfuse.regrouping.statistics import HeadStatistics

HEADS, GROUPS, WIDTH = 6, 3, 4
D = HEADS * WIDTH


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def looped(
    attention: Attention, x_BTD: Tensor, memory_BSD: Tensor | None, keep: Tensor | None, real_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means over real queries: q qᵀ, covariance of keys within the query, attended values, their second moment, and
    how far what is added to the residual stream lies from its mean under the weights."""
    q, k, v = attention.project(x_BTD, memory_BSD)
    weights = attention.weights(x_BTD, memory_BSD, keep=keep)
    N = GROUPS * WIDTH
    moments, keys, means, values = (torch.zeros(HEADS, *shape) for shape in ((WIDTH,) * 2, (N, N), (N,), (N, N)))
    spreads, per_head = torch.zeros(HEADS), attention.out.weight.view(D, HEADS, WIDTH)
    for b, t in real_BT.nonzero().tolist():
        all_keys, all_values = (part[b].transpose(0, 1).flatten(1) for part in (k, v))
        for h in range(HEADS):
            w = weights[b, h, t]
            centre = w @ all_keys
            keys[h] += sum(w[s] * torch.outer(key - centre, key - centre) for s, key in enumerate(all_keys))
            attended = w @ all_values
            means[h] += attended
            values[h] += torch.outer(attended, attended)
            moments[h] += torch.outer(q[b, h, t], q[b, h, t])
            added = v[b, h // (HEADS // GROUPS)] @ per_head[:, h].T
            spreads[h] += sum(w[s] * (one - w @ added).square().sum() for s, one in enumerate(added))
    n = int(real_BT.sum())
    return moments / n, keys / n, means / n, values / n, spreads / n


def pairs(keys_HNN: Tensor) -> Tensor:
    """E[k_a k_b*] of coordinates i and i + K / 2 as one complex number, (H, P, G, G)."""
    P = WIDTH // 2
    found = torch.zeros(HEADS, P, GROUPS, GROUPS, dtype=torch.complex128)
    for p in range(P):
        for a in range(GROUPS):
            for b in range(GROUPS):
                (ra, ia), (rb, ib) = ((g * WIDTH + p, g * WIDTH + p + P) for g in (a, b))
                found[:, p, a, b] = torch.complex(
                    keys_HNN[:, ra, rb] + keys_HNN[:, ia, ib], keys_HNN[:, ia, rb] - keys_HNN[:, ra, ib]
                )
    return found


@pytest.mark.parametrize("kind", ["self", "cross", "rotary"])
@torch.no_grad()
def test_statistics_are_means_over_real_queries(kind: str) -> None:
    torch.manual_seed(0)
    cross = kind == "cross"
    rotary = Rotary(WIDTH) if kind == "rotary" else None
    attention = Attention(D, HEADS, GROUPS, causal=not cross, rotary=rotary).eval()
    x, memory = torch.randn(3, 7, D), torch.randn(3, 11, D) + 2 if cross else None
    real = torch.arange(7) < torch.tensor([[7], [4], [1]])
    keep = torch.arange(11) < torch.tensor([[11], [2], [5]]) if cross else None
    statistics = HeadStatistics(attention)
    for row in range(3):  # in batches
        one = slice(row, row + 1)
        statistics.add(
            attention,
            x[one],
            None if memory is None else memory[one],
            keep=None if keep is None else keep[one],
            real_BT=real[one],
        )
    moments, keys, means, values, spreads = looped(attention, x, memory, keep, real)
    torch.testing.assert_close(statistics.queries_HKK, moments)
    torch.testing.assert_close(statistics.keys_HPMM, keys[:, None] if rotary is None else pairs(keys))
    torch.testing.assert_close(statistics.value_means_HN, means)
    torch.testing.assert_close(statistics.values_HNN, values)
    torch.testing.assert_close(statistics.spreads_H, spreads)
    torch.testing.assert_close(statistics.value_covariances_HNN(), values - means[:, :, None] * means[:, None, :])


@torch.no_grad()
def test_spreads_keep_their_digits_under_large_biases_and_are_never_negative() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    attention, real = Attention(D, HEADS, GROUPS), torch.ones(2, 9, dtype=torch.bool)
    plain, shifted, still = (HeadStatistics(attention) for _ in range(3))
    x = torch.randn(2, 9, D)
    plain.add(attention, x, real_BT=real)
    attention.value.bias += 1000
    shifted.add(attention, x, real_BT=real)
    torch.testing.assert_close(shifted.spreads_H, plain.spreads_H, rtol=1e-2, atol=0)
    attention.value.weight.zero_()
    still.add(attention, x, real_BT=real)
    assert (still.spreads_H >= 0).all() and still.spreads_H.max() < 1e-6
