"""The estimator: scikit-learn's contract, saving and loading, warnings, and a model that really learns."""

from __future__ import annotations

import json
import random
import tempfile
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import transfuse
from transfuse import (
    CacheTooLargeError,
    CheckpointError,
    ConfigError,
    DataError,
    ModelDirectoryError,
    ResumeWarning,
    SearchConfig,
    Seq2Seq,
    Seq2SeqConfig,
    TokenizerConfig,
    TrainingConfig,
    TrainingDiverged,
    TrainingInterrupted,
    TruncatedWarning,
    UnseenCharactersWarning,
)
from transfuse.data.tokenizer import Tokenizer
from transfuse.generation import generate
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.pretrained.directory import read_origin, save_model

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TINY = Seq2SeqConfig(
    vocab_size=300,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_heads=2,
    decoder_heads=2,
    encoder_hidden=16,
    decoder_hidden=16,
    max_positions=40,
)
SHORT = TrainingConfig(max_steps=4, batch_tokens=256, warmup_steps=2, validate_every=2, average=2)
FAST = SearchConfig(beams=2, max_tokens=8)


def spelled_numbers(count: int, seed: int) -> tuple[list[str], list[str]]:
    """ "four two" and "42": numbers of one to five digits, spelled and written."""
    draw = random.Random(seed)
    numbers = [[draw.randrange(10) for _ in range(draw.randint(1, 5))] for _ in range(count)]
    return [" ".join(WORDS[i] for i in digits) for digits in numbers], ["".join(map(str, n)) for n in numbers]


X, Y = spelled_numbers(60, seed=1)


def tiny(**changes: Any) -> Seq2Seq:
    return Seq2Seq(**{"model": TINY, "training": SHORT, "search": FAST, **changes})


def weights(model: Seq2Seq) -> dict[str, torch.Tensor]:
    return dict(model.model_.state_dict())


def same_weights(one: Seq2Seq, other: Seq2Seq) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small to share among cores; waiting for a busy one takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fitted() -> Seq2Seq:
    return tiny().fit(X, Y)


@pytest.fixture
def saved(fitted: Seq2Seq, tmp_path: Path) -> Path:
    return fitted.save(tmp_path / "model")


# The contract


@pytest.mark.parametrize("name", Seq2Seq().get_params(deep=False))
def test_the_constructor_only_stores(name: str) -> None:
    value = object()
    estimator = Seq2Seq(**{name: value})
    assert estimator.get_params(deep=False)[name] is value
    assert vars(estimator).keys() == Seq2Seq().get_params(deep=False).keys()


def test_fields_of_configs_are_parameters() -> None:
    params = tiny().get_params()
    assert params["model"] is TINY
    assert params["training__max_steps"] == 4
    assert params["model__d_model"] == 16
    assert params["search__beams"] == 2
    assert params["tokenizer__lowercase"] is False
    assert not [name for name in tiny().get_params(deep=False) if "__" in name]


def test_setting_a_field_replaces_the_config_by_a_changed_copy() -> None:
    estimator = tiny().set_params(training__epochs=3, training__learning_rate=0.1, search__beams=1, metric="exact")
    assert estimator.training == SHORT.replace(epochs=3, learning_rate=0.1)
    assert estimator.search == FAST.replace(beams=1)
    assert estimator.metric == "exact"
    assert (SHORT.epochs, FAST.beams) == (20, 2)


def test_a_config_and_its_fields_may_be_set_together() -> None:
    estimator = Seq2Seq().set_params(training__epochs=3, training=SHORT)
    assert estimator.training == SHORT.replace(epochs=3)


@pytest.mark.parametrize("name", ["epochs", "training__epoch", "trainings__epochs", "metric__epochs"])
def test_setting_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="has no"):
        tiny().set_params(**{name: 3})


def test_setting_a_bad_value_is_refused_when_set() -> None:
    with pytest.raises(ConfigError, match=r"^epochs=0 must be greater than 0$"):
        tiny().set_params(training__epochs=0)


