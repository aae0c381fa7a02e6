"""Generation for any number of rows: batched by length, answered in the order given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import torch

from transfuse.errors import CacheTooLargeError
from transfuse.generation.beam import beam_search
from transfuse.generation.config import SearchConfig
from transfuse.generation.cores import each_on_a_core, n_cores_of
from transfuse.generation.memory import available_bytes
from transfuse.generation.ready import ready
from transfuse.generation.sampling import Sampler
from transfuse.generation.sequences import Choose, Greedy, Hypothesis, Model, Writing, write

Rows = Sequence[Sequence[int]]

FEWEST = 16
"""Rows below which a batch is not worth a core of its own."""


@torch.inference_mode()
def generate(model: Model, prompts: Rows, config: SearchConfig | None = None) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each row of ids, best first: translations of sources, continuations of prompts.

    Puts the model in evaluation mode. A result does not depend on what else is in the batch, but for rounding. Raises
    CacheTooLargeError, naming the bytes, if the keys and values of a batch would not fit the memory there is.
    """
    config = config or SearchConfig()
    model.eval()
    n_cores = n_cores_of(next(model.parameters()).device)
    batches = _by_length(model, prompts, config, n_cores)
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    with ready(model, config.beams * max(map(len, batches), default=0)) as writer:
        n_at_once = min(n_cores, len(batches))
        written = each_on_a_core(lambda rows: _one_batch(writer, prompts, rows, config, n_at_once), batches, n_cores)
        for rows, found in zip(batches, written, strict=True):
            for row, hypotheses in zip(rows, found, strict=True):
                results[row] = hypotheses
    return results


@torch.inference_mode()
def stream(model: Model, prompt: Sequence[int], config: SearchConfig) -> Iterator[list[int]]:
    """The ids written so far for one prompt, after each token; the end token is not among them.

    Greedy or sampled as `config` says (`beams` = 1), token for token what `generate` writes.
    """
    model.eval()
    _check_memory(model, [prompt], config, 1)
    with ready(model, 1) as writer:
        for growing in write(writer, [prompt], _choice(config, [0], 0), config):
            yield growing[0][1].hypothesis(model.config.end_ids, config.length_penalty).ids


def _one_batch(
    model: Model, prompts: Rows, rows: list[int], config: SearchConfig, n_at_once: int
) -> list[list[Hypothesis]]:
    chosen = [prompts[row] for row in rows]
    _check_memory(model, chosen, config, n_at_once)
    if config.beams > 1:
        return beam_search(model, chosen, config)
    drawn: list[list[Hypothesis]] = [[] for _ in rows]
    for repeat in range(config.n_best):
        written: dict[int, Writing] = {}
        for growing in write(model, chosen, _choice(config, rows, repeat), config):
            written.update(growing)
        for i, one in written.items():
            drawn[i].append(one.hypothesis(model.config.end_ids, config.length_penalty))
    return [sorted(found, key=lambda one: -one.score) for found in drawn]


def _choice(config: SearchConfig, rows: list[int], repeat: int) -> Choose:
    return Sampler(config, rows, repeat) if config.sample else Greedy()


def _by_length(model: Model, prompts: Rows, config: SearchConfig, n_cores: int) -> list[list[int]]:
    """Rows sorted by length, in batches of about equally many tokens, as many as go round the cores."""
    lengths = [model.n_positions(row, model.n_tokens_allowed(row, config.max_tokens)) for row in prompts]
    order = sorted(range(len(prompts)), key=lambda row: lengths[row])
    upto = list(itertools.accumulate(max(lengths[row], 1) for row in order))
    n_rounds = math.ceil(upto[-1] / config.batch_tokens / n_cores) if order else 1
    n_batches = n_cores * n_rounds if len(order) >= n_cores * FEWEST else n_rounds
    while True:
        number = [(total - 1) * n_batches // upto[-1] for total in upto]
        batches = [[row for row, _ in rows] for _, rows in groupby(zip(order, number, strict=True), key=itemgetter(1))]
        if all(len(batch) * lengths[batch[-1]] <= config.batch_tokens or len(batch) == 1 for batch in batches):
            return batches
        n_batches = math.ceil(1.05 * n_batches / n_cores) * n_cores  # padding takes its share


def _check_memory(model: Model, prompts: Rows, config: SearchConfig, n_at_once: int) -> None:
    """Raise CacheTooLargeError if the cache that a batch may grow to, of `n_at_once` running side by side, is more than
    there is memory for."""
    needed = sum(
        model.cache_bytes(row, model.n_tokens_allowed(row, config.max_tokens), config.beams) for row in prompts
    )
    available = available_bytes(next(model.parameters()).device)
    available = None if available is None else available // n_at_once
    if available is not None and needed > available:
        raise CacheTooLargeError(
            f"{len(prompts)} rows of up to {max(map(len, prompts)):,} tokens may need {needed:,} bytes of keys and "
            f"values, and {available:,} bytes are free; lower batch_tokens or max_tokens"
        )
