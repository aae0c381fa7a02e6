"""Pre-training data of BERT (arXiv 1810.04805): pairs of stretches of text with some of their words hidden.

Everything drawn, which stretches make a pair, which words are hidden and by what, is a function of (seed, epoch, row).

Shapes: N tokens of a row of sequences laid end to end, M hidden ones, B sequences.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transfuse.config import Config
from transfuse.data.batches import IGNORED
from transfuse.data.sequences import PackedSequences, by_length, pack
from transfuse.data.wordpiece import FIRST, LAST, MASK, PAD, UNKNOWN, WordPiece
from transfuse.errors import ConfigError, DataError

SENTENCE_END = re.compile(r"(?<=[.!?。！？…])\s+|(?<=[。！？])|\n+")

IS_NEXT, IS_RANDOM = 0, 1
"""Labels of a pair, as `transformers` has them."""

NEAREST = 8
"""Stretches of nearly the same length that a second one is drawn behind, where there are not as many of exactly it."""

HELD_EPOCH = 2**31
"""The epoch whose draws serve for scoring."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(Config):
    """`share` of the words are hidden: of these 80 % become [MASK], 10 % another word, 10 % stay. `whole_words` hides
    all pieces of a word or none. With `next_sentence` a row is two stretches, the second one being half of the time
    what follows and otherwise from anywhere else; without, it is one stretch. A row has at most `context` tokens."""

    context: int = 128
    share: float = 0.15
    whole_words: bool = False
    next_sentence: bool = True

    def __post_init__(self) -> None:
        self.check_types()
        if not 0 < self.share < 1:
            raise ConfigError(f"share={self.share} must be above 0 and below 1")
        if self.context < 8:
            raise ConfigError(f"context={self.context} must be at least 8")


@dataclass(frozen=True)
class MaskedBatch:
    """Sequences with hidden words: where they are in the row (`hidden_M`), what they were (`labels_M`), and of each
    sequence whether its second stretch follows (`next_B`, `IGNORED` where none can; empty without pairs)."""

    sequences: PackedSequences
    hidden_M: Tensor
    labels_M: Tensor
    next_B: Tensor

    @property
    def n_tokens(self) -> int:
        """Hidden words, which the loss is a mean over."""
        return len(self.labels_M)

    def to(self, device: torch.device) -> MaskedBatch:
        """The batch on `device`."""
        parts = (part.to(device) for part in (self.hidden_M, self.labels_M, self.next_B))
        return MaskedBatch(self.sequences.to(device), *parts)


def sentences(document: str) -> list[str]:
    """A document cut after sentence ends and at line ends."""
    return [part for part in SENTENCE_END.split(document) if part.strip()]