def test_a_clone_has_equal_parameters_and_nothing_learned(fitted: Seq2Seq) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not [name for name in vars(copy) if name.endswith("_")]
    with pytest.raises(NotFittedError):
        copy.predict(["one"])


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.predict(["one"]),
        lambda model: model.predict_n_best(["one"]),
        lambda model: model.score(["one"], ["1"]),
        lambda model: model.evaluate(["one"], ["1"]),
        lambda model: model.save("nowhere"),
    ],
)
def test_nothing_works_before_fit(use: Any) -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        use(tiny())


def test_fit_returns_itself() -> None:
    model = tiny(training=SHORT.replace(max_steps=1))
    assert model.fit(X, Y) is model


def test_fit_sets_what_it_learned(fitted: Seq2Seq) -> None:
    learned = {name for name in vars(fitted) if name.endswith("_")}
    assert learned == {"model_", "tokenizer_", "results_", "characters_"}
    assert fitted.characters_ == "".join(sorted(set("".join(X + Y))))
    assert fitted.results_["steps"] == 4
    assert fitted.results_["held_out_rows"] == 3
    assert set(fitted.results_["averaged_steps"]) <= {2, 4}


def test_fit_leaves_the_arguments_as_they_were(fitted: Seq2Seq) -> None:
    assert fitted.get_params() == tiny().get_params()


def test_fitting_twice_gives_the_same_weights(fitted: Seq2Seq) -> None:
    model = clone(fitted)
    assert model.fit(X, Y) is model
    assert same_weights(model, fitted)
    assert same_weights(model.fit(X, Y), fitted)


def test_another_random_state_gives_other_weights(fitted: Seq2Seq) -> None:
    assert not same_weights(tiny(random_state=1).fit(X, Y), fitted)


def test_a_random_state_may_be_a_generator() -> None:
    one, other = (tiny(random_state=np.random.RandomState(3)).fit(X, Y) for _ in range(2))
    assert same_weights(one, other)


@pytest.mark.parametrize(
    "column",
    [tuple, np.array, pd.Series, lambda texts: pd.Series(texts, dtype="string", index=range(9, 9 + len(texts)))],
)
def test_every_kind_of_column_trains_the_same_model(fitted: Seq2Seq, column: Any) -> None:
    model = tiny().fit(column(X), column(Y))
    assert same_weights(model, fitted)
    assert model.predict(column(X[:3])) == fitted.predict(X[:3])


def test_grid_search_over_a_field_of_a_config() -> None:
    search = GridSearchCV(tiny(metric="chrf"), {"training__epochs": [1, 2], "search__beams": [1]}, cv=2).fit(X, Y)
    assert search.best_params_["training__epochs"] in (1, 2)
    assert all(0 <= score <= 100 for score in search.cv_results_["mean_test_score"])
    assert len(search.predict(X[:2])) == 2


def test_cross_validation() -> None:
    scores = cross_val_score(tiny(metric="exact"), X, Y, cv=3)
    assert len(scores) == 3
    assert all(0 <= score <= 100 for score in scores)


def test_a_pipeline_prepares_the_texts(fitted: Seq2Seq) -> None:
    strip = FunctionTransformer(lambda texts: [text.strip() for text in texts])
    pipeline = Pipeline([("strip", strip), ("model", tiny())]).fit([f"  {text}\t" for text in X], Y)
    assert same_weights(pipeline[-1], fitted)
    assert pipeline.predict([f" {X[0]} "]) == fitted.predict(X[:1])
    assert pipeline.set_params(model__training__epochs=3).get_params()["model__training__epochs"] == 3


def test_it_can_be_shown() -> None:
    assert repr(tiny(metric="rouge")).startswith("Seq2Seq(")
    assert "max_steps=4" in repr(tiny())


