"""Sequences written one token at a time, and what generation needs of a model.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A generated sequence: ids without start and end token, the sum of its tokens' log-probabilities (end token
    included where it was reached), and that sum normalised for length."""

    ids: list[int]
    log_probability: float
    score: float
    finished: bool


class State(Protocol):
    """A model's memory between steps."""

    def select(self, rows: Tensor) -> None:
        """Keep these sources."""

    def reorder(self, parents_BW: Tensor) -> None:
        """Make beam w of each source a continuation of its beam `parents[:, w]`."""


class Model(Protocol):
    """What generation needs of a model; `Seq2SeqModel` is one."""

    config: Any

    def eval(self) -> Any:
        """Switch dropout off."""

    def parameters(self) -> Iterator[Any]:
        """The weights, on whose device generation runs."""

    def start(self, source_BS: Tensor, keep_BS: Tensor, width: int = 1) -> Any:
        """The state before the first step of `width` beams a source."""

    def step(self, ids_BW: Tensor, state: Any) -> Tensor:
        """Feed a token a beam; logits (B, W, V) of the next."""


Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(log-probabilities (B, V), original row numbers (B,), step) to the chosen token of each row (B,)."""


def greedy(log_p_BV: Tensor, rows_B: Tensor, step: int) -> Tensor:
    """The most probable token."""
    return log_p_BV.argmax(-1)


def write(model: Model, state: State, limits_B: Tensor, choose: Choose, length_penalty: float) -> list[Hypothesis]:
    """Write one sequence a row until its end token or its limit of tokens; finished rows leave the batch."""
    start_id, end_id = model.config.start_id, model.config.end_id
    rows = torch.arange(len(limits_B), device=limits_B.device)
    ids = torch.full_like(rows, start_id)
    log_p = torch.zeros(len(rows), device=rows.device)
    written = torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
    results: dict[int, Hypothesis] = {}
    step = 0
    while len(rows):
        scores = log_probabilities(model.step(ids[:, None], state)[:, 0], model.config)
        ids = choose(scores, rows, step)
        step += 1
        log_p = log_p + scores.gather(1, ids[:, None])[:, 0]
        written = torch.cat([written, ids[:, None]], dim=1)
        leaving = (ids == end_id) | (step >= limits_B)
        if not leaving.any():
            continue
        for i in leaving.nonzero()[:, 0].tolist():
            results[int(rows[i])] = hypothesis(written[i].tolist(), float(log_p[i]), end_id, length_penalty)
        staying = (~leaving).nonzero()[:, 0]
        state.select(staying)
        rows, ids, log_p, written, limits_B = (part[staying] for part in (rows, ids, log_p, written, limits_B))
    return [results[row] for row in sorted(results)]


def log_probabilities(logits: Tensor, config: Any) -> Tensor:
    """Log-softmax over the last axis, in which padding and start token, which are not text, then cannot be chosen."""
    log_p = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    log_p[..., [config.pad_id, config.start_id]] = -math.inf
    return log_p


def hypothesis(ids: list[int], log_probability: float, end_id: int, length_penalty: float) -> Hypothesis:
    """A hypothesis from written ids, the end token included where it was reached."""
    finished = ids[-1] == end_id
    score = log_probability / len(ids) ** length_penalty
    return Hypothesis(ids[:-1] if finished else ids, log_probability, score, finished)
