"""Losses that hold a chunk of the logits at a time.

Shapes: N positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    on; the softmax is always float32 or wider. In half precision up to `GROUP_NUMBERS` of their gradients are kept.
    """
    if not torch.is_grad_enabled():  # which the function below cannot tell
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    return _LinearLoss.apply(hidden_ND, weight_VD, bias_V, criterion)  # type: ignore[no-untyped-call]


def log_probabilities(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logarithm of softmax(hidden · weightᵀ + bias), in float32 or wider."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    return F.log_softmax(linear(hidden_ND, weight_VD, bias_V).to(wide), dim=-1)


GROUP_NUMBERS = 1 << 23
"""Gradients of logits that are kept for one product with the hidden vectors: 16 MiB in half precision."""


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, criterion: Criterion) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(kind, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            rows = max(1, CHUNK_NUMBERS // len(weight))
            sums = _Gradients(h, w, b, wide, ctx.needs_input_grad, rows)
            total = torch.zeros((), dtype=wide, device=hidden.device)
            for i in range(0, len(h), rows):
                part = slice(i, i + rows)
                loss, gradient = criterion(log_probabilities(h[part], w, b), part)
                total += loss
                if any(ctx.needs_input_grad):
                    sums.add(part, gradient())
            gradients = sums.finished()
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


class _Gradients:
    """Gradients of a loss by the hidden vectors, the weight and the bias, in the dtype `wide`, from those by its
    logits, given in order, at most `n_rows` positions at a time.

    The weight's takes a product as large as the weight, which is added to what there is. In half precision that is more
    work than the product: there chunks are kept until there are `GROUP_NUMBERS` for one.
    """

    def __init__(
        self, h: Tensor, w: Tensor, b: Tensor | None, wide: torch.dtype, wanted: Sequence[bool], n_rows: int
    ) -> None:
        self.h, self.w = h, w
        self.for_hidden = torch.empty_like(h, dtype=wide) if wanted[0] else None
        self.for_weight = torch.zeros_like(w, dtype=wide) if wanted[1] else None
        self.for_bias = torch.zeros_like(b, dtype=wide) if b is not None and wanted[2] else None
        n_kept = max(n_rows, GROUP_NUMBERS // len(w)) if wanted[1] and _in_groups(w, wide) else 0
        self.kept = h.new_empty(min(n_kept, len(h)), len(w))
        self.first = self.n_kept = 0

    def add(self, part: slice, gradient_NV: Tensor) -> None:
        """Count in the gradient by the logits of `part`, the next positions."""
        if self.for_bias is not None:
            self.for_bias += gradient_NV.sum(0)
        if len(self.kept):
            if self.n_kept + len(gradient_NV) > len(self.kept):
                self._multiply(self.kept[: self.n_kept])
            kept = self.kept[self.n_kept : self.n_kept + len(gradient_NV)]
            gradient_NV = kept.copy_(gradient_NV)
            self.n_kept += len(gradient_NV)
        else:
            gradient_NV = gradient_NV.to(self.w.dtype)
            self._multiply(gradient_NV)
        if self.for_hidden is not None:
            self.for_hidden[part] = linear(gradient_NV, self.w.t())

    def _multiply(self, gradient_NV: Tensor) -> None:
        """Count in the gradient by the logits of the next positions that the weight's has not seen."""
        last = self.first + len(gradient_NV)
        if self.for_weight is not None:
            self.for_weight += linear(gradient_NV.t(), self.h[self.first : last].t())
        self.first, self.n_kept = last, 0

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All three, None where it was not asked for."""
        if self.n_kept:
            self._multiply(self.kept[: self.n_kept])
        return self.for_hidden, self.for_weight, self.for_bias


def _in_groups(w: Tensor, wide: torch.dtype) -> bool:
    return w.dtype != wide