def test_nothing_is_printed_or_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tiny().fit(X, Y)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_verbose_reports_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    tiny(verbose=True).fit(X, Y)
    out, err = capfd.readouterr()
    assert out == ""
    assert "step 4/4" in err


# Data


def test_validation_pairs_are_judged_and_every_row_is_learned_from() -> None:
    held = spelled_numbers(7, seed=2)
    model = tiny().fit(X, Y, validation=held)
    assert model.results_["held_out_rows"] == 7
    assert model.results_["held_out_metrics"][0]["value"] == model.score(*held)
    assert set(model.characters_) == set("".join(X + Y))


def test_a_fraction_is_held_out(fitted: Seq2Seq) -> None:
    assert fitted.results_["held_out_rows"] == 3
    assert tiny(validation_fraction=0.5).fit(X, Y).results_["held_out_rows"] == 30
    assert tiny(validation_fraction=0.001).fit(X, Y).results_["held_out_rows"] == 1


@pytest.mark.parametrize(
    ("columns", "more", "rule"),
    [
        ((X, Y[:-1]), {}, "X has 60 rows and y has 59; they must be equally many"),
        ((X[:1], Y[:1]), {}, "1 pair; at least 2 are needed, one to learn from and one to judge by"),
        (([], []), {}, "X is empty; at least one text is needed"),
        ((X, [*Y[:-1], None]), {}, "y[59]: the text is missing"),
        (([*X[:7], " ", *X[8:]], Y), {}, "X[7]: the text is empty"),
        (("one", Y), {}, "X is one string; expected a list, array or column of strings"),
        ((X, Y), {"validation": (["one"], [])}, "validation[1] is empty; at least one text is needed"),
        (
            (X, Y),
            {"validation": (["one"], ["1", "2"])},
            "validation[0] has 1 rows and validation[1] has 2; they must be equally many",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_columns_are_refused_with_row_and_rule(columns: Any, more: dict[str, Any], rule: str) -> None:
    with pytest.raises(DataError) as caught:
        tiny().fit(*columns, **more)
    assert str(caught.value) == rule


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_a_validation_fraction_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"validation_fraction={value}"):
        tiny(validation_fraction=value).fit(X, Y)


def test_an_unknown_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^metric='accuracy' must be one of bleu, "):
        tiny(metric="accuracy", run_dir=tmp_path / "run").fit(X, Y)
    assert not (tmp_path / "run").exists()


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match=r"^vocab_size=100 must be at least 259"):
        tiny(model=TINY.replace(vocab_size=100)).fit(X, Y)


def test_texts_longer_than_the_model_are_cut_with_a_warning() -> None:
    texts = ["one", "two " * 30, "three"]
    model = tiny(model=TINY.replace(max_positions=8, vocab_size=259))
    with pytest.warns(TruncatedWarning) as caught:
        model.fit(texts, ["1", "2", "3"], validation=(["one"], ["1"]))
    assert [str(one.message) for one in caught] == [
        "training sources: 1 of 3 texts have more than 8 tokens and are cut (the first is row 1 with 121)"
    ]
    with pytest.warns(
        TruncatedWarning, match=r"^X: 1 of 2 texts .* 8 tokens and are cut \(the first is row 1 with 9\)$"
    ):
        model.predict(["one", "oooo eee"])


def test_characters_unseen_in_training_are_named_in_a_warning(fitted: Seq2Seq) -> None:
    with pytest.warns(UnseenCharactersWarning) as caught:
        fitted.predict(["one", "two !", "ünö!"])
    assert [str(one.message) for one in caught] == [
        "2 of 3 texts hold characters that never occurred in training (the first is row 1): '!' 'ö' 'ü'; "
        "expect little of what depends on them"
    ]


def test_lower_casing_makes_capitals_known() -> None:
    model = tiny(tokenizer=TokenizerConfig(lowercase=True)).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.predict(["ONE TWO"]) == model.predict(["one two"])


# Predictions


def test_predictions_do_not_depend_on_company_or_order(fitted: Seq2Seq) -> None:
    alone = [fitted.predict([text])[0] for text in X[:10]]
    assert fitted.predict(X[:10]) == alone
    assert fitted.predict(X[:10][::-1]) == alone[::-1]


def test_n_best_are_sorted_and_the_first_is_the_prediction(fitted: Seq2Seq) -> None:
    search = SearchConfig(beams=4, n_best=4, max_tokens=8)
    rows = fitted.predict_n_best(X[:5], search)
    for candidates in rows:
        assert len(candidates) == 4
        scores = [one.score for one in candidates]
        assert scores == sorted(scores, reverse=True)
        assert all(one.log_probability <= one.score <= 0 for one in candidates)  # the score is a mean over tokens
    assert [candidates[0].text for candidates in rows] == clone_with(fitted, search.replace(n_best=1)).predict(X[:5])


def clone_with(model: Seq2Seq, search: SearchConfig) -> Seq2Seq:
    copy = clone(model).set_params(search=search)
    vars(copy).update({name: value for name, value in vars(model).items() if name.endswith("_")})
    return copy


def test_score_is_the_last_of_evaluate(fitted: Seq2Seq) -> None:
    scores = fitted.evaluate(X[:9], Y[:9], ["exact", "rouge"])
    assert [score.name for score in scores] == ["exact", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert fitted.evaluate(X[:9], Y[:9], "chrf")[0].name == "chrF"
    assert fitted.score(X[:9], Y[:9]) == fitted.evaluate(X[:9], Y[:9])[-1].value
    with pytest.raises(ConfigError, match=r"^metric='accuracy' must be one of"):
        fitted.evaluate(X[:9], Y[:9], ["bleu", "accuracy"])


# Saving and loading


def test_a_loaded_model_is_the_saved_one(fitted: Seq2Seq, saved: Path) -> None:
    for loaded in (Seq2Seq.load(saved), Seq2Seq.load(str(saved)), transfuse.load(saved)):
        assert same_weights(loaded, fitted)
        assert loaded.predict_n_best(X) == fitted.predict_n_best(X)
        assert (loaded.tokenizer, loaded.training, loaded.search) == (fitted.tokenizer, fitted.training, fitted.search)
        assert (loaded.metric, loaded.results_, loaded.characters_) == ("bleu", fitted.results_, fitted.characters_)
        assert loaded.model == fitted.model_.config


def test_a_model_saved_again_is_the_same_directory(saved: Path, tmp_path: Path) -> None:
    again = Seq2Seq.load(saved).save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in saved.iterdir()
    }


def test_what_a_model_directory_holds(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "transfuse.json",
    ]


def test_a_loaded_model_can_be_fitted_anew(saved: Path, fitted: Seq2Seq) -> None:
    loaded = Seq2Seq.load(saved)
    assert same_weights(clone(loaded).set_params(model=TINY).fit(X, Y), fitted)


def test_every_option_of_the_model_survives_a_directory(tmp_path: Path) -> None:
    options = TINY.replace(
        decoder_kv_heads=1, positions="rotary", norm="rms", gated=True, activation="silu", bias=False, tie_output=False
    )
    model = tiny(model=options).fit(X, Y)
    loaded = transfuse.load(model.save(tmp_path))
    assert loaded.model == options.replace(vocab_size=len(model.tokenizer_))
    assert loaded.predict(X[:5]) == model.predict(X[:5])


def test_the_model_card_holds_what_was_measured(fitted: Seq2Seq, saved: Path) -> None:
    card = (saved / "README.md").read_text(encoding="utf-8")
    results = fitted.results_
    for score in results["held_out_metrics"]:
        assert f"| {score['name']} | {score['value']:.2f} | {score['signature']} |" in card
    assert f"| cross-entropy, nats a token | {results['held_out_loss']:.4f} |" in card
    assert f"Measured on {results['held_out_rows']} held-out rows" in card
    assert f"{results['steps']} steps in" in card
    assert f"at steps {', '.join(map(str, results['averaged_steps']))}." in card
    assert f"{sum(weight.numel() for weight in fitted.model_.parameters()):,} parameters" in card


def test_a_bare_transformers_directory_opens(tmp_path: Path, fitted: Seq2Seq) -> None:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    config = M2M100Config(
        vocab_size=len(fitted.tokenizer_),
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        max_position_embeddings=64,
        decoder_start_token_id=2,
    )
    torch.manual_seed(0)
    theirs = M2M100ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(fitted.tokenizer_.to_json(), encoding="utf-8")
    loaded = transfuse.load(tmp_path)
    assert (loaded.results_, loaded.characters_, loaded.metric) == ({}, "", "bleu")
    assert len(loaded.predict(["one two", "three !"])) == 2
    source, target = torch.tensor([[9, 8, 7, 2]]), torch.tensor([[2, 5, 6]])
    with torch.no_grad():
        logits = loaded.model_(source, torch.ones_like(source, dtype=torch.bool), target)
        expected = theirs(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_scores_are_nearly_the_same(fitted: Seq2Seq, saved: Path, tmp_path: Path, dtype: str) -> None:
    half = transfuse.load(saved, dtype=dtype)
    assert isinstance(half, Seq2Seq)
    assert {weight.dtype for weight in half.model_.parameters()} == {getattr(torch, dtype)}
    exact, near = (
        [row[0].log_probability for row in model.predict_n_best(X[:20], FAST.replace(beams=1))]
        for model in (fitted, half)
    )
    assert 0 < np.median(np.abs(np.subtract(near, exact))) < 0.2  # a few end at another place
    half.save(tmp_path / "half")
    assert read_origin(tmp_path / "half").dtype == getattr(torch, dtype)
    assert Seq2Seq.load(tmp_path / "half", dtype=dtype).predict(X) == half.predict(X)
    with pytest.raises(ConfigError, match=r"^dtype='int8' must be one of float32, bfloat16, float16$"):
        Seq2Seq.load(saved, dtype="int8")


def test_our_directory_without_our_file_still_opens(saved: Path, fitted: Seq2Seq) -> None:
    (saved / "transfuse.json").unlink()
    loaded = transfuse.load(saved)
    assert same_weights(loaded, fitted)
    assert clone_with(loaded, FAST).predict(X[:5]) == fitted.predict(X[:5])


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(saved: Path) -> None:
    larger = Tokenizer.train([*X, *Y, "many other words make more tokens"] * 9, 400)
    (saved / "tokenizer.json").write_text(larger.to_json(), encoding="utf-8")
    n_tokens = json.loads((saved / "config.json").read_text())["vocab_size"]
    with pytest.raises(ModelDirectoryError) as caught:
        Seq2Seq.load(saved)
    assert str(caught.value) == f"{saved / 'tokenizer.json'}: {len(larger)} tokens, but the model has {n_tokens}"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"estimator": "Other"}',
        '{"estimator": "Seq2Seq", "training": {"epoch": 3}}',
        '{"estimator": "Seq2Seq", "search": {"beams": 0}}',
        '{"estimator": "Seq2Seq", "tokenizer": 3}',
    ],
)
def test_a_damaged_transfuse_json_is_named(saved: Path, content: str) -> None:
    (saved / "transfuse.json").write_text(content)
    with pytest.raises(ModelDirectoryError) as caught:
        transfuse.load(saved)
    assert str(caught.value).startswith(f"{saved / 'transfuse.json'}: ")


