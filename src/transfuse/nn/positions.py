"""Where a token stands: sinusoidal, learned and rotary positions.

Shapes: B rows, T positions, D d_model, H heads, K head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from transfuse.errors import ConfigError, DataError


class Sinusoidal(nn.Module):
    """Fixed sines (first half of the width) and cosines (second half), arXiv 1706.03762.

    The d_model / 2 wavelengths run geometrically from 2π towards 10000 · 2π. `closed` includes the last one, as
    tensor2tensor, fairseq and M2M100 do; without it the range is half-open, as in the paper and Marian. Positions count
    from `offset`. There is no longest sequence.
    """

    def __init__(self, d_model: int, *, offset: int = 0, closed: bool = False) -> None:
        super().__init__()
        if d_model % 2:
            raise ConfigError(f"d_model={d_model} must be even for sinusoidal positions")
        self.d_model, self.offset, self.closed = d_model, offset, closed
        self.register_buffer("table_TD", self._table(256), persistent=False)
        self.table_TD: Tensor

    def forward(self, start: int, stop: int) -> Tensor:
        """Vectors of positions `start` to `stop` - 1, (T, D)."""
        if stop > len(self.table_TD):
            self.table_TD = self._table(2 * stop).to(self.table_TD)
        return self.table_TD[start:stop]

    def _table(self, n_positions: int) -> Tensor:
        # fairseq and M2M100 compute theirs in float32 throughout; at position 500 that moves an angle by 3e-5
        dtype = torch.float32 if self.closed else torch.float64
        half = self.d_model // 2
        exponents = torch.arange(half, dtype=dtype) * -(math.log(10_000) / max(half - self.closed, 1))
        positions = torch.arange(self.offset, self.offset + n_positions, dtype=dtype)
        angles = positions[:, None] * exponents.exp()
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(torch.get_default_dtype())


class Learned(nn.Module):
    """One trained vector a position, for positions below `max_positions`."""

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, d_model))

    def forward(self, start: int, stop: int) -> Tensor:
        """Vectors of positions `start` to `stop` - 1, (T, D). Raises DataError past the last position."""
        if stop > len(self.weight):
            raise DataError(f"a sequence of {stop} tokens, but the model has {len(self.weight)} positions")
        return self.weight[start:stop]


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864): turn pairs of a head's coordinates by an angle that grows with position.

    Coordinate i is paired with i + K / 2, the layout of `transformers`; dot products then depend on distance alone.
    """

    def __init__(self, d_head: int, base: float = 10_000.0) -> None:
        super().__init__()
        if d_head % 2:
            raise ConfigError(f"d_head={d_head} must be even for rotary positions")
        self.d_head, self.base = d_head, base

    def forward(self, x_BHTK: Tensor, start: int = 0, width: int = 1) -> Tensor:
        """`x` turned, its first `width` tokens standing at position `start`, the next at the one after it, and so on;
        same shape and dtype."""
        exponents = torch.arange(0, self.d_head, 2, dtype=torch.float64) / self.d_head
        positions = start + torch.arange(x_BHTK.shape[2]) // width
        angles = positions[:, None] * self.base**-exponents
        cos, sin = angles.cos().to(x_BHTK), angles.sin().to(x_BHTK)
        first, second = x_BHTK.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
