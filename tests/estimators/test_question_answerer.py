"""`QuestionAnswerer`: answers found, refused and ranked, windows, directories, and what cannot be learned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

import transfuse
from transfuse import (
    AnsweringConfig,
    BertConfig,
    ConfigError,
    DataError,
    QuestionAnswerer,
    TrainingConfig,
    UntrainedPositionsWarning,
)
from transfuse.data.labelled import LabelledDataset
from transfuse.estimators import question_answerer
from transfuse.estimators.question_answerer import _Questions

TINY = BertConfig(
    vocab_size=200, d_model=32, n_layers=1, n_heads=4, max_positions=64, dropout=0.0, attention_dropout=0.0
)
TRAINING = TrainingConfig(
    epochs=60, learning_rate=5e-3, warmup_steps=5, schedule="cosine", batch_tokens=256, validate_every=50,
    label_smoothing=0.0, average=1,
)  # fmt: skip
ANSWERING = AnsweringConfig(window=40, overlap=4, longest_question=16)
X: list[tuple[str, str]] = []
Y: list[list[tuple[str, int]]] = []
for who, where in product(("Anna", "Bob", "Cleo"), ("Rome", "Oslo", "北京")):
    context = f"{who} lives in {where} now."
    X += [(f"Where does {who} live?", context), (f"Who lives in {where}?", context), (f"What does {who} eat?", context)]
    Y += [[(where, context.index(where))], [(who, 0)], []]


def make(**changes: object) -> QuestionAnswerer:
    return QuestionAnswerer(**{"model": TINY, "training": TRAINING, "answering": ANSWERING, **changes})  # type: ignore[arg-type]


SHORT = TRAINING.replace(max_steps=2)


@pytest.fixture(scope="module")
def fitted() -> QuestionAnswerer:
    return make().fit(X, Y)


def test_answers_are_found_and_refused(fitted: QuestionAnswerer) -> None:
    assert fitted.unanswerable_ and fitted.score(X, Y) > 0.9
    assert fitted.predict(X[:3]).tolist() == ["Rome", "Anna", ""]
    assert [score.name for score in fitted.evaluate(X, Y)] == ["exact match", "F1"]
    for row, found in enumerate(fitted.predict_n_best(X, 4)):
        assert len(found) == 4 and sum(one.score for one in found) <= 1 + 1e-9
        assert all(X[row][1][one.start : one.end] == one.text for one in found)
        assert len({(one.start, one.end) for one in found}) == 4


def test_no_answer_is_given_only_where_it_was_learned_and_wins(fitted: QuestionAnswerer) -> None:
    answerable = [i for i, one in enumerate(Y) if one]
    sure = make(training=SHORT).fit([X[i] for i in answerable], [Y[i] for i in answerable])
    assert not sure.unanswerable_ and all(sure.predict(X))
    assert all(one.text for found in sure.predict_n_best(X, 5) for one in found)
    never = clone(fitted).set_params(answering__null_threshold=1e9)
    never.__dict__ |= {name: value for name, value in vars(fitted).items() if name.endswith("_")}
    assert all(never.predict(X))
    never.set_params(answering__null_threshold=-1e9)
    assert not any(never.predict(X))


def test_long_contexts_are_read_in_windows(fitted: QuestionAnswerer) -> None:
    filling = "now lives now. " * 40
    context = filling + X[0][1]
    with pytest.warns(UntrainedPositionsWarning):
        (best, *_) = fitted.predict_n_best([(X[0][0], context)], 3)[0]
    assert best.start >= len(filling) and best.text == context[best.start : best.end]
    rows = [(question, "now. " * 30 + text) for question, text in X]
    answers = [[(text, start + len("now. " * 30)) for text, start in one] for one in Y]
    assert make(training=TRAINING.replace(max_steps=150)).fit(rows, answers).score(rows, answers) > 0.5


def test_no_answer_is_worth_least_of_all_windows(fitted: QuestionAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    worth = [5.0, -3.0, 4.0, 2.0]  # of [CLS] in each window; any answer is worth 0

    def found(data: LabelledDataset, logits: object) -> Iterator[tuple[Any, list[torch.Tensor]]]:
        for row in range(len(data)):
            ends_1T2 = torch.zeros(1, len(data.pieces[row]), 2)
            ends_1T2[0, 0] = worth[row] / 2
            yield data.batch([row]), [ends_1T2]

    monkeypatch.setattr(fitted, "_found", found)
    context = "now lives " * 50
    ((question, text),) = fitted._encoded([(X[0][0], context)])
    assert len(list(fitted._windows(0, question, text))) == len(worth)
    shares = {bool(one.text): one.score for one in fitted.predict_n_best([(X[0][0], context)], 1000)[0]}
    assert np.log(shares[False] / shares[True]) == pytest.approx(-3.0)


def test_a_row_does_not_depend_on_the_rows_beside_it(fitted: QuestionAnswerer) -> None:
    together = fitted.predict_n_best(X, 3)
    for row in (0, 2, 7):
        (alone,) = fitted.predict_n_best([X[row]], 3)
        assert [one.text for one in alone] == [one.text for one in together[row]]
        np.testing.assert_allclose([one.score for one in alone], [one.score for one in together[row]], rtol=1e-4)


def test_the_best_pair_is_that_of_all_pairs(fitted: QuestionAnswerer) -> None:
    pieces = fitted.tokenizer_.encode(*map(list, zip(*X, strict=True)))
    for row in (0, 1, 4):
        one = pieces[row]
        with torch.inference_mode():
            x = fitted.model_(torch.tensor([one.ids]), None, torch.tensor([one.segments]))
            first, last = fitted.model_.label_logits(x)[0].T.tolist()
        inside = [
            i
            for i, (segment, word) in enumerate(zip(one.segments, one.words, strict=True))
            if segment and word is not None
        ]
        scored = [
            (first[a] + last[b], (one.offsets[a][0], one.offsets[b][1])) for a in inside for b in inside if a <= b
        ]
        value, (start, end) = max(scored)
        expected = "" if first[0] + last[0] > value else X[row][1][start:end]
        assert fitted.predict([X[row]])[0] == expected


@pytest.mark.usefixtures("quiet_transformers")
def test_a_directory_there_and_back(fitted: QuestionAnswerer, tmp_path: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    fitted.save(tmp_path)
    half = QuestionAnswerer.load(tmp_path, dtype="bfloat16")
    assert {weight.dtype for weight in half.model_.parameters()} == {torch.bfloat16}
    assert half.score(X, Y) >= fitted.score(X, Y) - 0.1
    again = transfuse.load(tmp_path)
    assert isinstance(again, QuestionAnswerer) and again.answering == ANSWERING
    assert again.predict_n_best(X) == fitted.predict_n_best(X)
    theirs = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    one = fitted.tokenizer_.encode([X[0][0]], [X[0][1]])[0]
    ids, segments = torch.tensor([one.ids]), torch.tensor([one.segments])
    with torch.inference_mode():
        found = theirs(input_ids=ids, token_type_ids=segments)
        own = fitted.model_.label_logits(fitted.model_(ids, None, segments))
    torch.testing.assert_close(own, torch.stack([found.start_logits, found.end_logits], -1), rtol=1e-4, atol=1e-5)
    (tmp_path / "transfuse.json").unlink()
    other = transfuse.load(tmp_path)
    assert (
        isinstance(other, QuestionAnswerer)
        and not other.unanswerable_
        and other.predict(X[:2]).tolist() == ["Rome", "Anna"]
    )


def test_the_contract(fitted: QuestionAnswerer) -> None:
    assert clone(fitted).get_params(deep=False) == fitted.get_params(deep=False)
    assert len(cross_val_score(make(training=SHORT), X, Y, cv=2)) == 2
    search = GridSearchCV(make(training=SHORT), {"answering__longest_answer": [2, 9]}, cv=2).fit(X, Y)
    assert search.best_params_["answering__longest_answer"] in (2, 9)


def test_characters_without_pieces_do_not_hide_an_answer(fitted: QuestionAnswerer) -> None:
    rows = [("What?", "the cafe\u0301 now"), ("What?", "the \u200eRome\u200f now")]
    answers = [[("cafe\u0301", 4)], [("\u200eRome\u200f", 4)]]
    data = fitted._dataset(_Questions(rows, answers, "y", [0, 1]))
    encoded = fitted.tokenizer_.encode(*zip(*rows, strict=True))
    for (first, last), pieces, read, answer in zip(data.targets, encoded, data.pieces, ("cafe", "Rome"), strict=True):
        context = rows[0][1] if answer == "cafe" else rows[1][1]
        assert list(read.ids) == list(pieces.ids) and list(read.segments) == list(pieces.segments)
        assert context[pieces.offsets[first][0] : pieces.offsets[last][1]].strip("\u200e\u200f\u0301") == answer
    long = [("now lives " * 59 + "now", 0)]
    with pytest.warns(UserWarning, match=r"1 answers are longer than any window shows .* is validation\[1\]\[7\]"):
        fitted._dataset(_Questions([("What?", "now lives " * 60)], [long], "validation[1]", [7]))


def test_an_answer_without_pieces_is_left_out_and_named(fitted: QuestionAnswerer) -> None:
    two = _Questions([("What?", "lives \u200b now"), X[0]], [[("\u200b", 6)], Y[0]], "y", [3, 9])
    with pytest.warns(UserWarning, match=r"the first is y\[3\]"):
        data = fitted._dataset(two)
    assert len(data) == 1 and (data.targets[0] > 0).all()
    rows, answers = [*X, ("What?", "lives \u200b now")], [*Y, [("\u200b", 6)]]
    for seed in range(3):
        with pytest.warns(UserWarning, match=rf"1 answers have no piece .* \(the first is y\[{len(X)}\]"):
            make(training=SHORT, random_state=seed).fit(rows, answers)
    with pytest.raises(DataError, match=r"y\[\d\] and all others: no answer has a piece"):
        make(training=SHORT).fit([("What?", "a \u200b"), ("What?", "b \u200b")], [[("\u200b", 2)]] * 2)


def test_anyones_model_of_few_positions(fitted: QuestionAnswerer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    (tmp_path / "transfuse.json").unlink()
    model = QuestionAnswerer.load(tmp_path)
    assert model.answering.window == 64 and not model.unanswerable_
    assert len(model.predict([("Who lives in Rome?", "Anna lives in Rome now. " * 40)])) == 1
    with pytest.warns(UserWarning, match=r"have more than 16 pieces and are cut \(the first is y\[27\] with"):
        make(training=SHORT).fit([*X, ("Who " * 30, X[0][1])], [*Y, [("Anna", 0)]])
    with pytest.warns(UserWarning, match=r"1 of 1 questions have .* \(the first is X\[0\] with"):
        model.predict([("Who " * 30, "Anna lives in Rome now.")])
    with pytest.raises(ConfigError, match="n=-1 must be at least 1"):
        model.predict_n_best(X[:1], -1)


def test_whole_contexts_are_held_out() -> None:
    model = make(training=SHORT, validation_fraction=0.34).fit(X, Y)
    assert model.results_["held_out_rows"] % 3 == 0  # three questions a context


def test_what_cannot_be_learned(fitted: QuestionAnswerer) -> None:
    with pytest.raises(DataError, match="no answer at all"):
        make().fit(X, [[] for _ in X])
    with pytest.raises(DataError, match=r"y\[0\]: the answer is 'Rome', but the context has 'ives' at character 6"):
        make().fit(X[:2], [[("Rome", 6)], [("Anna", 0)]])
    with pytest.raises(DataError, match="X holds texts; expected rows of a question and a context"):
        make().fit(["a", "b"], [[], []])
    with pytest.raises(DataError, match=r"X\[1\]"):
        fitted.predict([("Who?", "Anna"), ("Who?", " ")])
    with pytest.raises(ConfigError, match=r"answering\.window=384 must be at most max_positions=64"):
        make(answering=AnsweringConfig()).fit(X, Y)
    with pytest.raises(ConfigError, match="more than twice overlap=20"):
        AnsweringConfig(window=60, overlap=20, longest_question=20)


def test_answers_may_be_arrays(fitted: QuestionAnswerer) -> None:
    answers = [
        {"text": np.array([text for text, _ in one], dtype=object), "answer_start": np.array([at for _, at in one])}
        for one in Y
    ]
    assert fitted.evaluate(X, answers) == fitted.evaluate(X, Y)
    assert fitted.evaluate(X, [[np.array(pair, dtype=object) for pair in one] for one in Y]) == fitted.evaluate(X, Y)


def test_many_questions_are_encoded_some_at_a_time(fitted: QuestionAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, together = fitted._dataset(_Questions(X, Y, "y", range(len(X)))), fitted.predict_n_best(X, 3)
    monkeypatch.setattr(question_answerer, "ENCODED_ROWS", 5)
    parts = fitted._dataset(_Questions(X, Y, "y", range(len(X))))
    assert parts.fingerprint() == whole.fingerprint()
    for one, other in zip(fitted.predict_n_best(X, 3), together, strict=True):
        assert [found.text for found in one] == [found.text for found in other]
        np.testing.assert_allclose([found.score for found in one], [found.score for found in other], rtol=1e-4)
