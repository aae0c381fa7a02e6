"""Which heads share: the partition into groups of equal size that loses least."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

Groups = tuple[tuple[int, ...], ...]
"""Heads of each group; groups are ordered by their first head."""

MOST_TRIED = 1000
"""Partitions up to which all are tried; beyond, a greedy start is improved by exchanges."""


def neighbours(n_heads: int, n_groups: int) -> Groups:
    """Heads that sit side by side."""
    size = n_heads // n_groups
    return tuple(tuple(range(first, first + size)) for first in range(0, n_heads, size))


def best_groups(n_heads: int, n_groups: int, loss: Callable[[tuple[int, ...]], float]) -> Groups:
    """The partition whose groups' `loss` (of a sorted tuple of heads) sums to least: the best of all where they are
    few, otherwise one that no exchange of two heads improves."""
    size = n_heads // n_groups
    if size == 1 or n_groups == 1:
        return neighbours(n_heads, n_groups)
    known = functools.cache(loss)
    total = math.factorial(n_heads) // (math.factorial(size) ** n_groups * math.factorial(n_groups))
    if total <= MOST_TRIED:
        return min(_partitions(tuple(range(n_heads)), size), key=lambda groups: sum(map(known, groups)))
    return _exchanged(_greedy(n_heads, size, known), known)


def _partitions(heads: tuple[int, ...], size: int) -> Iterator[Groups]:
    if not heads:
        yield ()
        return
    first, others = heads[0], heads[1:]
    for companions in itertools.combinations(others, size - 1):
        left = tuple(head for head in others if head not in companions)
        for rest in _partitions(left, size):
            yield ((first, *companions), *rest)


def _greedy(n_heads: int, size: int, loss: Callable[[tuple[int, ...]], float]) -> list[tuple[int, ...]]:
    groups, left = [], list(range(n_heads))
    while left:
        group: tuple[int, ...] = (left.pop(0),)
        while len(group) < size:
            joined = min(left, key=lambda head: loss(tuple(sorted((*group, head)))))
            left.remove(joined)
            group = tuple(sorted((*group, joined)))
        groups.append(group)
    return groups


def _exchanged(groups: list[tuple[int, ...]], loss: Callable[[tuple[int, ...]], float]) -> Groups:
    """Exchange heads between two groups as long as it helps."""
    improved = True
    while improved:
        improved = False
        for i, j in itertools.combinations(range(len(groups)), 2):
            for a, b in itertools.product(groups[i], groups[j]):
                changed = _without(groups[i], a, b), _without(groups[j], b, a)
                # by more than rounding, or two equal partitions would take turns for ever
                if sum(map(loss, changed)) < sum(map(loss, (groups[i], groups[j]))) * (1 - 1e-9):
                    groups[i], groups[j] = changed
                    improved = True
                    break
    return tuple(sorted(groups))


def _without(group: Sequence[int], gone: int, come: int) -> tuple[int, ...]:
    return tuple(sorted((*(head for head in group if head != gone), come)))
