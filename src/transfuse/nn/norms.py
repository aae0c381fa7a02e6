"""Root mean square norm (arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`; where no gradient is wanted, from half as many operations, which is what a step of a few rows
    spends its time on."""

    def forward(self, x: Tensor) -> Tensor:
        """x / √(mean x² + ε) · weight over the last axis."""
        if torch.is_grad_enabled() or x.is_cuda or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x)
        assert self.eps is not None
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return (x * squares.div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self.weight)
