"""One Transformer block and a stack of them.

Shapes: B rows, T positions, S memory positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from transfuse.errors import DataError
from transfuse.nn.attention import Attention, BlockDiagonal
from transfuse.nn.cache import KeyValueCache
from transfuse.nn.dropout import Dropout
from transfuse.nn.ragged import RaggedCache

Own = TypeVar("Own", KeyValueCache, RaggedCache)


class BlockCache(Generic[Own]):
    """What one block keeps between decoding steps: its `own` keys and values, and the memory's."""

    def __init__(self, own: Own) -> None:
        self.own: Own = own
        self.cross = KeyValueCache()

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values held."""
        return self.own.n_bytes + self.cross.n_bytes

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.own.select(rows)
        self.cross.select(rows)


class Block(nn.Module):
    """Self-attention, cross-attention where given, feed-forward; each with a residual, a norm and dropout.

    `norm_first` normalises what goes into a sub-layer (pre-norm, arXiv 2002.04745); otherwise the sum that comes out is
    normalised (post-norm, as in the original paper). `norm` makes one norm from d_model.
    """

    def __init__(
        self,
        d_model: int,
        attention: Attention,
        feed_forward: nn.Module,
        cross_attention: Attention | None = None,
        *,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        norm_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention, self.attention_norm = attention, norm(d_model)
        self.cross_attention = cross_attention
        self.cross_attention_norm = None if cross_attention is None else norm(d_model)
        self.feed_forward, self.feed_forward_norm = feed_forward, norm(d_model)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None = None,
        *,
        keep: Tensor | BlockDiagonal | None = None,
        memory_keep: Tensor | None = None,
        cache: BlockCache[Any] | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D). `memory` is read by cross-attention; masks are True = may attend."""
        own = None if cache is None else cache.own
        x_BTD = self._residual(x_BTD, self.attention_norm, lambda x: self.attention(x, keep=keep, cache=own))
        if self.cross_attention is not None:
            if memory_BSD is None:
                raise DataError("a block with cross-attention needs a memory to attend to")
            cross, attend = None if cache is None else cache.cross, self.cross_attention
            x_BTD = self._residual(
                x_BTD, self.cross_attention_norm, lambda x: attend(x, memory_BSD, keep=memory_keep, cache=cross)
            )
        return self._residual(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _residual(self, x: Tensor, norm: nn.Module | None, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        assert norm is not None
        return self.leaving(norm, x + self.dropout(sublayer(self.entering(norm, x))))

    def entering(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What a sub-layer with this norm is given of the residual stream `x`."""
        return norm(x) if self.norm_first else x

    def leaving(self, norm: nn.Module, x: Tensor) -> Tensor:
        """The residual stream after a sub-layer, `x` being the sum of what it was and what was added."""
        return x if self.norm_first else norm(x)


class Stack(nn.Module):
    """Blocks one after another, with a closing `norm` where given (pre-norm stacks need one)."""

    def __init__(self, blocks: Sequence[Block], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None = None,
        *,
        keep: Tensor | BlockDiagonal | None = None,
        memory_keep: Tensor | None = None,
        cache: Sequence[BlockCache[Any]] | None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); `cache` holds one `BlockCache` a block."""
        for i, block in enumerate(self.blocks):
            x_BTD = block(
                x_BTD, memory_BSD, keep=keep, memory_keep=memory_keep, cache=None if cache is None else cache[i]
            )
        return x_BTD if self.norm is None else self.norm(x_BTD)
