"""Keys and values kept between decoding steps.

Shapes: B rows, G key/value heads, S positions, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROWTH = 64
"""Keys by which a full cache grows at a time."""


class KeyValueCache:
    """The keys and values of one attention, `n_kv_heads` heads wide, grown in blocks of positions.

    For self-attention every step appends; for cross-attention the encoder's keys and values are appended once and
    serve every later step. `len(cache)` is the number of keys held. `width` tokens stand at each position: the beams of
    a search, side by side in one row.
    """

    def __init__(self) -> None:
        self.width = 1
        self._k_BGSK: Tensor | None = None
        self._v_BGSK: Tensor | None = None
        self._length = 0
        self._owned = False  # whether writing into the tensors is ours to do

    def __len__(self) -> int:
        return self._length

    @property
    def n_positions(self) -> int:
        """Positions held, `width` keys each."""
        return self._length // self.width

    @property
    def n_bytes(self) -> int:
        """Bytes of the positions held (blocks reserved for growth are not counted)."""
        if not self._length:
            return 0
        return sum(part.numel() * part.element_size() for part in self.read())

    def positions(self, n_tokens: int) -> Tensor:
        """Where the next `n_tokens` keys stand, (T,)."""
        return self.n_positions + torch.arange(n_tokens) // self.width

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Add T keys and values; return all keys and all values held, each (B, G, S, K)."""
        start, stop = self._length, self._length + k_BGTK.shape[2]
        self._k_BGSK = _room_for(self._k_BGSK, k_BGTK, start, stop)
        self._v_BGSK = _room_for(self._v_BGSK, v_BGTK, start, stop)
        if start:
            self._owned = True
            self._k_BGSK[:, :, start:stop] = k_BGTK
            self._v_BGSK[:, :, start:stop] = v_BGTK
        self._length = stop
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """All keys and all values held, each (B, G, S, K)."""
        assert self._k_BGSK is not None and self._v_BGSK is not None, "read before the first append"
        return self._k_BGSK[:, :, : self._length], self._v_BGSK[:, :, : self._length]

    def widen(self, width: int) -> None:
        """Let `width` tokens stand at each position, those held so often repeated."""
        assert self.width == 1, "widened twice"
        if self._k_BGSK is not None and self._v_BGSK is not None:
            self._k_BGSK, self._v_BGSK = (part.repeat_interleave(width, dim=2) for part in self.read())
            self._length, self._owned = self._length * width, True
        self.width = width

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (a 1-D index, repeats allowed) in the order given. Rows that keep their place are not copied."""
        if self._k_BGSK is None or self._v_BGSK is None:
            return
        if not self._owned or len(rows) > len(self._k_BGSK):
            self._k_BGSK, self._v_BGSK = (part.index_select(0, rows) for part in (self._k_BGSK, self._v_BGSK))
            self._owned = True
            return
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        for part in self.read():
            part.index_copy_(0, moved, part.index_select(0, rows[moved]))
        self._k_BGSK, self._v_BGSK = self._k_BGSK[: len(rows)], self._v_BGSK[: len(rows)]


def _room_for(held: Tensor | None, new: Tensor, start: int, stop: int) -> Tensor:
    if held is None:
        return new  # a cross-attention cache never grows, so the first append reserves nothing
    if held.shape[2] >= stop:
        return held
    grown = new.new_empty(*held.shape[:2], stop + GROWTH, held.shape[3])
    grown[:, :, :start] = held[:, :, :start]
    return grown