class MaskedDataset:
    """Rows of at most `config.context` tokens out of documents, each a list of sentences. `name` stands for them in
    errors."""

    def __init__(
        self,
        documents: Iterable[Sequence[str]],
        vocabulary: WordPiece,
        config: MaskingConfig,
        *,
        seed: int = 0,
        name: str = "the text",
    ) -> None:
        encoded = ([np.asarray(ids, np.int32) for ids in vocabulary.encode_plain(parts) if ids] for parts in documents)
        self.documents = [sentence_ids for sentence_ids in encoded if sentence_ids]
        self.config, self.seed = config, seed
        self.first, self.last, self.mask = (vocabulary.id_of(token) for token in (FIRST, LAST, MASK))
        special = {vocabulary.id_of(token) for token in (PAD, UNKNOWN, FIRST, LAST, MASK)}
        self.words = np.array([i for i in range(len(vocabulary)) if i not in special])
        self.continues = np.array([vocabulary.token(i).startswith("##") for i in range(len(vocabulary))])
        self._stretches = list(self._cut())
        if len(self._stretches) < 2:
            raise DataError(
                f"{name} makes {len(self._stretches)} stretches of {self.room} tokens; at least 2 are needed"
            )
        # A stretch ends where the next sentence no longer fits, so its length tells what may follow. Drawn seconds are
        # therefore what follows another stretch of that length, which ended in the middle of a sentence or did not.
        numbers = np.array([document for document, _, _ in self._stretches])
        firsts = np.flatnonzero(numbers[1:] == numbers[:-1])
        lengths = np.array([2 * len(ids) + goes_on for _, ids, goes_on in self._stretches])
        self._firsts = firsts[np.argsort(lengths[firsts], kind="stable")]
        self._first_lengths = lengths[self._firsts]

    def __len__(self) -> int:
        return len(self._stretches)

    @property
    def has_pairs(self) -> bool:
        """Whether any row's second stretch could follow its first: whether a document has more than one."""
        return any(self._sequence(0, row)[2] != IGNORED for row in range(len(self)))

    @property
    def room(self) -> int:
        """Tokens of a stretch: [CLS] and a [SEP] behind each stretch take the rest."""
        return (self.config.context - 3) // 2 if self.config.next_sentence else self.config.context - 2

    @property
    def longest(self) -> int:
        """Tokens of the longest row of the first epoch."""
        return max(len(self._sequence(0, row)[0]) for row in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256 of all ids, to tell one dataset from another."""
        digest = hashlib.sha256(str(self.config.context).encode())
        for document in self.documents:
            for ids in document:
                digest.update(ids.tobytes())
        return digest.hexdigest()

    def epoch(self, budget: int, seed: int, epoch: int) -> list[list[int]]:
        """Row numbers of each batch, at most `budget` tokens each. A row number holds its epoch."""
        del seed  # the dataset's own: `batch` needs it too
        lengths = [len(self._sequence(epoch, row)[0]) for row in range(len(self))]
        batches = by_length(lengths, budget)
        order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(batches))
        return [[epoch * len(self) + row for row in batches[i]] for i in order]

    def in_order(self, budget: int) -> list[list[int]]:
        """Row numbers for scoring, the same at every call."""
        lengths = [len(self._sequence(HELD_EPOCH, row)[0]) for row in range(len(self))]
        return [[HELD_EPOCH * len(self) + row for row in rows] for rows in by_length(lengths, budget)]

    def batch(self, rows: Sequence[int]) -> MaskedBatch:
        """These rows, with words hidden, end to end."""
        drawn = [self._masked(row // len(self), row % len(self)) for row in rows]
        drawn.sort(key=lambda one: len(one[0]))
        packed = pack(range(len(drawn)), [one[0] for one in drawn], [one[1] for one in drawn])
        starts = packed.starts[:-1].numpy()
        hidden = np.concatenate([one[2] + start for one, start in zip(drawn, starts, strict=True)])
        labels = np.concatenate([one[3] for one in drawn])
        following = [one[4] for one in drawn] if self.config.next_sentence else []
        return MaskedBatch(
            packed, torch.from_numpy(hidden), torch.from_numpy(labels), torch.tensor(following, dtype=torch.long)
        )

    def _cut(self) -> Iterator[tuple[int, np.ndarray, bool]]:
        """(document, ids, whether the last sentence goes on) of stretches: whole sentences as long as they fit, longer
        ones cut."""
        for number, document in enumerate(self.documents):
            held: list[np.ndarray] = []
            size = 0
            for ids in document:
                for first in range(0, len(ids), self.room):
                    part = ids[first : first + self.room]
                    if size + len(part) > self.room:
                        yield number, np.concatenate(held), first > 0
                        held, size = [], 0
                    held.append(part)
                    size += len(part)
            yield number, np.concatenate(held), False

    def _sequence(self, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids, segments, and whether the second stretch follows the first."""
        document, ids, _ = self._stretches[row]
        if not self.config.next_sentence:
            whole = np.concatenate([[self.first], ids, [self.last]])
            return whole, np.zeros_like(whole), IS_NEXT
        draw = np.random.default_rng([self.seed, epoch, row, 2])
        can_follow = row + 1 < len(self) and self._stretches[row + 1][0] == document
        another = self._behind_another(row, draw)
        follows = can_follow and draw.random() < 0.5
        second = row + 1 if follows else another if another is not None else (row + 1) % len(self)
        other = self._stretches[second][1]
        whole = np.concatenate([[self.first], ids, [self.last], other, [self.last]])
        segments = (np.arange(len(whole)) > len(ids) + 1).astype(np.int64)
        if not can_follow or another is None:
            # what nothing follows is the end of a document, often short: its label would tell by that
            return whole, segments, IGNORED
        return whole, segments, IS_NEXT if follows else IS_RANDOM

    def _behind_another(self, row: int, draw: np.random.Generator) -> int | None:
        """A stretch that follows another one as long as `row`; None where there is none but it and its own."""
        _, ids, goes_on = self._stretches[row]
        length = 2 * len(ids) + goes_on
        first, last = np.searchsorted(self._first_lengths, [length, length + 1])
        if last - first <= NEAREST:  # and shorter ones, what follows which would not have fitted here either
            first = max(0, last - NEAREST - 1)
            last = min(len(self._firsts), max(last, first + NEAREST + 1))
        near = self._firsts[first:last]
        if last - first <= 2:  # it and the one before, perhaps
            near = near[(near != row) & (near + 1 != row)]
            if not len(near):
                return None
        while True:
            found = int(draw.choice(near))
            if found not in (row, row - 1):
                return found + 1

    def _masked(self, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        """Ids with words hidden, segments, the places of hidden words, what they were, and the pair's label."""
        ids, segments, following = self._sequence(epoch, row)
        draw = np.random.default_rng([self.seed, epoch, row, 3])
        places = np.flatnonzero((ids != self.first) & (ids != self.last))
        wanted = max(1, round(self.config.share * len(places)))
        chosen = (
            self._whole_words(ids, places, wanted, draw)
            if self.config.whole_words
            else np.sort(draw.choice(places, wanted, replace=False))
        )
        labels, fate = ids[chosen].astype(np.int64), draw.random(len(chosen))
        changed = ids.astype(np.int64)
        changed[chosen[fate < 0.8]] = self.mask
        replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
        changed[replaced] = draw.choice(self.words, len(replaced))
        return changed, segments, chosen, labels, following

    def _whole_words(self, ids: np.ndarray, places: np.ndarray, wanted: int, draw: np.random.Generator) -> np.ndarray:
        """Places of words drawn until `wanted` pieces are hidden; the word that would go beyond is passed over."""
        begins = ~self.continues[ids[places]]
        begins[0] = True
        words = np.split(places, np.flatnonzero(begins)[1:])
        chosen: list[np.ndarray] = []
        size = 0
        for i in draw.permutation(len(words)):
            if size + len(words[i]) <= wanted or not chosen:
                chosen.append(words[i])
                size += len(words[i])
            if size >= wanted:
                break
        return np.sort(np.concatenate(chosen))
