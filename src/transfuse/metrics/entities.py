"""Entities in tags, and how well they are found: the definition of conlleval, which `seqeval` counts by.

A tag is "O", or a prefix, a hyphen and a kind: B begins an entity, I goes on, E ends it, S is one alone. Sequences that
break these rules are read as conlleval reads them: an I or E that has nothing of its kind to go on with begins one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import transfuse
from transfuse.errors import DataError
from transfuse.metrics.text_scores import Score

OUTSIDE = "O"

Scheme = Literal["bio", "bioes"]

Span = tuple[int, int, str]
"""First word, last word + 1, kind."""


def entities_of(tags: Sequence[str]) -> list[Span]:
    """The entities of a sequence of tags, from left to right."""
    found: list[Span] = []
    begun: int | None = None
    kind = ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, label = tag.partition("-")
        if begun is not None and not (prefix in ("I", "E") and label == kind):
            found.append((begun, place, kind))
            begun = None
        if prefix == OUTSIDE:
            continue
        if begun is None:
            begun, kind = place, label
        if prefix in ("E", "S"):
            found.append((begun, place + 1, kind))
            begun = None
    return found


def tags_of(entities: Sequence[Span], n: int, scheme: Scheme) -> list[str]:
    """Tags of `n` words that hold these entities, which must not overlap."""
    tags = [OUTSIDE] * n
    for first, last, kind in entities:
        own = f"-{kind}" if kind else ""
        tags[first:last] = [f"I{own}"] * (last - first)
        tags[first] = f"B{own}"
        if scheme == "bioes":
            tags[last - 1] = f"E{own}" if last - first > 1 else f"S{own}"
    return tags


def entity_scores(wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> list[Score]:
    """F1, precision and recall of entities, in percent: one counts as found only with both ends and its kind right.

    Raises DataError unless both have the same sequences, each of the same length.
    """
    if len(wanted) != len(found):
        raise DataError(f"{len(found)} sequences of tags for {len(wanted)}; one each is needed")
    n_wanted = n_found = n_right = 0
    for row, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if len(one) != len(other):
            raise DataError(f"row {row}: {len(other)} tags for {len(one)}; one each is needed")
        theirs, ours = set(entities_of(one)), set(entities_of(other))
        n_wanted, n_found, n_right = n_wanted + len(theirs), n_found + len(ours), n_right + len(theirs & ours)
    precision, recall = (n_right / n if n else 0.0 for n in (n_found, n_wanted))
    f1 = 2 * n_right / (n_found + n_wanted) if n_right else 0.0
    signature = f"entities:{n_wanted}|average:micro|reading:conlleval|version:{transfuse.__version__}"
    parts = (("entity F1", f1), ("precision", precision), ("recall", recall))
    return [Score(name, 100 * value, signature) for name, value in parts]
