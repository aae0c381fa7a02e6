"""Slow textbook versions that the library is held against: loops and lists, no caches, no batches, no fused kernels.

Shapes: B rows, T query positions, S key positions, D d_model, H query heads, G key/value heads, K head width,
N positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

NextLogP = Callable[[list[int]], list[float]]
"""Tokens written so far, the start token first, to the log-probability of each token that may follow."""


def draw(model: nn.Module, seed: int, std: float = 0.3) -> nn.Module:
    """Draw all weights from N(0, std²), those of norms around 1, so that every part of a model counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:  # all but fixed position tables
                centre = float("norm" in name and name.endswith("weight"))
                weight.copy_(centre + std * torch.randn(weight.shape, generator=generator))
    return model


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    keep_BTS: Tensor | None = None,
    causal: bool = False,
    factors_BHTS: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention, one query at a time; `factors` multiply the weights, as dropout does."""
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    out_BHTK = torch.zeros_like(q_BHTK)
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            for t in range(T):
                seen = [
                    s
                    for s in range(S)
                    if (keep_BTS is None or bool(keep_BTS[b, t, s])) and (not causal or s <= t + S - T)
                ]
                scores = [torch.dot(q_BHTK[b, h, t], k_BGSK[b, g, s]) / math.sqrt(K) for s in seen]
                total = sum(score.exp() for score in scores)
                for s, score in zip(seen, scores, strict=True):
                    factor = 1.0 if factors_BHTS is None else factors_BHTS[b, h, t, s]
                    out_BHTK[b, h, t] += score.exp() / total * factor * v_BGSK[b, g, s]
    return out_BHTK


def rotate(x_BHTK: Tensor, start: int = 0, base: float = 10_000.0) -> Tensor:
    """Rotary positions: coordinates i and i + K / 2 turned by (start + t) · base^(-2i / K)."""
    K = x_BHTK.shape[3]
    turned = x_BHTK.clone()
    for t in range(x_BHTK.shape[2]):
        for i in range(K // 2):
            angle = (start + t) * base ** (-2 * i / K)
            first, second = x_BHTK[:, :, t, i], x_BHTK[:, :, t, i + K // 2]
            turned[:, :, t, i] = math.cos(angle) * first - math.sin(angle) * second
            turned[:, :, t, i + K // 2] = math.sin(angle) * first + math.cos(angle) * second
    return turned


def attention(
    weights: Mapping[str, Tensor],
    n_heads: int,
    n_kv_heads: int,
    x_BTD: Tensor,
    memory_BSD: Tensor | None = None,
    keep: Tensor | None = None,
    causal: bool = False,
    rotary: bool = False,
    factors_BHTS: Tensor | None = None,
) -> Tensor:
    """A whole attention layer from its named weights."""
    source = x_BTD if memory_BSD is None else memory_BSD
    q_BHTK = heads(linear(weights, "query", x_BTD), n_heads)
    k_BGSK = heads(linear(weights, "key", source), n_kv_heads)
    v_BGSK = heads(linear(weights, "value", source), n_kv_heads)
    if rotary:
        q_BHTK, k_BGSK = rotate(q_BHTK), rotate(k_BGSK)
    if keep is not None and keep.dim() == 2:
        keep = torch.stack([keep] * x_BTD.shape[1], dim=1)
    out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, keep, causal, factors_BHTS)
    return linear(weights, "out", torch.cat([out_BHTK[:, h] for h in range(n_heads)], dim=-1))


def linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """x · Wᵀ + b."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def heads(x_BTD: Tensor, n_heads: int) -> Tensor:
    """Head h is the h-th slice of the width; (B, H, T, K)."""
    K = x_BTD.shape[2] // n_heads
    return torch.stack([x_BTD[:, :, h * K : (h + 1) * K] for h in range(n_heads)], dim=1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / √(variance + ε), scaled and shifted."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def cross_entropy(logits_NV: Tensor, labels: Sequence[int], smoothing: float = 0.0) -> Tensor:
    """Σ over positions of -Σ over v of target(v) · log p(v), with 1 - ε on the label plus ε / V everywhere."""
    V = logits_NV.shape[1]
    loss = logits_NV.new_zeros(())
    for logits_V, label in zip(logits_NV, labels, strict=True):
        log_total = logits_V.exp().sum().log()
        for v in range(V):
            target = smoothing / V + (1 - smoothing) * (v == label)
            loss = loss - target * (logits_V[v] - log_total)
    return loss


def greedy(next_log_p: NextLogP, start_id: int, end_id: int, forbidden: Collection[int], limit: int) -> list[int]:
    """The most probable token each time, up to and with the end token or `limit` tokens."""
    ids = [start_id]
    while len(ids) - 1 < limit and (len(ids) == 1 or ids[-1] != end_id):
        log_p = next_log_p(ids)
        ids.append(max((i for i in range(len(log_p)) if i not in forbidden), key=lambda i: log_p[i]))
    return ids[1:]


def beam_search(
    next_log_p: NextLogP,
    start_id: int,
    end_id: int,
    forbidden: Collection[int],
    limit: int,
    width: int,
    length_penalty: float,
) -> list[tuple[float, list[int]]]:
    """(score, tokens) of the `width` best sequences, best first.

    Of the 2 · width best continuations those that end are finished if they are among the first `width`; the first
    `width` of the others go on. It is over when `width` sequences are finished and the best of the unfinished does not
    score higher, or at `limit`, where the unfinished count too.
    """
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    for length in range(1, limit + 1):
        found = [
            (total + log_p, [*ids, token])
            for total, ids in beams
            for token, log_p in enumerate(next_log_p([start_id, *ids]))
            if token not in forbidden
        ]
        found = sorted(found, reverse=True)[: 2 * width]
        done += [(total / length**length_penalty, ids) for total, ids in found[:width] if ids[-1] == end_id]
        done = sorted(done, reverse=True)[:width]
        beams = [(total, ids) for total, ids in found if ids[-1] != end_id][:width]
        if len(done) == width and beams[0][0] / length**length_penalty <= done[-1][0]:
            return done
    done += [(total / limit**length_penalty, ids) for total, ids in beams]
    return sorted(done, reverse=True)[:width]


def every_sequence(
    next_log_p: NextLogP, end_id: int, start_id: int, forbidden: Collection[int], limit: int
) -> list[tuple[float, list[int]]]:
    """(log-probability, tokens) of all sequences there are: those that end, and those of `limit` tokens that do not."""
    complete, growing = [], [(0.0, [start_id])]
    while growing:
        total, ids = growing.pop()
        for token, log_p in enumerate(next_log_p(ids)):
            if token not in forbidden:
                ends = token == end_id or len(ids) == limit
                (complete if ends else growing).append((total + log_p, [*ids, token]))
    return [(total, ids[1:]) for total, ids in complete]
