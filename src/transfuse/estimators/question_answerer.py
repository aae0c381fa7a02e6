"""Answers that stand in a text: BERT fine-tuned to say where they begin and end, or that there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from transfuse.config import Config
from transfuse.data.labelled import LabelledDataset
from transfuse.data.questions import Answer, as_answers
from transfuse.data.text_files import MOST_CHARACTERS
from transfuse.data.windows import windows
from transfuse.data.wordpiece import Pieces, WordPieceConfig
from transfuse.errors import ConfigError, DataError, TruncatedWarning
from transfuse.estimators.fine_tuned import FineTuned, divided
from transfuse.estimators.sequence_head import columns
from transfuse.estimators.text_encoder import MODEL, TOKENS, TextEncoder
from transfuse.metrics.answers import answer_scores
from transfuse.metrics.text_scores import Score
from transfuse.models.bert import BertConfig, Head, check_pairs
from transfuse.training.answering import answering_loss, end_logits
from transfuse.training.config import TrainingConfig

BEST_ENDS = 20
"""First and last pieces that are paired in each window."""


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig(Config):
    """How contexts are read and answers chosen, in pieces: windows of at most `window` with the question, of which each
    shares `overlap` of the context with the one before, questions cut to `longest_question`, and answers of at most
    `longest_answer`. No answer is given where "none" scores more than `null_threshold` above the best."""

    window: int = 384
    overlap: int = 128
    longest_question: int = 64
    longest_answer: int = 50
    null_threshold: float = 0.0

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("window", "longest_question", "longest_answer")
        if self.overlap < 0:
            raise ConfigError(f"overlap={self.overlap} must not be below 0")
        self.room(self.longest_question)

    def room(self, n_question: int) -> int:
        """Pieces of the context beside a question of so many. Raises ConfigError if that is not twice the overlap."""
        room = self.window - n_question - 3
        if room <= 2 * self.overlap:
            raise ConfigError(
                f"window={self.window} leaves {room} pieces beside a question of {n_question}; "
                f"they must be more than twice overlap={self.overlap}"
            )
        return room


ANSWERING = AnsweringConfig()


@dataclass(frozen=True)
class FoundAnswer:
    """An answer: its text, its first character in the context, its last + 1, and its share of the probability among
    those found. The text is empty, and both places 0, where it says that there is none."""

    text: str
    start: int
    end: int
    score: float


ENCODED_ROWS = 1000
"""Questions that are encoded at a time."""


@dataclass(frozen=True)
class _Window:
    """A question and a part of its context: which row, the place where the context begins, and which of the context's
    pieces stands there."""

    row: int
    pieces: Pieces
    body: int
    first: int


@dataclass(frozen=True)
class _Questions:
    """Some rows of questions and answers, and what they are called where they were given."""

    rows: list[tuple[str, str]]
    answers: list[list[Answer]]
    of: str
    numbers: Sequence[int]

    @classmethod
    def some(
        cls, rows: Sequence[tuple[str, str]], answers: Sequence[list[Answer]], of: str, numbers: Sequence[int]
    ) -> _Questions:
        return cls([rows[i] for i in numbers], [answers[i] for i in numbers], of, numbers)

    def name(self, row: int) -> str:
        return f"{self.of}[{self.numbers[row]}]"


class QuestionAnswerer(FineTuned):
    """Learns to find the answer to a question in a context.

    `X` holds (question, context) rows, y the right answers of each, (text, first character), none where there is none;
    the first is learned from, and any is right when judged. Contexts longer than a window are read in several. Whether
    it may say that there is no answer depends on whether it learned from such questions.

    After `fit`: `unanswerable_`, `model_` (the torch module), `tokenizer_`, `results_` (what the training came to).
    """

    SETTINGS: ClassVar[dict[str, type[Config]]] = {"tokenizer": WordPieceConfig, "answering": AnsweringConfig}
    HEAD: ClassVar[Head] = "span"
    SAID: ClassVar[dict[str, Any]] = {"unanswerable": False}

    def __init__(
        self,
        *,
        encoder: str | Path | TextEncoder | None = None,
        model: BertConfig = MODEL,
        tokenizer: WordPieceConfig = TOKENS,
        answering: AnsweringConfig = ANSWERING,
        training: TrainingConfig | None = None,
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
        self.answering = answering

    def fit(
        self,
        X: Iterable[Sequence[str]],
        y: Iterable[Any],
        *,
        validation: tuple[Iterable[Sequence[str]], Iterable[Any]] | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn from questions and answers; `validation` holds others to judge by, by default those of a share of the
        contexts.

        Raises DataError naming the row of an answer that does not stand where it says, and for no answer at all.
        """
        with self._unchanged_on_failure():
            self._check_settings()
            seed = self._seed()
            rows = _questions(X, "X")
            answers = as_answers(y, rows, "y")
            if not any(answers):
                raise DataError("y has no answer at all; there is nothing to find")
            if validation is None:
                sides = divided(len(rows), self.validation_fraction, seed, **self._likeness(rows, answers))
                learned, held = (_Questions.some(rows, answers, "y", side.tolist()) for side in sides)
            else:
                held_rows = _questions(validation[0], "validation[0]")
                learned = _Questions.some(rows, answers, "y", range(len(rows)))
                held_answers = as_answers(validation[1], held_rows, "validation[1]")
                held = _Questions.some(held_rows, held_answers, "validation[1]", range(len(held_rows)))
            self.unanswerable_ = not all(learned.answers)
            positions = self._begin((text for row in learned.rows for text in row), 2, seed)
            if self.answering.window > self.model_.config.max_positions:
                raise ConfigError(
                    f"answering.window={self.answering.window} must be at most "
                    f"max_positions={self.model_.config.max_positions}"
                )
            check_pairs(self.model_.config)
            data, judged = self._dataset(learned), self._dataset(held)
            self._fine_tune(data, judged, answering_loss, seed, resume, positions, answering=self.answering.to_dict())
            self._judge(held.rows, held.answers)
        return self

    def predict(self, X: Iterable[Sequence[str]]) -> np.ndarray:
        """The best answer to each question, (rows,); an empty text where there is none."""
        return np.array([found[0].text for found in self.predict_n_best(X, 1)])

    def predict_n_best(self, X: Iterable[Sequence[str]], n: int = 5) -> list[list[FoundAnswer]]:
        """At most `n` answers to each question, the best first. Raises ConfigError for fewer than one."""
        check_is_fitted(self, "model_")
        if n < 1:
            raise ConfigError(f"n={n} must be at least 1")
        rows = _questions(X, "X")
        self._warn_of_long(rows, lambda row: f"X[{row}]")
        some = (rows[first : first + ENCODED_ROWS] for first in range(0, len(rows), ENCODED_ROWS))
        return [found for part in some for found in self._answered(part, n)]

    def _answered(self, rows: list[tuple[str, str]], n: int) -> list[list[FoundAnswer]]:
        spans: list[dict[tuple[int, int], float]] = [{} for _ in rows]
        nothing = np.full(len(rows), np.inf)
        cut = [one for row, parts in enumerate(self._encoded(rows)) for one in self._windows(row, *parts)]
        data = LabelledDataset([one.pieces for one in cut], np.zeros((len(cut), 2), np.int64))
        for batch, logits in self._found(data, end_logits):
            values = [ends for part in logits for ends in part.double().cpu().numpy()]
            for i, ends_T2 in zip(batch.sequences.rows, values, strict=True):
                row = cut[i].row
                nothing[row] = min(nothing[row], ends_T2[0].sum())
                for place, value in self._spans(cut[i], ends_T2).items():
                    spans[row][place] = max(value, spans[row].get(place, -np.inf))
        return [self._chosen(context, spans[row], float(nothing[row]), n) for row, (_, context) in enumerate(rows)]

    def evaluate(self, X: Iterable[Sequence[str]], y: Iterable[Any]) -> list[Score]:
        """Exact match and F1, in percent, as the SQuAD script counts them."""
        rows = _questions(X, "X")
        wanted = as_answers(y, rows, "y")
        return answer_scores([[text for text, _ in one] for one in wanted], self.predict(rows).tolist())

    def score(self, X: Iterable[Sequence[str]], y: Iterable[Any]) -> float:
        """F1, from 0 to 1."""
        return self.evaluate(X, y)[1].value / 100

    def _likeness(self, X: Sequence[Any], y: Any) -> dict[str, Any]:
        return {"groups": [row[1] for row in X]}

    def _encoded(self, rows: Sequence[tuple[str, str]]) -> Iterator[tuple[Pieces, Pieces]]:
        """Pieces of each question, as many as are read of it, and of its context; a context is encoded once for all of
        its questions that stand near each other."""
        for first in range(0, len(rows), ENCODED_ROWS):
            some = rows[first : first + ENCODED_ROWS]
            questions = self.tokenizer_.encode_bare([question for question, _ in some])
            distinct = list(dict.fromkeys(context for _, context in some))
            contexts = dict(zip(distinct, self.tokenizer_.encode_bare(distinct), strict=True))
            for question, (_, context) in zip(questions, some, strict=True):
                yield question.part(0, self.answering.longest_question), contexts[context]

    def _windows(self, row: int, question: Pieces, context: Pieces) -> Iterator[_Window]:
        """A question with one part of its context after the other."""
        for first, last in windows(len(context), self.answering.room(len(question)), self.answering.overlap):
            pieces = self.tokenizer_.join(question, context.part(first, last))
            yield _Window(row, pieces, len(question) + 2, first)

    def _warn_of_long(self, rows: Sequence[tuple[str, str]], named: Callable[[int], str]) -> None:
        """Say which questions are cut; `named` says what a row is called."""
        lengths = list(map(len, self.tokenizer_.encode_plain([question for question, _ in rows])))
        longest = self.answering.longest_question
        long = [row for row, length in enumerate(lengths) if length > longest]
        if long:
            warnings.warn(
                f"{len(long)} of {len(rows)} questions have more than {longest} pieces and are cut (the first is "
                f"{named(long[0])} with {lengths[long[0]]})",
                TruncatedWarning,
                stacklevel=4,
            )

    def _dataset(self, given: _Questions) -> LabelledDataset:
        """Windows, with the places of the first and last piece of the answer, or of [CLS] where it is not inside.

        Questions whose answer has no piece in the vocabulary are left out with a warning. Raises DataError if none is
        left.
        """
        self._warn_of_long(given.rows, given.name)
        parts, targets = [], []
        bare, lost = [], []
        for row, (question, context) in enumerate(self._encoded(given.rows)):
            answer = given.answers[row][0] if given.answers[row] else None
            span = _span(context, answer) if answer else None
            if answer and span is None:
                bare.append(row)
                continue
            seen = False
            for one in self._windows(row, question, context):
                target = [0, 0]
                if span is not None and one.first <= span[0] and span[1] < one.first + len(one.pieces) - 1 - one.body:
                    target, seen = [place - one.first + one.body for place in span], True
                parts.append(one.pieces.bare())
                targets.append(target)
            if span is not None and not seen:
                lost.append(row)
        if bare:
            named = given.name(bare[0])
            if len(bare) == len(given.rows):
                raise DataError(f"{named} and all others: no answer has a piece in the vocabulary")
            warnings.warn(
                f"{len(bare)} answers have no piece in the vocabulary; their questions are left out (the first is "
                f"{named}, {given.answers[bare[0]][0][0]!r})",
                UserWarning,
                stacklevel=4,
            )
        if lost:
            warnings.warn(
                f"{len(lost)} answers are longer than any window shows and are learned as none (the first is "
                f"{given.name(lost[0])})",
                TruncatedWarning,
                stacklevel=4,
            )
        return LabelledDataset(parts, np.array(targets, np.int64))

    def _spans(self, window: _Window, ends_T2: np.ndarray) -> dict[tuple[int, int], float]:
        """Characters of the window's best answers, and what each scores."""
        inside = np.arange(window.body, len(window.pieces) - 1)
        firsts, lasts = (inside[np.argsort(-ends_T2[inside, end])[:BEST_ENDS]] for end in (0, 1))
        first, last = (grid.ravel() for grid in np.meshgrid(firsts, lasts, indexing="ij"))
        fits = (first <= last) & (last < first + self.answering.longest_answer)
        offsets = window.pieces.offsets
        return {
            (offsets[a][0], offsets[b][1]): float(ends_T2[a, 0] + ends_T2[b, 1])
            for a, b in zip(first[fits].tolist(), last[fits].tolist(), strict=True)
        }

    def _chosen(self, context: str, spans: dict[tuple[int, int], float], nothing: float, n: int) -> list[FoundAnswer]:
        scored = sorted(((value, place) for place, value in spans.items()), reverse=True)[: max(n, BEST_ENDS)]
        if self.unanswerable_ or not scored:
            none = (nothing, (0, 0))
            wins = not scored or nothing - scored[0][0] > self.answering.null_threshold
            scored = [none, *scored] if wins else [scored[0], *sorted([*scored[1:], none], reverse=True)]
        values = np.array([value for value, _ in scored])
        shares = np.exp(values - values.max())
        shares /= shares.sum()
        return [
            FoundAnswer(context[start:end], start, end, float(share))
            for (_, (start, end)), share in list(zip(scored, shares, strict=True))[:n]
        ]

    def _loss_name(self) -> str:
        return "cross-entropy of an answer's ends, nats an end"

    def _example(self) -> str:
        return '[("Who came?", "Anna came.")]'

    def _labels(self) -> dict[str, Any]:
        return {"unanswerable": self.unanswerable_}

    def _take_labels(self, folder: Path, about: dict[str, Any]) -> None:
        self.unanswerable_ = about["unanswerable"]
        longest = self.model_.config.max_positions
        if self.answering.window > longest:  # as of anyone's model of fewer positions, which has no say of its own
            question = min(self.answering.longest_question, longest // 4)
            overlap = min(self.answering.overlap, (longest - question - 3) // 3)
            self.answering = self.answering.replace(window=longest, longest_question=question, overlap=overlap)


def _questions(X: Iterable[Any], name: str) -> list[tuple[str, str]]:
    """Rows of question and context, checked. Raises DataError naming the row."""
    first, second = columns(X, name, MOST_CHARACTERS)
    if second is None:
        raise DataError(f"{name} holds texts; expected rows of a question and a context")
    return list(zip(first, second, strict=True))


def _span(context: Pieces, answer: Answer) -> tuple[int, int] | None:
    """The first and the last piece of the context that an answer touches, if there is any."""
    text, start = answer
    inside = [i for i, (a, b) in enumerate(context.offsets) if b > start and a < start + len(text)]
    return (inside[0], inside[-1]) if inside else None
