"""Texts that a model cannot read as they are: what is too long is cut, what it never learned to read is told of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from transfuse.data.wordpiece import UNKNOWN, Pieces, WordPiece
from transfuse.errors import TruncatedWarning, UnknownWordsWarning, UntrainedPositionsWarning

MOST_UNKNOWN, FEWEST_UNKNOWN = 0.3, 50
"""Share of pieces, and number of them, that may be unknown to the vocabulary before it is said."""


def cut(pieces: list[Pieces], longest: int, tokenizer: WordPiece, name: str = "X") -> list[Pieces]:
    """Pieces of `name`, no more of each than the model's positions, still closed by [SEP]."""
    long = [row for row, one in enumerate(pieces) if len(one) > longest]
    if not long:
        return pieces
    warnings.warn(
        f"{name}: {len(long)} of {len(pieces)} texts have more than {longest} pieces and are cut "
        f"(the first is row {long[0]} with {len(pieces[long[0]])})",
        TruncatedWarning,
        stacklevel=5,
    )
    for row in long:
        shorter = tokenizer.join(*_shortened(pieces[row], longest))
        pieces[row] = shorter if pieces[row].offsets else shorter.bare()
    return pieces


def warn_of_untrained(pieces: Sequence[Pieces], positions: int) -> None:
    """Say how many rows reach past `positions`, those that pre-training saw."""
    _warn_of_long(
        pieces, positions, f"the encoder was pre-trained on rows of at most {positions}", " (masking.context sets it)"
    )


def warn_of_longer(pieces: Sequence[Pieces], positions: int) -> None:
    """Say how many rows are longer by half than `positions`, those that any training saw: a few pieces more are what
    held-out rows often have."""
    _warn_of_long(pieces, positions * 3 // 2, f"the model was trained on rows of at most {positions}")


def _warn_of_long(pieces: Sequence[Pieces], most: int, trained: str, hint: str = "") -> None:
    long = [len(one) for one in pieces if len(one) > most]
    if long:
        warnings.warn(
            f"{len(long)} of {len(pieces)} rows have up to {max(long)} pieces, and {trained}: what stands behind those "
            f"has positions that were never trained{hint}",
            UntrainedPositionsWarning,
            stacklevel=5,
        )


def warn_of_unknown(pieces: Sequence[Pieces], tokenizer: WordPiece) -> None:
    """Say so where much of what is read is no piece of the vocabulary."""
    unknown = tokenizer.unknown_id
    counts = [one.ids.count(unknown) for one in pieces]
    n = sum(len(one) - 2 - one.segments[-1] for one in pieces)  # besides [CLS] and [SEP]
    if sum(counts) > max(MOST_UNKNOWN * n, FEWEST_UNKNOWN):
        warnings.warn(
            f"{sum(counts):,} of {n:,} pieces, in {sum(map(bool, counts)):,} of {len(pieces):,} rows, are "
            f"{UNKNOWN}: words of characters that the vocabulary does not have, or of more than 100 characters",
            UnknownWordsWarning,
            stacklevel=4,
        )


def _shortened(one: Pieces, longest: int) -> list[Pieces]:
    """The text, or the two, without special tokens, cut until they fit with them: of two the longer one first."""
    n_first = one.segments.count(0)
    parts = [one.part(1, n_first - 1)]
    if n_first < len(one):
        parts.append(one.part(n_first, len(one) - 1))
    room = longest - 1 - len(parts)
    if len(parts) == 1:
        return [parts[0].part(0, room)]
    half = room // 2
    first = min(len(parts[0]), max(room - len(parts[1]), half))
    return [parts[0].part(0, first), parts[1].part(0, room - first)]
