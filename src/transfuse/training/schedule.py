"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from transfuse.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig, total_steps: int) -> float:
    """Learning rate of step `step` (from 1) of `total_steps`.

    Rises linearly to `config.learning_rate` over `warmup_steps`, then falls as √(warmup / step) (arXiv 1706.03762, with
    the peak given instead of derived from d_model) or along a half cosine to zero.
    """
    warmup = max(config.warmup_steps, 1)
    if step < warmup:
        return config.learning_rate * step / warmup
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(warmup / step)
    done = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