# Runs


def test_a_run_directory_with_checkpoints_is_not_overwritten(tmp_path: Path, fitted: Seq2Seq) -> None:
    model = tiny(run_dir=tmp_path).fit(X, Y)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match="holds checkpoints of an earlier run; resume it, or choose another folder"
    ):
        clone(model).fit(X, Y)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert same_weights(clone(model).fit(X, Y, resume=True), fitted)


def test_resuming_with_other_data_or_settings_is_refused_naming_them(tmp_path: Path) -> None:
    tiny(run_dir=tmp_path).fit(X, Y)
    with pytest.raises(CheckpointError, match=r"is of another run, with other data, validation; "):
        tiny(run_dir=tmp_path).fit(X, Y[::-1], resume=True)
    with pytest.raises(CheckpointError, match=r"other training\.learning_rate \(0\.001 there, 0\.1 here\); "):
        tiny(run_dir=tmp_path, training=SHORT.replace(learning_rate=0.1)).fit(X, Y, resume=True)
    with pytest.raises(CheckpointError, match=r"is of another run, with other .*seed \("):
        tiny(run_dir=tmp_path, random_state=1).fit(X, Y, resume=True)


def test_the_best_validated_weights_are_kept_by_the_metric_where_asked() -> None:
    model = tiny(metric="chrf", training=SHORT.replace(select_by="metric", average=1)).fit(X, Y)
    assert 0 <= model.results_["held_out_score"] <= 100
    assert model.results_["best_step"] in (2, 4)


