"""The linear layer, on the faster of two matrix libraries.

On an x86 CPU PyTorch gives float32 products to MKL, which keeps its widest vector instructions for Intel processors;
oneDNN, which PyTorch ships too and uses for bfloat16, has no such preference. On an AMD EPYC with two cores the same
products run at 400 instead of 185 GFLOP/s (`benchmarks/linear.py`). The choice depends on the machine alone, so a
resumed run makes the same one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_NUMBERS = 1 << 20
"""Numbers of a wide product to make at a time: 4 MiB in float32, so that what reads them finds them in the cache."""


class Linear(nn.Linear):
    """`torch.nn.Linear` with its forward and backward products made by `linear`."""

    _n_packed = 0
    """How many `packed` are in force for this layer."""

    _own: Packed | None = None
    _group: Packed | None = None
    """This layer's weight, and that of the group it leads, in oneDNN's own layout; made when they are first needed."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        if self.packs(x):
            own = self._own = self._own or Packed([self])
            return _product(x, own.weight, own.bias)
        return linear(x, self.weight, self.bias)

    def packs(self, x: Tensor) -> bool:
        """Whether `x` is multiplied with packed weights, which have no gradient."""
        return self._n_packed > 0 and not torch.is_grad_enabled() and x.numel() > 0


class Packed:
    """Weights (one below the other) and biases of linear layers, laid out for oneDNN's products."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(_joined([layer.weight for layer in layers]), None)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _joined(biases) if biases else None


def together(layers: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
    """What each of `layers`, all with a bias or all without, makes of `x`: in one product where they are `packed`."""
    first = layers[0]
    if not first.packs(x):
        return [layer(x) for layer in layers]
    group = first._group = first._group or Packed(layers)
    widths = [layer.out_features for layer in layers]
    return torch.split(_product(x, group.weight, group.bias), widths, dim=-1)


@contextmanager
def packed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, those of `modules` that are a `Linear` keep their weights in the layout oneDNN multiplies in, which it
    otherwise makes anew for every product. For inference in float32 or bfloat16 on a CPU; elsewhere nothing changes.

    The weights must not change inside, and take their memory twice. Several threads may be inside at once.
    """
    parts = [part for part in modules if isinstance(part, Linear) and _packable(part.weight)]
    _count(parts, 1)
    try:
        yield
    finally:
        _count(parts, -1)


_COUNTING = threading.Lock()


def _count(parts: Sequence[Linear], change: int) -> None:
    """Let one more or one fewer be inside; the first finds, and the last leaves, nothing packed."""
    with _COUNTING:
        for part in parts:
            part._n_packed += change
            if part._n_packed == max(change, 0):
                part._own = part._group = None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x · weightᵀ + bias`, as `torch.nn.functional.linear`; `weight` may be a transposed view."""
    # oneDNN refuses a product without rows
    if _goes_to_onednn(weight) and x.dtype == torch.float32 and x.numel():
        if not torch.is_grad_enabled():
            return _product(x, weight, bias)
        return _OneDNNLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return F.linear(x, weight, bias)


def _packable(weight: Tensor) -> bool:
    if weight.dtype != torch.bfloat16:
        return _goes_to_onednn(weight)
    on_cpu = weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return on_cpu and available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _goes_to_onednn(weight: Tensor) -> bool:
    float32 = weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return float32 and weight.device.type == "cpu" and prefers_onednn()


@functools.cache
def prefers_onednn() -> bool:
    """Whether float32 products go to oneDNN: where PyTorch would use MKL on a processor that is not Intel's."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not both:
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        (gradient,) = gradients
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient, weight.t()) if for_x else None,
            _product(flat.t(), x.reshape(-1, x.shape[-1]).t()) if for_weight else None,
            flat.sum(0) if for_bias else None,
        )
