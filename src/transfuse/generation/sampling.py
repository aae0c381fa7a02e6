"""Drawing tokens: temperature, top-k and top-p (arXiv 1904.09751).

Shapes: B rows, k candidates.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from transfuse.generation.config import SearchConfig


class Sampler:
    """Chooses by drawing. Every row has its own stream of uniform numbers, a function of (seed, row,
    repeat), with a number a step."""

    def __init__(self, config: SearchConfig, rows: list[int], repeat: int = 0) -> None:
        self.config, self.k = config, config.top_k
        self._streams = [np.random.default_rng([config.seed, row, repeat]) for row in rows]

    def __call__(self, log_p_Bk: Tensor, rows_B: Tensor) -> Tensor:
        """One of the k candidates a row, drawn from the filtered distribution."""
        uniform = torch.tensor([self._streams[row].random() for row in rows_B.tolist()], dtype=torch.float64)
        upto = filtered(log_p_Bk, self.config).double().cumsum(-1)
        drawn = torch.searchsorted(upto, uniform.to(upto.device)[:, None] * upto[:, -1:], right=True)
        return drawn.clamp_(max=log_p_Bk.shape[1] - 1)[:, 0]


def filtered(log_p_Bk: Tensor, config: SearchConfig) -> Tensor:
    """Probabilities of candidates, most probable first, after temperature and top-p (those left out are 0)."""
    # the most probable token at 0, so that no temperature is too low, if it is no 0 itself
    lowest = torch.finfo(log_p_Bk.dtype).tiny
    logits = (log_p_Bk - log_p_Bk[:, :1]) / max(config.temperature, lowest)
    probabilities = logits.softmax(-1)
    # a token stays if what is more probable does not yet hold top_p
    before = probabilities.cumsum(-1) - probabilities
    outside = before >= config.top_p if config.top_p < 1 else torch.zeros_like(before, dtype=torch.bool)
    outside[:, 0] = False
    return logits.masked_fill(outside, -math.inf).softmax(-1)
