"""What next-sentence prediction bought on a corpus: the same encoder pre-trained with it and without."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from transfuse.data.corpus import Corpus, as_corpus
from transfuse.data.masking import MaskedDataset, sentences
from transfuse.errors import ConfigError, DataError
from transfuse.estimators.text_encoder import TextEncoder, held_out_tail
from transfuse.training.pretraining import pretraining_scores

MOST_SENTENCES = 500
"""Held-out sentences among which each one's next is looked for."""


@dataclass(frozen=True)
class NextSentenceAblation:
    """Held-out figures of two encoders that differ in one thing, both judged on the same rows without pairs: loss and
    accuracy of hidden words, and how often the mean vector nearest to a sentence's own is that of the sentence behind
    it, out of `n_sentences`, beside `chance`."""

    word_loss: tuple[float, float]
    word_accuracy: tuple[float, float]
    next_found: tuple[float, float]
    n_sentences: int
    chance: float

    def __str__(self) -> str:
        rows = [
            ("loss of hidden words, nats", "{:.3f}", self.word_loss),
            ("hidden words guessed", "{:.1%}", self.word_accuracy),
            (f"next sentence nearest of {self.n_sentences} (chance {self.chance:.1%})", "{:.1%}", self.next_found),
        ]
        lines = [
            f"{name}: {form.format(a)} with next-sentence prediction, {form.format(b)} without"
            for name, form, (a, b) in rows
        ]
        return "\n".join(lines)


def ablate_next_sentence(
    encoder: TextEncoder, X: Corpus | Iterable[str], *, run_dir: str | Path | None = None, resume: bool = False
) -> NextSentenceAblation:
    """Pre-train `encoder`'s twin without next-sentence prediction on the same documents, and compare the two.

    `encoder` must have been fitted on `X` with it; one training each, so differences of a few tenths of a percent are
    chance. Raises ConfigError for an encoder without next-sentence prediction.
    """
    check_is_fitted(encoder, "model_")
    if not encoder.masking.next_sentence or encoder.model_.labels is None:
        raise ConfigError("the encoder was trained without next-sentence prediction; there is nothing to take away")
    corpus = X if isinstance(X, Corpus) else list(X)
    plain = encoder.masking.replace(next_sentence=False)
    documents = [sentences("".join(pieces)) for pieces in as_corpus(corpus)]
    _, held = held_out_tail(documents, encoder.validation_fraction)
    if not any(len(parts) > 1 for parts in held) or sum(map(len, held)) < 3:
        raise DataError("too few held-out sentences to look for the next one of any; hold more out")
    twin: TextEncoder = clone(encoder).set_params(masking=plain, run_dir=run_dir)
    twin.fit(corpus, resume=resume)
    both = (encoder, twin)
    scores = [
        pretraining_scores(one.model_, MaskedDataset(held, one.tokenizer_, plain), encoder.training) for one in both
    ]
    found = [_next_found(one, held) for one in both]
    n = found[0][1]
    return NextSentenceAblation(
        word_loss=(scores[0].word_loss, scores[1].word_loss),
        word_accuracy=(scores[0].word_accuracy, scores[1].word_accuracy),
        next_found=(found[0][0], found[1][0]),
        n_sentences=n,
        chance=1 / (n - 1),
    )


def _next_found(encoder: TextEncoder, documents: Sequence[Sequence[str]]) -> tuple[float, int]:
    """The share of sentences whose nearest is the one behind them, and among how many they were looked for."""
    numbered = [(number, text) for number, parts in enumerate(documents) for text in parts][:MOST_SENTENCES]
    vectors_ND = _mean_vectors(encoder, [text for _, text in numbered])
    vectors_ND -= vectors_ND.mean(0)  # what all have in common says nothing of any
    vectors_ND /= np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    likeness_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(likeness_NN, -np.inf)
    nearest = likeness_NN.argmax(1)
    asked = [i for i in range(len(numbered) - 1) if numbered[i][0] == numbered[i + 1][0]]
    return float(np.mean([nearest[i] == i + 1 for i in asked])), len(numbered)


def _mean_vectors(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    copied = copy.copy(encoder)
    copied.pooling = "mean"
    vectors: np.ndarray = copied.transform(texts)
    return vectors