@pytest.mark.parametrize("max_steps", [1, 2, 9])
def test_a_model_that_diverged_is_never_returned(max_steps: int) -> None:
    training = SHORT.replace(max_steps=max_steps, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingDiverged, match=r"^training stopped at step \d+: .* is (nan|-?inf); "):
        tiny(training=training).fit(X, Y)


def test_it_learns_to_write_spelled_numbers_it_never_saw() -> None:
    sources, targets = spelled_numbers(3000, seed=3)
    known = set(sources)
    new = [pair for pair in zip(*spelled_numbers(400, seed=4), strict=True) if pair[0] not in known]
    model = Seq2Seq(
        model=TINY.replace(d_model=48, encoder_hidden=96, decoder_hidden=96, dropout=0.0),
        training=TrainingConfig(
            epochs=20,
            batch_tokens=1024,
            learning_rate=5e-3,
            warmup_steps=50,
            schedule="cosine",
            label_smoothing=0.0,
            validate_every=1000,
            average=1,
        ),
        search=SearchConfig(beams=1),
        metric="exact",
    ).fit(sources, targets)
    assert len(new) > 150
    assert model.score(*zip(*new, strict=True)) > 90


# Vocabularies and special tokens


def test_special_tokens_are_the_tokenizers_whatever_the_settings_say() -> None:
    model = tiny(model=TINY.replace(start_id=9, pad_id=8, end_id=7)).fit(X, Y)
    config = model.model_.config
    assert (config.start_id, config.pad_id, config.end_id) == (0, 1, 2)


