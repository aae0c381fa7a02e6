"""Models of one vocabulary side by side: quality, speed and memory, measured on the same data in turns.

The first model is what the others are compared with: the multi-head original, say, of grouped-query conversions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from transfuse.errors import ConfigError
from transfuse.estimators.language_model import LanguageModel
from transfuse.estimators.regroup import check_comparable, check_given
from transfuse.estimators.seq2seq import Seq2Seq
from transfuse.estimators.trained import scratch_folder
from transfuse.generation.cores import threads_for
from transfuse.generation.generate import generate
from transfuse.generation.ready import ready
from transfuse.metrics.text_scores import score_texts
from transfuse.nn.linear import CHUNK_NUMBERS
from transfuse.reports.comparison import Compared, Comparison, Timing
from transfuse.training.distillation import Distillation, hidden_vectors
from transfuse.training.loop import mean_loss

CONTEXTS = (16, 64, 256, 1024)
"""Positions behind a step that is timed: of the source for an encoder–decoder, of the text for a language model."""

BATCHES = (1, 8)
"""Rows that are decoded together."""

WARM_UP, STEPS = 2, 9
PROMPT, CONTINUATION = 32, 32
"""Tokens of a language model's prompt, and of what it writes to be compared."""

PROMPTS = 50


def compare(
    models: Mapping[str, Seq2Seq] | Mapping[str, LanguageModel],
    X: Any,
    y: Any = None,
    *,
    contexts: Sequence[int] = CONTEXTS,
    batches: Sequence[int] = BATCHES,
) -> Comparison:
    """Quality on held-out data, and speed and memory of decoding, of models (by name) that share a tokenizer.

    `X` (and `y`) is data none of them was trained on. Contexts beyond the models' positions are cut to those. Texts are
    scored by the first model's metric. Raises ConfigError for models of different kinds or vocabularies, or too few
    positions to time, DataError for unusable data.
    """
    check_comparable(models)
    names, several = list(models), list(models.values())
    check_given(several[0], y)
    usable = _usable(several, contexts, batches)
    X, y = (list(side) if isinstance(side, Iterator) else side for side in (X, y))
    with scratch_folder() as folder:
        held: Any = several[0].judging(Path(folder), X, y)
        n_tokens = sum(held.batch(rows).n_tokens for rows in held.in_order(4096))
        quality = [_quality(one, several[0], held) for one in several]
        outputs = [_outputs(one, X, held) for one in several]
    timings = _timings(several, usable, batches)
    metrics = [] if y is None else list(dict.fromkeys([several[0].metric, "chrf"]))
    found = []
    for i, (name, one) in enumerate(zip(names, several, strict=True)):
        equal = [_shared_start(a, b) for a, b in zip(outputs[i], outputs[0], strict=True)]
        scores = one.evaluate(X) if y is None else [score_texts(outputs[i], list(y), metric)[-1] for metric in metrics]
        found.append(
            Compared(
                name,
                list(one.model_.config.cached_heads),
                sum(weight.numel() for weight in one.model_.parameters()),
                *quality[i],
                scores,
                statistics.mean(equal),
                timings[i],
                _wins_from(timings[i], timings[0]) if i else None,
            )
        )
    return Comparison(found, n_tokens)


def _usable(several: Sequence[Any], contexts: Sequence[int], batches: Sequence[int]) -> list[int]:
    """The contexts that every model has positions for. Raises ConfigError where there is nothing to time."""
    if not contexts or not batches or min(*contexts, *batches) < 1:
        raise ConfigError(f"contexts={list(contexts)} and batches={list(batches)} must hold whole numbers from 1 up")
    positions = min(one.model_.config.max_positions for one in several)
    most = positions - WARM_UP - STEPS
    if most < 1:
        raise ConfigError(f"max_positions={positions}: a context and {WARM_UP + STEPS} timed steps need more")
    return sorted({min(context, most) for context in contexts})


