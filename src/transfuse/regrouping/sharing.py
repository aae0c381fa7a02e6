"""What the heads of a group share, and how each gets back from it to (nearly) its own.

A group of n key/value heads, each K wide, becomes one: k' = T k, where k are the n heads' vectors one below the other.
Each query head h then uses B_h k' for its own head's keys. A constant map of keys folds into the queries (q' = B_hᵀ q)
and one of values into the output projection (W_O,h B_h), so no arithmetic is added. The methods differ in T and B:

- `mean` (arXiv 2305.13245): T averages, B is the identity; `first` takes the first head.
- `procrustes` (after arXiv 2412.20677): B are the rotations that make heads agree best, T averages what they agree on.
- `aligned`: T and B minimise the error of what is made of keys and values: of the logits, over the differences between
  keys that each head's softmax sees, by how much what the head adds to the residual stream moves with them; and of what
  is added to the residual stream.

Rotary positions turn keys pair by pair of coordinates, so maps of keys must commute with that: one complex number a
pair (rotation and scale). Both cases are one here, as P independent problems of width W: 1 of width K in real numbers,
or K / 2 of width 1 in complex ones.

Shapes: P problems, W width, H query heads of a group, n key/value heads, N = n · W; K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["aligned", "procrustes", "mean", "first", "random"]

ROUNDS = 10
"""Of the alternations that find what heads agree on."""


@dataclass(frozen=True)
class Shared:
    """T (K, n · K) and each query head's B (H, K, K), as real matrices."""

    take_KN: Tensor
    back_HKK: Tensor

    def scaled(self, scale_K: Tensor) -> Shared:
        """The same with each shared coordinate multiplied by a number."""
        return Shared(scale_K[:, None] * self.take_KN, self.back_HKK / scale_K)


@dataclass(frozen=True)
class Problem:
    """What sharing depends on: for each query head its `inner` weighting of its own vectors, the covariance of all
    vectors it looks at, and which of the n heads are its own. The error of (T, B) is
    Σ_h tr inner_h (E_h - B_h T) cov_h (E_h - B_h T)*, E_h selecting head h's own vectors."""

    inner_HPWW: Tensor
    covariance_HPNN: Tensor
    owners: Sequence[int]

    @property
    def width(self) -> int:
        """W."""
        return self.inner_HPWW.shape[-1]

    @property
    def n_heads(self) -> int:
        """n, the heads that become one."""
        return self.covariance_HPNN.shape[-1] // self.width

    def within(self, heads: Sequence[int]) -> Problem:
        """The problem of a group of these heads alone."""
        if list(heads) == list(range(self.n_heads)):
            return self
        W = self.width
        chosen = [h for head in heads for h, owner in enumerate(self.owners) if owner == head]
        columns = torch.cat([torch.arange(head * W, (head + 1) * W) for head in heads])
        covariance = self.covariance_HPNN[chosen][..., columns[:, None], columns]
        return Problem(self.inner_HPWW[chosen], covariance, [list(heads).index(self.owners[h]) for h in chosen])

    def energy(self) -> float:
        """The error of sharing nothing at all, T = 0."""
        W = self.width
        own = [self.covariance_HPNN[h, :, o * W : o * W + W, o * W : o * W + W] for h, o in enumerate(self.owners)]
        return float((self.inner_HPWW @ torch.stack(own)).diagonal(dim1=-2, dim2=-1).real.sum())


def own_problem(inner_HKK: Tensor, covariance_HNN: Tensor, owners: Sequence[int]) -> Problem:
    """Heads that any invertible map may change: P = 1, W = K."""
    return Problem(inner_HKK[:, None], covariance_HNN[:, None], owners)


def rotary_problem(inner_HKK: Tensor, covariance_HPNN: Tensor, owners: Sequence[int]) -> Problem:
    """Heads that only complex numbers, one for coordinates i and i + K / 2, may change: P = K / 2, W = 1."""
    first_HP, second_HP = inner_HKK.diagonal(dim1=1, dim2=2).chunk(2, dim=1)
    inner_HPWW = (first_HP + second_HP)[:, :, None, None].to(covariance_HPNN.dtype)
    return Problem(inner_HPWW, covariance_HPNN, owners)


def pooled(method: Literal["mean", "first"], d_head: int, n_heads: int, n_query_heads: int) -> Shared:
    """What a group of `n_heads` shares without a look at data."""
    eye = torch.eye(d_head, dtype=torch.float64)
    parts = [eye / n_heads] * n_heads if method == "mean" else [eye, *[torch.zeros_like(eye)] * (n_heads - 1)]
    return Shared(torch.cat(parts, dim=1), eye.expand(n_query_heads, d_head, d_head))


def agreed(problem: Problem, method: Literal["aligned", "procrustes"]) -> Shared:
    """What a group shares after its heads were made to agree."""
    take, back = _aligned(problem) if method == "aligned" else _procrustes(problem)
    return Shared(_as_real(take), torch.stack([_as_real(one) for one in back]))


