"""The scikit-learn contract, check by check, of every estimator of texts."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import transfuse
from transfuse import (
    AnsweringConfig,
    BertConfig,
    CheckpointError,
    ConfigError,
    DataError,
    MaskingConfig,
    QuestionAnswerer,
    TextClassifier,
    TextEncoder,
    TextRegressor,
    TokenTagger,
    TrainingConfig,
)

TINY = BertConfig(vocab_size=80, d_model=16, n_layers=1, n_heads=2, max_positions=40)
SHORT = TrainingConfig(
    max_steps=2, learning_rate=1e-3, warmup_steps=1, batch_tokens=64, validate_every=2, label_smoothing=0.0, average=1
)
TEXTS = [f"The {a} {b} sat. It was {a}." for a in ("red", "old", "big") for b in ("cat", "dog", "hen", "cow")]
ROWS = range(len(TEXTS))


@dataclass(frozen=True)
class Case:
    """An estimator with data, what it is asked for, and y of which one row is spoilt."""

    make: Callable[..., Any]
    X: list[Any]
    y: list[Any] | None
    ask: str
    spoilt: list[Any] | None = None


def answerer(**settings: Any) -> QuestionAnswerer:
    return QuestionAnswerer(answering=AnsweringConfig(window=40, overlap=4, longest_question=20), **settings)


def encoder(**settings: Any) -> TextEncoder:
    return TextEncoder(**{"masking": MaskingConfig(context=16), "validation_fraction": 0.3, **settings})


CASES = {
    "classes": Case(TextClassifier, TEXTS, ["cat" in text or "dog" in text for text in TEXTS], "predict_proba"),
    "classes of pairs": Case(TextClassifier, [(a, a[::-1]) for a in TEXTS], [i % 3 for i in ROWS], "predict_proba"),
    "labels": Case(TextClassifier, TEXTS, [[i % 2, i % 3 == 0] for i in ROWS], "predict_proba", [[2, 0]] * len(TEXTS)),
    "numbers": Case(TextRegressor, TEXTS, [float(i) for i in ROWS], "predict", [float("inf")] * len(TEXTS)),
    "tags": Case(
        TokenTagger, [text.split() for text in TEXTS], [["O", "B-A", "I-A", "O", "O", "O", "O"] for _ in TEXTS],
        "predict_proba", [["O"]] * len(TEXTS),
    ),
    "entities": Case(
        TokenTagger, TEXTS, [[(4, 7, "A")] for _ in TEXTS], "predict_proba", [[(4, 99, "A")]] * len(TEXTS),
    ),
    "answers": Case(
        answerer, [("What sat?", text) for text in TEXTS], [[(text[8:11], 8)] for text in TEXTS], "predict",
        [[("cat", 0)]] * len(TEXTS),
    ),
    "vectors": Case(encoder, TEXTS, None, "transform"),
}  # fmt: skip

every = pytest.mark.parametrize("name", CASES)
supervised = pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.y is not None])


def make(name: str, **settings: Any) -> Any:
    return CASES[name].make(model=TINY, training=SHORT, **settings)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return {name: make(name).fit(case.X, case.y) for name, case in CASES.items()}


def asked(model: Any, name: str) -> list[np.ndarray]:
    return [np.asarray(row) for row in getattr(model, CASES[name].ask)(CASES[name].X)]


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@every
def test_the_constructor_only_stores(name: str) -> None:
    model = make(name)
    names = set(inspect.signature(type(model).__init__).parameters) - {"self"}
    assert set(vars(model)) == names == set(model.get_params(deep=False))
    nonsense = type(model)(**dict.fromkeys(names, "nonsense"))
    assert all(getattr(nonsense, one) == "nonsense" for one in names)


@every
def test_clone_copies_settings_and_no_more(name: str, fitted: dict[str, Any]) -> None:
    copied = clone(fitted[name])
    assert copied.get_params(deep=False) == fitted[name].get_params(deep=False)
    assert not [one for one in vars(copied) if one.endswith("_")]


@every
def test_settings_reach_inside_configs(name: str) -> None:
    model = make(name).set_params(model__n_layers=3, training__epochs=7)
    assert model.model.n_layers == 3 and model.training.epochs == 7
    with pytest.raises(ValueError, match="nothing"):
        model.set_params(model__nothing=1)


@every
def test_it_says_when_it_is_not_fitted(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        getattr(make(name), CASES[name].ask)(CASES[name].X)
    with pytest.raises(NotFittedError):
        make(name).save(tmp_path)


@every
def test_fit_returns_itself_and_leaves_settings_alone(name: str) -> None:
    model = make(name)
    before = copy.deepcopy(model.get_params(deep=False))
    assert model.fit(CASES[name].X, CASES[name].y) is model
    assert model.get_params(deep=False) == before
    assert set(vars(model)) - set(before) <= {one for one in vars(model) if one.endswith("_") or one.startswith("_")}


@every
def test_the_same_seed_gives_the_same_model_and_another_another(name: str, fitted: dict[str, Any]) -> None:
    case = CASES[name]
    assert equal(asked(make(name).fit(case.X, case.y), name), asked(fitted[name], name))
    other = make(name, random_state=1).fit(case.X, case.y)
    assert not all(
        np.array_equal(a.detach(), b.detach())
        for a, b in zip(other.model_.parameters(), fitted[name].model_.parameters(), strict=False)
        if a.shape == b.shape
    )


@every
def test_fit_again_forgets(name: str, fitted: dict[str, Any]) -> None:
    case = CASES[name]
    half = len(case.X) // 2
    model = make(name).fit(case.X[half:], case.y[half:] if case.y else None).fit(case.X, case.y)
    assert equal(asked(model, name), asked(fitted[name], name))


@every
def test_data_is_not_changed(name: str) -> None:
    case = CASES[name]
    X, y = copy.deepcopy(case.X), copy.deepcopy(case.y)
    make(name).fit(X, y)
    assert (X, y) == (case.X, case.y)


@every
def test_rows_are_in_order(name: str, fitted: dict[str, Any]) -> None:
    case = CASES[name]
    found = asked(fitted[name], name)
    backwards = [np.asarray(row) for row in getattr(fitted[name], case.ask)(case.X[::-1])][::-1]
    for one, other in zip(found, backwards, strict=True):
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        else:
            assert one == other


@every
def test_arrays_and_iterators_are_as_good_as_lists(name: str, fitted: dict[str, Any]) -> None:
    case = CASES[name]
    array = np.empty(len(case.X), dtype=object)
    array[:] = case.X
    assert equal([np.asarray(row) for row in getattr(fitted[name], case.ask)(iter(case.X))], asked(fitted[name], name))
    assert equal([np.asarray(row) for row in getattr(fitted[name], case.ask)(array)], asked(fitted[name], name))


@every
def test_a_failed_fit_changes_nothing(name: str, fitted: dict[str, Any]) -> None:
    model = copy.copy(fitted[name])
    before = dict(vars(model))
    with pytest.raises(DataError):
        model.fit([], [])
    assert vars(model) == before


@every
def test_it_can_be_pickled_and_saved(name: str, fitted: dict[str, Any], tmp_path: Path) -> None:
    found = asked(fitted[name], name)
    assert equal(asked(pickle.loads(pickle.dumps(fitted[name])), name), found)
    fitted[name].save(tmp_path)
    again = transfuse.load(tmp_path)
    assert type(again) is type(fitted[name]) and equal(asked(again, name), found)
    assert again.get_params(deep=False)["random_state"] == 0


@every
def test_a_run_can_be_resumed_and_is_not_overwritten(name: str, fitted: dict[str, Any], tmp_path: Path) -> None:
    case = CASES[name]
    model = make(name, run_dir=tmp_path).fit(case.X, case.y)
    with pytest.raises(CheckpointError, match="earlier run"):
        make(name, run_dir=tmp_path).fit(case.X, case.y)
    again = make(name, run_dir=tmp_path).fit(case.X, case.y, resume=True)
    assert equal(asked(again, name), asked(model, name))


@every
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("validation_fraction", 1.5, "validation_fraction=1.5"),
        ("device", "abacus", "device='abacus'"),
        ("random_state", -1, "random_state"),
        ("model", None, "model=None must be a BertConfig"),
        ("tokenizer", 3, "tokenizer=3"),
    ],
)
def test_bad_settings_are_named_by_fit(name: str, setting: str, value: Any, message: str) -> None:
    case = CASES[name]
    with pytest.raises((ConfigError, ValueError), match=message):
        make(name).set_params(**{setting: value}).fit(case.X, case.y)


@supervised
def test_score_is_a_number_and_searches_use_it(name: str, fitted: dict[str, Any]) -> None:
    case = CASES[name]
    assert isinstance(fitted[name].score(case.X, case.y), float)
    scores = cross_val_score(make(name), case.X, case.y, cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()
    search = GridSearchCV(make(name), {"model__n_layers": [1, 2]}, cv=2).fit(case.X, case.y)
    assert search.best_estimator_.model_.config.n_layers == search.best_params_["model__n_layers"]


@supervised
def test_it_stands_at_the_end_of_a_pipeline(name: str, fitted: dict[str, Any]) -> None:
    case = CASES[name]
    pipeline = Pipeline([("same", FunctionTransformer()), ("model", make(name))]).fit(case.X, case.y)
    assert equal(
        [np.asarray(row) for row in pipeline.predict(case.X)], [np.asarray(row) for row in fitted[name].predict(case.X)]
    )
    assert pipeline.score(case.X, case.y) == fitted[name].score(case.X, case.y)


@supervised
def test_lengths_and_values_that_do_not_fit_are_named(name: str) -> None:
    case = CASES[name]
    assert case.y is not None
    with pytest.raises(DataError, match="equally many"):
        make(name).fit(case.X, case.y[:-1])
    if case.spoilt is not None:
        with pytest.raises(DataError, match=r"y"):
            make(name).fit(case.X, case.spoilt)


@supervised
def test_what_it_judged_itself_by_is_kept(name: str, fitted: dict[str, Any]) -> None:
    results = fitted[name].results_
    assert results["steps"] == 2 and results["held_out_rows"] >= 1 and np.isfinite(results["held_out_loss"])
    assert all(np.isfinite(score["value"]) or score["name"] == "R²" for score in results["held_out_metrics"])


def test_tags_of_scikit_learn() -> None:
    assert is_classifier(make("classes")) and is_regressor(make("numbers"))
    assert not is_classifier(make("tags")) and not is_regressor(make("answers"))


def test_classes_are_sorted_and_predicted(fitted: dict[str, Any]) -> None:
    model = fitted["classes of pairs"]
    assert model.classes_.tolist() == [0, 1, 2] and set(model.predict(CASES["classes of pairs"].X)) <= {0, 1, 2}
