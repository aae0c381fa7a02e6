"""Pre-training rows: what is hidden, how often, and what a pair gives away."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from transfuse.data.batches import IGNORED
from transfuse.data.masking import IS_NEXT, MaskedDataset, MaskingConfig, sentences
from transfuse.data.wordpiece import MASK, WordPiece, WordPieceConfig
from transfuse.errors import ConfigError, DataError

WORDS = ["sun", "moon", "stars", "rise", "falling", "brightly", "over", "hills", "waters", "unbelievable"]


def documents(n: int = 60) -> list[list[str]]:
    draw = random.Random(0)
    return [
        [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) + "." for _ in range(draw.randint(4, 12))]
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def vocabulary() -> WordPiece:
    # too few for whole words, so that words have several pieces
    return WordPiece.train((text for parts in documents() for text in parts), 48, WordPieceConfig())


def dataset(vocabulary: WordPiece, seed: int = 0, **changes: object) -> MaskedDataset:
    return MaskedDataset(documents(), vocabulary, MaskingConfig(context=48, **changes), seed=seed)  # type: ignore[arg-type]


def within(found: int, n: int, share: float) -> bool:
    """Whether a binomial count is within four deviations of what it should be."""
    return abs(found - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_hidden_words_have_their_shares(vocabulary: WordPiece) -> None:
    data = dataset(vocabulary)
    n = masked = kept = words = 0
    for epoch in range(12):
        for rows in data.epoch(1024, 0, epoch):
            batch = data.batch(rows)
            ids = batch.sequences.ids_1N[0][batch.hidden_M]
            masked += int((ids == vocabulary.id_of(MASK)).sum())
            kept += int((ids == batch.labels_M).sum())
            n += batch.n_tokens
            words += int(
                (batch.sequences.ids_1N[0] != data.first).sum() - (batch.sequences.ids_1N[0] == data.last).sum()
            )
    assert n / words == pytest.approx(0.15, abs=0.01)
    assert within(masked, n, 0.8)
    assert within(kept, n, 0.1 + 0.1 / len(data.words))  # a word drawn may be the one that was there


def test_pairs_follow_half_of_the_time_where_they_can(vocabulary: WordPiece) -> None:
    data = dataset(vocabulary)
    followers = [row for row in range(len(data) - 1) if data._stretches[row][0] == data._stretches[row + 1][0]]
    follows = n = 0
    for epoch in range(30):
        for row in followers:
            ids, segments, label = data._sequence(epoch, row)
            second = ids[segments == 1][:-1]
            if len(second) > 12:  # a stretch that short may be somewhere else too
                assert (label == IS_NEXT) == np.array_equal(second, data._stretches[row + 1][1])
            follows, n = follows + (label == IS_NEXT), n + 1
    assert within(follows, n, 0.5)
    ends = set(range(len(data))) - set(followers)
    assert ends and all(data._sequence(epoch, row)[2] == IGNORED for epoch in range(5) for row in ends)
    # the length of the second stretch says nothing: as long on average, whichever it is
    lengths: dict[int, list[int]] = {0: [], 1: []}
    for epoch in range(30):
        for row in followers:
            _, segments, label = data._sequence(epoch, row)
            lengths[label].append(int(segments.sum()))
    means = [np.mean(lengths[label]) for label in (0, 1)]
    assert abs(means[0] - means[1]) < 4 * np.std(lengths[0]) / math.sqrt(min(map(len, lengths.values())))


def test_lengths_say_nothing_of_what_follows(vocabulary: WordPiece) -> None:
    data = MaskedDataset(documents(1500), vocabulary, MaskingConfig(context=48))
    end = vocabulary.encode_plain(["."])[0][0]
    lengths, labels, fits = [], [], []
    for epoch in range(2):
        for row in range(len(data)):
            ids, segments, label = data._sequence(epoch, row)
            if label != IGNORED:
                first, second = ids[segments == 0][1:-1], ids[segments == 1][:-1]
                opening = int(np.flatnonzero(second == end)[0]) + 1 if end in second else len(second)
                lengths.append([len(first), len(second), opening, first[-1] == end])
                labels.append(label)
                fits.append(len(first) + opening <= data.room)
    assert len(labels) > 8000 and not any(fits)  # or the second would have stood in the first
    learned, judged = np.split(np.array(lengths), 2), np.split(np.array(labels), 2)
    guesses = HistGradientBoostingClassifier(random_state=0).fit(learned[0], judged[0]).predict(learned[1])
    assert within(int((guesses == judged[1]).sum()), len(guesses), 0.5)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_stretches_have_no_wrong_labels(vocabulary: WordPiece, n: int) -> None:
    parts = ["unbelievable stars rise over waters.", "unbelievable moon rise over waters.",
             "unbelievable stars rise over hills.", "unbelievable sun rise over brightly."][:n]  # fmt: skip
    room = max(map(len, vocabulary.encode_plain(parts)))  # of one, not of two
    data = MaskedDataset([parts], vocabulary, MaskingConfig(context=2 * room + 3))
    assert len(data) == n
    seen = set()
    for row in range(len(data)):
        for epoch in range(50):
            ids, segments, label = data._sequence(epoch, row)
            follows = row + 1 < len(data) and np.array_equal(ids[segments == 1][:-1], data._stretches[row + 1][1])
            assert label == IGNORED or follows == (label == IS_NEXT)
            seen.add(label)
    assert IGNORED in seen  # what nothing follows


def test_rows_are_a_function_of_seed_epoch_and_row(vocabulary: WordPiece) -> None:
    one, same, other = (dataset(vocabulary, seed) for seed in (3, 3, 4))
    rows = one.epoch(512, 0, 2)
    assert rows == same.epoch(512, 9, 2) != one.epoch(512, 0, 1)
    assert sorted(row % len(one) for batch in rows for row in batch) == list(range(len(one)))
    batch = one.batch(rows[1])
    assert batch.sequences.ids_1N.equal(same.batch(rows[1]).sequences.ids_1N)
    assert not batch.sequences.ids_1N.equal(other.batch(rows[1]).sequences.ids_1N)
    assert sum(n * length for n, length in batch.sequences.groups) == batch.sequences.ids_1N.shape[1] <= 512


def test_labels_are_what_was_hidden(vocabulary: WordPiece) -> None:
    data = dataset(vocabulary, next_sentence=False)
    row = 5
    changed, segments, hidden, labels, _ = data._masked(7, row)
    original, _, _ = data._sequence(7, row)
    assert np.array_equal(original[hidden], labels)
    assert np.array_equal(np.delete(changed, hidden), np.delete(original, hidden))
    assert not segments.any() and len(hidden) == max(1, round(0.15 * (len(original) - 2)))


def test_whole_words_are_hidden_whole(vocabulary: WordPiece) -> None:
    data = dataset(vocabulary, whole_words=True, share=0.3)
    several = 0
    for row in range(len(data)):
        _, _, hidden, _, _ = data._masked(1, row)
        ids, _, _ = data._sequence(1, row)
        chosen = set(hidden.tolist())
        for place in range(1, len(ids)):
            if data.continues[ids[place]] and ids[place - 1] not in (data.first, data.last):
                assert (place in chosen) == (place - 1 in chosen)
                several += place in chosen
    assert several > 20


def test_sentences_end_where_they_end() -> None:
    assert sentences("One. Two? Three!\nFour\n\nFive… Six") == ["One.", "Two?", "Three!", "Four", "Five…", "Six"]
    assert sentences("今天下雨。明天呢？后天晴！") == ["今天下雨。", "明天呢？", "后天晴！"]
    assert sentences("3.14 is no end") == ["3.14 is no end"]


def test_bad_settings_and_too_little_text(vocabulary: WordPiece) -> None:
    with pytest.raises(ConfigError, match=r"share=1\.0"):
        MaskingConfig(share=1.0)
    with pytest.raises(ConfigError, match="context=7 must be at least 8"):
        MaskingConfig(context=7)
    with pytest.raises(DataError, match="at least 2 are needed"):
        MaskedDataset([["sun."]], vocabulary, MaskingConfig(context=48))
