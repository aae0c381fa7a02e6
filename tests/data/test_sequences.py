"""Batches of sequences by length, and of mixed lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.data.labelled import LabelledDataset
from transfuse.data.sequences import alike, by_length
from transfuse.data.wordpiece import Pieces


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200), st.integers(0, 5))
def test_every_row_is_in_one_batch_within_the_budget(lengths: list[int], budget: int, seed: int) -> None:
    for batches in (alike(lengths, budget, np.random.default_rng(seed)), by_length(lengths, budget)):
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert all(batch and (len(batch) == 1 or sum(lengths[row] for row in batch) <= budget) for batch in batches)
    assert batches == by_length(lengths, budget)
    one, same = (alike(lengths, budget, np.random.default_rng(seed)) for _ in range(2))
    assert one == same


def test_batches_of_mixed_lengths_weigh_rows_alike() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.gamma(4, 6, 4000).astype(int) + 3  # as sentences have them
    mixed, cut = (make(lengths, 800) for make in (lambda *given: alike(*given, draw), by_length))
    sizes = [len(batch) for batch in mixed]
    assert max(sizes) - min(sizes) <= 4 and len(mixed) < 1.25 * len(cut)
    assert np.mean([len(set(lengths[batch])) for batch in mixed]) < 6  # few lengths each, which attention is made for
    # what a row weighs in its step has nothing to do with its length; cut by length it does
    weights = [np.empty(len(lengths)) for _ in range(2)]
    for weight, batches in zip(weights, (mixed, cut), strict=True):
        for batch in batches:
            weight[batch] = 1 / len(batch)
    assert abs(np.corrcoef(weights[0], lengths)[0, 1]) < 0.2 < 0.8 < np.corrcoef(weights[1], lengths)[0, 1]


def test_a_few_very_long_rows_do_not_make_every_batch_small() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 3000).astype(int) + 1
    batches = alike(lengths, 1024, np.random.default_rng(1))
    assert len(batches) < 1.5 * len(by_length(lengths, 1024))


def test_texts_are_mixed_and_pieces_cut_by_length() -> None:
    pieces = [Pieces([5] * n, [0] * n, [(0, 1)] * n, [0] * n) for n in range(2, 42)]
    texts = LabelledDataset(pieces, np.zeros(40))
    words = LabelledDataset(pieces, [np.zeros(len(one)) for one in pieces], per_piece=True)
    spans = [[max(batch) - min(batch) for batch in data.epoch(120, 0, 0)] for data in (texts, words)]
    assert np.mean(spans[0]) > 15 > 10 > np.mean(spans[1])
    assert texts.epoch(120, 0, 0) == texts.epoch(120, 0, 0) != texts.epoch(120, 0, 1)
