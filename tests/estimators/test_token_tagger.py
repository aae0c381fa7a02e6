"""`TokenTagger`: tags and entities, words and texts, windows, schemes, directories, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

import transfuse
from transfuse import (
    BertConfig,
    ConfigError,
    DataError,
    Entity,
    ModelDirectoryError,
    TokenTagger,
    TrainingConfig,
    UntrainedPositionsWarning,
)
from transfuse.estimators import token_tagger
from transfuse.estimators.fine_tuned import divided

TINY = BertConfig(
    vocab_size=150, d_model=24, n_layers=1, n_heads=4, max_positions=24, dropout=0.0, attention_dropout=0.0
)
TRAINING = TrainingConfig(
    epochs=20, learning_rate=5e-3, warmup_steps=5, schedule="cosine", batch_tokens=128, validate_every=40,
    label_smoothing=0.0, average=1,
)  # fmt: skip
PEOPLE, PLACES = ("Anna", "Bob", "Cleo"), ("Rome", "Oslo", "北京")
X: list[list[str]] = []
Y: list[list[str]] = []
for who in PEOPLE:
    for where in PLACES:
        for verb in ("saw", "left"):
            X += [[who, verb, where, "today", "."], ["today", who, "Smith", verb, "New", where]]
            Y += [["B-PER", "O", "B-LOC", "O", "O"], ["O", "B-PER", "I-PER", "O", "B-LOC", "I-LOC"]]
TEXTS = [" ".join(words) for words in X]


def marks(words: list[str], tags: list[str]) -> list[tuple[int, int, str]]:
    """Entities by characters of words joined by spaces; each of them is at most two words."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    found = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            last = i + 1 if i + 1 < len(tags) and tags[i + 1].startswith("I-") else i
            found.append((int(ends[i]) - len(words[i]), int(ends[last]), tag[2:]))
    return found


MARKS = [marks(words, tags) for words, tags in zip(X, Y, strict=True)]


def make(**changes: object) -> TokenTagger:
    return TokenTagger(**{"model": TINY, "training": TRAINING, **changes})  # type: ignore[arg-type]


SHORT = TRAINING.replace(max_steps=2)


@pytest.fixture(scope="module")
def fitted() -> TokenTagger:
    return make().fit(X, Y)


def test_entities_are_learned(fitted: TokenTagger) -> None:
    assert fitted.scheme_ == "bio" and fitted.classes_.tolist() == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    assert fitted.score(X, Y) > 0.95
    assert [score.name for score in fitted.evaluate(X, Y)] == ["entity F1", "precision", "recall"]
    (found,) = fitted.entities(["Bob left  Oslo today ."])
    assert [(one.text, one.label, one.start, one.end) for one in found] == [
        ("Bob", "PER", 0, 3),
        ("Oslo", "LOC", 10, 14),
    ]
    assert all(isinstance(one, Entity) and 0 < one.score <= 1 for one in found)
    (of_words,) = fitted.entities([["Bob", "left", "Oslo"]])
    assert [(one.start, one.end, one.text) for one in of_words] == [(0, 3, "Bob"), (9, 13, "Oslo")]


def test_texts_with_marked_entities_are_as_good(fitted: TokenTagger) -> None:
    model = make().fit(TEXTS, MARKS)
    assert model.score(TEXTS, MARKS) > 0.95
    assert model.predict(TEXTS[:2]) == MARKS[:2]
    (found,) = model.entities(["Bob left 北京 today ."])  # each character is a word, and both are one entity
    assert [(one.text, one.start, one.end) for one in found] == [("Bob", 0, 3), ("北京", 9, 11)]
    with pytest.warns(UserWarning, match=r"1 entities begin or end inside a word.*\(0, 2, 'PER'\) in row 0"):
        assert fitted.evaluate(["Bob left Oslo"], [[(0, 2, "PER"), (9, 13, "LOC")]])[0].value == 100


