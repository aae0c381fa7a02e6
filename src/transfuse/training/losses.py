"""Losses that never hold the whole logits.

Shapes: N positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from transfuse.nn.linear import CHUNK_NUMBERS, linear

Criterion = Callable[[Tensor, slice], tuple[Tensor, Callable[[], Tensor]]]
"""(log-probabilities (N, V) of some positions, which of all positions they are) to their summed loss, and what gives
its gradient by the logits, once, in the memory of the log-probabilities."""


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Sum over positions of the cross-entropy of softmax(hidden · weightᵀ + bias) against `labels`.

    With `smoothing` ε the target distribution is 1 - ε on the label plus ε / V everywhere (arXiv 1512.00567, as
    `torch.nn.functional.cross_entropy` has it).
    """

    def criterion(log_p_NV: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        labels = labels_N[part]
        return _smoothed(log_p_NV, labels, smoothing), lambda: _gradient(log_p_NV, labels, smoothing)

    return linear_loss(hidden_ND, weight_VD, bias_V, criterion)


def linear_loss(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, criterion: Criterion) -> Tensor:
    """Sum over positions of what `criterion` makes of softmax(hidden · weightᵀ + bias).

    Logits are made, used for loss and gradient, and dropped a chunk at a time, in the autocast dtype where autocast is
    on; the softmax is always float32 or wider.
    """
    return _LinearLoss.apply(hidden_ND, weight_VD, bias_V, criterion)  # type: ignore[no-untyped-call]


def log_probabilities(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logarithm of softmax(hidden · weightᵀ + bias), in float32 or wider."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    return F.log_softmax(linear(hidden_ND, weight_VD, bias_V).to(wide), dim=-1)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, criterion: Criterion) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(kind, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            total = torch.zeros((), dtype=wide, device=hidden.device)
            gradients = [
                torch.zeros_like(part, dtype=wide) if part is not None and wanted else None
                for part, wanted in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
            ]
            rows = max(1, CHUNK_NUMBERS // len(weight))
            for i in range(0, len(h), rows):
                part = slice(i, i + rows)
                loss, gradient = criterion(log_probabilities(h[part], w, b), part)
                total += loss
                if any(ctx.needs_input_grad):
                    _accumulate(gradients, part, gradient().to(dtype), h, w)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outputs
        hidden_dtype, weight_dtype = ctx.dtypes
        dtypes = hidden_dtype, weight_dtype, weight_dtype
        return *(
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, dtypes, strict=True)
        ), None


def _smoothed(log_p_NV: Tensor, labels_N: Tensor, smoothing: float) -> Tensor:
    chosen = log_p_NV.gather(1, labels_N[:, None]).sum()
    if not smoothing:
        return -chosen
    return -(1 - smoothing) * chosen - smoothing / log_p_NV.shape[1] * log_p_NV.sum()


def _gradient(log_p_NV: Tensor, labels_N: Tensor, smoothing: float) -> Tensor:
    """Softmax minus target distribution; reuses the memory of `log_p`."""
    gradient = log_p_NV.exp_()
    if smoothing:
        gradient -= smoothing / gradient.shape[1]
    gradient[torch.arange(len(labels_N), device=labels_N.device), labels_N] -= 1 - smoothing
    return gradient


def _accumulate(gradients: list[Tensor | None], part: slice, gradient_NV: Tensor, h: Tensor, w: Tensor) -> None:
    for_hidden, for_weight, for_bias = gradients
    if for_hidden is not None:
        for_hidden[part] = linear(gradient_NV, w.t())
    if for_weight is not None:
        for_weight += linear(gradient_NV.t(), h[part].t())
    if for_bias is not None:
        for_bias += gradient_NV.sum(0, dtype=for_bias.dtype)
