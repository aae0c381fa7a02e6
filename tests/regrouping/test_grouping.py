"""Which heads share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from transfuse.regrouping import grouping
from transfuse.regrouping.grouping import best_groups, neighbours


def test_neighbours_sit_side_by_side() -> None:
    assert neighbours(6, 2) == ((0, 1, 2), (3, 4, 5))


def drawn(seed: int, n: int) -> list[list[float]]:
    distances = np.random.default_rng(seed).random((n, n))
    return (distances + distances.T).tolist()


def lost_by(losses: list[list[float]], groups: Iterable[Iterable[int]]) -> float:
    return sum(losses[a][b] for group in groups for a, b in itertools.combinations(sorted(group), 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "n_groups"), [(6, 2), (6, 3), (8, 4), (8, 2)])
def test_the_best_of_all_partitions_where_they_are_few(n: int, n_groups: int, seed: int) -> None:
    losses, size = drawn(seed, n), n // n_groups
    every = {
        tuple(sorted(tuple(sorted(order[i : i + size])) for i in range(0, n, size)))
        for order in itertools.permutations(range(n))
    }
    found = best_groups(losses, n_groups)
    assert lost_by(losses, found) == pytest.approx(min(lost_by(losses, groups) for groups in every))


@pytest.mark.parametrize("n_groups", [2, 3, 4, 6])
def test_twelve_heads_are_tried_in_all_ways(n_groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(grouping, "_exchanged")  # what would be used otherwise
    best_groups(drawn(0, 12), n_groups)


@pytest.mark.parametrize("seed", range(5))
def test_hidden_groups_are_found_where_partitions_are_many(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(16)
    hidden = {head: place // 4 for place, head in enumerate(order.tolist())}
    found = best_groups([[float(hidden[a] != hidden[b]) for b in range(16)] for a in range(16)], 4)
    assert all(len({hidden[head] for head in group}) == 1 for group in found)


@pytest.mark.parametrize("seed", range(3))
def test_no_exchange_of_two_heads_improves_where_partitions_are_many(seed: int) -> None:
    losses = drawn(seed, 16)
    found = best_groups(losses, 4)
    for i, j in itertools.combinations(range(4), 2):
        for a, b in itertools.product(found[i], found[j]):
            swapped = [set(group) for group in found]
            swapped[i] ^= {a, b}
            swapped[j] ^= {a, b}
            assert lost_by(losses, swapped) >= lost_by(losses, found) * (1 - 1e-9)
