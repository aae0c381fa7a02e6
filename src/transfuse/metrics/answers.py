"""Exact match and F1 of answers, as the SQuAD script (version 2) counts them.

Both sides are lower-cased and lose punctuation and English articles; the better of several right answers counts; where
there is no answer, only none is right. Chinese and Japanese have no spaces between words: where a right answer holds
such characters, each of them is a word.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import transfuse
from transfuse.errors import DataError
from transfuse.metrics.text_scores import UNSPACED, Score

_CHARACTER = re.compile(f"([{UNSPACED}])")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WIDE_PUNCTUATION = str.maketrans("", "", "，。：？！《》“”‘’；、（）「」『』·—…")


def answer_scores(wanted: Sequence[Sequence[str]], found: Sequence[str]) -> list[Score]:
    """Exact match and F1 in percent; `wanted` has the right answers of each question, none where there is none.

    Raises DataError unless there is one found answer a question.
    """
    if len(wanted) != len(found) or not found:
        raise DataError(f"{len(found)} answers for {len(wanted)} questions; one each is needed")
    exact = f1 = 0.0
    n_unspaced = 0
    for texts, text in zip(wanted, found, strict=True):
        unspaced = any(map(_CHARACTER.search, texts))
        n_unspaced += unspaced
        words = _characters if unspaced else _words
        ours = words(text)
        theirs = [right for right in map(words, texts) if right] or [[]]
        exact += any(ours == right for right in theirs)
        f1 += max(_f1(ours, right) for right in theirs)
    rule = f"words:squad|by character:{n_unspaced}|questions:{len(found)}|version:{transfuse.__version__}"
    return [Score("exact match", 100 * exact / len(found), rule), Score("F1", 100 * f1 / len(found), rule)]


def _words(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _characters(text: str) -> list[str]:
    return _CHARACTER.sub(r" \1 ", text.lower().translate(_PUNCTUATION).translate(_WIDE_PUNCTUATION)).split()


def _f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))
