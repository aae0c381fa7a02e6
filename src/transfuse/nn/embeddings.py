"""The front doors: token ids, images, frames of sound and columns of a table in, vectors out.

Shapes: B rows, T positions, D d_model; C channels, S pixels a side, P pixels of a patch's side, N patches; M bands of a
spectrum; F numbers, E bins of a number, G categories.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.errors import ConfigError
from transfuse.nn.dropout import Dropout
from transfuse.nn.linear import linear


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
        x_BTD = self.token(ids_BT)
        if self.scale != 1.0:
            x_BTD = x_BTD * self.scale
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(torch.arange(ids_BT.shape[1]) if positions is None else positions)
        return self.dropout(x_BTD)


class SomeTokens(nn.Embedding):
    """The vectors of some ids of a table, copied out of it. Ids are those of the whole table; others than `ids` are an
    IndexError on a CPU, and on a GPU an assertion of the device."""

    def __init__(self, whole: nn.Embedding, ids: Iterable[int]) -> None:
        kept = torch.tensor(sorted(set(ids)), dtype=torch.long, device=whole.weight.device)
        super().__init__(len(kept), whole.embedding_dim, _weight=whole.weight.detach()[kept])
        self.weight.requires_grad_(whole.weight.requires_grad)
        self.ids = kept
        self._row = torch.full((whole.num_embeddings,), -1, device=kept.device)
        self._row[kept] = torch.arange(len(kept), device=kept.device)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) to (..., D)."""
        return F.embedding(self._row[ids], self.weight)


@contextmanager
def only(embedding: TokenEmbedding, ids: Iterable[int]) -> Iterator[SomeTokens]:
    """Inside, the table of `embedding` holds the vectors of `ids` alone, so that no time is spent on the gradients and
    moments of others, which are zero. Afterwards it is whole again, with what became of these.

    For a table that nothing else shares. Weight decay inside is of these vectors alone.
    """
    whole = embedding.token
    some = embedding.token = SomeTokens(whole, ids)
    try:
        yield some
    finally:
        with torch.no_grad():
            whole.weight[some.ids] = some.weight
        embedding.token = whole


class PatchEmbedding(nn.Module):
    """An image cut into squares of `patch` pixels, each a vector by one matrix (arXiv 2010.11929), row by row."""

    def __init__(self, size: int, patch: int, channels: int, d_model: int) -> None:
        super().__init__()
        if size % patch:
            raise ConfigError(f"size={size} must be a multiple of patch={patch}")
        self.patch, self.n_patches = patch, (size // patch) ** 2
        self.weight = nn.Parameter(torch.empty(d_model, channels, patch, patch))
        self.bias = nn.Parameter(torch.empty(d_model))

    def forward(self, pixels_BCSS: Tensor) -> Tensor:
        """(B, C, S, S) to (B, N, D)."""
        P = self.patch
        cut = pixels_BCSS.unfold(2, P, P).unfold(3, P, P)  # (B, C, rows, columns, P, P)
        patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return linear(patches, self.weight.flatten(1), self.bias)


class ConvolutionalStem(nn.Module):
    """An image halved by 3 × 3 convolutions until each of its squares of `patch` pixels is a vector (arXiv 2106.14881):
    what a few thousand images can teach, where patches by one matrix need many more."""

    def __init__(self, size: int, patch: int, channels: int, d_model: int) -> None:
        super().__init__()
        n = patch.bit_length() - 1
        if patch != 1 << n or size % patch:
            raise ConfigError(f"patch={patch} must be a power of 2 and size={size} a multiple of it")
        self.n_patches = (size // patch) ** 2
        widths = [channels, *(max(8, d_model >> (n - 1 - i)) for i in range(n))]
        self.halving = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in widths[1:])
        self.out = nn.Conv2d(widths[-1], d_model, 1)

    def forward(self, pixels_BCSS: Tensor) -> Tensor:
        """(B, C, S, S) to (B, N, D)."""
        x = pixels_BCSS
        for halve, norm in zip(self.halving, self.norms, strict=True):
            x = F.gelu(norm(halve(x)))
        return self.out(x).flatten(2).transpose(1, 2)


class FrameEmbedding(nn.Module):
    """Frames of a spectrum, a vector for every 2 to the `n_halvings` of them, by convolutions over three frames at a
    time as in Whisper (arXiv 2212.04356). What lies past a row's last frame is nothing, however long the batch is."""

    def __init__(self, n_bands: int, n_halvings: int, d_model: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(n_bands, d_model, 3, padding=1)
        self.halving = nn.ModuleList(nn.Conv1d(d_model, d_model, 3, stride=2, padding=1) for _ in range(n_halvings))

    def forward(self, frames_BTM: Tensor, keep_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, M) to vectors (B, T', D) and which of them are real, (B, T'): those that begin at a real frame."""
        x_BDT = F.gelu(self.first((frames_BTM * keep_BT[..., None]).transpose(1, 2)))
        for halve in self.halving:
            x_BDT = F.gelu(halve(x_BDT * keep_BT[:, None]))
            keep_BT = keep_BT[:, ::2]
        return x_BDT.transpose(1, 2), keep_BT


class FeatureEmbedding(nn.Module):
    """One vector for each column of a table (arXiv 2106.11959): of a number, its encoding by a matrix of its own and a
    bias, or a vector of its own where it is missing; of a category, the vector of its level."""

    def __init__(self, n_numbers: int, n_bins: int, n_levels: Sequence[int], d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_numbers, n_bins, d_model))
        self.bias = nn.Parameter(torch.empty(n_numbers, d_model))
        self.missing = nn.Parameter(torch.empty(n_numbers, d_model))
        self.level = nn.Embedding(sum(n_levels), d_model)
        self.column = nn.Parameter(torch.empty(len(n_levels), d_model))
        first = torch.tensor([0, *n_levels], dtype=torch.long).cumsum(0)[:-1]
        self.register_buffer("first_G", first, persistent=False)
        self.first_G: Tensor

    def forward(self, numbers_BFE: Tensor, known_BF: Tensor, codes_BG: Tensor) -> Tensor:
        """Encodings of numbers, which of them are known, and numbers of levels, to (B, F + G, D)."""
        values_BFD = torch.einsum("bfe,fed->bfd", numbers_BFE, self.weight) + self.bias
        values_BFD = torch.where(known_BF[..., None], values_BFD, self.missing.to(values_BFD.dtype))
        levels_BGD = self.level(codes_BG + self.first_G) + self.column
        return torch.cat([values_BFD, levels_BGD.to(values_BFD.dtype)], dim=1)
