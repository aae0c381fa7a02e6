"""`TextClassifier` and `TextRegressor`: classes, labels, numbers, pairs; the scikit-learn contract; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch import nn

import transfuse
from transfuse import (
    BertConfig,
    ConfigError,
    DataError,
    MaskingConfig,
    ModelDirectoryError,
    TextClassifier,
    TextEncoder,
    TextRegressor,
    TrainingConfig,
    TruncatedWarning,
    UntrainedPositionsWarning,
)
from transfuse.estimators import fine_tuned
from transfuse.estimators.fine_tuned import divided
from transfuse.nn.embeddings import TokenEmbedding, only

TINY = BertConfig(
    vocab_size=120, d_model=24, n_layers=1, n_heads=2, max_positions=32, dropout=0.0, attention_dropout=0.0
)
TRAINING = TrainingConfig(
    epochs=12, learning_rate=5e-3, warmup_steps=5, schedule="cosine", batch_tokens=64, validate_every=20,
    label_smoothing=0.0, average=1,
)  # fmt: skip
THINGS = {"cat": "animal", "dog": "animal", "hen": "animal", "oak": "plant", "fern": "plant", "rose": "plant"}
TEXTS = [
    f"{word} the {thing} {verb}" for thing in THINGS for word in ("see", "find") for verb in ("there", "now", "again")
]
CLASSES = [THINGS[text.split()[2]] for text in TEXTS]


def make(**changes: object) -> TextClassifier:
    return TextClassifier(**{"model": TINY, "training": TRAINING, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> TextClassifier:
    return make().fit(TEXTS, CLASSES)


def test_classes_are_learned(fitted: TextClassifier) -> None:
    assert fitted.classes_.tolist() == ["animal", "plant"]
    assert fitted.score(TEXTS, CLASSES) == 1.0
    probabilities = fitted.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (fitted.classes_[probabilities.argmax(1)] == fitted.predict(TEXTS)).all()
    np.testing.assert_allclose(fitted.predict_proba(TEXTS[3:4]), probabilities[3:4], rtol=1e-4)


def test_pairs_columns_and_other_kinds_of_classes() -> None:
    pairs = [(a, b) for a in THINGS for b in THINGS]
    second_is_plant = [THINGS[b] == "plant" for _, b in pairs]  # so the segments matter
    model = make(training=TRAINING.replace(epochs=20)).fit(pairs * 2, second_is_plant * 2)
    assert model.classes_.tolist() == [False, True]
    assert model.score(pairs, second_is_plant) > 0.9
    frame = pd.DataFrame(pairs, columns=["a", "b"])
    assert (model.predict(frame) == model.predict(pairs)).all()
    assert make(training=TRAINING.replace(max_steps=2)).fit(pd.Series(TEXTS), pd.Series(CLASSES)).predict(
        TEXTS[:2]
    ).shape == (2,)


def test_several_labels_a_text() -> None:
    y = np.array([["see" in text, "now" in text, THINGS[text.split()[2]] == "plant"] for text in TEXTS]).astype(int)
    # a head for each word that matters: two look away from the third before it means anything
    sizes = TINY.replace(n_heads=4)
    model = make(model=sizes, training=TRAINING.replace(epochs=40, learning_rate=3e-3)).fit(TEXTS, y)
    assert model.predict(TEXTS).shape == y.shape and model.score(TEXTS, y) > 0.9
    assert not np.allclose(model.predict_proba(TEXTS).sum(1), 1)


def test_columns_of_a_frame_name_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y = pd.DataFrame({"seen": ["see" in text for text in TEXTS], "now": ["now" in text for text in TEXTS]}).astype(int)
    model = make(training=TRAINING.replace(epochs=1))
    (kept, named), (_, aside) = model.divided(TEXTS, y)
    assert list(named.columns) == list(aside.columns) == ["seen", "now"] and len(kept) == len(named)
    model.fit(kept, named, validation=(TEXTS, y))
    assert model.classes_.tolist() == ["seen", "now"]
    assert TextClassifier.load(model.save(tmp_path / "named")).classes_.tolist() == ["seen", "now"]
    assert model.predict(TEXTS).shape == y.shape
    again = make(training=TRAINING.replace(epochs=1)).fit(kept, named, validation=(TEXTS, y[["now", "seen"]]))
    assert again.results_["held_out_loss"] == model.results_["held_out_loss"]
    turned = make(training=TRAINING.replace(epochs=1)).fit(kept, named, validation=(TEXTS, y.to_numpy()[:, ::-1]))
    assert turned.results_["held_out_loss"] != model.results_["held_out_loss"]
    with monkeypatch.context() as patched:  # always right about the first label, and about the second where it is not
        patched.setattr(model, "predict", lambda X: y.assign(now=0).to_numpy())
        right = 100 * float((y["now"] == 0).mean())
        for wanted in (y, y[["now", "seen"]], y.to_numpy()):
            assert [score.value for score in model.evaluate(TEXTS, wanted)] == pytest.approx([50, right])
        new = model.evaluate(TEXTS, y.assign(new=1)[["new", "now", "seen"]])
        assert [score.value for score in new] == pytest.approx([100 / 3, 0])
    numbered = make(training=TRAINING.replace(max_steps=2)).fit(TEXTS, y.to_numpy(), validation=(TEXTS, y))
    assert numbered.classes_.tolist() == [0, 1]
    alone = make(training=TRAINING.replace(max_steps=2)).fit(TEXTS, y[["now"]])
    assert alone.kind_ == "labels" and alone.classes_.tolist() == ["now"]
    alone.fit(TEXTS, y[["now"]], validation=(TEXTS, y[["now"]].to_numpy()))
    assert alone.evaluate(TEXTS, y["now"]) == alone.evaluate(TEXTS, y[["now"]])
    with pytest.raises(DataError, match=r"validation\[1\] has the labels \['seen'\]"):
        model.fit(TEXTS, y, validation=(TEXTS, y[["seen"]]))
    with pytest.raises(DataError, match="two columns called 'seen'"):
        model.fit(TEXTS, y[["seen", "seen"]])
    with pytest.raises(DataError, match="y has no column 'now'"):
        model.evaluate(TEXTS, y[["seen"]])
    with pytest.raises(DataError, match=r"y has the shape \(36, 3\)"):
        model.evaluate(TEXTS, np.ones((len(TEXTS), 3)))
    with pytest.raises(DataError, match="a column in each"):
        model.fit(TEXTS, y[[]])


def test_numbers() -> None:
    y = [100.0 + 10 * len(text.split()[2]) for text in TEXTS]
    model = TextRegressor(model=TINY, training=TRAINING.replace(epochs=40)).fit(TEXTS, y)
    assert model.predict(TEXTS).shape == (len(TEXTS),) and model.score(TEXTS, y) > 0.9
    two = TextRegressor(model=TINY, training=TRAINING.replace(max_steps=2)).fit(TEXTS, [(value, 1.0) for value in y])
    assert two.predict(TEXTS[:3]).shape == (3, 2)


def test_class_weights_move_the_border() -> None:
    texts, classes = ["see the thing"] * 40, ["rare"] * 8 + ["common"] * 32
    short = TRAINING.replace(epochs=20)
    plain = make(training=short).fit(texts, classes).predict_proba(texts[:1])[0]
    balanced = make(training=short, class_weight="balanced").fit(texts, classes).predict_proba(texts[:1])[0]
    assert plain[1] == pytest.approx(0.2, abs=0.1) and balanced[1] == pytest.approx(0.5, abs=0.1)


def test_the_contract(fitted: TextClassifier) -> None:
    assert clone(fitted).get_params(deep=False) == fitted.get_params(deep=False)
    short = make(training=TRAINING.replace(max_steps=3))
    assert len(cross_val_score(short, TEXTS, CLASSES, cv=2)) == 2
    search = GridSearchCV(short, {"model__n_layers": [1, 2]}, cv=2).fit(TEXTS, CLASSES)
    assert search.best_params_["model__n_layers"] in (1, 2)
    same = make().fit(TEXTS, CLASSES)
    np.testing.assert_array_equal(same.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_an_encoder_is_where_it_starts() -> None:
    encoder = TextEncoder(model=TINY, training=TRAINING.replace(max_steps=3), masking=MaskingConfig(context=16)).fit(
        [". ".join(TEXTS[i : i + 4]) + "." for i in range(0, len(TEXTS), 2)]
    )
    before = {name: weight.clone() for name, weight in encoder.model_.named_parameters()}
    model = make(encoder=encoder, training=TRAINING.replace(max_steps=1, learning_rate=1e-9)).fit(TEXTS, CLASSES)
    name = "encoder.blocks.0.attention.query.weight"
    torch.testing.assert_close(dict(model.model_.named_parameters())[name], before[name], rtol=0, atol=1e-6)
    assert model.tokenizer_ is encoder.tokenizer_
    assert all(torch.equal(before[name], weight) for name, weight in encoder.model_.named_parameters())


def test_vectors_of_pieces_that_do_not_occur_are_left_out_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(model=TINY, masking=MaskingConfig(context=16), training=TRAINING.replace(epochs=1))
    encoder.fit([" ".join(TEXTS), "the lone whale swims where no other word goes. " * 9])
    training, held = TRAINING.replace(epochs=3, weight_decay=0.0), (["see the whale", "find the fern"], CLASSES[::30])
    trained: list[list[int]] = []

    @contextmanager
    def whole(embedding: TokenEmbedding, ids: Any) -> Iterator[nn.Embedding]:
        yield embedding.token

    @contextmanager
    def seen(embedding: TokenEmbedding, ids: Any) -> Iterator[nn.Embedding]:
        with only(embedding, ids) as some:
            trained.append(some.ids.tolist())
            yield some

    models = []
    for table in (seen, whole):
        monkeypatch.setattr(fine_tuned, "only", table)
        models.append(make(encoder=encoder, training=training).fit(TEXTS, CLASSES, validation=held).model_)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)
    before, after = (model.embedding.token.weight for model in (encoder.model_, models[0]))
    learned, judged = ({i for one in encoder.encode(texts) for i in one.ids} for texts in (TEXTS, held[0]))
    assert set((before != after).any(1).nonzero()[:, 0].tolist()) == learned
    assert trained == [sorted(learned | judged)]
    assert learned < learned | judged < set(range(len(before)))


@pytest.mark.usefixtures("quiet_transformers")
def test_a_directory_there_and_back(fitted: TextClassifier, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    fitted.save(tmp_path)
    half = TextClassifier.load(tmp_path, dtype="bfloat16")
    assert {weight.dtype for weight in half.model_.parameters()} == {torch.bfloat16}
    assert half.score(TEXTS, CLASSES) >= fitted.score(TEXTS, CLASSES) - 0.1
    again = transfuse.load(tmp_path)
    assert isinstance(again, TextClassifier)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == {0: "animal", 1: "plant"} and theirs.config.label2id == {"animal": 0, "plant": 1}
    assert theirs.config.problem_type == "single_label_classification"
    ids = torch.tensor([fitted.tokenizer_.encode(TEXTS[:1])[0].ids])
    with torch.inference_mode():
        expected = theirs(input_ids=ids).logits.softmax(-1).numpy()
    np.testing.assert_allclose(fitted.predict_proba(TEXTS[:1]), expected, rtol=1e-4)
    # as anyone else's: the classes are the names in its config.json
    (tmp_path / "transfuse.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"id2label": {"0": "beast", "1": "herb"}}))
    assert set(TextClassifier.load(tmp_path).predict(TEXTS)) == {"beast", "herb"}
    regressor = TextRegressor(model=TINY, training=TRAINING.replace(max_steps=2)).fit(TEXTS, range(len(TEXTS)))
    regressor.save(tmp_path / "number")
    assert json.loads((tmp_path / "number" / "config.json").read_text())["problem_type"] == "regression"
    opened = transfuse.load(tmp_path / "number")
    np.testing.assert_array_equal(opened.predict(TEXTS), regressor.predict(TEXTS))


def test_settings_that_would_do_nothing_are_refused() -> None:
    labels = np.array([[text.startswith("see"), "now" in text] for text in TEXTS], int)
    with pytest.raises(ConfigError, match="class_weight='balanced' is for one class a text, and y has several"):
        make(class_weight="balanced").fit(TEXTS, labels)
    smoothed = TRAINING.replace(label_smoothing=0.1)
    for model, y in ((make(training=smoothed), labels), (TextRegressor(model=TINY, training=smoothed), labels[:, 0])):
        with pytest.raises(ConfigError, match=r"label_smoothing=0\.1 is for one class a text"):
            model.fit(TEXTS, y)


def test_several_labels_are_said_to_be_several(tmp_path: Path) -> None:
    labels = np.array([[text.startswith("see"), "now" in text, "cat" in text] for text in TEXTS], int)
    make(training=TRAINING.replace(max_steps=2)).fit(TEXTS, labels).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"
    (tmp_path / "transfuse.json").unlink()
    assert TextClassifier.load(tmp_path).predict(TEXTS).shape == labels.shape


def test_other_peoples_labels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    texts, classes = [f"thing{i}" for i in range(12)] * 3, [f"c{i:02}" for i in range(12)] * 3
    model = make(training=TRAINING.replace(max_steps=2)).fit(texts, classes)
    model.save(tmp_path)
    (tmp_path / "transfuse.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    values["id2label"] = {str(i): f"c{i:02}" for i in range(12)}
    (tmp_path / "config.json").write_text(json.dumps(values, sort_keys=True))
    assert TextClassifier.load(tmp_path).classes_.tolist() == sorted(set(classes))
    (tmp_path / "config.json").write_text(json.dumps(values | {"problem_type": "multi_label_classification"}))
    assert TextClassifier.load(tmp_path).predict(texts[:2]).shape == (2, 12)
    (tmp_path / "config.json").write_text(json.dumps(values | {"problem_type": "regression"}))
    assert isinstance(transfuse.load(tmp_path), TextRegressor)
    with pytest.raises(ModelDirectoryError, match="open it as a TextRegressor"):
        TextClassifier.load(tmp_path)


def test_a_fitted_encoder_survives_clones(fitted: TextClassifier) -> None:
    encoder = TextEncoder(model=TINY, training=TRAINING.replace(max_steps=2), masking=MaskingConfig(context=16)).fit(
        [". ".join(TEXTS[i : i + 4]) + "." for i in range(0, len(TEXTS), 2)]
    )
    short = make(encoder=encoder, training=TRAINING.replace(max_steps=2))
    assert clone(short).encoder is encoder and len(cross_val_score(short, TEXTS, CLASSES, cv=2)) == 2


def test_of_a_long_pair_the_longer_text_is_cut(fitted: TextClassifier) -> None:
    long = "see the cat there now again " * 10
    pairs = make(training=TRAINING.replace(max_steps=2)).fit([(a, a) for a in TEXTS], CLASSES)
    with pytest.warns(TruncatedWarning, match="are cut"), pytest.warns(UntrainedPositionsWarning):
        one, other = pairs.predict_proba([(long, "find the oak"), (long, "see the rose")])
    assert not np.allclose(one, other)
    with pytest.warns(TruncatedWarning, match="are cut"), pytest.warns(UntrainedPositionsWarning):
        pairs.predict_proba([(long, long), ("cat", long), (long + "cat", long)])


def test_what_cannot_be_learned(fitted: TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"y has 1 class \('animal'\)"):
        make().fit(TEXTS, ["animal"] * len(TEXTS))
    with pytest.raises(DataError, match="X has 36 rows and y has 35"):
        make().fit(TEXTS, CLASSES[:-1])
    with pytest.raises(DataError, match=r"validation\[1\]\[0\] is 'stone'"):
        make().fit(TEXTS, CLASSES, validation=(["a stone"], ["stone"]))
    with pytest.raises(DataError, match=r"X\[1\]: 3 texts; a row is one text or a pair"):
        make().fit([("a", "b"), ("a", "b", "c")], [0, 1])
    with pytest.raises(DataError, match=r"X\[1\]"):
        fitted.predict(["cat", ""])
    with pytest.raises(DataError, match=r"y\[2\] is not a finite number"):
        TextRegressor(model=TINY).fit(TEXTS[:3], [1.0, 2.0, float("nan")])
    for y, message in (
        (["a"] * 35 + [None], r"y\[35\] is missing"),
        ([0.5, 1.5] * 18, "does not hold classes"),
        ([[0, 1], [1]] * 18, "as many labels in every row"),
        (pd.Series([True] * 30 + [False] * 5 + [pd.NA], dtype="boolean"), r"y\[35\] is missing"),
        ([1, "b"] * 18, r"y\[1\] is 'b' and y\[0\] 1; classes are all text or all numbers"),
        ([b"a", b"b"] * 18, r"y\[0\] is b'a'"),
    ):
        with pytest.raises(DataError, match=message):
            make().fit(TEXTS, y)
    with pytest.raises(DataError, match="validation has 1 texts and 2 targets"):
        make().fit(TEXTS, CLASSES, validation=(["cat"], ["animal", "plant"]))
    numbers = [(1.0, 2.0)] * len(TEXTS)
    with pytest.raises(DataError, match="different numbers of columns"):
        TextRegressor(model=TINY, training=TRAINING).fit(TEXTS, numbers, validation=(TEXTS[:2], [1.0, 2.0]))
    with pytest.raises(DataError, match="zeros and ones"):
        make().fit(TEXTS[:2], [[0, 2], [1, 0]])
    for weight in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="class_weight of 'plant' is"):
            make(class_weight={"animal": 1.0, "plant": weight}).fit(TEXTS, CLASSES)
    with pytest.raises(ConfigError, match="n_segments=1: this model reads one text a row"):
        make(model=TINY.replace(n_segments=1)).fit([(text, text) for text in TEXTS], CLASSES)
    with pytest.raises(ConfigError, match="tokenizer="):
        make(tokenizer=3).fit(TEXTS, CLASSES)
    with pytest.raises(ModelDirectoryError, match="no such directory"):
        make(encoder=tmp_path / "nothing").fit(TEXTS, CLASSES)


@pytest.mark.parametrize("seed", range(4))
def test_a_class_of_one_row_is_learned_from(seed: int) -> None:
    classes = np.array(["a"] * 20 + ["b"] * 19 + ["c"])
    kept, aside = divided(40, 0.2, seed, classes=classes)
    assert len(aside) == 8 and 39 in kept and sorted([*kept, *aside]) == list(range(40))
    assert abs((classes[aside] == "a").sum() - 4) <= 1
    # of more classes than rows to judge by, none is judged alone where others are there to judge by
    many = np.repeat(np.arange(12), 2)
    kept, aside = divided(24, 0.25, seed, classes=many)
    assert set(many[kept]) == set(range(12)) and len(aside) >= 1
    # every row a class of its own: what is held out cannot be learned
    kept, aside = divided(5, 0.2, seed, classes=np.arange(5))
    assert (len(kept), len(aside)) == (4, 1)
    labels = [{"x"}, {"x"}, {"x", "y"}, {"x"}, {"x"}, {"x"}]
    assert all(2 in divided(6, 0.5, one, labels=labels)[0] for one in range(seed, 40, 4))


def test_settings_of_a_training_that_is_not_given_are_of_what_it_stands_for() -> None:
    scratch = TextClassifier().set_params(training__learning_rate=2e-3).training
    assert scratch is not None and scratch.epochs == TextClassifier().default_training.epochs
    started = TextClassifier().set_params(training__epochs=7, encoder="a-directory").training
    assert started == TextClassifier(encoder="a-directory").default_training.replace(epochs=7)
    grid = {"training__max_steps": [1, 2]}
    search = GridSearchCV(TextClassifier(model=TINY), grid, cv=2).fit(TEXTS, CLASSES)
    assert search.best_estimator_.training.learning_rate == TextClassifier().default_training.learning_rate
    with pytest.raises(ValueError, match="no field nothing"):
        TextClassifier().set_params(training__nothing=1)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"problem_type": "single_label_classification"}, TextClassifier),
        ({"problem_type": "regression"}, TextRegressor),
        ({"problem_type": None}, TextClassifier),
        ({"problem_type": None, "id2label": {"0": "LABEL_0"}}, TextRegressor),  # as cross-encoders' are
    ],
)
def test_anyones_head_opens_as_what_it_is(fitted: TextClassifier, values: dict, kind: type, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    (tmp_path / "transfuse.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text()) | values
    n = len(config["id2label"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][:n].clone()
    save_file(weights, tmp_path / "model.safetensors")
    model = transfuse.load(tmp_path)
    assert type(model) is kind
    assert len(model.predict(["see the cat now"])) == 1
    other = TextRegressor if kind is TextClassifier else TextClassifier
    with pytest.raises(ModelDirectoryError, match=f"open it as a {kind.__name__}"):
        other.load(tmp_path)


def test_a_damaged_description_is_named(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    about = json.loads((tmp_path / "transfuse.json").read_text())
    (tmp_path / "transfuse.json").write_text(json.dumps(about | {"training": {"epochs": -1}}))
    with pytest.raises(ModelDirectoryError, match=r"transfuse\.json: .*epochs"):
        TextClassifier.load(tmp_path)
    numbers = TextRegressor(model=TINY, training=TRAINING.replace(max_steps=1)).fit(TEXTS, range(len(TEXTS)))
    numbers.save(tmp_path / "numbers")
    path = tmp_path / "numbers" / "transfuse.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [1.0, 2.0]}))
    with pytest.raises(ModelDirectoryError, match="2 means and 1 scales"):
        TextRegressor.load(tmp_path / "numbers")


def test_columns_are_scored_by_their_names() -> None:
    labels = pd.DataFrame({kind: [int(one == kind) for one in CLASSES] for kind in ("plant", "animal")})
    model = make().fit(TEXTS, labels)
    assert model.score(TEXTS, labels) == 1.0 == model.score(TEXTS, labels[["animal", "plant"]])
    assert [one.value for one in model.evaluate(TEXTS, labels[["animal", "plant"]])] == [100.0, 100.0]
    wrong = labels.copy()
    wrong.iloc[0, 0] = 1 - wrong.iloc[0, 0]
    weights = [3.0, *[1.0] * (len(TEXTS) - 1)]
    assert model.score(TEXTS, wrong, sample_weight=weights) == pytest.approx(1 - 3 / (len(TEXTS) + 2))


def test_pairs_and_single_texts_are_not_taken_for_each_other(fitted: TextClassifier, tmp_path: Path) -> None:
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    quick = make(training=TRAINING.replace(max_steps=1)).fit(pairs, CLASSES)
    for model in (quick, TextClassifier.load(quick.save(tmp_path / "pairs"))):
        with pytest.raises(DataError, match=r"^X holds single texts, and the model learned from pairs of texts$"):
            model.predict(TEXTS)
    for single in (fitted, TextClassifier.load(fitted.save(tmp_path / "texts"))):
        with pytest.raises(DataError, match=r"^X holds pairs of texts, and the model learned from single texts$"):
            single.predict_proba(pairs)
    assert 'predict([("a text", "another")])' in (tmp_path / "pairs" / "README.md").read_text()
    about = json.loads((tmp_path / "pairs" / "transfuse.json").read_text())
    (tmp_path / "pairs" / "transfuse.json").write_text(json.dumps({**about, "reads": "books"}))
    with pytest.raises(ModelDirectoryError, match=r"transfuse.json: reads='books' must be texts or pairs$"):
        TextClassifier.load(tmp_path / "pairs")
    # where nothing says which, both are read
    (tmp_path / "pairs" / "transfuse.json").write_text(json.dumps({**about, "reads": ""}))
    assert TextClassifier.load(tmp_path / "pairs").predict(TEXTS[:2]).shape == (2,)


def test_what_is_judged_is_checked_like_what_is_learned(fitted: TextClassifier) -> None:
    with pytest.raises(DataError, match=r"^y\[1\] is missing$"):
        fitted.evaluate(TEXTS[:2], ["animal", None])
    with pytest.raises(DataError, match=r"^y has the shape \(1,\); one class for each of the 2 rows is needed$"):
        fitted.score(TEXTS[:2], ["animal"])
    numbers = TextRegressor(model=TINY, training=TRAINING.replace(max_steps=1)).fit(TEXTS, np.arange(len(TEXTS)))
    with pytest.raises(DataError, match=r"^y has the shape \(1,\); \(2,\) is needed$"):
        numbers.evaluate(TEXTS[:2], [1.0])
    assert [one.name for one in numbers.evaluate(TEXTS[:1], [1.0])] == ["mean absolute error"]
    large = [2**53, 2**53 + 1]
    model = make(training=TRAINING.replace(max_steps=1)).fit(TEXTS, large * 18)
    said = int(model.predict(TEXTS[:1])[0])
    (other,) = {*large} - {said}
    assert [model.score(TEXTS[:1], [one]) for one in (said, other)] == [1.0, 0.0]


def test_a_validation_text_that_is_cut_is_named_as_such() -> None:
    long = "see the cat " * 30
    message = r"^validation\[0\]: 1 of 2 texts .* \(the first is row 1 with \d+\)$"
    judged = pytest.warns(
        UntrainedPositionsWarning, match=r"^1 of 2 rows have up to 32 pieces, and the model was trained"
    )
    with judged, pytest.warns(TruncatedWarning, match=r"^X: 1 of 2"), pytest.warns(TruncatedWarning, match=message):
        make(training=TRAINING.replace(max_steps=1)).fit(TEXTS, CLASSES, validation=(["see", long], CLASSES[:2]))


def test_rows_much_longer_than_those_of_training_are_warned_of(fitted: TextClassifier, tmp_path: Path) -> None:
    longest = fitted.results_["positions"]
    assert longest == max(len(one) for one in fitted.tokenizer_.encode(TEXTS)) < fitted.model_.config.max_positions / 2
    fitted.predict(["cat " * (longest * 3 // 2 - 2)])  # with [CLS] and [SEP] half as long again
    fitted.save(tmp_path)
    for model in (fitted, TextClassifier.load(tmp_path)):
        with pytest.warns(UntrainedPositionsWarning, match=rf"^1 of 2 rows .* trained on rows of at most {longest}:"):
            model.predict(["cat", "cat " * (longest * 3 // 2 - 1)])
