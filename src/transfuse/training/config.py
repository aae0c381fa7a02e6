"""How a model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transfuse.config import Config
from transfuse.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """Settings of a training run.

    `batch_tokens` bounds the padded source and the padded target of a batch; `accumulate` batches make a step.
    `epochs` or `max_steps`, whichever comes first, ends the run, or `patience` validations without a better score.
    Every `validate_every` steps the held-out score is taken, of the mean of the last `average` validated checkpoints'
    weights, and a checkpoint is written; the mean with the best score is the result. `keep` checkpoints stay on
    disk whole, and the weights of those that go into their averages and the best one.
    The score is minus the held-out loss, or the estimator's metric of greedy output with `select_by` = "metric".
    `schedule` follows a linear warm-up: "inverse_sqrt" as in the paper, or "cosine" down to zero at the last step.
    """

    epochs: int = 20
    max_steps: int | None = None
    batch_tokens: int = 4096
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    warmup_steps: int = 500
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    validate_every: int = 250
    patience: int | None = None
    select_by: Literal["loss", "metric"] = "loss"
    average: int = 5
    keep: int = 3

    def __post_init__(self) -> None:
        self.check_types()
        self.check_finite("learning_rate", "weight_decay", "clip_norm")
        self.check_positive("epochs", "max_steps", "batch_tokens", "accumulate", "learning_rate", "clip_norm")
        self.check_positive("validate_every", "patience", "average", "keep")
        self.check_fraction("label_smoothing")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} and weight_decay={self.weight_decay} must not be negative"
            )