def lost(problem: Problem) -> float:
    """Error of the best shared subspace, if all heads looked where they look on average.

    It is the sum of all but the largest eigenvalues in `_spectrum`, found as those of R* C R, R R* = blockdiag(inner):
    without eigenvectors, of which a search over many groups has no use.
    """
    W, mean_PNN = problem.width, problem.covariance_HPNN.mean(0)
    root_PNN = torch.zeros_like(mean_PNN)
    for owner in sorted(set(problem.owners)):
        inner_PWW = sum(inner for inner, one in zip(problem.inner_HPWW, problem.owners, strict=True) if one == owner)
        values_PW, vectors_PWW = torch.linalg.eigh(inner_PWW)
        own = slice(owner * W, owner * W + W)
        root_PNN[:, own, own] = vectors_PWW * values_PW.clamp(min=0).sqrt()[:, None]
    spectrum_PN = torch.linalg.eigvalsh(root_PNN.mH @ mean_PNN @ root_PNN)
    return float(spectrum_PN[:, :-W].sum())


def _aligned(problem: Problem) -> tuple[Tensor, Tensor]:
    """T from the leading directions of what the heads make of their vectors, B_h by least squares where h looks."""
    whiten_PNN, _, directions_PNN = _spectrum(problem)
    leading_PNW = directions_PNN[:, :, -problem.width :].flip(2)
    take_PWN = leading_PNW.mH @ whiten_PNN
    return take_PWN, _least_squares(problem, take_PWN)


def _spectrum(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """C^-½ (P, N, N), and eigenvalues and eigenvectors of C^½ blockdiag(inner) C^½, C the heads' mean covariance."""
    mean_PNN = problem.covariance_HPNN.mean(0)
    values_PN, vectors_PNN = torch.linalg.eigh(mean_PNN)
    # directions in which nothing moves have no inverse, and need none
    floor = values_PN.amax(1, keepdim=True) * torch.finfo(values_PN.dtype).eps * values_PN.shape[1]
    kept = values_PN > floor
    root = torch.where(kept, values_PN.clamp(min=0).sqrt(), 0.0)
    inverse = torch.where(kept, 1 / root.clamp(min=1e-300), 0.0)
    half_PNN = (vectors_PNN * root[:, None]) @ vectors_PNN.mH
    whiten_PNN = (vectors_PNN * inverse[:, None]) @ vectors_PNN.mH
    W = problem.width
    inner_PNN = torch.zeros_like(mean_PNN)
    for h, owner in enumerate(problem.owners):
        inner_PNN[:, owner * W : owner * W + W, owner * W : owner * W + W] += problem.inner_HPWW[h]
    spectrum_PN, directions_PNN = torch.linalg.eigh(half_PNN @ inner_PNN @ half_PNN)
    return whiten_PNN, spectrum_PN, directions_PNN


def _least_squares(problem: Problem, take_PWN: Tensor) -> Tensor:
    """B_h = cov(own, shared) cov(shared)⁻¹, under each head's own covariance."""
    W = problem.width
    backs = []
    for covariance_PNN, owner in zip(problem.covariance_HPNN, problem.owners, strict=True):
        with_shared_PNW = covariance_PNN @ take_PWN.mH
        inverse_PWW = torch.linalg.pinv(take_PWN @ with_shared_PNW, hermitian=True)
        backs.append(with_shared_PNW[:, owner * W : owner * W + W] @ inverse_PWW)
    return torch.stack(backs)


def _procrustes(problem: Problem) -> tuple[Tensor, Tensor]:
    """Rotations B that turn one common vector into each head's as well as can be, found in turns with their mean."""
    W, n = problem.width, problem.n_heads
    cov = problem.covariance_HPNN.mean(0).view(-1, n, W, n, W)
    turns = torch.eye(W, dtype=cov.dtype).repeat(cov.shape[0], n, 1, 1)
    for round_ in range(ROUNDS):
        taken = turns if round_ else turns * torch.eye(1, n)[0, :, None, None]  # all turn towards the first, at first
        with_common = torch.einsum("pawbv,pbvu->pawu", cov, taken)
        left, _, right = torch.linalg.svd(with_common)
        turns = left @ right
    take_PWN = turns.mH.transpose(1, 2).flatten(2) / n
    return take_PWN, turns[:, list(problem.owners)].transpose(0, 1)


def _as_real(blocks: Tensor) -> Tensor:
    """A map of P complex coordinates, given for each on its own (P, 1, n), as a real one of K = 2 P: (K, n · K). Real
    blocks (1, K, n · K) are their own."""
    if not blocks.is_complex():
        return blocks[0]
    P, _, n = blocks.shape
    real, imaginary = (torch.diag_embed(part[:, 0].T) for part in (blocks.real, blocks.imag))  # (n, P, P)
    whole = torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)  # (n, K, K)
    return whole.transpose(0, 1).reshape(2 * P, n * 2 * P)
