"""Batches: padding nobody sees, targets shifted by hand, every row once an epoch, budgets kept, little padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfuse.data.batches import IGNORED, PairDataset, pad
from transfuse.errors import DataError

START, PAD, END = 0, 1, 2

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


def dataset(lengths: list[tuple[int, int]]) -> PairDataset:
    """Pairs of these lengths, row r filled with r + 3."""
    sources, targets = ([[row + 3] * (pair[side] - 1) + [END] for row, pair in enumerate(lengths)] for side in (0, 1))
    return PairDataset(sources, targets, START, PAD)


def like_sentences(count: int) -> PairDataset:
    """Source lengths as sentences have them (log-normal, median 22 tokens), targets about as long."""
    draw = np.random.default_rng(5)
    sources = np.clip(draw.lognormal(np.log(22), 0.6, count).astype(int), 2, 400)
    targets = np.clip((sources * draw.lognormal(0, 0.2, count)).astype(int), 2, 400)
    return dataset(list(zip(sources.tolist(), targets.tolist(), strict=True)))


def test_pad_fills_up_on_the_right_and_keeps_what_was_there() -> None:
    padded, keep = pad([[5, 6, 7], [8], [9, 3]], PAD)
    assert padded.tolist() == [[5, 6, 7], [8, PAD, PAD], [9, 3, PAD]]
    assert keep.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert padded.dtype == torch.int64
    assert keep.dtype == torch.bool


@given(st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=9), min_size=1, max_size=9))
def test_what_pad_keeps_is_the_rows(rows: list[list[int]]) -> None:
    padded, keep = pad(rows, -7)
    assert [line[kept].tolist() for line, kept in zip(padded, keep, strict=True)] == rows
    assert (padded[~keep] == -7).all()


@pytest.mark.parametrize(("rows", "named"), [([[5], [], [6]], 1), ([[]], 0), ([], 0)])
def test_a_row_without_tokens_is_refused(rows: list[list[int]], named: int) -> None:
    with pytest.raises(DataError, match=rf"^row {named} has no tokens; every row needs at least one$"):
        pad(rows, PAD)


def test_a_batch_by_hand() -> None:
    data = PairDataset([[5, 6, 2], [7, 2], [9, 2]], [[11, 2], [12, 13, 14, 2], [2]], START, PAD)
    batch = data.batch([1, 0, 2])
    assert batch.source_BS.tolist() == [[7, 2, PAD], [5, 6, 2], [9, 2, PAD]]
    assert batch.source_keep_BS.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert batch.labels_BT.tolist() == [[12, 13, 14, 2], [11, 2, -100, -100], [2, -100, -100, -100]]
    assert batch.target_BT.tolist() == [[START, 12, 13, 14], [START, 11, 2, PAD], [START, 2, PAD, PAD]]
    assert batch.n_tokens == 7


@given(LENGTHS)
def test_target_is_labels_one_place_to_the_right(lengths: list[tuple[int, int]]) -> None:
    batch = dataset(lengths).batch(range(len(lengths)))
    shifted = torch.where(batch.labels_BT == IGNORED, PAD, batch.labels_BT)[:, :-1]
    assert batch.target_BT[:, 1:].equal(shifted)
    assert (batch.target_BT[:, 0] == START).all()
    assert batch.n_tokens == sum(target for _, target in lengths)


def test_moving_a_batch_moves_all_of_it() -> None:
    moved = dataset([(2, 3), (4, 1)]).batch([0, 1]).to(torch.device("meta"))
    assert {part.device.type for part in vars(moved).values()} == {"meta"}


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_every_row_stands_in_exactly_one_batch_of_an_epoch(
    lengths: list[tuple[int, int]], budget: int, seed: int, epoch: int
) -> None:
    data = dataset(lengths)
    for batches in (data.epoch(budget, seed, epoch), data.in_order(budget)):
        assert sorted(row for batch in batches for row in batch) == list(range(len(data)))
        assert all(batches)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5))
def test_no_batch_holds_more_padded_tokens_than_its_budget_unless_it_is_one_long_pair(
    lengths: list[tuple[int, int]], budget: int, seed: int
) -> None:
    data = dataset(lengths)
    for rows in (*data.epoch(budget, seed, 0), *data.in_order(budget)):
        batch = data.batch(rows)
        assert len(rows) == 1 or max(batch.source_BS.numel(), batch.target_BT.numel()) <= budget


def test_a_pair_longer_than_the_budget_stands_alone() -> None:
    data = dataset([(3, 3), (50, 4), (3, 3), (4, 60)])
    for batches in (data.epoch(20, 0, 0), data.in_order(20)):
        assert sorted(map(sorted, batches)) == [[0, 2], [1], [3]]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    data = like_sentences(500)
    orders = {(seed, epoch): data.epoch(1000, seed, epoch) for seed in (3, 4) for epoch in (0, 1, 2)}
    assert all(data.epoch(1000, *key) == order for key, order in orders.items())
    assert len({str(order) for order in orders.values()}) == len(orders)


def test_an_epoch_mixes_short_and_long_batches() -> None:
    data = like_sentences(2000)
    lengths = [np.mean([len(data.sources[row]) for row in batch]) for batch in data.epoch(1000, 0, 0)]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.3  # sorted batches would give 1


def test_pairs_of_equal_length_meet_others_every_epoch() -> None:
    data = dataset([(5, 5)] * 200)
    first, second = ({frozenset(batch) for batch in data.epoch(50, 0, epoch)} for epoch in (0, 1))
    assert not first & second


def test_scoring_order_has_nothing_random() -> None:
    data = like_sentences(300)
    assert data.in_order(500) == data.in_order(500)


def padding(data: PairDataset, batches: list[list[int]]) -> float:
    """The share of all positions, source and target, that are padding."""
    drawn = [data.batch(rows) for rows in batches]
    held = sum(batch.source_BS.numel() + batch.target_BT.numel() for batch in drawn)
    return 1 - sum(int(batch.source_keep_BS.sum()) + batch.n_tokens for batch in drawn) / held


def test_batches_of_like_lengths_hold_far_less_padding_than_random_ones() -> None:
    data = like_sentences(5000)
    batches = data.epoch(1024, 0, 0)
    rows = np.random.default_rng(0).permutation(len(data))
    ours, at_random = padding(data, batches), padding(data, [p.tolist() for p in np.array_split(rows, len(batches))])
    # the longest of some thirty random pairs sets the width for all of them, so most positions are padding;
    # sorted, a batch's pairs differ by a token or two, and what remains is that a source is not as long as its target
    assert at_random > 0.6
    assert ours < 0.1
    assert at_random / ours > 6


def test_a_first_token_is_read_and_not_learned() -> None:
    data = PairDataset([[5, 6, 2], [7, 2]], [[11, 2], [12, 13, 14, 2]], START, PAD, first_id=9)
    batch = data.batch([0, 1])
    assert batch.target_BT.tolist() == [[START, 9, 11, 2, PAD], [START, 9, 12, 13, 14]]
    assert batch.labels_BT.tolist() == [[IGNORED, 11, 2, IGNORED, IGNORED], [IGNORED, 12, 13, 14, 2]]
    assert batch.n_tokens == 6