def test_one_vocabulary_is_learned_for_both_sides() -> None:
    with pytest.raises(ConfigError, match="target_vocab_size=290 must be vocab_size=300: fit learns one vocabulary"):
        tiny(model=TINY.replace(share_embeddings=False, target_vocab_size=290)).fit(X, Y)


def test_a_directory_with_two_vocabularies_is_no_estimator(tmp_path: Path) -> None:
    config = TINY.replace(
        norm_first=False, positions="sinusoidal", share_embeddings=False, vocab_size=320, target_vocab_size=310
    )
    tokenizer = Tokenizer.train(X, 300).to_json()
    save_model(Seq2SeqModel(config).initialise(0), tmp_path, {"tokenizer.json": tokenizer})
    with pytest.raises(ModelDirectoryError, match=r"vocabularies of their own \(320 and 310 tokens\)"):
        Seq2Seq.load(tmp_path)


def test_a_directory_saved_again_names_its_own_special_tokens(tmp_path: Path) -> None:
    theirs = Tokenizer.train(X, 300).to_json().replace('"<s>"', '"<bos>"').replace('"</s>"', '"<eos>"')
    save_model(Seq2SeqModel(TINY).initialise(0), tmp_path / "theirs", {"tokenizer.json": theirs})
    Seq2Seq.load(tmp_path / "theirs").save(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert [values[f"{kind}_token"] for kind in ("bos", "eos", "pad")] == ["<bos>", "<eos>", "<pad>"]


def test_a_candidate_says_whether_it_came_to_its_end() -> None:
    model = tiny().fit(X, Y)
    for end, finished in ((-1e4, False), (1e4, True)):
        with torch.no_grad():
            model.model_.decoder.norm.weight.zero_()
            model.model_.decoder.norm.bias.copy_(end * model.model_.output.weight[2])
        assert [one.finished for row in model.predict_n_best(X[:3]) for one in row] == [finished] * 3


def test_a_parameter_search_may_draw_numpy_numbers() -> None:
    model = tiny().set_params(training__epochs=np.arange(1, 3)[0], model__dropout=np.float32(0.25))
    assert (type(model.training.epochs), type(model.model.dropout)) == (int, float)
    assert TrainingConfig.from_json(model.training.to_json()) == model.training


# Failure


def test_a_failed_fit_leaves_the_estimator_as_it_was() -> None:
    model = tiny()
    with pytest.raises(TrainingDiverged):
        model.set_params(training__learning_rate=1e30, training__warmup_steps=0).fit(X, Y)
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.set_params(training=SHORT).fit(X, Y)
    expected, results = model.predict(X[:5]), model.results_
    with pytest.raises(TrainingDiverged, match=r"is (nan|-?inf); \(try a lower"):
        model.set_params(training__learning_rate=1e30, training__warmup_steps=0).fit(X, Y)
    assert model.predict(X[:5]) == expected
    assert model.results_ is results


def test_an_interrupt_ends_cross_validation_and_says_that_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []

    def interrupting(self: Seq2Seq, *arguments: Any) -> None:
        fits.append(0)
        raise TrainingInterrupted(2, 4, "/somewhere")

    monkeypatch.setattr(Seq2Seq, "_judged", interrupting)
    with pytest.raises(TrainingInterrupted, match=r"interrupted after step 4; nothing is kept without a run_dir"):
        cross_val_score(tiny(), X, Y, cv=3)
    assert len(fits) == 1


def test_resuming_with_other_validation_pairs_is_refused(tmp_path: Path) -> None:
    tiny(run_dir=tmp_path).fit(X, Y, validation=(X[:5], Y[:5]))
    with pytest.raises(CheckpointError, match="is of another run, with other validation; "):
        tiny(run_dir=tmp_path).fit(X, Y, validation=(X[5:9], Y[5:9]), resume=True)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.warns(ResumeWarning, match="nothing to resume in .*checkpoints; starting anew"):
        tiny(run_dir=tmp_path).fit(X, Y, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"d_model": 16}}, r"model=\{'d_model': 16\} must be a Seq2SeqConfig"),
        ({"training": None}, "training=None must be a TrainingConfig"),
        ({"random_state": -1}, "random_state=-1 must be a whole number of at least 0"),
        ({"random_state": np.random.default_rng(0)}, "must be a whole number of at least 0"),
        ({"validation_fraction": "a"}, "validation_fraction='a' must be above 0"),
        ({"metric": ["bleu"]}, r"metric=\['bleu'\] must be one of"),
        ({"validation_fraction": 0}, "validation_fraction=0 must be above 0 and below 1"),
    ],
)
def test_arguments_of_another_kind_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes).fit(X, Y)


