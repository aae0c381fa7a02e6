"""`TextEncoder`: vectors of texts and tokens, guesses at hidden words, pre-training, and what is refused."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import transfuse
from transfuse import (
    BertConfig,
    CheckpointError,
    ConfigError,
    DataError,
    MaskingConfig,
    ModelDirectoryError,
    TextClassifier,
    TextEncoder,
    TrainingConfig,
    TruncatedWarning,
    UnknownWordsWarning,
    UntrainedPositionsWarning,
)
from transfuse.estimators.ablation import _mean_vectors
from transfuse.pretrained.directory import read_origin
from transfuse.training.metrics_log import read_metrics

DOCUMENTS = [
    f"The {a} cat sat on the {b} mat. It was {a} and {b}. Then the {b} dog came. Nobody saw the {a} bird."
    for a in ("red", "blue", "old", "big")
    for b in ("green", "soft", "new", "wet")
] * 3
TINY = BertConfig(vocab_size=200, d_model=32, n_layers=2, n_heads=2, max_positions=48)
TRAINING = TrainingConfig(
    epochs=40, learning_rate=3e-3, schedule="cosine", warmup_steps=10, batch_tokens=256, validate_every=40,
    label_smoothing=0.0, average=1,
)  # fmt: skip


def make(**changes: object) -> TextEncoder:
    return TextEncoder(**{"model": TINY, "training": TRAINING, "masking": MaskingConfig(context=48), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> TextEncoder:
    return make().fit(DOCUMENTS)


def test_pre_training_learns_words_and_pairs(fitted: TextEncoder) -> None:
    held = fitted.results_["held_out"]
    assert held["word_accuracy"] > 0.4
    assert fitted.results_["held_out_loss"] == held["word_loss"] < np.log(len(fitted.tokenizer_)) / 2
    assert 0 <= held["pair_accuracy"] <= 1 and held["pair_loss"] > 0
    # what stands on both sides says which word it was
    assert fitted.fill_mask("The red cat [MASK] on the soft mat.", top=1)[0][0][0] == "sat"
    first, second = fitted.fill_mask("The [MASK] sat on the green [MASK].", top=4)
    assert len(first) == 4 and sum(probability for _, probability in second) <= 1


def test_a_run_logs_losses_and_accuracies_of_both(tmp_path: Path) -> None:
    model = make(training=TRAINING.replace(max_steps=8, validate_every=4), run_dir=tmp_path).fit(DOCUMENTS)
    first, last = (record for record in read_metrics(tmp_path / "metrics.jsonl") if record["kind"] == "validation")
    assert (first["step"], last["step"]) == (4, 8)
    assert {name: last[name] for name in model.results_["held_out"]} == model.results_["held_out"]
    assert last["score"] == -(last["word_loss"] + last["pair_loss"]) > first["score"]


def test_without_pairs_there_is_no_pooler(tmp_path: Path) -> None:
    short = TRAINING.replace(max_steps=4)
    model = make(masking=MaskingConfig(context=32, next_sentence=False), training=short, run_dir=tmp_path)
    model.fit(DOCUMENTS)
    assert model.results_["held_out"]["pair_accuracy"] is None
    (record,) = (one for one in read_metrics(tmp_path / "metrics.jsonl") if one["kind"] == "validation")
    assert record["score"] == -record["word_loss"] and "pair_loss" not in record
    model.transform(["cat"])
    with pytest.raises(ConfigError, match="no pooler"):
        model.set_params(pooling="cls").transform(["cat"])


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_a_vector_does_not_depend_on_the_texts_beside_it(fitted: TextEncoder, pooling: str) -> None:
    model = clone(fitted).set_params(pooling=pooling)
    model.__dict__ |= {name: value for name, value in vars(fitted).items() if name.endswith("_")}
    texts = ["cat", "The old dog came.", "It was wet", "cat and dog", DOCUMENTS[0], "mat"]
    together = model.transform(texts)
    assert together.shape == (6, 32) and together.dtype == np.float32
    for row, text in enumerate(texts):
        np.testing.assert_allclose(model.transform([text])[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_vectors_are_nearly_the_same(fitted: TextEncoder, dtype: str, tmp_path: Path) -> None:
    fitted.save(tmp_path / "whole")
    half = TextEncoder.load(tmp_path / "whole", dtype=dtype)
    assert {weight.dtype for weight in half.model_.parameters()} == {getattr(torch, dtype)}
    exact, found = fitted.transform(DOCUMENTS), half.transform(DOCUMENTS)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < 0.1 < np.abs(exact).max()
    half.save(tmp_path / "half")
    assert read_origin(tmp_path / "half").dtype == getattr(torch, dtype)
    assert TextEncoder.load(tmp_path / "half").model_.embedding.token.weight.dtype == torch.float32
    np.testing.assert_array_equal(TextEncoder.load(tmp_path / "half", dtype=dtype).transform(DOCUMENTS), found)
    on = make(model=half, training=TRAINING.replace(max_steps=1)).fit(DOCUMENTS)
    assert {weight.dtype for weight in on.model_.parameters()} == {torch.float32}


def test_positions_that_pre_training_never_saw(fitted: TextEncoder, tmp_path: Path) -> None:
    known = fitted.trained_positions
    assert known == 30  # whole sentences, as many as fit
    short, long = DOCUMENTS[0], f"{DOCUMENTS[0]} Then the dog came."
    message = rf"^1 of 2 rows have up to \d\d pieces, and the encoder was pre-trained on rows of at most {known}: "
    again = TextEncoder.load(fitted.save(tmp_path / "own"))
    for model in (fitted, again):
        with pytest.warns(UntrainedPositionsWarning, match=message):
            model.transform([short, long])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.transform([short])
    quick = TRAINING.replace(max_steps=1)
    rows = [short, long] * 8, [0, 1] * 8
    with pytest.warns(UntrainedPositionsWarning, match=r"^8 of 16 rows have up to"):
        classifier = TextClassifier(encoder=again, training=quick).fit(*rows, validation=rows)
    longest = len(fitted.tokenizer_.encode([long])[0])
    assert TextEncoder.load(classifier.save(tmp_path / "classes")).trained_positions == longest > known
    classifier = TextClassifier(encoder=again, training=quick).fit([short] * 16, [0, 1] * 8)
    assert len(fitted.tokenizer_.encode([short])[0]) < known == classifier.results_["positions"]
    # what goes on in shorter rows keeps what it knew, and longer ones teach the rest
    for masking, now in (
        (MaskingConfig(context=16), known),
        (MaskingConfig(context=48, next_sentence=False), 44),
    ):
        on = make(model=again, masking=masking, training=quick).fit([" ".join(DOCUMENTS)])
        assert on.trained_positions == now
    # where nothing says how far, all are taken for trained
    (tmp_path / "own" / "transfuse.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = TextEncoder.load(tmp_path / "own")
        other.transform([short, long])
    assert other.trained_positions == TINY.max_positions


def test_there_is_no_other_precision(fitted: TextEncoder, tmp_path: Path) -> None:
    fitted.save(tmp_path / "it")
    with pytest.raises(ConfigError, match="dtype='int8' must be one of"):
        TextEncoder.load(tmp_path / "it", dtype="int8")


def test_pooling_is_over_the_tokens(fitted: TextEncoder) -> None:
    (pieces,) = fitted.encode(["The old dog came."])
    with torch.inference_mode():
        x_TD = fitted.model_(torch.tensor([pieces.ids]))[0].numpy()
    (vector,) = fitted.transform(["The old dog came."])
    np.testing.assert_allclose(vector, x_TD.mean(0), rtol=1e-4, atol=1e-5)
    (found,) = fitted.tokens(["The old dog came."])
    np.testing.assert_allclose(found.vectors, x_TD[1:-1], rtol=1e-4, atol=1e-5)
    assert [("The old dog came."[a:b]).lower() for a, b in found.offsets] == [
        t.removeprefix("##") for t in found.tokens
    ]
    words = found.word_vectors()
    assert len(words) == len(set(found.words)) == 5
    own = [i for i, word in enumerate(found.words) if word == 2]
    np.testing.assert_allclose(words[2], found.vectors[own].mean(0), rtol=1e-5)


def test_it_is_a_step_of_a_pipeline(fitted: TextEncoder) -> None:
    texts = [f"the {word} {animal}" for word in ("red", "old") for animal in ("cat", "dog", "bird")]
    steps = make_pipeline(make(training=TRAINING.replace(max_steps=3), validation_fraction=0.4), LogisticRegression())
    labels = ["red" in text for text in texts]
    documents = [f"{text}. It sat. It came and it was. " * 3 for text in texts]
    assert steps.fit(documents, labels).predict(documents).shape == (6,)


@pytest.mark.usefixtures("quiet_transformers")
def test_a_directory_there_and_back(fitted: TextEncoder, tmp_path: Path) -> None:
    from transformers import AutoModelForPreTraining, AutoTokenizer

    fitted.save(tmp_path)
    again = transfuse.load(tmp_path)
    assert isinstance(again, TextEncoder)
    np.testing.assert_array_equal(again.transform(DOCUMENTS[:5]), fitted.transform(DOCUMENTS[:5]))
    theirs = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    given = AutoTokenizer.from_pretrained(tmp_path)(DOCUMENTS[0], return_tensors="pt")
    assert given.input_ids[0].tolist() == fitted.encode(DOCUMENTS[:1])[0].ids
    with torch.inference_mode():
        expected = theirs(input_ids=given.input_ids).prediction_logits
        found = fitted.model_.words(fitted.model_(given.input_ids))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    short = TRAINING.replace(max_steps=8, validate_every=4)
    whole = make(training=short, run_dir=tmp_path / "whole").fit(DOCUMENTS)
    with pytest.raises(CheckpointError, match="earlier run"):
        make(training=short, run_dir=tmp_path / "whole").fit(DOCUMENTS)
    last = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    again = make(training=short, run_dir=tmp_path / "whole").fit(DOCUMENTS, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model_.parameters(), again.model_.parameters(), strict=True))


def test_pre_training_goes_on_from_another(fitted: TextEncoder, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    short = TRAINING.replace(max_steps=1, learning_rate=1e-9)
    for start in (fitted, tmp_path):
        model = make(model=start, training=short).fit(DOCUMENTS)
        assert model.tokenizer_.to_json() == fitted.tokenizer_.to_json()
        assert model.model_.config.replace(d_hidden=None) == fitted.model_.config
        # both heads too: the losses are what they were, and not those of new heads
        assert model.results_["held_out"]["word_loss"] == pytest.approx(fitted.results_["held_out_loss"], rel=1e-3)
        for a, b in zip(fitted.model_.parameters(), model.model_.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    plain = make(model=fitted, training=short, masking=MaskingConfig(context=32, next_sentence=False)).fit(DOCUMENTS)
    assert plain.model_.config.head == "words"
    assert clone(model).model == tmp_path and clone(make(model=fitted)).model is fitted
    with pytest.raises(ConfigError, match=r"masking\.context=64 must be at most max_positions=48"):
        make(model=fitted, masking=MaskingConfig(context=64)).fit(DOCUMENTS)


def test_what_cannot_be_encoded(fitted: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is of next-sentence training"):
        make(pooling="cls", masking=MaskingConfig(context=32, next_sentence=False)).fit(DOCUMENTS)
    with pytest.raises(ConfigError, match="n_segments=1"):
        make(model=TINY.replace(n_segments=1)).fit(DOCUMENTS)
    with pytest.raises(ConfigError, match="model=3 must be a BertConfig, or a BERT to go on from"):
        make(model=3).fit(DOCUMENTS)
    with pytest.raises(DataError, match=r"text\[0\]: the text is list"):
        fitted.fill_mask(["a [MASK]"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="top=0"):
        fitted.fill_mask("a [MASK]", top=0)
    with pytest.raises(DataError, match="the held-out share makes 1 stretches"):
        make(validation_fraction=0.01).fit(DOCUMENTS[:8])
    with pytest.raises(DataError, match=r"X\[1\]"):
        fitted.transform(["cat", None])  # type: ignore[list-item]
    with (
        pytest.warns(UntrainedPositionsWarning),
        pytest.warns(TruncatedWarning, match="1 of 2 texts have more than"),
    ):
        assert fitted.transform(["cat", "dog " * 99]).shape == (2, 32)
    with pytest.raises(DataError, match=r"no \[MASK\]"):
        fitted.fill_mask("cat")
    with pytest.raises(DataError, match="sentences are too few"):
        make().fit(["One.", "Two."])
    with pytest.raises(ConfigError, match="pooling='sum' must be"):
        make(pooling="sum").fit(DOCUMENTS)
    with pytest.raises(ConfigError, match=r"masking\.context=99 must be at most max_positions=48"):
        make(masking=MaskingConfig(context=99)).fit(DOCUMENTS)
    with pytest.raises(ModelDirectoryError, match="no such directory"):
        TextEncoder.load(tmp_path / "nothing")


def test_documents_of_one_stretch_have_no_next_sentences() -> None:
    short = [text.split(". ")[0] for text in DOCUMENTS]
    quick = TRAINING.replace(max_steps=2)
    with pytest.warns(UserWarning, match=r"^no document has more than one stretch of 22 pieces, so none has"):
        model = make(training=quick).fit(short)
    assert model.results_["held_out"]["pair_loss"] is None and model.model_.config.head == "words"
    same = make(training=quick, masking=MaskingConfig(context=48, next_sentence=False)).fit(short)
    np.testing.assert_array_equal(model.transform(short), same.transform(short))
    with pytest.raises(DataError, match=r"^no document .* to train the first token by; lower masking.context or use"):
        make(training=quick, pooling="cls").fit(short)
    with pytest.raises(ConfigError, match="trained without next-sentence prediction"):
        transfuse.ablate_next_sentence(model, short)


def test_an_ablation_looks_for_sentences_by_their_means(fitted: TextEncoder) -> None:
    first = copy.copy(fitted).set_params(pooling="cls")
    np.testing.assert_array_equal(_mean_vectors(first, DOCUMENTS[:3]), fitted.transform(DOCUMENTS[:3]))
    assert first.pooling == "cls"


def test_words_that_the_vocabulary_lacks_are_told_of(fitted: TextEncoder) -> None:
    letters = np.random.default_rng(0).choice(list("acgt"), (60, 120))
    strands = ["".join(row) for row in letters]
    message = r"^60 of 60 pieces, in 60 of 60 rows, are \[UNK\]: words of characters .* or of more than 100"
    with pytest.warns(UnknownWordsWarning, match=message):
        fitted.transform(strands)
    with pytest.warns(UnknownWordsWarning):
        TextClassifier(model=TINY, training=TRAINING.replace(max_steps=1)).fit(strands, [0, 1] * 30)
    classifier = TextClassifier(encoder=fitted, training=TRAINING.replace(max_steps=1)).fit(DOCUMENTS, [0, 1] * 24)
    with pytest.warns(UnknownWordsWarning):
        classifier.predict(strands)


def test_a_model_of_one_segment_is_an_encoder_too(tmp_path: Path) -> None:
    one = TINY.replace(n_segments=1)
    plain = MaskingConfig(context=48, next_sentence=False)
    model = make(model=one, masking=plain, training=TRAINING.replace(max_steps=1)).fit(DOCUMENTS)
    model.save(tmp_path)
    (tmp_path / "transfuse.json").unlink()  # as of other origin
    again = TextEncoder.load(tmp_path)
    np.testing.assert_array_equal(again.transform(DOCUMENTS), model.transform(DOCUMENTS))
    classifier = TextClassifier(encoder=tmp_path, training=TRAINING.replace(max_steps=1)).fit(DOCUMENTS, [0, 1] * 24)
    assert TextEncoder.load(classifier.save(tmp_path / "classes")).transform(DOCUMENTS).shape == (48, 32)


def test_the_card_says_what_was_measured(fitted: TextEncoder, tmp_path: Path) -> None:
    card = (fitted.save(tmp_path) / "README.md").read_text()
    held = fitted.results_["held_out"]
    assert f"| hidden words guessed, % | {100 * held['word_accuracy']:.2f} | hidden:0.15 |" in card
    assert f"| cross-entropy, nats a hidden word | {held['word_loss']:.4f} |" in card
    assert "next sentences told, %" in card
