"""Generation for any number of sources: batched by length, answered in the order given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from transfuse.errors import DataError
from transfuse.generation.beam import beam_search
from transfuse.generation.config import SearchConfig
from transfuse.generation.sampling import Sampler
from transfuse.generation.sequences import Greedy, Hypothesis, Model, write
from transfuse.nn.linear import packed


@torch.inference_mode()
def generate(
    model: Model, sources: Sequence[Sequence[int]], config: SearchConfig | None = None
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each source (a row of ids), best first.

    Puts the model in evaluation mode. A result does not depend on what else is in the batch, but for rounding.
    """
    config = config or SearchConfig()
    model.eval()
    results: list[list[Hypothesis]] = [[] for _ in sources]
    with packed(model.modules()):
        for rows in _by_length(sources, config.batch_tokens):
            for row, found in zip(rows, _one_batch(model, sources, rows, config), strict=True):
                results[row] = found
    return results


def _one_batch(
    model: Model, sources: Sequence[Sequence[int]], rows: list[int], config: SearchConfig
) -> list[list[Hypothesis]]:
    source, keep, limits = _padded(model, [sources[row] for row in rows], config.max_tokens)
    if not config.sample and config.beams > 1:
        return beam_search(model, model.start(source, keep), limits, config)
    if not config.sample:
        return [[one] for one in write(model, model.start(source, keep), limits, Greedy(), config.length_penalty)]
    drawn: list[list[Hypothesis]] = [[] for _ in rows]
    for repeat in range(config.n_best):
        sampler = Sampler(config, rows, repeat)
        written = write(model, model.start(source, keep), limits, sampler, config.length_penalty)
        for found, one in zip(drawn, written, strict=True):
            found.append(one)
    return [sorted(found, key=lambda one: -one.score) for found in drawn]


def _by_length(sources: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for row in sorted(range(len(sources)), key=lambda row: len(sources[row])):
        if batch and len(sources[row]) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(model: Model, rows: list[Sequence[int]], max_tokens: int | None) -> tuple[Tensor, Tensor, Tensor]:
    device = next(model.parameters()).device
    lengths = torch.tensor([len(row) for row in rows])
    if not lengths.all():
        raise DataError("a source has no tokens; every row needs at least one to attend to")
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    source = torch.full(keep.shape, model.config.pad_id)
    source[keep] = torch.tensor([i for row in rows for i in row])
    limits = torch.full_like(lengths, max_tokens) if max_tokens else 2 * lengths + 32
    limits = limits.clamp(max=model.config.max_positions)
    return source.to(device), keep.to(device), limits.to(device)