def test_a_row_does_not_depend_on_the_rows_beside_it(fitted: TokenTagger) -> None:
    together = fitted.predict_proba(X)
    assert [len(row) for row in together] == [len(row) for row in X]
    for row in (0, 1, 5):
        np.testing.assert_allclose(fitted.predict_proba([X[row]])[0], together[row], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(together[row].sum(1), 1)


def test_long_rows_are_read_in_windows(fitted: TokenTagger) -> None:
    long = [word for row in X[::2] for word in row]
    tags = [tag for row in Y[::2] for tag in row]
    assert len(long) > 3 * TINY.max_positions
    with pytest.warns(UntrainedPositionsWarning):
        (found,) = fitted.predict([long])
    assert len(found) == len(long) and np.mean([a == b for a, b in zip(found, tags, strict=True)]) > 0.9
    assert make(training=TRAINING.replace(epochs=40)).fit([long] * 4, [tags] * 4).score([long], [tags]) > 0.9


def test_schemes() -> None:
    bioes = make(scheme="bioes", training=SHORT).fit(X, Y)
    assert bioes.scheme_ == "bioes" and "S-LOC" in bioes.classes_ and "E-PER" in bioes.classes_
    given = [tags if "I-PER" not in tags else ["O", "B-PER", "E-PER", "O", "B-LOC", "E-LOC"] for tags in Y]
    assert make(training=SHORT).fit(X, given).scheme_ == "bioes"
    assert make(training=SHORT, scheme="bio").fit(X, given).classes_.tolist() == [
        "B-LOC",
        "B-PER",
        "I-LOC",
        "I-PER",
        "O",
    ]
    # broken sequences (an I with nothing before it) are read as what they mean
    broken = [[tag.replace("B-", "I-") for tag in tags] for tags in Y]
    assert make(training=SHORT).fit(X, broken).classes_.tolist() == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]


def test_tags_that_are_no_entities() -> None:
    kinds = [["noun" if word[0].isupper() else "other" for word in words] for words in X]
    model = make().fit(X, kinds)
    assert model.scheme_ == "plain" and model.score(X, kinds) > 0.95
    assert [score.name for score in model.evaluate(X, kinds)] == ["accuracy", "F1"]
    with pytest.raises(ConfigError, match="mark no entities"):
        model.entities(TEXTS[:1])


def test_words_without_pieces_and_unknown_ones(fitted: TokenTagger) -> None:
    (tags,) = fitted.predict([["\u200b", "Anna", "", "Ω" * 300]])
    assert len(tags) == 4 and tags[0] == tags[2] == "O"
    assert fitted.predict(["e\u0301 👩‍👩‍👧 Ｆｕｌｌ"])[0] is not None