@torch.no_grad()
def _quality(one: Any, first: Any, held: Any) -> tuple[float, float, float]:
    """Cross-entropy, divergence from the first model and agreement with it, a token."""
    task = Distillation(first.model_)
    divergence = mean_loss(one.model_, held, task, one.training)
    total = agreed = n_tokens = 0.0
    for rows in held.in_order(one.training.batch_tokens):
        batch = held.batch(rows).to(one.model_.output.weight.device)
        labels = batch.labels_BT[batch.real_BT]
        both = [hidden_vectors(model, batch) for model in (one.model_, first.model_)]
        some = max(1, CHUNK_NUMBERS // one.model_.output.out_features)  # all logits at once can be gigabytes
        for x, y, wanted in zip(*(part.split(some) for part in (*both, labels)), strict=True):
            log_p = one.model_.output(x).float().log_softmax(-1)
            total -= log_p.gather(1, wanted[:, None]).sum().item()
            agreed += (log_p.argmax(-1) == first.model_.output(y).argmax(-1)).sum().item()
        n_tokens += len(labels)
    return total / n_tokens, divergence, agreed / n_tokens


def _outputs(one: Any, X: Any, held: Any) -> list[Any]:
    """What a model writes: each text's output, or a greedy continuation of prompts from the held-out text, as ids."""
    if isinstance(one, Seq2Seq):
        return one.predict(X)
    rows = [row for batch in held.in_order(held.context) for row in batch][:PROMPTS]
    prompts = [held.batch([row]).ids_BT[0, :PROMPT].tolist() for row in rows]
    search = one.search.replace(sample=False, n_best=1, max_tokens=CONTINUATION)
    return [tuple(row[0].ids) for row in generate(one.model_, prompts, search)]


def _shared_start(one: Any, other: Any) -> float:
    """1 or 0 for texts, equal or not; the share of ids before the first difference."""
    if isinstance(one, str):
        return float(one == other)
    longest = max(len(one), len(other))
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same / longest if longest else 1.0


@torch.inference_mode()
def _timings(several: Sequence[Any], contexts: Sequence[int], batches: Sequence[int]) -> list[list[Timing]]:
    """Every model's steps, the models in turns within each step, so that a slow moment is everybody's."""
    found: list[list[Timing]] = [[] for _ in several]
    vocabulary = min(one.model_.config.vocab_size for one in several)
    with ExitStack() as held:
        writers: list[Any] = [held.enter_context(ready(one.model_, max(batches))) for one in several]
        for batch in sorted(batches):
            for context in contexts:
                generator = torch.Generator().manual_seed(0)
                prompts = torch.randint(vocabulary, (batch, context), generator=generator).tolist()
                begun = [writer.begin(prompts) for writer in writers]
                seconds: list[list[float]] = [[] for _ in several]
                for _ in range(WARM_UP + STEPS):
                    for i, writer in enumerate(writers):
                        state, ids = begun[i]
                        started = time.perf_counter()
                        with threads_for(writer):
                            ids = writer.output(writer.hidden_step(ids.view(-1, 1), state)).argmax(-1)
                        seconds[i].append(time.perf_counter() - started)
                        begun[i] = state, ids
                for i, one in enumerate(several):
                    found[i].append(
                        Timing(
                            batch,
                            context,
                            1000 * statistics.median(seconds[i][WARM_UP:]),
                            begun[i][0].n_bytes,
                            batch * one.model_.cache_bytes(prompts[0], WARM_UP + STEPS, 1),
                        )
                    )
    return found


def _wins_from(timings: Sequence[Timing], first: Sequence[Timing]) -> int | None:
    """The context from which on every step of the largest batch was faster."""
    largest, start = max(timing.batch for timing in timings), None
    for own, other in zip(timings, first, strict=True):
        if own.batch == largest:
            faster = own.milliseconds < other.milliseconds
            start = (own.context if start is None else start) if faster else None
    return start
