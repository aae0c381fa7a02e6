"""Position-wise feed-forward, plain (arXiv 1706.03762) and gated (arXiv 2002.05202).

Shapes: B rows, T positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.nn.dropout import Dropout
from transfuse.nn.linear import Linear, together

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
"""Names a config may use for the nonlinearity; `silu` is also called swish, `gelu_tanh` gelu_new."""


class FeedForward(nn.Module):
    """`down(activation(up(x)))`, d_model to `d_hidden` and back; `gated` multiplies the hidden layer by `gate(x)`'s
    activation instead, `down(activation(gate(x)) · up(x))`."""

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        activation: str = "relu",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation_name, self.activation = activation, ACTIVATIONS[activation]
        self.up = Linear(d_model, d_hidden, bias=bias)
        self.gate = Linear(d_model, d_hidden, bias=bias) if gated else None
        self.down = Linear(d_hidden, d_model, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), every position by itself."""
        if self.gate is None:
            hidden = self.activation(self.up(x_BTD))
        else:
            gate, up = together((self.gate, self.up), x_BTD)
            hidden = self.activation(gate) * up
        return self.down(self.dropout(hidden))
