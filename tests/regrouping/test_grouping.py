"""Which heads share."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from transfuse.regrouping.grouping import best_groups, neighbours


def test_neighbours_sit_side_by_side() -> None:
    assert neighbours(6, 2) == ((0, 1, 2), (3, 4, 5))


def pair_loss(seed: int, n: int):  # type: ignore[no-untyped-def]
    distances = np.random.default_rng(seed).random((n, n))
    return lambda group: float(sum(distances[i, j] for i, j in itertools.combinations(group, 2)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "n_groups"), [(6, 2), (6, 3), (8, 4), (8, 2)])
def test_the_best_of_all_partitions_where_they_are_few(n: int, n_groups: int, seed: int) -> None:
    loss, size = pair_loss(seed, n), n // n_groups
    every = {
        tuple(sorted(tuple(sorted(order[i : i + size])) for i in range(0, n, size)))
        for order in itertools.permutations(range(n))
    }
    found = best_groups(n, n_groups, loss)
    assert sum(map(loss, found)) == pytest.approx(min(sum(map(loss, groups)) for groups in every))


@pytest.mark.parametrize("seed", range(5))
def test_hidden_groups_are_found_where_partitions_are_many(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(16)
    hidden = {head: place // 4 for place, head in enumerate(order.tolist())}
    found = best_groups(16, 4, lambda group: float(len({hidden[head] for head in group})))
    assert all(len({hidden[head] for head in group}) == 1 for group in found)


def test_no_exchange_of_two_heads_improves() -> None:
    loss = pair_loss(0, 12)
    found = best_groups(12, 3, loss)
    total = sum(map(loss, found))
    for i, j in itertools.combinations(range(3), 2):
        for a, b in itertools.product(found[i], found[j]):
            swapped = [set(group) for group in found]
            swapped[i] ^= {a, b}
            swapped[j] ^= {a, b}
            assert sum(loss(tuple(sorted(group))) for group in swapped) >= total * (1 - 1e-9)
