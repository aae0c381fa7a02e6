"""Where a token stands: sinusoidal, learned and rotary positions.

Positions are integers counted from 0 and need not be neighbours: beams side by side stand at one position, rows of
unequal length each at their own.

Shapes: B rows, T tokens, P positions of a table, D d_model, H heads, K head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        self.register_buffer("table_PD", self._table(256), persistent=False)
        self.table_PD: Tensor

    def forward(self, positions: Tensor) -> Tensor:
        """Vectors of `positions`, whose shape gets a last axis D."""
        stop, table_PD = int(positions.max()) + 1, self.table_PD
        if stop > len(table_PD):
            self.table_PD = table_PD = self._table(2 * stop).to(table_PD)
        return table_PD[positions]

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

    def forward(self, positions: Tensor) -> Tensor:
        """Vectors of `positions`, whose shape gets a last axis D. Raises DataError past the last position."""
        stop = int(positions.max()) + 1
        if stop > len(self.weight):
            raise DataError(f"a sequence of {stop} tokens, but the model has {len(self.weight)} positions")
        return F.embedding(positions.to(self.weight.device), self.weight)


@dataclass(frozen=True)
class RotaryScaling:
    """Llama 3's stretching of rotary positions to a longer context than the model was first trained for.

    Wavelengths above `original_positions / low` grow by `factor`, those below `original_positions / high` stay, and
    between the two lies a linear passage. With `low == high == None` all grow ("linear" scaling, arXiv 2306.15595).
    """

    factor: float
    original_positions: int | None = None
    low: float | None = None
    high: float | None = None

    def apply(self, frequencies: Tensor) -> Tensor:
        """Scaled angles a position, of any shape."""
        if self.original_positions is None or self.low is None or self.high is None:
            return frequencies / self.factor
        turns = self.original_positions * frequencies / (2 * math.pi)  # of each pair over the original context
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864): turn pairs of a head's coordinates by an angle that grows with position.

    Coordinate i is paired with i + K / 2, the layout of `transformers`; dot products then depend on distance alone.
    """

    def __init__(self, d_head: int, base: float = 10_000.0, scaling: RotaryScaling | None = None) -> None:
        super().__init__()
        if d_head % 2:
            raise ConfigError(f"d_head={d_head} must be even for rotary positions")
        self.d_head, self.base, self.scaling = d_head, base, scaling
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(self, x_BHTK: Tensor, positions_T: Tensor) -> Tensor:
        """`x` turned by the position of each of its T tokens; same shape and dtype."""
        cos, sin = self.angles(positions_T, x_BHTK)
        first, second = x_BHTK.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def angles(self, positions_T: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each position's angles, (T, K / 2), in the dtype and place of `like`."""
        cos_PK, sin_PK = self._table(int(positions_T.max()) + 1, like)
        return cos_PK[positions_T], sin_PK[positions_T]

    def _table(self, n_positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least `n_positions` positions, (P, K / 2), in the dtype and place of `like`."""
        table = self._tables.get((like.device, like.dtype))
        if table is None or len(table[0]) < n_positions:
            frequencies = self.base ** -(torch.arange(0, self.d_head, 2, dtype=torch.float64) / self.d_head)
            if self.scaling is not None:
                frequencies = self.scaling.apply(frequencies)
            angles = torch.arange(2 * n_positions, dtype=torch.float64)[:, None] * frequencies
            table = angles.cos().to(like), angles.sin().to(like)
            self._tables[like.device, like.dtype] = table
        return table
