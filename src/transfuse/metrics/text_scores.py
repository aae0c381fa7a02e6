"""BLEU and chrF by sacreBLEU, ROUGE-1/2/L as the `rouge-score` package counts it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transfuse
from transfuse.errors import ConfigError, DataError


@dataclass(frozen=True)
class Score:
    """A corpus score (0 to 100 where texts are compared) with the signature of how it was counted."""

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} ({self.signature})"


def score_texts(hypotheses: Sequence[str], references: Sequence[str], metric: str) -> list[Score]:
    """The scores that `metric` stands for: one of `METRICS`; "rouge" gives three, the others one. Texts are compared in
    NFC, as the vocabularies learned here write them; the signature says so where that changed a reference.

    Raises ConfigError for an unknown metric, DataError unless there is one reference a hypothesis.
    """
    check_metrics([metric])
    if len(hypotheses) != len(references) or not hypotheses:
        raise DataError(f"{len(hypotheses)} hypotheses for {len(references)} references; one each is needed")
    written, wanted = ([unicodedata.normalize("NFC", text) for text in texts] for texts in (hypotheses, references))
    found = METRICS[metric](written, wanted)
    if wanted == list(references):
        return found
    return [Score(one.name, one.value, f"{one.signature}|norm:nfc") for one in found]


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ConfigError for a name that is not in `METRICS`."""
    for metric in metrics:
        if not isinstance(metric, str) or metric not in METRICS:
            raise ConfigError(f"metric={metric!r} must be one of {', '.join(METRICS)}")


def _bleu(**settings: Any) -> Callable[[Sequence[str], Sequence[str]], list[Score]]:
    def score(hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
        from sacrebleu import BLEU

        return [_sacrebleu("BLEU", BLEU(**settings), hypotheses, references)]

    return score


def _chrf(hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
    from sacrebleu import CHRF

    return [_sacrebleu("chrF", CHRF(), hypotheses, references)]


def _sacrebleu(name: str, metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    result = metric.corpus_score(list(hypotheses), [list(references)])
    return Score(name, float(result.score), str(metric.get_signature()))


def _exact(case: str) -> Callable[[Sequence[str], Sequence[str]], list[Score]]:
    def score(hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
        one, other = ([text.strip() for text in texts] for texts in (hypotheses, references))
        if case == "lc":
            one, other = ([text.lower() for text in texts] for texts in (one, other))
        equal = sum(map(str.__eq__, one, other))
        return [Score("exact", 100 * equal / len(references), f"strip:yes|case:{case}")]

    return score


def _rouge(hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
    rule, words = "rouge-score", _ascii_words
    if any(_unicode_words(text) and not _ascii_words(text) for text in references):
        # the package's rule deletes every letter outside a-z; a reference with no other words could never be matched
        rule, words = "unicode", _unicode_words
    cells = [(words(one), words(other)) for one, other in zip(hypotheses, references, strict=True)]
    signature = f"nrefs:1|case:lc|stem:no|tok:{rule}|average:mean-f1|version:{transfuse.__version__}"
    parts: list[tuple[str, Callable[[list[str], list[str]], float]]] = [
        ("ROUGE-1", lambda one, other: _overlap(one, other, 1)),
        ("ROUGE-2", lambda one, other: _overlap(one, other, 2)),
        ("ROUGE-L", _longest_common),
    ]
    return [Score(name, 100 * sum(f1(*cell) for cell in cells) / len(cells), signature) for name, f1 in parts]


def _ascii_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _unicode_words(text: str) -> list[str]:
    """Words of any script; a Chinese or Japanese character, written without spaces, is a word."""
    # vowel signs and tone marks belong to their word
    plain = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text.lower())
    return re.findall(rf"[{UNSPACED}]|[^\s{UNSPACED}]+", "".join(plain))


UNSPACED = "\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
"""Kana and Chinese characters."""


def _overlap(hypothesis: list[str], reference: list[str], n: int) -> float:
    ours, theirs = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (hypothesis, reference))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _longest_common(hypothesis: list[str], reference: list[str]) -> float:
    row = [0] * (len(reference) + 1)
    for word in hypothesis:
        diagonal = 0
        for j, other in enumerate(reference, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return _f1(row[-1], len(hypothesis), len(reference))


def _f1(common: int, n_hypothesis: int, n_reference: int) -> float:
    return 2 * common / (n_hypothesis + n_reference) if common else 0.0


METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], list[Score]]] = {
    "bleu": _bleu(),
    "bleu-lc": _bleu(lowercase=True),
    "bleu-char": _bleu(tokenize="char"),
    "chrf": _chrf,
    "rouge": _rouge,
    "exact": _exact("mixed"),
    "exact-lc": _exact("lc"),
}
"""Names for `metric`: BLEU (13a tokens), the same lower-cased, BLEU on characters (for scripts without spaces), chrF,
ROUGE-1/2/L F1, and the share of exactly equal texts, and of texts equal but for case."""
