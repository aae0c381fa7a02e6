"""Which heads share: the partition into groups of equal size whose pairs lose least."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

Groups = tuple[tuple[int, ...], ...]
"""Heads of each group; groups are ordered by their first head."""

Losses = Sequence[Sequence[float]]
"""What two heads lose if they share, n × n. A group is judged by its pairs: looking at all larger groups takes longer
than the rest of a conversion and finds nothing better."""

MOST_TRIED = 15_400
"""Partitions up to which all are tried (12 heads in any groups); beyond, a greedy start is improved by exchanges."""


def neighbours(n_heads: int, n_groups: int) -> Groups:
    """Heads that sit side by side."""
    size = n_heads // n_groups
    return tuple(tuple(range(first, first + size)) for first in range(0, n_heads, size))


def best_groups(losses: Losses, n_groups: int) -> Groups:
    """The partition whose pairs' losses sum to least: the best of all where partitions are few, otherwise one that no
    exchange of two heads improves."""
    n_heads = len(losses)
    size = n_heads // n_groups
    if size == 1 or n_groups == 1:
        return neighbours(n_heads, n_groups)
    total = math.factorial(n_heads) // (math.factorial(size) ** n_groups * math.factorial(n_groups))
    if total <= MOST_TRIED:
        groups = itertools.combinations(range(n_heads), size)
        known = {group: _loss(losses, group) for group in groups}
        return min(
            _partitions(tuple(range(n_heads)), size), key=lambda partition: sum(known[group] for group in partition)
        )
    return _exchanged(_greedy(losses, size), losses)


def _loss(losses: Losses, group: Sequence[int]) -> float:
    return sum(losses[a][b] for a, b in itertools.combinations(group, 2))


def _partitions(heads: tuple[int, ...], size: int) -> Iterator[Groups]:
    if not heads:
        yield ()
        return
    first, others = heads[0], heads[1:]
    for companions in itertools.combinations(others, size - 1):
        left = tuple(head for head in others if head not in companions)
        for rest in _partitions(left, size):
            yield ((first, *companions), *rest)


def _greedy(losses: Losses, size: int) -> list[tuple[int, ...]]:
    groups, left = [], list(range(len(losses)))
    while left:
        group = [left.pop(0)]
        while len(group) < size:
            joined = min(left, key=lambda head: sum(losses[head][member] for member in group))
            left.remove(joined)
            group.append(joined)
        groups.append(tuple(sorted(group)))
    return groups


def _exchanged(groups: list[tuple[int, ...]], losses: Losses) -> Groups:
    """Exchange heads between two groups as long as it helps."""
    improved = True
    while improved:
        improved = False
        for i, j in itertools.combinations(range(len(groups)), 2):
            for a, b in itertools.product(groups[i], groups[j]):
                changed = _without(groups[i], a, b), _without(groups[j], b, a)
                now = _loss(losses, groups[i]) + _loss(losses, groups[j])
                # by more than rounding, or two equal partitions would take turns for ever
                if sum(_loss(losses, group) for group in changed) < now * (1 - 1e-9):
                    groups[i], groups[j] = changed
                    improved = True
                    break
    return tuple(sorted(groups))


def _without(group: Sequence[int], gone: int, come: int) -> tuple[int, ...]:
    return tuple(sorted((*(head for head in group if head != gone), come)))
