"""A decoder's weights as compiled steps read them: products' in panels of columns, one after another.

A panel holds `COLUMNS` outputs, one row of them an input, so that a product reads it from its beginning to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transfuse.kernels import step as kernel
from transfuse.nn.attention import Attention
from transfuse.nn.blocks import Block, Stack
from transfuse.nn.feed_forward import FeedForward


@dataclass(frozen=True)
class Product:
    """Where the weights and the bias (-1: none) of one or several linear layers are, and what becomes of the result."""

    n_in: int
    n_out: int
    weights: int
    bias: int
    epilogue: int = kernel.STORE
    activation: int = kernel.IDENTITY


@dataclass(frozen=True)
class Norm:
    """Where the numbers of a norm are."""

    weights: int
    bias: int
    epsilon: float
    centred: bool


@dataclass(frozen=True)
class Layer:
    """The parts of one block; `cross` where it attends to a memory."""

    attention_norm: Norm
    qkv: Product
    n_kv_heads: int
    out: Product
    cross: Cross | None
    hidden_norm: Norm
    up: Product
    down: Product


@dataclass(frozen=True)
class Cross:
    """The parts of a cross-attention but for keys and values, which are made of the memory once."""

    norm: Norm
    query: Product
    n_kv_heads: int
    out: Product


class Weights:
    """All weights of a stack of blocks and of the output layer, products' in panels, in two flat arrays."""

    @torch.no_grad()
    def __init__(self, stack: Stack, output: nn.Linear) -> None:
        self._numbers: list[Tensor] = []
        self._n_numbers = self._n_panels = 0
        products = [part for part in [*stack.modules(), output] if isinstance(part, nn.Linear)]
        room = sum(_padded(part.out_features) * part.in_features for part in products)
        room += sum(kernel.COLUMNS * part.in_features for part in products)  # what is joined may need less, not more
        self.panels = torch.zeros(room, dtype=output.weight.dtype)
        self.layers = [self._layer(block) for block in stack.blocks]  # type: ignore[arg-type]
        self.norm = None if stack.norm is None else self._norm(stack.norm)
        self.output = self._product([output])
        self.numbers = torch.cat(self._numbers).numpy()

    def _layer(self, block: Block) -> Layer:
        attention, feed_forward = block.attention, block.feed_forward
        assert isinstance(attention, Attention) and isinstance(feed_forward, FeedForward)
        activation = _ACTIVATIONS[feed_forward.activation_name]
        up = [feed_forward.up] if feed_forward.gate is None else [feed_forward.gate, feed_forward.up]
        return Layer(
            self._norm(block.attention_norm),
            self._product([attention.query, attention.key, attention.value]),
            attention.n_kv_heads,
            self._product([attention.out], kernel.ADD),
            self._cross(block),
            self._norm(block.feed_forward_norm),
            self._product(up, kernel.GATE if feed_forward.gate is not None else kernel.STORE, activation),
            self._product([feed_forward.down], kernel.ADD),
        )

    def _cross(self, block: Block) -> Cross | None:
        attention, norm = block.cross_attention, block.cross_attention_norm
        if attention is None or norm is None:
            return None
        out = self._product([attention.out], kernel.ADD)
        return Cross(self._norm(norm), self._product([attention.query]), attention.n_kv_heads, out)

    def _norm(self, norm: nn.Module) -> Norm:
        centred = isinstance(norm, nn.LayerNorm)
        bias = -1 if not centred or norm.bias is None else self._keep(norm.bias)  # type: ignore[arg-type]
        return Norm(self._keep(norm.weight), bias, float(norm.eps), centred)  # type: ignore[arg-type]

    def _product(
        self, layers: Sequence[nn.Linear], epilogue: int = kernel.STORE, activation: int = kernel.IDENTITY
    ) -> Product:
        bias = -1 if layers[0].bias is None else self._keep(torch.cat([layer.bias for layer in layers]))
        n_in, start = layers[0].in_features, self._n_panels
        if epilogue == kernel.GATE:
            n_out = layers[0].out_features
            for i, layer in enumerate(layers):
                self._lay(layer.weight, start + i * kernel.COLUMNS * n_in, 2)
            self._n_panels += 2 * _padded(n_out) * n_in
        else:
            weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
            n_out = len(weight)
            self._lay(weight, start, 1)
            self._n_panels += _padded(n_out) * n_in
        return Product(n_in, n_out, start, bias, epilogue, activation)

    def _lay(self, weight: Tensor, start: int, every: int) -> None:
        """Write the panels of a weight (n_out, n_in) from `start` on, one of `every`."""
        n_out, n_in = weight.shape
        W, n_panels = kernel.COLUMNS, _padded(n_out) // kernel.COLUMNS
        held = torch.as_strided(self.panels, (n_panels, n_in, W), (every * n_in * W, W, 1), start)
        whole = n_out // W
        held[:whole] = weight[: whole * W].view(whole, W, n_in).transpose(1, 2)
        if whole < n_panels:
            held[whole, :, : n_out - whole * W] = weight[whole * W :].T

    def _keep(self, numbers: Tensor) -> int:
        start = self._n_numbers
        self._numbers.append(numbers.detach().float())
        self._n_numbers += numbers.numel()
        return start


def _padded(n: int) -> int:
    return -(-n // kernel.COLUMNS) * kernel.COLUMNS


_ACTIVATIONS = {
    "relu": kernel.RELU,
    "gelu": kernel.GELU,
    "gelu_tanh": kernel.GELU_TANH,
    "silu": kernel.SILU,
}