def test_what_fit_depends_on_is_saved(tmp_path: Path) -> None:
    model = tiny(random_state=5, validation_fraction=0.2).fit(X, Y)
    model.save(tmp_path)
    again = clone(Seq2Seq.load(tmp_path)).set_params(model=TINY).fit(X, Y)
    assert all(one.equal(other) for one, other in zip(weights(model).values(), weights(again).values(), strict=True))


@pytest.mark.parametrize(
    "values", [{"estimator": []}, {"characters": 5}, {"metric": 3}, {"metric": "foo"}, {"results": 3}, {"search": 1}]
)
def test_a_directory_that_says_nonsense_of_its_estimator_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    tiny().fit(X, Y).save(tmp_path)
    about = json.loads((tmp_path / "transfuse.json").read_text())
    (tmp_path / "transfuse.json").write_text(json.dumps(about | values))
    with pytest.raises(ModelDirectoryError, match=rf"transfuse\.json: {next(iter(values))}="):
        transfuse.load(tmp_path)


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_a_random_state_may_be_a_number_of_numpy(kind: Any, tmp_path: Path) -> None:
    plain, other = (tiny(random_state=one, validation_fraction=0.2).fit(X, Y) for one in (3, kind(3)))
    assert same_weights(plain, other) and plain.held_out(X, Y) == other.held_out(X, Y)
    other.save(tmp_path)
    assert json.loads((tmp_path / "transfuse.json").read_text())["random_state"] == 3