@pytest.mark.usefixtures("quiet_transformers")
def test_a_directory_there_and_back(fitted: TokenTagger, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    fitted.save(tmp_path)
    half = TokenTagger.load(tmp_path, dtype="bfloat16")
    assert {weight.dtype for weight in half.model_.parameters()} == {torch.bfloat16}
    assert half.score(X, Y) >= fitted.score(X, Y) - 0.1
    again = transfuse.load(tmp_path)
    assert isinstance(again, TokenTagger) and again.predict(X) == fitted.predict(X)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert list(theirs.config.id2label.values()) == fitted.classes_.tolist()
    words = ["Annabob", *X[1]]
    pieces = fitted.tokenizer_.join(fitted.tokenizer_.encode_words([words])[0])
    firsts = [pieces.words.index(word) for word in range(len(words))]
    assert pieces.words.count(0) > 1  # the first of several pieces speaks for its word
    with torch.inference_mode():
        expected = theirs(input_ids=torch.tensor([pieces.ids])).logits.softmax(-1)[0, firsts].numpy()
    np.testing.assert_allclose(fitted.predict_proba([words])[0], expected, rtol=1e-4, atol=1e-7)
    # as anyone else's: the tags are the names in its config.json
    (tmp_path / "transfuse.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    names = {str(i): name.replace("PER", "WHO") for i, name in enumerate(fitted.classes_.tolist())}
    (tmp_path / "config.json").write_text(json.dumps(values | {"id2label": names}))
    other = transfuse.load(tmp_path)
    assert isinstance(other, TokenTagger) and other.predict(X[:1])[0][0] == "B-WHO" and other.scheme_ == "bio"
    with pytest.raises(ModelDirectoryError, match="not a BERT with a head for sequences"):
        transfuse.TextClassifier.load(tmp_path)


def test_the_contract(fitted: TokenTagger) -> None:
    assert clone(fitted).get_params(deep=False) == fitted.get_params(deep=False)
    assert len(cross_val_score(make(training=SHORT), X, Y, cv=2)) == 2
    search = GridSearchCV(make(training=SHORT), {"scheme": ["bio", "bioes"]}, cv=2).fit(X, Y)
    assert search.best_params_["scheme"] in ("bio", "bioes")


def test_what_cannot_be_learned(fitted: TokenTagger) -> None:
    with pytest.raises(DataError, match=r"y has 1 tag \('O'\)"):
        make().fit([["a"], ["b"]], [["O"], ["O"]])
    with pytest.raises(DataError, match=r"validation\[1\]\[0\] has 'B-ORG'"):
        make().fit(X, Y, validation=([["IBM"]], [["B-ORG"]]))
    with pytest.raises(DataError, match=r"y\[1\]: 5 tags for 6 words"):
        make().fit(X[:2], [Y[0], Y[0]])
    with pytest.raises(DataError, match=r"y\[0\]: \(1, 2, 'A'\) marks no word"):
        make().fit(["a  b", "c"], [[(1, 2, "A")], []])
    with pytest.raises(DataError, match="are of one word"):
        make().fit(["abcd e", "c"], [[(0, 2, "A"), (2, 4, "B")], []])
    with pytest.raises(ConfigError, match="scheme='iob'"):
        make(scheme="iob").fit(X, Y)
    with pytest.raises(ConfigError, match="max_positions=2"):
        make(model=TINY.replace(max_positions=2)).fit(X, Y)
    for tags, scheme, message in (
        (["PER", "O"], "bio", r"y\[0\]\[0\]: 'PER' is neither O nor begins with B-, I-, E- or S-"),
        (["B-PER", "L-PER"], "bio", "in BILOU, write E- for L- and S- for U-"),
        (["B-PER", "0"], None, r"y\[0\]\[1\]: '0' is neither O"),
    ):
        with pytest.raises(DataError, match=message):
            make(scheme=scheme, training=SHORT).fit([["Anna", "left"], *X], [tags, *Y])
    with pytest.raises(DataError, match=r"y\[0\]\[0\]: 'PER' is neither O"):
        fitted.evaluate([["Anna", "left"]], [["PER", "O"]])
    with pytest.raises(DataError, match="X is a table"):
        fitted.predict(pd.DataFrame({"text": TEXTS}))
    # a kind that was never seen is counted as missed, not refused
    assert fitted.score([["Anna", "left"]], [["B-ORG", "O"]]) == 0


def test_tags_that_mark_no_entity() -> None:
    plain = [["NAME" if word[0].isupper() else "WORD" for word in words] for words in X]
    model = make(training=SHORT).fit(X, plain)
    assert model.scheme_ == "plain" and len(model.predict(X[:2])[1]) == len(X[1])
    for ask in (model.predict, model.entities):
        with pytest.raises(ConfigError, match="mark no entities in a text"):
            ask(TEXTS[:2])
    with pytest.raises(DataError, match="none of its tags is one of the model's"):
        model.evaluate(X, Y)


def test_a_rare_tag_is_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def spy(*given: Any, **named: Any) -> Any:
        found = divided(*given, **named)
        kept.append(set(found[0].tolist()))
        return found

    monkeypatch.setattr(token_tagger, "divided", spy)
    rare = [["B-ORG", *tags[1:]] if row == 5 else tags for row, tags in enumerate(Y)]
    for seed in range(6):
        make(training=SHORT.replace(max_steps=1), random_state=seed, validation_fraction=0.4).fit(X, rare)
    assert len(kept) == 6 and all(5 in one for one in kept)


def test_marks_may_be_numbers_of_numpy() -> None:
    offsets = [[(np.int64(start), np.int32(end), kind) for start, end, kind in one] for one in MARKS]
    assert (
        make(training=SHORT).fit(TEXTS, offsets).classes_.tolist()
        == make(training=SHORT).fit(TEXTS, MARKS).classes_.tolist()
    )


def test_a_long_text_is_read_in_windows(fitted: TokenTagger) -> None:
    text = "Bob left Oslo today . " * 4000
    with pytest.warns(UntrainedPositionsWarning):
        found = fitted.predict([text])[0]
    assert len(found) > 4000 and found[0][0] < 100 and len(text) - 100 < found[-1][1] <= len(text)


def test_marks_may_be_objects_and_arrays() -> None:
    objects = [[{"start": a, "end": b, "label": kind} for a, b, kind in row] for row in MARKS]
    arrays = [[np.array(mark, dtype=object) for mark in row] for row in MARKS]
    model = TokenTagger(model=TINY, training=TRAINING.replace(max_steps=2))
    plain = model.divided(TEXTS, MARKS)
    for given in (objects, arrays):
        (texts, _), (held, _) = model.divided(TEXTS, given)
        assert (texts, held) == (plain[0][0], plain[1][0])
        model.fit(TEXTS, given)
