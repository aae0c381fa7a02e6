"""The most probable next tokens.

Shapes: N rows, D d_model, V vocabulary, k candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transfuse.errors import GenerationError
from transfuse.nn.linear import CHUNK_NUMBERS

BLOCK = 128
"""Scores of which the largest stands for all in the first pass of `largest`."""


def most_probable(output: Callable[[Tensor], Tensor], hidden_ND: Tensor, config: Any, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, k), highest first, and ids of the k most probable tokens after each row of `hidden`.

    `output` makes logits. They are normalised over all tokens; those `config` says are never written are then left out.
    Raises GenerationError if a row of logits holds NaN or plus infinity.
    """
    rows = max(1, len(hidden_ND) if hidden_ND.is_cuda else CHUNK_NUMBERS // config.n_target_tokens)
    parts = [_most_probable(output(part), config, k) for part in torch.split(hidden_ND, rows)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([log_p for log_p, _ in parts]), torch.cat([ids for _, ids in parts])


def _most_probable(logits_NV: Tensor, config: Any, k: int) -> tuple[Tensor, Tensor]:
    log_p_NV = logits_NV.log_softmax(-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
    if log_p_NV[:, 0].isnan().any():  # one number that is none makes its whole row so
        raise GenerationError(f"the model's scores for the next token are not numbers; {suspect(logits_NV.dtype)}")
    log_p_NV[:, config.never_written] = -math.inf
    return largest(log_p_NV, k)


def suspect(dtype: torch.dtype) -> str:
    """Why a model that computes in `dtype` gives what is no number."""
    if dtype == torch.float16:
        return "float16 may not hold what it computes, which bfloat16 would, or its weights are damaged"
    return "its weights are damaged"


def largest(scores_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(k)`, in two passes where that is faster.

    The k largest scores lie in the k blocks with the largest maxima, and a maximum is found faster than an order.
    """
    V = scores_NV.shape[1]
    n_blocks = V // BLOCK
    if n_blocks < 4 * k:
        values, ids = scores_NV.topk(k)
        return values, ids
    blocks = scores_NV[:, : n_blocks * BLOCK].view(-1, n_blocks, BLOCK)
    chosen_Nk = blocks.amax(2).topk(k, sorted=False).indices
    inside = blocks.gather(1, chosen_Nk[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    values, places = torch.cat([inside, scores_NV[:, n_blocks * BLOCK :]], dim=1).topk(k)
    within = chosen_Nk.gather(1, (places // BLOCK).clamp(max=k - 1)) * BLOCK + places % BLOCK
    return values, torch.where(places < k * BLOCK, within, places + (n_blocks - k) * BLOCK)
