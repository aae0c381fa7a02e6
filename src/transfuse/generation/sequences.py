"""Sequences written one token at a time, and what generation needs of a model.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from transfuse.generation.candidates import most_probable


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

    def widen(self, width: int) -> None:
        """Let every source have `width` beams, all continuations of the one it has."""

    def reorder(self, parents_BW: Tensor) -> None:
        """Make beam w of each source a continuation of its beam `parents[:, w]`."""


class Model(Protocol):
    """What generation needs of a model; `Seq2SeqModel` is one."""

    config: Any

    def eval(self) -> Any:
        """Switch dropout off."""

    def parameters(self) -> Iterator[Any]:
        """The weights, on whose device generation runs."""

    def modules(self) -> Iterator[Any]:
        """The model and all its parts."""

    def start(self, source_BS: Tensor, keep_BS: Tensor) -> Any:
        """The state before the first step, of one beam a source."""

    def hidden_step(self, ids_BW: Tensor, state: Any) -> Tensor:
        """Feed a token a beam; the vectors (B, W, D) that `output` turns into logits of the next."""

    def output(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of vectors (..., D)."""


class Choose(Protocol):
    """A way to choose among the `k` most probable tokens (None for all)."""

    k: int | None

    def __call__(self, log_p_Bk: Tensor, rows_B: Tensor) -> Tensor:
        """Which of the k (highest log-probability first) each row takes, (B,); `rows` are original row numbers."""


class Greedy:
    """Always the most probable token."""

    k: int | None = 1

    def __call__(self, log_p_Bk: Tensor, rows_B: Tensor) -> Tensor:
        """The first of the candidates."""
        return torch.zeros_like(rows_B)


def write(model: Model, state: State, limits_B: Tensor, choose: Choose, length_penalty: float) -> list[Hypothesis]:
    """Write one sequence a row until its end token or its limit of tokens; finished rows leave the batch."""
    k = min(choose.k or model.config.n_target_tokens, model.config.n_target_tokens)
    start_id, end_id = model.config.start_id, model.config.end_id
    rows = torch.arange(len(limits_B), device=limits_B.device)
    ids = torch.full_like(rows, start_id)
    log_p = torch.zeros(len(rows), device=rows.device)
    written = torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
    results: dict[int, Hypothesis] = {}
    step = 0
    while len(rows):
        hidden = model.hidden_step(ids[:, None], state)[:, 0]
        scores, candidates = most_probable(model.output, hidden, model.config, k)
        chosen = choose(scores, rows)[:, None]
        ids = candidates.gather(1, chosen)[:, 0]
        log_p = log_p + scores.gather(1, chosen)[:, 0]
        step += 1
        written = torch.cat([written, ids[:, None]], dim=1)
        leaving = (ids == end_id) | (step >= limits_B)
        if not leaving.any():
            continue
        for i in leaving.nonzero()[:, 0].tolist():
            results[int(rows[i])] = hypothesis(written[i].tolist(), float(log_p[i]), end_id, length_penalty)
        staying = staying_rows(leaving)
        state.select(staying)
        rows, ids, log_p, written, limits_B = (part[staying] for part in (rows, ids, log_p, written, limits_B))
    return [results[row] for row in sorted(results)]


def staying_rows(leaving_B: Tensor) -> Tensor:
    """The rows that stay: each in its place, but for the last ones, which take the places of those that leave."""
    n = int((~leaving_B).sum())
    rows = torch.arange(n, device=leaving_B.device)
    rows[leaving_B[:n]] = n + (~leaving_B[n:]).nonzero()[:, 0]
    return rows


def hypothesis(ids: list[int], log_probability: float, end_id: int, length_penalty: float) -> Hypothesis:
    """A hypothesis from written ids, the end token included where it was reached."""
    finished = ids[-1] == end_id
    score = log_probability / len(ids) ** length_penalty
    return Hypothesis(ids[:-1] if finished else ids, log_probability, score, finished)
