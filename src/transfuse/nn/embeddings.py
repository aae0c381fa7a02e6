"""The front door for text: token ids in, vectors with positions out.

Shapes: B rows, T positions, D d_model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.nn.dropout import Dropout


class TokenEmbedding(nn.Module):
    """Token vectors, times √d_model where `scale`, plus the vectors of `positions` where given.

    Two embeddings share their token vectors by being given the same `token` module.
    """

    def __init__(
        self, token: nn.Embedding, positions: nn.Module | None, *, scale: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.token = token
        self.positions = positions
        self.scale = math.sqrt(token.embedding_dim) if scale else 1.0
        self.dropout = Dropout(dropout)

    def forward(self, ids_BT: Tensor, positions: Tensor | None = None) -> Tensor:
        """Ids (B, T) to vectors (B, T, D). `positions` is (T,) or (B, T), by default 0 to T - 1."""
        x_BTD = F.embedding(ids_BT, self.token.weight)
        if self.scale != 1.0:
            x_BTD = x_BTD * self.scale
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(torch.arange(ids_BT.shape[1]) if positions is None else positions)
        return self.dropout(x_BTD)