def test_a_search_that_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="beams=200 must be at most half the vocabulary"):
        tiny(search=SearchConfig(beams=200), run_dir=tmp_path).fit(X, Y)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_too_little_memory_is_no_divergence_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "available_bytes", lambda device: 100)
    by_metric = tiny(training=SHORT.replace(select_by="metric"))
    with pytest.raises(CacheTooLargeError, match="lower batch_tokens or max_tokens"):
        by_metric.fit(X, Y)
    with pytest.warns(UserWarning, match=r"^the held-out pairs are not judged by bleu: \d+ rows of up to"):
        model = tiny().fit(X, Y)
    assert model.results_["held_out_metrics"] == [] and model.results_["held_out_loss"] > 0


def test_resuming_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="resume=True goes on from run_dir, and none is given"):
        tiny().fit(X, Y, resume=True)


@pytest.mark.parametrize("given", [None, 5, {"a", "b"}])
def test_what_is_no_column_is_refused(fitted: Seq2Seq, given: Any) -> None:
    kind = type(given).__name__
    with pytest.raises(DataError, match=f"^X is of type {kind}; expected a list, array or column of strings"):
        fitted.predict(given)
    with pytest.raises(DataError, match=f"^y is of type {kind}"):
        tiny().fit(X, given)


def test_scores_of_texts_in_another_normal_form() -> None:
    """What is written is NFC, whatever form the texts it was learned from have."""
    words = ["한국 사람", "커피", "학교", "물"]
    apart = [unicodedata.normalize("NFD", word) for word in words] * 12
    training = TrainingConfig(epochs=40, learning_rate=1e-2, warmup_steps=10, batch_tokens=256, average=1)
    model = tiny(training=training, search=SearchConfig(beams=1)).fit(words * 12, apart)
    assert [score.value for score in model.evaluate(apart, apart, ["exact", "chrf"])] == [100, 100]


def test_a_first_token_is_there_in_training_and_writing_alike() -> None:
    training = TrainingConfig(epochs=40, learning_rate=1e-2, warmup_steps=10, batch_tokens=256, average=1)
    pairs = [["red", "blue", "green", "black"] * 12, ["rot", "blau", "gelb", "schwarz"] * 12]
    plain, forced = (
        tiny(model=TINY.replace(first_id=first), training=training, search=SearchConfig(beams=1)).fit(*pairs)
        for first in (None, 100)
    )
    assert plain.evaluate(*pairs, "exact")[0].value == forced.evaluate(*pairs, "exact")[0].value == 100
    assert transfuse.inspect(forced, "red", "rot").attention["cross"][0].shape[-2] == (
        transfuse.inspect(plain, "red", "rot").attention["cross"][0].shape[-2] + 1
    )
    long = "a" * 60
    with pytest.warns(TruncatedWarning):
        assert forced._dataset(([long], [long]), "held-out").batch([0]).target_BT.shape == (1, 40)
