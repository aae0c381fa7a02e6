"""Dropout from packed random bits.

On a CPU the usual dropout draws one Bernoulli number an element, which in a small Transformer costs more than the
matrix products around it. Here one 64-bit draw serves four elements, each a 16-bit number that becomes a mask of all
ones or all zeros for the element's own bits (`benchmarks/dropout.py` prints the ratio). The rate is rounded to the
nearest 1/32768 and the survivors are scaled by the rounded rate, so the expectation is exact. The mask is kept for the
backward pass, at two bytes an element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LEVELS = 1 << 15

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element, the integers that its bits are."""


class Dropout(nn.Module):
    """Zero each element with probability `rate` in training and scale the others by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} must be at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape; the same shape and dtype come back."""
        if not self.training or self.rate == 0:
            return x
        if x.is_cuda:
            return F.dropout(x, self.rate)
        return _PackedDropout.apply(  # type: ignore[no-untyped-call]
            x, min(round(self.rate * _LEVELS), _LEVELS - 1)
        )

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"rate={self.rate}"


class _PackedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: int) -> Tensor:
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None)  # the full 64-bit range; the default leaves the sign bit zero
        mask = draws.view(torch.int16)[: x.numel()].view(x.shape)
        # of 32,768 levels those from the threshold on become -1, all ones, and the others 0; in passes over 16-bit
        # integers, which are far cheaper than a comparison and a product with what it gives
        mask.bitwise_right_shift_(1).neg_().add_(threshold - _LEVELS // 2 - 1).bitwise_right_shift_(15)
        ctx.save_for_backward(mask)
        ctx.scale = _LEVELS / (_LEVELS - threshold)
        return _masked(x, mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _masked(gradients[0], mask).mul_(ctx.scale), None


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with zero where `mask` is, as a new tensor."""
    bits = _BITS[x.dtype.itemsize]
    return (x.view(bits) & mask.to(bits)).view(x.dtype)
