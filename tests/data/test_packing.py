"""Packed rows: every token once, labelled by what follows it, in an order that is a function of the epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transfuse.data.batches import IGNORED
from transfuse.data.packing import PackedDataset, split_tail
from transfuse.errors import DataError

LENGTHS = [5, 1, 11, 2, 7, 3, 13]
END = 0


def make(lengths: list[int] = LENGTHS, context: int = 4, seed: int = 3) -> PackedDataset:
    """Documents whose tokens are all different: token 10 i + j is the j-th of document i."""
    tokens = np.concatenate([100 * (i + 1) + np.arange(n) for i, n in enumerate(lengths)]).astype(np.uint16)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return PackedDataset(tokens, starts, context=context, end_id=END, fingerprint="f", seed=seed)


def next_of(token: int) -> int:
    document, place = token // 100 - 1, token % 100
    return token + 1 if place + 1 < LENGTHS[document] else END


@pytest.mark.parametrize("context", [2, 4, 5, 42, 1000])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_has_every_token_once_but_for_a_remainder(context: int, epoch: int) -> None:
    data = make(context=context)
    rows = [row for batch in data.epoch(3 * context, 0, epoch) for row in batch]
    ids = [i for row in rows for i in data.batch([row]).ids_BT.flatten().tolist()]
    assert len(ids) == len(set(ids)) == len(data) * data.context
    assert 0 <= sum(LENGTHS) - len(ids) < data.context


@pytest.mark.parametrize("in_order", [False, True])
def test_labels_are_what_follows_in_the_document(in_order: bool) -> None:
    data = make()
    batches = data.in_order(12) if in_order else data.epoch(12, 0, 0)
    for rows in batches:
        batch = data.batch(rows)
        for token, label in zip(batch.ids_BT.flatten().tolist(), batch.labels_BT.flatten().tolist(), strict=True):
            assert label == (IGNORED if token == END else next_of(token))


def test_in_order_has_every_token_in_its_place() -> None:
    data = make()
    ids = torch.cat([data.batch(rows).ids_BT.flatten() for rows in data.in_order(12)])
    labels = torch.cat([data.batch(rows).labels_BT.flatten() for rows in data.in_order(12)])
    assert ids[labels != IGNORED].tolist() == data.tokens.tolist()


def test_a_token_may_attend_to_its_own_document_and_stands_where_it_stands_there() -> None:
    data = make(context=14)
    for rows in data.epoch(28, 0, 0):
        batch = data.batch(rows)
        assert batch.keep_BTT is not None
        assert batch.positions_BT is not None
        for b, row in enumerate(batch.ids_BT.tolist()):
            for t, token in enumerate(row):
                # a document that the row ends with and begins with (an epoch's line is a ring) is two stretches
                same = [s for s in range(len(row)) if row[s] // 100 == token // 100 and row[s] - token == s - t]
                assert batch.keep_BTT[b, t].nonzero()[:, 0].tolist() == same
                assert int(batch.positions_BT[b, t]) == t - same[0]


def test_rows_of_one_document_need_no_mask() -> None:
    batch = make([40], context=8).batch([0])
    assert batch.keep_BTT is None
    assert batch.positions_BT is None


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def line(seed: int, epoch: int) -> list[int]:
        data = make(seed=seed)
        return [i for rows in data.epoch(8, 0, epoch) for i in data.batch(rows).ids_BT.flatten().tolist()]

    assert line(3, 0) == line(3, 0)
    assert line(3, 0) != line(3, 1)
    assert line(3, 0) != line(4, 0)
    data = make()
    first, second = (
        {tuple(ids) for rows in data.epoch(8, 0, epoch) for ids in data.batch(rows).ids_BT.tolist()} for epoch in (0, 1)
    )
    assert first != second  # cut and joined otherwise, not only in another order
    later = data.batch(data.epoch(8, 0, 1)[0]).ids_BT
    data.batch(data.epoch(8, 0, 0)[0])
    assert torch.equal(data.batch(data.epoch(8, 0, 1)[0]).ids_BT, later)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.99])
def test_the_tail_is_split_off(fraction: float) -> None:
    data = make()
    (left, left_starts), (right, right_starts) = split_tail(data.tokens, data.starts, fraction)
    assert [*left, *right] == data.tokens.tolist()
    assert left_starts[0] == right_starts[0] == 0
    assert (left_starts[-1], right_starts[-1]) == (len(left), len(right))
    assert min(len(left), len(right)) >= 2
    inner = [*left_starts[:-1], *(right_starts[:-1] + len(left))]
    assert set(data.starts[:-1].tolist()) <= set(map(int, inner))
    assert all(np.diff(left_starts) > 0)
    assert all(np.diff(right_starts) > 0)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="1 tokens are too few to learn from"):
        make([1])
    with pytest.raises(DataError, match="3 tokens are too few; at least 4"):
        split_tail(np.arange(3), np.array([0, 3]), 0.5)
