"""Beam search over cached steps.

Shapes: N sources, W beams, V vocabulary, T tokens written. A sequence row is source · W + beam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from transfuse.errors import ConfigError
from transfuse.generation.config import SearchConfig
from transfuse.generation.sequences import Hypothesis, Model, State, forbid, hypothesis


@dataclass
class _Beams:
    """Sequences of N sources: W still being written, and the W best that are finished."""

    rows_N: Tensor
    limits_N: Tensor
    log_p_NW: Tensor
    ids_NWT: Tensor
    done_score_NW: Tensor
    done_log_p_NW: Tensor
    done_ids: list[list[list[int]]]

    def select(self, staying: Tensor) -> None:
        """Keep these sources."""
        for name in ("rows_N", "limits_N", "log_p_NW", "ids_NWT", "done_score_NW", "done_log_p_NW"):
            setattr(self, name, getattr(self, name)[staying])
        self.done_ids = [self.done_ids[i] for i in staying.tolist()]


def beam_search(model: Model, state: State, limits_N: Tensor, config: SearchConfig) -> list[list[Hypothesis]]:
    """The `n_best` best sequences of each source, best first.

    A source is finished when it has `beams` finished sequences and no unfinished one scores higher as it stands, or at
    its limit of tokens, where unfinished sequences count as they are. Finished sources leave the batch.
    """
    width = config.beams
    n_tokens = int(model.config.n_target_tokens)
    if 2 * width > n_tokens:
        raise ConfigError(f"beams={width} must be at most half the vocabulary of {n_tokens}")
    beams = _first_beams(limits_N, width)
    results: dict[int, list[Hypothesis]] = {}
    ids = torch.full_like(limits_N, model.config.start_id)
    step = 0
    while len(beams.rows_N):
        logits = model.step(ids, state).float()
        step += 1
        total = logits.logsumexp(-1)
        parents_NW, ids_NW = _extend(beams, forbid(logits, model.config), total, step, model.config.end_id, config)
        leaving = _finished(beams, step, config.length_penalty)
        for i in leaving.nonzero()[:, 0].tolist():
            results[int(beams.rows_N[i])] = _best(beams, i, model.config.end_id, step, config)
        if leaving.any():
            staying = (~leaving).nonzero()[:, 0]
            parents_NW, ids_NW = parents_NW[staying], ids_NW[staying]
            beams.select(staying)
            state.select_sources(staying)
        state.select_sequences(parents_NW.flatten())
        ids = ids_NW.flatten()
    return [results[row] for row in sorted(results)]


def _first_beams(limits_N: Tensor, width: int) -> _Beams:
    N, device = len(limits_N), limits_N.device
    nothing = torch.full((N, width), -math.inf, device=device)
    return _Beams(
        rows_N=torch.arange(N, device=device),
        limits_N=limits_N,
        log_p_NW=torch.zeros(N, 1, device=device),  # one beam until the first tokens are chosen
        ids_NWT=torch.empty(N, 1, 0, dtype=torch.long, device=device),
        done_score_NW=nothing,
        done_log_p_NW=nothing.clone(),
        done_ids=[[] for _ in range(N)],
    )


def _extend(
    beams: _Beams, logits: Tensor, total: Tensor, step: int, end_id: int, config: SearchConfig
) -> tuple[Tensor, Tensor]:
    """Advance every beam by a token; return the sequence rows they continue and the tokens, both (N, W)."""
    width = config.beams
    N, held = beams.log_p_NW.shape
    # twice as many candidates as beams: at most half of them can end
    best, tokens = logits.topk(2 * width)
    log_p = (best - total[:, None]).view(N, held, -1) + beams.log_p_NW[:, :, None]
    log_p_NC, flat_NC = log_p.flatten(1).topk(2 * width)
    beam_NC = flat_NC // (2 * width)
    token_NC = tokens.view(N, -1).gather(1, flat_NC)
    ends_NC = token_NC == end_id
    _collect(beams, log_p_NC[:, :width], beam_NC, ends_NC[:, :width], step, config.length_penalty, end_id)
    beams.log_p_NW, chosen_NW = log_p_NC.masked_fill(ends_NC, -math.inf).topk(width)
    beam_NW, ids_NW = beam_NC.gather(1, chosen_NW), token_NC.gather(1, chosen_NW)
    history = beams.ids_NWT.gather(1, beam_NW[:, :, None].expand(-1, -1, step - 1))
    beams.ids_NWT = torch.cat([history, ids_NW[:, :, None]], dim=2)
    return beam_NW + torch.arange(N, device=logits.device)[:, None] * held, ids_NW


def _collect(
    beams: _Beams, log_p_NW: Tensor, beam_NC: Tensor, ends_NW: Tensor, step: int, length_penalty: float, end_id: int
) -> None:
    """Put the candidates that end among the finished sequences, of which the best stay."""
    ending = ends_NW & log_p_NW.isfinite()
    width = log_p_NW.shape[1]
    for i in ending.any(1).nonzero()[:, 0].tolist():
        pool = [
            (float(beams.done_score_NW[i, j]), float(beams.done_log_p_NW[i, j]), ids)
            for j, ids in enumerate(beams.done_ids[i])
        ]
        for j in ending[i].nonzero()[:, 0].tolist():
            log_p = float(log_p_NW[i, j])
            pool.append((log_p / step**length_penalty, log_p, [*beams.ids_NWT[i, beam_NC[i, j]].tolist(), end_id]))
        pool = sorted(pool, key=lambda entry: -entry[0])[:width]
        beams.done_ids[i] = [ids for _, _, ids in pool]
        beams.done_score_NW[i, : len(pool)] = torch.tensor([score for score, _, _ in pool])
        beams.done_log_p_NW[i, : len(pool)] = torch.tensor([log_p for _, log_p, _ in pool])


def _finished(beams: _Beams, step: int, length_penalty: float) -> Tensor:
    hopeless = beams.log_p_NW[:, 0] / step**length_penalty <= beams.done_score_NW[:, -1]
    return hopeless | (step >= beams.limits_N)


def _best(beams: _Beams, i: int, end_id: int, step: int, config: SearchConfig) -> list[Hypothesis]:
    pool = [(float(beams.done_log_p_NW[i, j]), ids) for j, ids in enumerate(beams.done_ids[i])]
    if step >= int(beams.limits_N[i]):
        pool += [(float(log_p), ids.tolist()) for log_p, ids in zip(beams.log_p_NW[i], beams.ids_NWT[i], strict=True)]
    found = [hypothesis(ids, log_p, end_id, config.length_penalty) for log_p, ids in pool if log_p > -math.inf]
    return sorted(found, key=lambda one: -one.score)[: config.n_best]
