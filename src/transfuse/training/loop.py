"""The training loop: gradients, accumulation, clipping, schedule, one optimiser step at a time.

Everything random in a step is a function of (seed, step), everything in the order of batches one of (seed, epoch), so a
run taken up at any `Position` goes on exactly as it would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import TrainingDiverged
from transfuse.training.config import TrainingConfig
from transfuse.training.schedule import learning_rate


class Batch(Protocol):
    """What the loop needs of a batch."""

    @property
    def n_tokens(self) -> int:
        """Tokens the loss is summed over."""

    def to(self, device: torch.device) -> Any:
        """The batch on `device`."""


class Dataset(Protocol):
    """What the loop needs of data; `transfuse.data.batches.PairDataset` is one."""

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        """Row indices of each batch of an epoch, a function of the arguments."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """These rows as one batch."""


Loss = Callable[[Any, Any, float], Tensor]
"""(model, batch, label smoothing) to the loss summed over the batch's tokens."""


@dataclass(frozen=True)
class Position:
    """How far a run has come: optimiser steps taken, and batches used up in the current epoch."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Step:
    """One optimiser step: where it leaves the run, mean loss a token, and what it took."""

    position: Position
    loss: float
    learning_rate: float
    gradient_norm: float
    n_tokens: int
    seconds: float


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), betas (0.9, 0.98), of the weights that require a gradient; weight decay on matrices
    only."""
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in learned if weight.dim() > 1]
    others = [weight for weight in learned if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def count_steps(data: Dataset, config: TrainingConfig, seed: int) -> int:
    """Steps the run will take if nothing stops it early, taking epoch 0 as typical."""
    per_epoch = math.ceil(len(data.epoch(config.batch_tokens, seed, 0)) / config.accumulate)
    return min(config.epochs * per_epoch, config.max_steps or config.epochs * per_epoch)


def train(
    model: nn.Module,
    data: Dataset,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    *,
    seed: int,
    start: Position | None = None,
) -> Iterator[Step]:
    """Yield after every optimiser step, from `start` to the end of `config.epochs` or `config.max_steps`.

    The loss of a step is the sum over its `accumulate` batches divided by all their tokens, so 1 × 8 batches weigh as
    8 × 1. Raises TrainingDiverged, before the weights change, when loss or gradient norm is not finite.
    """
    start = start or Position()
    total = count_steps(data, config, seed)
    device = next(model.parameters()).device
    number = start.step
    for epoch in range(start.epoch, config.epochs):
        batches = data.epoch(config.batch_tokens, seed, epoch)
        for first in range(start.batch if epoch == start.epoch else 0, len(batches), config.accumulate):
            if number == total and config.max_steps is not None:
                return
            began = time.perf_counter()
            number += 1
            rate = learning_rate(number, config, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            used = batches[first : first + config.accumulate]
            model.train()
            with seeded(seed, number, device):
                mean_loss, n_tokens = _gradients(model, [data.batch(rows) for rows in used], loss, config, device)
            norm = _clipped(model, config.clip_norm)
            for quantity, value in (("the loss", mean_loss), ("the gradient norm", norm)):
                if not math.isfinite(value):
                    raise TrainingDiverged(number, quantity, value)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            position = Position(number, epoch, first + len(used))
            yield Step(position, mean_loss, rate, norm, n_tokens, time.perf_counter() - began)


def _clipped(model: nn.Module, most: float) -> float:
    """The norm of all gradients, which are scaled down to `most` where it is more; where it is not, none is touched."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    found = norm.item()
    if found > most:
        nn.utils.clip_grads_with_norm_(model.parameters(), most, norm)
    return found


@contextmanager
def seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Make torch's generators a function of (seed, step) inside, and put them back after."""
    state = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(state)
        yield


def autocast(model: nn.Module, config: TrainingConfig) -> torch.autocast:
    """The context in which the model computes in `config.precision`; one of half precision in its own."""
    weight = next(model.parameters())
    wanted = config.precision == "bfloat16" and weight.dtype == torch.float32
    return torch.autocast(weight.device.type, torch.bfloat16, enabled=wanted)


@torch.no_grad()
def mean_loss(model: nn.Module, data: Any, loss: Loss, config: TrainingConfig) -> float:
    """Cross-entropy a token, in nats and without label smoothing, over all of `data`, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    total, n_tokens = 0.0, 0
    for rows in data.in_order(config.batch_tokens):
        batch = data.batch(rows).to(device)
        with autocast(model, config):
            total += loss(model, batch, 0.0).item()
        n_tokens += batch.n_tokens
    return total / n_tokens


def _gradients(
    model: nn.Module, batches: list[Batch], loss: Loss, config: TrainingConfig, device: torch.device
) -> tuple[float, int]:
    """Leave the gradient of the mean loss a token in the weights; return that loss and the tokens."""
    n_tokens = sum(batch.n_tokens for batch in batches)
    total = 0.0
    for batch in batches:
        with autocast(model, config):
            summed = loss(model, batch.to(device), config.label_smoothing)
        (summed / n_tokens).backward()  # type: ignore[no-untyped-call]
        total += summed.item()
    return total / n_tokens, n_tokens
