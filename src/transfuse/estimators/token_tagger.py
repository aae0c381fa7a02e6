"""A tag for each word, and the entities that tags make: BERT fine-tuned, or trained from scratch."""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.validation import check_is_fitted

from transfuse.data.batches import IGNORED
from transfuse.data.labelled import LabelledDataset
from transfuse.data.tags import Mark, as_marks, as_tags, as_words
from transfuse.data.windows import deciding_windows, windows
from transfuse.data.wordpiece import Pieces, WordPieceConfig, word_places
from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.estimators.about import ESTIMATOR
from transfuse.estimators.fine_tuned import FineTuned, divided, label_names
from transfuse.estimators.text_encoder import MODEL, TOKENS, TextEncoder
from transfuse.metrics.entities import OUTSIDE, Scheme, entities_of, entity_scores, tags_of
from transfuse.metrics.text_scores import Score
from transfuse.models.bert import BertConfig, Head
from transfuse.training.config import TrainingConfig
from transfuse.training.tagging import piece_logits, tagging_loss

OVERLAP = 0.25
"""Share of a window that the one before it has too."""

PREFIXES = "BIES"
"""Of tags that begin an entity, go on with it, end it, and are one alone."""

SURE = 20.0
"""Logit of "outside" for a word that has no pieces, as one of control characters has none."""


@dataclass(frozen=True)
class Entity:
    """An entity found in a text: its first character, its last + 1, its kind, its text, and the mean probability of its
    words' tags."""

    start: int
    end: int
    label: str
    text: str
    score: float


@dataclass(frozen=True)
class _Words:
    """Rows of words, and where they stand in their texts."""

    rows: list[list[str]]
    places: list[list[tuple[int, int]]]
    texts: list[str]
    are_texts: bool

    @classmethod
    def read(cls, X: Iterable[Any], name: str) -> _Words:
        given, are_texts = as_words(X, name)
        if not are_texts:
            ends = [np.cumsum([len(word) + 1 for word in words]).tolist() for words in given]
            places = [
                [(last - 1 - len(word), last - 1) for word, last in zip(words, row, strict=True)]
                for words, row in zip(given, ends, strict=True)
            ]
            return cls(given, places, [" ".join(words) for words in given], False)
        places = [word_places(text) for text in given]
        rows = [[text[a:b] for a, b in row] for text, row in zip(given, places, strict=True)]
        return cls(rows, places, given, True)

    def __len__(self) -> int:
        return len(self.rows)

    def given(self, row: int) -> Any:
        return self.texts[row] if self.are_texts else self.rows[row]

    def tags(self, y: Iterable[Any], name: str) -> list[list[str]]:
        """A tag a word of what `y` says; marked entities that begin or end inside a word are widened to it."""
        if not self.are_texts:
            return as_tags(y, self.rows, name)
        found, widened = [], []
        for row, marks in enumerate(as_marks(y, self.texts, name)):
            spans = [_words_of(mark, self.places[row]) for mark in marks]
            for i, (first, last, _) in enumerate(spans):
                if first >= last:
                    raise DataError(f"{name}[{row}]: {marks[i]!r} marks no word")
                if i and first < spans[i - 1][1]:
                    raise DataError(f"{name}[{row}]: {marks[i - 1]!r} and {marks[i]!r} are of one word")
                if (self.places[row][first][0], self.places[row][last - 1][1]) != marks[i][:2]:
                    widened.append((row, marks[i]))
            found.append(tags_of(spans, len(self.rows[row]), "bio"))
        if widened:
            row, mark = widened[0]
            warnings.warn(
                f"{name}: {len(widened)} entities begin or end inside a word or in spaces and are fitted to the words "
                f"(the first is {mark!r} in row {row})",
                UserWarning,
                stacklevel=4,
            )
        return found


