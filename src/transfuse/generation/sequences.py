"""Sequences written one token at a time, and what generation needs of a model.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from transfuse.generation.candidates import most_probable
from transfuse.generation.config import SearchConfig
from transfuse.generation.cores import threads_for
from transfuse.generation.loops import Loop, LoopFinder


@dataclass(frozen=True)
class Hypothesis:
    """A generated sequence: ids without start and end token, the sum of its tokens' log-probabilities (end token
    included where it was reached), and that sum normalised for length. `loop` is what the end was cut off for, where it
    was."""

    ids: list[int]
    log_probability: float
    score: float
    finished: bool
    loop: Loop | None = None


class State(Protocol):
    """A model's memory between steps."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""


@runtime_checkable
class BeamState(State, Protocol):
    """A memory that can hold several continuations of a row."""

    def widen(self, width: int) -> None:
        """Let every source have `width` beams, all continuations of the one it has."""

    def reorder(self, parents_BW: Tensor) -> None:
        """Make beam w of each source a continuation of its beam `parents[:, w]`."""


class Model(Protocol):
    """What generation needs of a model; `Seq2SeqModel` and `DecoderModel` are two."""

    config: Any

    def eval(self) -> Any:
        """Switch dropout off."""

    def parameters(self) -> Iterator[Any]:
        """The weights, on whose device generation runs."""

    def modules(self) -> Iterator[Any]:
        """The model and all its parts."""

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, Tensor]:
        """Read what is to be continued or translated; the state, and the token (B,) that comes first in each row."""

    def n_tokens_allowed(self, prompt: Sequence[int], asked: int | None) -> int:
        """Tokens that may be written for a prompt when `asked` are asked for (None: the model's own default)."""

    def n_positions(self, prompt: Sequence[int], n_tokens: int) -> int:
        """How long a row may become when `n_tokens` are written for a prompt."""

    def cache_bytes(self, prompt: Sequence[int], n_tokens: int, beams: int) -> int:
        """Bytes of keys and values that a prompt and `n_tokens` written for it come to."""

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


@dataclass
class Writing:
    """A row's sequence as it grows."""

    limit: int
    loops: LoopFinder | None
    ids: list[int] = field(default_factory=list)
    log_p: list[float] = field(default_factory=list)
    loop: Loop | None = None

    def add(self, token: int, log_p: float, end_ids: Sequence[int]) -> bool:
        """Add a token; whether the sequence is complete with it."""
        self.ids.append(token)
        self.log_p.append(log_p)
        if self.loops is not None:
            self.loop = self.loops.push(token)
        return token in end_ids or len(self.ids) >= self.limit or self.loop is not None

    def hypothesis(self, end_ids: Sequence[int], length_penalty: float) -> Hypothesis:
        """What was written, without what only repeats it."""
        if self.loop is None:
            return hypothesis(self.ids, math.fsum(self.log_p), end_ids, length_penalty)
        ids, log_p = self.ids[: self.loop.start], math.fsum(self.log_p[: self.loop.start])
        return Hypothesis(ids, log_p, log_p / max(len(ids), 1) ** length_penalty, False, self.loop)


def write(
    model: Model, prompts: Sequence[Sequence[int]], choose: Choose, config: SearchConfig
) -> Iterator[list[tuple[int, Writing]]]:
    """Write one sequence a row until its end token, its limit of tokens or a loop. After every step, yield the (row,
    sequence) of those still being written and of those it completed, which then leave the batch."""
    k = min(choose.k or model.config.n_target_tokens, model.config.n_target_tokens)
    end_ids = model.config.end_ids
    limits = [model.n_tokens_allowed(prompt, config.max_tokens) for prompt in prompts]
    written = [Writing(limit, LoopFinder(config.loop_repeats) if config.loop_repeats else None) for limit in limits]
    state, ids = model.begin(prompts)
    rows = torch.arange(len(prompts), device=ids.device)
    while len(rows):
        with threads_for(model):
            hidden = model.hidden_step(ids[:, None], state)[:, 0]
            scores, candidates = most_probable(model.output, hidden, model.config, k)
            chosen = choose(scores, rows)[:, None]
            ids = candidates.gather(1, chosen)[:, 0]
            log_p = scores.gather(1, chosen)[:, 0].double()
        growing = [(row, written[row]) for row in rows.tolist()]
        ends = [
            one.add(token, score, end_ids)
            for (_, one), token, score in zip(growing, ids.tolist(), log_p.tolist(), strict=True)
        ]
        yield growing
        if any(ends):
            staying = staying_rows(torch.tensor(ends, device=rows.device))
            state.select(staying)
            rows, ids = rows[staying], ids[staying]


def staying_rows(leaving_B: Tensor) -> Tensor:
    """The rows that stay: each in its place, but for the last ones, which take the places of those that leave."""
    n = int((~leaving_B).sum())
    rows = torch.arange(n, device=leaving_B.device)
    rows[leaving_B[:n]] = n + (~leaving_B[n:]).nonzero()[:, 0]
    return rows


def hypothesis(ids: list[int], log_probability: float, end_ids: Sequence[int], length_penalty: float) -> Hypothesis:
    """A hypothesis from written ids, the end token included where it was reached."""
    finished = ids[-1] in end_ids
    score = log_probability / len(ids) ** length_penalty
    return Hypothesis(ids[:-1] if finished else list(ids), log_probability, score, finished)
