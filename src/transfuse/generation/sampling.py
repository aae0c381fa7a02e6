"""Drawing tokens: temperature, top-k and top-p (arXiv 1904.09751).

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from transfuse.generation.config import SearchConfig


class Sampler:
    """Chooses by drawing. Every row has its own stream of uniform numbers, a function of (seed, row, step)."""

    def __init__(self, config: SearchConfig, rows: list[int]) -> None:
        self.config = config
        self._streams = [np.random.default_rng([config.seed, row]) for row in rows]

    def __call__(self, log_p_BV: Tensor, rows_B: Tensor, step: int) -> Tensor:
        """One token a row, drawn from the filtered distribution."""
        uniform = torch.tensor([self._streams[row].random() for row in rows_B.tolist()], dtype=torch.float64)
        probabilities, ids = filtered(log_p_BV, self.config)
        upto = probabilities.double().cumsum(-1)
        drawn = torch.searchsorted(upto, uniform.to(upto.device)[:, None] * upto[:, -1:], right=True)
        return ids.gather(1, drawn.clamp_(max=ids.shape[1] - 1))[:, 0]


def filtered(log_p_BV: Tensor, config: SearchConfig) -> tuple[Tensor, Tensor]:
    """Probabilities, most probable first, after temperature, top-k and top-p (those left out are 0), and their ids."""
    k = min(config.top_k or log_p_BV.shape[1], log_p_BV.shape[1])
    logits, ids = (log_p_BV / config.temperature).topk(k)
    probabilities = logits.softmax(-1)
    # a token stays if what is more probable does not yet hold top_p
    before = probabilities.cumsum(-1) - probabilities
    outside = before >= config.top_p if config.top_p < 1 else torch.zeros_like(before, dtype=torch.bool)
    outside[:, 0] = False
    return logits.masked_fill(outside, -math.inf).softmax(-1), ids