class TokenTagger(FineTuned):
    """Learns a tag for each word, such as those of entities.

    `X` holds lists of words and y a tag for each, or `X` holds texts and y the entities marked in them, each (start,
    end, kind) in characters; `predict` answers in the same form. Tags with prefixes (B-, I-, E-, S-) are entities' and
    are judged by entity F1; others, as parts of speech, by accuracy. `scheme` is what the model learns and says, by
    default that of y; sequences that break its rules are read as conlleval reads them. Texts longer than the model are
    read in windows, each word where it has most around it.

    After `fit`: `classes_` (tags), `scheme_`, `model_` (the torch module), `tokenizer_`, `results_`.
    """

    HEAD: ClassVar[Head] = "token"
    SAID: ClassVar[dict[str, Any]] = {"classes": [], "scheme": ""}

    def __init__(
        self,
        *,
        encoder: str | Path | TextEncoder | None = None,
        model: BertConfig = MODEL,
        tokenizer: WordPieceConfig = TOKENS,
        training: TrainingConfig | None = None,
        scheme: Scheme | None = None,
        validation_fraction: float = 0.1,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            encoder=encoder,
            model=model,
            tokenizer=tokenizer,
            training=training,
            validation_fraction=validation_fraction,
            run_dir=run_dir,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.scheme = scheme

    scheme_: Literal["bio", "bioes", "plain"]

    def fit(
        self,
        X: Iterable[Any],
        y: Iterable[Any],
        *,
        validation: tuple[Iterable[Any], Iterable[Any]] | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn the tag of each word; `validation` holds rows and tags to judge by, by default a share of these.

        Raises DataError naming row and word of what is not a word or a tag, for fewer than two tags, and for one in
        `validation` that y does not have.
        """
        with self._unchanged_on_failure():
            self._check_settings()
            seed = self._seed()
            words = _Words.read(X, "X")
            tags = words.tags(y, "y")
            self.scheme_ = self.scheme or _scheme_of(tags)
            tags = self._in_scheme(tags, "y")
            names = sorted({tag for row in tags for tag in row})
            if len(names) < 2:
                raise DataError(f"y has 1 tag ({names[0]!r}); at least 2 are needed")
            self.classes_ = np.array(names)
            kept, aside = np.arange(len(words)), np.arange(0)
            held, held_tags = words, tags
            if validation is None:
                kept, aside = divided(len(words), self.validation_fraction, seed, **self._likeness(words.rows, tags))
            else:
                held = _Words.read(validation[0], "validation[0]")
                held_tags = self._in_scheme(held.tags(validation[1], "validation[1]"), "validation[1]")
                aside = np.arange(len(held))
            for row, own in enumerate(held_tags):
                if unknown := sorted(set(own) - set(names)):
                    raise DataError(f"validation[1][{row}] has {unknown[0]!r}, which is not among the tags of y")
            positions = self._begin((word for row in kept for word in words.rows[row]), len(names), seed)
            data = self._dataset([words.rows[row] for row in kept], [tags[row] for row in kept])
            judged = self._dataset([held.rows[row] for row in aside], [held_tags[row] for row in aside])
            self._fine_tune(data, judged, tagging_loss, seed, resume, positions, tags=names)
            self._judge([held.rows[row] for row in aside], [held_tags[row] for row in aside])
        return self

    def predict(self, X: Iterable[Any]) -> list[Any]:
        """A tag for each word, or, of texts, their entities as (start, end, kind).

        Raises ConfigError for texts where the model's tags are not of entities: give lists of words.
        """
        words = _Words.read(X, "X")
        if words.are_texts:
            self._check_entities()
            return [[(one.start, one.end, one.label) for one in row] for row in self._entities(words)]
        return [tags for tags, _ in self._tags(words)]

    def predict_proba(self, X: Iterable[Any]) -> list[np.ndarray]:
        """Probability of each tag for each word of each row, (words, tags); a text's words are those `words` gives."""
        return [_softmax(logits) for logits in self._logits(_Words.read(X, "X"))]

    def words(self, X: Iterable[Any]) -> list[list[tuple[int, int]]]:
        """Where the words of each text stand (of words given as such: joined by spaces)."""
        return _Words.read(X, "X").places

    def entities(self, X: Iterable[Any]) -> list[list[Entity]]:
        """The entities of each text, with their characters (of words: as they stand when joined by spaces).

        Raises ConfigError for a model whose tags are not of entities.
        """
        self._check_entities()
        return self._entities(_Words.read(X, "X"))

    def _check_entities(self) -> None:
        check_is_fitted(self, "model_")
        if self.scheme_ == "plain":
            raise ConfigError("this model's tags have no prefixes (B-, I-, …), so they mark no entities in a text")

    def evaluate(self, X: Iterable[Any], y: Iterable[Any]) -> list[Score]:
        """Entity F1, precision and recall; of tags without prefixes accuracy and mean F1 of tags; in percent."""
        check_is_fitted(self, "model_")
        words = _Words.read(X, "X")
        wanted = words.tags(y, "y")
        if self.scheme_ != "plain":
            _check_prefixes(wanted, "y")
        elif not {tag for row in wanted for tag in row} & set(self.classes_.tolist()):
            raise DataError(f"y: none of its tags is one of the model's, as {self.classes_.tolist()[0]!r} is")
        found = [tags for tags, _ in self._tags(words)]
        if self.scheme_ != "plain":
            return entity_scores(wanted, found)
        flat, other = ([tag for row in rows for tag in row] for rows in (wanted, found))
        f1 = f1_score(flat, other, average="macro", zero_division=0)
        return [
            Score("accuracy", 100 * float(accuracy_score(flat, other)), "sklearn.metrics.accuracy_score"),
            Score("F1", 100 * float(f1), "average:macro|sklearn.metrics.f1_score"),
        ]

    def score(self, X: Iterable[Any], y: Iterable[Any]) -> float:
        """Entity F1, or accuracy of tags without prefixes, from 0 to 1."""
        return self.evaluate(X, y)[0].value / 100

    def _likeness(self, X: Sequence[Any], y: Any) -> dict[str, Any]:
        def kind(tag: Any) -> Any:
            return tag if isinstance(tag, str) else tag["label"] if isinstance(tag, dict) else tag[-1]

        return {"labels": [{kind(tag) for tag in row} for row in y]}

    def _in_scheme(self, tags: list[list[str]], name: str) -> list[list[str]]:
        """Tags as the model learns and says them. Raises DataError for one that marks no entity where others do."""
        if self.scheme_ == "plain":
            return tags
        _check_prefixes(tags, name)
        return [tags_of(entities_of(row), len(row), self.scheme_) for row in tags]

    def _tags(self, words: _Words) -> list[tuple[list[str], np.ndarray]]:
        """The tags of each row, put right where they break the scheme's rules, and how probable the likeliest is."""
        found = []
        for logits in self._logits(words):
            best = self.classes_[logits.argmax(1)].tolist()
            found.append((self._in_scheme([best], "classes_")[0], _softmax(logits).max(1)))
        return found

    def _entities(self, words: _Words) -> list[list[Entity]]:
        found = []
        for (tags, sure), places, text in zip(self._tags(words), words.places, words.texts, strict=True):
            row = []
            for first, last, kind in entities_of(tags):
                start, end = places[first][0], places[last - 1][1]
                row.append(Entity(start, end, kind, text[start:end], float(sure[first:last].mean())))
            found.append(row)
        return found

    def _logits(self, words: _Words) -> list[np.ndarray]:
        """What the head makes of each word's first piece, (words, tags) for each row."""
        check_is_fitted(self, "model_")
        nothing = SURE * (self.classes_ == OUTSIDE)
        found = [np.tile(nothing, (len(row), 1)) for row in words.rows]
        cut = [_Cut(pieces, self._room()) for pieces in self.tokenizer_.encode_words(words.rows)]
        owners = [(row, number) for row, one in enumerate(cut) for number in range(len(one.spans))]
        parts = [self.tokenizer_.join(cut[row].pieces.part(*cut[row].spans[number])) for row, number in owners]
        data = LabelledDataset(parts, [np.full(len(part), IGNORED) for part in parts], per_piece=True)
        for batch, logits in self._found(data, piece_logits):
            values = logits.double().cpu().numpy()
            for i, first in zip(batch.sequences.rows, batch.sequences.starts.tolist(), strict=False):
                row, number = owners[i]
                for word, place in cut[row].owned(number):
                    found[row][word] = values[first + 1 + place]
        return found

    def _dataset(self, rows: Sequence[list[str]], tags: Sequence[list[str]]) -> LabelledDataset:
        """Windows of pieces; each word's first piece has its tag, in one window only."""
        numbers = {name: number for number, name in enumerate(self.classes_.tolist())}
        parts, targets = [], []
        for pieces, row in zip(self.tokenizer_.encode_words(rows), tags, strict=True):
            one = _Cut(pieces, self._room())
            for number, (first, last) in enumerate(one.spans):
                target = np.full(last - first + 2, IGNORED)
                for word, place in one.owned(number):
                    target[1 + place] = numbers[row[word]]
                if (target != IGNORED).any():
                    parts.append(self.tokenizer_.join(pieces.part(first, last)).bare())
                    targets.append(target)
        if not parts:
            raise DataError("no word has a piece in the vocabulary; there is nothing to learn from")
        return LabelledDataset(parts, targets, per_piece=True)

    def _room(self) -> int:
        """Pieces of a window, besides [CLS] and [SEP]."""
        room: int = self.model_.config.max_positions - 2
        if room < 1:
            raise ConfigError(f"max_positions={room + 2} must be at least 3, to hold [CLS], a piece and [SEP]")
        return room

    def _loss_name(self) -> str:
        return "cross-entropy, nats a word"

    def _example(self) -> str:
        return '[["a", "text"]]'

    def _labels(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist(), "scheme": self.scheme_}

    def _take_labels(self, folder: Path, about: dict[str, Any]) -> None:
        names = about["classes"] or label_names(folder, self.model_.config.n_labels)
        if len(names) != self.model_.config.n_labels:
            raise ModelDirectoryError(
                f"{folder / ESTIMATOR}: {len(names)} tags, but the model has {self.model_.config.n_labels}"
            )
        self.classes_ = np.array(names)
        self.scheme_ = about["scheme"] or ("plain" if None in map(_prefix, names) else _scheme_of([names]))
        if self.scheme_ not in ("bio", "bioes", "plain"):
            raise ModelDirectoryError(f"{folder / ESTIMATOR}: scheme={self.scheme_!r} must be bio, bioes or plain")

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.scheme not in (None, "bio", "bioes"):
            raise ConfigError(f"scheme={self.scheme!r} must be bio, bioes or None")


class _Cut:
    """A row's pieces cut into windows, and which words each window decides."""

    def __init__(self, pieces: Pieces, room: int) -> None:
        self.pieces = pieces
        self.spans = windows(len(pieces), room, int(OVERLAP * room))
        first_places: dict[int, int] = {}
        for place, word in enumerate(pieces.words):
            if word is not None:
                first_places.setdefault(word, place)
        self._owned: dict[int, list[tuple[int, int]]] = {}
        numbers = deciding_windows(list(first_places.values()), self.spans).tolist()
        for (word, place), number in zip(first_places.items(), numbers, strict=True):
            self._owned.setdefault(number, []).append((word, place - self.spans[number][0]))

    def owned(self, number: int) -> list[tuple[int, int]]:
        """Words that the window decides, and the place of each one's first piece in it."""
        return self._owned.get(number, [])


def _scheme_of(tags: Iterable[Sequence[str]]) -> Literal["bio", "bioes", "plain"]:
    """The scheme that tags are in: plain unless most of those that are not O have a prefix."""
    prefixes = Counter(_prefix(tag) for row in tags for tag in row)
    if sum(prefixes[one] for one in PREFIXES) <= prefixes[None]:
        return "plain"
    return "bioes" if prefixes["E"] or prefixes["S"] else "bio"


def _prefix(tag: str) -> str | None:
    """What a tag says of an entity: one of `PREFIXES`, O, or None if it says nothing."""
    known = tag == OUTSIDE or (tag[0] in PREFIXES and tag[1:2] in ("", "-"))
    return tag[0] if known else None


def _check_prefixes(tags: Sequence[Sequence[str]], name: str) -> None:
    """Raise DataError, naming row and word, for a tag that is neither O nor has a prefix."""
    for row, one in enumerate(tags):
        for word, tag in enumerate(one):
            if _prefix(tag) is None:
                hint = "; in BILOU, write E- for L- and S- for U-" if tag[:2] in ("L-", "U-") else ""
                raise DataError(f"{name}[{row}][{word}]: {tag!r} is neither O nor begins with B-, I-, E- or S-{hint}")


def _words_of(mark: Mark, places: Sequence[tuple[int, int]]) -> tuple[int, int, str]:
    """The words that a marked entity touches, first and last + 1."""
    start, end, kind = mark
    return bisect_right(places, start, key=lambda place: place[1]), bisect_left(places, end, key=min), kind


def _softmax(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = torch.from_numpy(logits).softmax(1).numpy()
    return found
