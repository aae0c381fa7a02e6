"""Beam search over cached steps.

Shapes: N sources, W beams, C = 2 W candidates, T tokens written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfuse.errors import ConfigError
from transfuse.generation.candidates import most_probable
from transfuse.generation.config import SearchConfig
from transfuse.generation.cores import threads_for
from transfuse.generation.sequences import BeamState, Hypothesis, Model, hypothesis, staying_rows


@dataclass
class _Beams:
    """Sequences of N sources: W still being written, and the at most W best that are finished, best first."""

    rows_N: Tensor
    limits_N: Tensor
    log_p_NW: Tensor
    ids_NWT: Tensor
    finished: list[list[Hypothesis]]
    worst_N: Tensor
    """Score of the last of W finished sequences; minus infinity until there are as many."""

    def select(self, staying: Tensor) -> None:
        """Keep these sources."""
        for name in ("rows_N", "limits_N", "log_p_NW", "ids_NWT", "worst_N"):
            setattr(self, name, getattr(self, name)[staying])
        self.finished = [self.finished[i] for i in staying.tolist()]


def check_beams(width: int, n_tokens: int) -> None:
    """Raise ConfigError for more beams than a vocabulary of `n_tokens` has candidates for."""
    if width > 1 and 2 * width > n_tokens:
        raise ConfigError(f"beams={width} must be at most half the vocabulary of {n_tokens}")


def beam_search(model: Model, sources: Sequence[Sequence[int]], config: SearchConfig) -> list[list[Hypothesis]]:
    """The `n_best` best sequences of each source, best first.

    A source is finished when it has `beams` finished sequences and no unfinished one scores higher as it stands, or at
    its limit of tokens, where unfinished sequences count as they are. Finished sources leave the batch.
    """
    width = config.beams
    check_beams(width, int(model.config.n_target_tokens))
    limits = [model.n_tokens_allowed(source, config.max_tokens) for source in sources]
    state, first_N = model.begin(sources)
    if not isinstance(state, BeamState):
        raise ConfigError(f"beams={width}: this model writes one sequence a row, beams=1")
    beams = _first_beams(torch.tensor(limits, device=first_N.device))
    results: dict[int, list[Hypothesis]] = {}
    ids_NW = first_N[:, None]
    end_ids = torch.tensor(model.config.end_ids, device=first_N.device)
    step = 0
    while len(beams.rows_N):
        with threads_for(model):
            hidden = model.hidden_step(ids_NW, state)
            # twice as many candidates as beams: at most half of them can end
            best, tokens = most_probable(model.output, hidden.flatten(0, 1), model.config, 2 * width)
        step += 1
        best_NWC = best.view(*ids_NW.shape, 2 * width)
        parents_NW, ids_NW = _extend(beams, best_NWC, tokens, step, end_ids, config)
        leaving = _finished(beams, step, config.length_penalty)
        if step == 1:
            state.widen(width)
        else:
            state.reorder(parents_NW)
        if leaving.any():
            for i in leaving.nonzero()[:, 0].tolist():
                results[int(beams.rows_N[i])] = _best(beams, i, model.config.end_ids, step, config)
            staying = staying_rows(leaving)
            ids_NW = ids_NW[staying]
            beams.select(staying)
            state.select(staying)
    return [results[row] for row in sorted(results)]


def _first_beams(limits_N: Tensor) -> _Beams:
    N, device = len(limits_N), limits_N.device
    return _Beams(
        rows_N=torch.arange(N, device=device),
        limits_N=limits_N,
        log_p_NW=torch.zeros(N, 1, device=device),
        ids_NWT=torch.empty(N, 1, 0, dtype=torch.long, device=device),
        finished=[[] for _ in range(N)],
        worst_N=torch.full((N,), -math.inf, dtype=torch.float64, device=device),
    )


def _extend(
    beams: _Beams, best_NWC: Tensor, tokens: Tensor, step: int, end_ids: Tensor, config: SearchConfig
) -> tuple[Tensor, Tensor]:
    """Advance every beam by a token; return the beams they continue and the tokens, both (N, W)."""
    width = config.beams
    log_p_NC, flat_NC = (best_NWC + beams.log_p_NW[:, :, None]).flatten(1).topk(2 * width)
    beam_NC = flat_NC // (2 * width)
    token_NC = tokens.view(len(best_NWC), -1).gather(1, flat_NC)
    ends_NC = torch.isin(token_NC, end_ids)
    _collect(beams, log_p_NC[:, :width], beam_NC, token_NC, ends_NC[:, :width], config.length_penalty)
    beams.log_p_NW, chosen_NW = log_p_NC.masked_fill(ends_NC, -math.inf).topk(width)
    beam_NW, ids_NW = beam_NC.gather(1, chosen_NW), token_NC.gather(1, chosen_NW)
    history = beams.ids_NWT.gather(1, beam_NW[:, :, None].expand(-1, -1, step - 1))
    beams.ids_NWT = torch.cat([history, ids_NW[:, :, None]], dim=2)
    return beam_NW, ids_NW


def _collect(
    beams: _Beams, log_p_NW: Tensor, beam_NC: Tensor, token_NC: Tensor, ends_NW: Tensor, length_penalty: float
) -> None:
    """Put the candidates that end among the finished sequences, of which the best stay."""
    ending = (ends_NW & log_p_NW.isfinite()).nonzero()
    width = log_p_NW.shape[1]
    for i, j in ending.tolist():
        end_id = int(token_NC[i, j])
        ids = [*beams.ids_NWT[i, beam_NC[i, j]].tolist(), end_id]
        pool = [*beams.finished[i], hypothesis(ids, float(log_p_NW[i, j]), [end_id], length_penalty)]
        beams.finished[i] = sorted(pool, key=lambda one: -one.score)[:width]
        if len(beams.finished[i]) == width:
            beams.worst_N[i] = beams.finished[i][-1].score


def _finished(beams: _Beams, step: int, length_penalty: float) -> Tensor:
    hopeless = beams.log_p_NW[:, 0] / step**length_penalty <= beams.worst_N
    return hopeless | (step >= beams.limits_N)


def _best(beams: _Beams, i: int, end_ids: Sequence[int], step: int, config: SearchConfig) -> list[Hypothesis]:
    pool = list(beams.finished[i])
    if step >= int(beams.limits_N[i]):
        unfinished = zip(beams.log_p_NW[i].tolist(), beams.ids_NWT[i].tolist(), strict=True)
        pool += [
            hypothesis(ids, log_p, end_ids, config.length_penalty) for log_p, ids in unfinished if log_p > -math.inf
        ]
    return sorted(pool, key=lambda one: -one.score)[: config.n_best]
