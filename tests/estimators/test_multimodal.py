"""Multimodal estimators: what is missing, what is shuffled, what is saved, what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import transfuse
from media import table
from transfuse import (
    AugmentationConfig,
    BertConfig,
    CheckpointError,
    ConfigError,
    DataError,
    FusionConfig,
    ImageConfig,
    MaskingConfig,
    ModelDirectoryError,
    MultimodalClassifier,
    MultimodalRegressor,
    SoundConfig,
    TextEncoder,
    TowersConfig,
    TrainingConfig,
    TruncatedWarning,
    UnreadableWarning,
    kind_of,
    load,
)
from transfuse.data.features import plain_columns
from transfuse.data.modalities import Scores
from transfuse.estimators import multimodal
from transfuse.estimators.multimodal import trimmed_share
from transfuse.estimators.tree_tower import TreeTower
from transfuse.models.towers import ImageTower, ImageTowerConfig
from transfuse.pretrained.directory import save_model

TOWERS = TowersConfig(d_model=16, n_layers=1, n_heads=2, patch=4, vocab_size=90, dropout=0.0, max_pieces=24)
FUSION = FusionConfig(d_model=16, n_layers=1, n_heads=2, dropout=0.0)
SHORT = TrainingConfig(
    max_steps=3, learning_rate=1e-3, warmup_steps=1, batch_tokens=400, validate_every=3, label_smoothing=0.0, average=1
)
LONGER = SHORT.replace(max_steps=60, learning_rate=5e-3, validate_every=20, warmup_steps=5)
SMALL = {
    "towers": TOWERS,
    "fusion": FUSION,
    "images": ImageConfig(size=8, channels=1),
    "sounds": SoundConfig(rate=4000, n_mels=12, max_seconds=1.0),
    "training": SHORT,
    "kinds": {"letter": "category"},
    "validation_fraction": 0.25,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multimodal")


@pytest.fixture(scope="module")
def rows(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    return table(folder, 48)


def made(folder: Path, **changes: Any) -> MultimodalClassifier:
    return MultimodalClassifier(files=folder, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def fitted(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> MultimodalClassifier:
    return made(folder, training=LONGER).fit(*rows)


def test_it_learns_what_the_columns_say(fitted: MultimodalClassifier, folder: Path, tmp_path: Path) -> None:
    X, y = table(tmp_path, 60, seed=7)
    fitted = clone_fitted(fitted, tmp_path)
    assert fitted.score(X, y) > 0.8
    for name in ("text", "table", "photo", "clip"):
        assert (fitted.predict(X, without=[name]) == y).mean() > 0.6


def clone_fitted(model: MultimodalClassifier, folder: Path) -> MultimodalClassifier:
    model.save(folder / "model")
    return MultimodalClassifier.load(folder / "model", files=folder)


def test_probabilities_sum_to_one_and_decide(
    fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]]
) -> None:
    shares = fitted.predict_proba(rows[0])
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-12)
    assert (fitted.classes_[shares.argmax(1)] == fitted.predict(rows[0])).all()


@pytest.mark.parametrize(
    ("name", "columns"), [("photo", ["photo"]), ("text", ["story"]), ("table", ["size", "letter"])]
)
def test_a_missing_modality_is_the_row_with_it_masked(
    fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]], name: str, columns: list[str]
) -> None:
    X = rows[0].head(9).copy()
    for column in columns:
        X[column] = None
    found = fitted.predict_proba(X)
    np.testing.assert_allclose(found, fitted.predict_proba(rows[0].head(9), without=[name]), atol=1e-6)
    assert np.abs(found - fitted.predict_proba(rows[0].head(9))).max() > 1e-3


def test_rows_and_columns_may_come_in_any_order(
    fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]]
) -> None:
    X, order = rows[0].head(20), np.random.default_rng(0).permutation(20)
    turned = X.iloc[order][X.columns[::-1]]
    np.testing.assert_allclose(fitted.predict_proba(turned), fitted.predict_proba(X)[order], atol=1e-5)


def test_the_order_of_columns_does_not_change_what_is_learned(
    fitted: MultimodalClassifier, folder: Path, rows: tuple[pd.DataFrame, list[str]]
) -> None:
    X, y = rows
    other = made(folder).fit(X[X.columns[::-1]], y)
    same = made(folder).fit(X, y)
    np.testing.assert_array_equal(other.predict_proba(X), same.predict_proba(X))


@pytest.mark.parametrize("fusion", ["middle", "bottleneck", "concatenate", "gate", "average"])
def test_every_fusion_trains_and_is_saved(
    folder: Path, rows: tuple[pd.DataFrame, list[str]], tmp_path: Path, fusion: Any
) -> None:
    model = made(folder, fusion=FUSION.replace(fusion=fusion)).fit(*rows)
    saved = MultimodalClassifier.load(model.save(tmp_path), files=folder)
    np.testing.assert_allclose(saved.predict_proba(rows[0]), model.predict_proba(rows[0]), atol=1e-6)


def test_half_precision_is_not_for_several_modalities(fitted: MultimodalClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    assert isinstance(transfuse.load(tmp_path), MultimodalClassifier)
    with pytest.raises(ConfigError, match=r"^dtype='bfloat16': a MultimodalClassifier computes in float32$"):
        transfuse.load(tmp_path, dtype="bfloat16")


@pytest.mark.parametrize("align", ["trim", "interpolate", "attend", "resample"])
def test_every_alignment_trains(folder: Path, rows: tuple[pd.DataFrame, list[str]], align: Any) -> None:
    model = made(folder, fusion=FUSION.replace(align=align)).fit(*rows)
    assert model.predict(rows[0].head(3)).shape == (3,)
    assert (model.results_["trimmed"] > 0) == (align == "trim")
    if align == "attend":
        lengths = model.rows_of(rows[0]).lengths_NM.mean(0)
        assert model.model_.config.fusion.longest == int(lengths.argmax())


def test_the_trimmed_share_is_of_tokens(fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]]) -> None:
    lengths = fitted.rows_of(rows[0].head(6)).lengths_NM
    wanted = 1 - 4 * lengths.min(1).sum() / lengths.sum()
    assert trimmed_share(fitted.rows_of(rows[0].head(6))) == pytest.approx(wanted)


def test_a_directory_says_what_it_is_and_keeps_no_pickle(
    fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]], folder: Path, tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "transfuse.json", "tokenizer.json"}
    assert kind_of(tmp_path) == "MultimodalClassifier"
    opened = load(tmp_path)
    opened.set_params(files=folder)
    np.testing.assert_allclose(opened.predict_proba(rows[0]), fitted.predict_proba(rows[0]), atol=1e-6)
    assert "accuracy" in (tmp_path / "README.md").read_text()
    with pytest.raises(ModelDirectoryError, match="not a multimodal model of numbers"):
        MultimodalRegressor.load(tmp_path)


def test_trees_stand_for_the_table_and_are_saved_exactly(
    folder: Path, rows: tuple[pd.DataFrame, list[str]], tmp_path: Path
) -> None:
    X, y = rows
    towers = TOWERS.replace(table="trees")
    model = made(folder, towers=towers, fusion=FUSION.replace(fusion="average")).fit(X, y)
    assert model.trees_ is not None and model.trees_.model is not None
    table_rows = X[["letter", "size"]]
    plain = plain_columns(table_rows, model.form_.features)
    shares = np.maximum(model.trees_.model.predict_proba(plain), 1e-6)
    np.testing.assert_allclose(model.trees_.scores(plain), np.log(shares), atol=1e-9)
    assert isinstance(model.trees_.model, HistGradientBoostingClassifier)
    saved = MultimodalClassifier.load(model.save(tmp_path), files=folder)
    made(folder).fit(X, y).save(tmp_path / "again")
    model.save(tmp_path / "again")
    plainer = made(folder).fit(X, y)
    plainer.save(tmp_path / "again")  # where trees were saved before
    after = MultimodalClassifier.load(tmp_path / "again", files=folder)
    assert after.trees_ is None
    np.testing.assert_array_equal(after.predict_proba(X.head(3)), plainer.predict_proba(X.head(3)))
    assert saved.trees_ is not None and (tmp_path / "trees.json").exists()
    np.testing.assert_array_equal(saved.trees_.scores(plain), model.trees_.scores(plain))
    unseen = pd.DataFrame({**X.head(3).to_dict("list"), "letter": ["new", None, "x"]})
    np.testing.assert_allclose(saved.predict_proba(unseen), model.predict_proba(unseen), atol=1e-6)
    (tmp_path / "trees.json").unlink()
    with pytest.raises(ModelDirectoryError, match=r"trees\.json: No such file"):
        MultimodalClassifier.load(tmp_path)
    with pytest.raises(ConfigError, match="must be one of concatenate, gate, average"):
        made(folder, towers=towers).fit(X, y)


@pytest.mark.parametrize("fusion", ["concatenate", "gate", "average"])
def test_trees_alone_are_as_good_as_trees(fusion: str) -> None:
    draw = np.random.default_rng(0)
    X = pd.DataFrame({"x": draw.standard_normal(600), "z": draw.standard_normal(600)})
    y = 200_000 + 50_000 * (np.sign(X["x"]) + X["z"] ** 2 + 0.1 * draw.standard_normal(600)).to_numpy()
    towers, chosen = TOWERS.replace(table="trees"), FUSION.replace(fusion=fusion)
    model = MultimodalRegressor(towers=towers, fusion=chosen, training=SHORT).fit(X[:500], y[:500])
    assert model.trees_ is not None and model.trees_.model is not None
    by_trees = model.mean_ + model.scale_ * model.trees_.model.predict(plain_columns(X[500:], model.form_.features))
    assert model.score(X[500:], y[500:]) > r2_score(y[500:], by_trees) - 0.02 > 0.7


@pytest.mark.parametrize("kind", ["class", "number"])
def test_scores_of_training_rows_are_by_trees_that_did_not_see_them(kind: str) -> None:
    """Each row's scores are those of trees grown here on the folds that it is not in."""
    draw = np.random.default_rng(0)
    X, y = draw.random((60, 2)), np.arange(60) % 2
    order = np.argsort(X[:, 0])
    y = y[order] if kind == "class" else y[order] + draw.random(60)
    weights = draw.random(60) + 0.5
    tower, unseen = TreeTower.fit(X, y, weights, [], kind, 0)
    folds: Any = StratifiedKFold if kind == "class" else KFold
    new: Any = HistGradientBoostingClassifier if kind == "class" else HistGradientBoostingRegressor
    for learned, rows in folds(5, shuffle=True, random_state=0).split(X, y):
        model = new(random_state=0, early_stopping=False).fit(X[learned], y[learned], sample_weight=weights[learned])
        wanted = np.log(model.predict_proba(X[rows])) if kind == "class" else model.predict(X[rows])[:, None]
        np.testing.assert_allclose(unseen[rows], wanted, atol=1e-9)
    assert np.abs(tower.scores(X) - unseen).max() > 0.1


def test_what_is_fused_of_training_rows_are_their_unseen_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    grown, fused = [], []

    def fit(*arguments: Any) -> tuple[TreeTower, np.ndarray]:
        grown.append(TreeTower.fit(*arguments))
        return grown[-1]

    def scores(scores_NK: np.ndarray, present_N: np.ndarray) -> Scores:
        fused.append(scores_NK)
        return Scores(scores_NK, present_N)

    draw = np.random.default_rng(0)
    X, y = pd.DataFrame({"x": draw.random(60), "z": draw.random(60)}), draw.integers(0, 2, 60)
    towers, fusion = TOWERS.replace(table="trees"), FUSION.replace(fusion="gate")
    model = MultimodalClassifier(towers=towers, fusion=fusion, training=SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(multimodal, "TreeTower", SimpleNamespace(fit=fit))
        patch.setattr(multimodal, "Scores", scores)
        model.fit(X, y)
    ((tower, unseen),) = grown
    kept, aside = model._sides(y)
    np.testing.assert_array_equal(fused[0][kept], unseen)
    by_all = tower.scores(plain_columns(X, model.form_.features))
    np.testing.assert_array_equal(fused[0][aside], by_all[aside])
    assert np.abs(by_all[kept] - unseen).max() > 0.1


@pytest.mark.parametrize("counts", [(38, 1, 1), (20, 18, 1, 1), (39, 1)])
def test_trees_take_classes_of_one_row(counts: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    y = np.repeat(np.arange(len(counts)), counts)
    X = pd.DataFrame({"x": y + draw.random(40), "z": draw.random(40)})
    towers, fusion = TOWERS.replace(table="trees"), FUSION.replace(fusion="average")
    for seed in range(4):
        model = MultimodalClassifier(towers=towers, fusion=fusion, training=SHORT, random_state=seed)
        shares = model.fit(X, y, sample_weight="balanced").predict_proba(X)
        assert shares.shape == (40, len(counts)) and np.isfinite(shares).all()


def test_numbers_are_learned_in_their_own_range(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X, y = rows
    wanted = np.array([1000 + 50 * "abc".index(label) for label in y], dtype=float)
    model = MultimodalRegressor(files=folder, **{**SMALL, "training": LONGER}).fit(X, wanted)
    assert is_regressor(model) and model.score(X, wanted) > 0.5
    assert [score.name for score in model.evaluate(X, wanted)] == ["R²", "RMSE", "MAE"]


def test_towers_start_from_checkpoints_and_may_be_frozen(
    folder: Path, rows: tuple[pd.DataFrame, list[str]], tmp_path: Path
) -> None:
    tiny = BertConfig(vocab_size=70, d_model=8, n_layers=1, n_heads=2, max_positions=20)
    training = SHORT.replace(batch_tokens=64)
    encoder = TextEncoder(model=tiny, masking=MaskingConfig(context=16), training=training, validation_fraction=0.3)
    encoder.fit([" ".join(rows[0]["story"].head(8)) + ". And so on." for _ in range(6)]).save(tmp_path / "bert")
    vit = ImageTower(ImageTowerConfig(size=12, patch=4, channels=1, d_model=8, n_layers=1, n_heads=2))
    for weight in vit.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    save_model(vit, tmp_path / "vit")
    towers = TOWERS.replace(text_from=str(tmp_path / "bert"), image_from=str(tmp_path / "vit"))
    for frozen in (True, False):
        model = made(folder, towers=towers.replace(frozen=frozen))
        with pytest.warns(TruncatedWarning, match="1 rows have more than 20 pieces of text"):
            model.fit(*rows)
        assert model.results_["cut_texts"] == 1
        text, _, photo, _ = model.model_.towers
        assert torch.equal(photo.patches.weight, vit.patches.weight) == frozen
        known = dict(encoder.model_.named_parameters())["encoder.blocks.0.attention.query.weight"]
        assert torch.equal(text.bert.encoder.blocks[0].attention.query.weight, known) == frozen
    with pytest.raises(ModelDirectoryError, match="not a vision Transformer"):
        made(folder, towers=towers.replace(image_from=str(tmp_path / "bert"))).fit(*rows)


def spoilt(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> pd.DataFrame:
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:40])
    X = rows[0].copy()
    X.loc[5, "photo"] = "cut.png"
    X.loc[7, "clip"] = "nowhere.wav"
    return X


def test_unreadable_files_are_refused_missing_or_dropped(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X, y = spoilt(folder, rows), rows[1]
    with pytest.raises(DataError, match=r"row 6, column 'photo': .*\(and 1 more\)"):
        made(folder).fit(X, y)
    with pytest.warns(UnreadableWarning, match="2 files of 2 rows cannot be read and are taken for missing"):
        missing = made(folder, unreadable="missing").fit(X, y)
    with pytest.warns(UnreadableWarning, match="left out of training"):
        made(folder, unreadable="drop").fit(X, y)
    without = X.copy()
    without.loc[5, "photo"] = None
    without.loc[7, "clip"] = None
    with pytest.warns(UnreadableWarning):
        found = missing.predict_proba(X)
    np.testing.assert_allclose(found, missing.predict_proba(without), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = made(folder, unreadable="missing").fit(without, y)
    np.testing.assert_array_equal(same.predict_proba(without), missing.predict_proba(without))


def test_rows_with_nothing_are_named(fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X = rows[0].head(4).copy()
    X.loc[2] = None
    with pytest.raises(DataError, match="row 3: every modality is missing"):
        fitted.predict(X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, [*y[:-1], None]), r"y\[47\] is missing"),
        (lambda X, y: (X, y[:-1]), "X has 48 rows and y has 47"),
        (lambda X, y: (X, ["a"] * 48), "1 class"),
        (lambda X, y: (X.head(0), []), "is empty"),
        (lambda X, y: (X.assign(size=[np.inf] * 48), y), "column 'size', row 1: inf is not a finite number"),
        (lambda X, y: (X.assign(photo="../x.png"), y), "outside"),
        (lambda X, y: (pd.concat([X, X[["size"]]], axis=1), y), "two columns are called 'size'"),
    ],
)
def test_bad_rows_are_named(folder: Path, rows: tuple[pd.DataFrame, list[str]], change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(folder).fit(*change(*rows))


def test_mixed_cells_of_a_number_column_are_named(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X = rows[0].assign(size=[1.0] * 47 + ["big"])
    with pytest.raises(DataError, match="column 'size', row 48: big is not a finite number"):
        made(folder, kinds={"letter": "category", "size": "number"}).fit(X, rows[1])


def test_columns_must_be_there(fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]]) -> None:
    with pytest.raises(DataError, match="there is no column 'clip', which the model was trained on"):
        fitted.predict(rows[0].drop(columns="clip"))
    more = rows[0].head(3).assign(other=1)
    np.testing.assert_allclose(fitted.predict_proba(more), fitted.predict_proba(rows[0].head(3)), atol=1e-6)


def test_a_column_of_nothing_is_left_out_and_a_level_never_seen_is_taken(
    folder: Path, rows: tuple[pd.DataFrame, list[str]]
) -> None:
    X = rows[0][["letter", "size"]].assign(empty=None)
    model = made(folder).fit(X, rows[1])
    assert model.form_.kinds["empty"] == "ignored"
    assert np.isfinite(model.predict_proba(X.head(2).assign(letter="never", empty="now"))).all()
    assert np.isfinite(model.predict_proba(X.head(2).assign(size=[None, np.nan]))).all()


def test_weights_of_zero_take_rows_out(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    """Rows that weigh nothing may hold anything: what is learned is the same."""
    X, y = rows[0][["size"]], np.array(rows[1])
    weights = np.ones(48)
    weights[::3] = 0
    other = np.where(np.arange(48) % 3 == 0, "c", y)
    validation = (X, rows[1])
    plain = AugmentationConfig(modality_dropout=0)
    first, second = (
        made(folder, kinds=None, augmentation=plain).fit(X, one, sample_weight=weights, validation=validation)
        for one in (y, other)
    )
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    with pytest.raises(DataError, match="finite numbers of at least 0"):
        made(folder).fit(X, y, sample_weight=-weights)


def test_interrupted_runs_are_taken_up_again(
    folder: Path, rows: tuple[pd.DataFrame, list[str]], tmp_path: Path
) -> None:
    training = SHORT.replace(max_steps=6, validate_every=2, schedule="inverse_sqrt")
    whole = made(folder, training=training, run_dir=tmp_path / "whole").fit(*rows)
    part = made(folder, training=training, run_dir=tmp_path / "part")
    import transfuse.training.run as run

    steps = run.Run._stop_if_asked
    try:
        run.Run._stop_if_asked = _stop_at_four  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            part.fit(*rows)
    finally:
        run.Run._stop_if_asked = steps  # type: ignore[method-assign]
    part.fit(*rows, resume=True)
    np.testing.assert_array_equal(part.predict_proba(rows[0]), whole.predict_proba(rows[0]))


def _stop_at_four(self: Any, interrupts: Any) -> None:
    if self.state.position.step == 4:
        raise KeyboardInterrupt


def test_targets_are_the_same_whatever_their_type(rows: tuple[pd.DataFrame, list[str]], folder: Path) -> None:
    X, y = rows[0][["size", "letter"]], np.array(["abc".index(label) for label in rows[1]])
    model = made(folder).fit(X, y)
    wanted = [score.value for score in model.evaluate(X, y)]
    assert [score.value for score in model.evaluate(X, y.astype(float))] == wanted
    assert [score.value for score in model.evaluate(X, y.astype(str))] == wanted
    two = made(folder).fit(X, y == 0)
    assert [one.value for one in two.evaluate(X, y == 0)] == [
        one.value for one in two.evaluate(X, (y == 0).astype(int))
    ]


def test_what_is_judged_by_or_weighs_nothing_is_not_learned_from(folder: Path) -> None:
    X = pd.DataFrame({"x": np.arange(40.0)})
    y = np.arange(40.0)
    weights = np.ones(40)
    weights[3], y[3], X.loc[3, "x"] = 0, 1e6, 1e9
    far = pd.DataFrame({"x": [1e6, 2e6]})
    model = MultimodalRegressor(**{**SMALL, "kinds": None}).fit(
        X, y, sample_weight=weights, validation=(far, [7e6, 8e6])
    )
    assert model.mean_ == pytest.approx(np.delete(np.arange(40.0), 3).mean())
    assert model.form_.features.edges["x"][-1] == 39.0
    held = MultimodalRegressor(**{**SMALL, "kinds": None}).fit(X.drop(3), np.delete(y, 3))
    learned = held.divided(X.drop(3).reset_index(drop=True), np.delete(y, 3))[0]
    assert held.mean_ == pytest.approx(np.mean(learned[1]))


def test_validation_tables_are_checked_and_their_rows_named(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X, y = rows
    with pytest.raises(DataError, match="validation: there is no column 'clip'"):
        made(folder).fit(X, y, validation=(X.drop(columns="clip"), y))
    with pytest.raises(DataError, match="validation row 3, column 'photo'"):
        made(folder).fit(X, y, validation=(X.assign(photo=["0.png"] * 2 + ["gone.png"] + ["1.png"] * 45), y))
    ignored = made(folder, kinds={"letter": "category", "clip": "ignored"})
    ignored.fit(X, y, validation=(X.drop(columns="clip"), y))


def test_late_rows_have_their_own_numbers(fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X = pd.concat([rows[0][["letter", "size"]]] * 12, ignore_index=True).assign(photo=None, clip=None, story=None)
    X.loc[530] = None
    with pytest.raises(DataError, match="row 531: every modality is missing"):
        fitted.predict(X)
    X = X.fillna({"letter": "x", "size": 1.0})
    X.loc[540, "photo"] = "gone.png"
    with pytest.raises(DataError, match="row 541, column 'photo'"):
        fitted.predict(X)


def test_a_directory_keeps_its_settings(folder: Path, rows: tuple[pd.DataFrame, list[str]], tmp_path: Path) -> None:
    X, y = rows[0][["letter", "size"]].assign(junk=[f"id{i}" for i in range(48)]), rows[1]
    opened = MultimodalClassifier.load(made(folder).fit(X, y).save(tmp_path))
    assert opened.kinds == {"letter": "category"} and opened.get_params()["towers"] == TOWERS
    clone(opened).fit(X.drop(columns="junk"), y)
    with pytest.raises(DataError, match="classes are strings, or numbers"):
        made(folder).fit(X, pd.date_range("2024-01-01", periods=48))
    with pytest.raises(DataError, match="holds int, str"):
        made(folder).fit(X, ["a", 1] * 24)


def test_another_start_is_another_run(folder: Path, rows: tuple[pd.DataFrame, list[str]], tmp_path: Path) -> None:
    for name in ("one", "two"):
        vit = ImageTower(ImageTowerConfig(size=8, patch=4, channels=1, d_model=8, n_layers=1, n_heads=2))
        for weight in vit.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        save_model(vit, tmp_path / name)
    X, y = rows[0][["photo", "size"]], rows[1]
    start = TOWERS.replace(image_from=str(tmp_path / "one"), frozen=True)
    made(folder, kinds=None, towers=start, run_dir=tmp_path / "run").fit(X, y)
    other = made(folder, kinds=None, towers=start.replace(image_from=str(tmp_path / "two")), run_dir=tmp_path / "run")
    with pytest.raises(CheckpointError, match="starts"):
        other.fit(X, y, resume=True)
    assert not list((tmp_path / "run").glob("*.npy"))
    (tmp_path / "one" / "preprocessor_config.json").write_text('{"image_mean": [0.485, 0.456, 0.406]}')
    with pytest.raises(ModelDirectoryError, match="image_mean"):
        made(folder, kinds=None, towers=start).fit(X, y)


def test_rows_are_divided_for_the_report_as_for_the_training() -> None:
    """A class of one row is learned from, so it must not be judged by afterwards."""
    X, y = pd.DataFrame({"x": np.arange(30.0)}), np.array(["a", "b"] * 14 + ["c", "d"])
    for seed in range(8):
        model = MultimodalClassifier(
            towers=TOWERS, fusion=FUSION, training=SHORT, validation_fraction=0.3, random_state=seed
        )
        learned, judged = model.fit(X, y).divided(X, y)
        assert {"a", "b", "c", "d"} == set(learned[1]) and not {"c", "d"} & set(judged[1])
        assert model.results_["held_out_rows"] == len(judged[1])
        wanted = {one.name: one.value for one in model.evaluate(*judged)}
        told = {one["name"]: one["value"] for one in model.results_["held_out_metrics"]}
        assert told == pytest.approx(wanted)


def test_balanced_weights_are_those_of_the_classes(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X, y = rows[0][["size"]], np.array(rows[1])
    by_hand = np.array([48 / (3 * (y == label).sum()) for label in y])
    plain = made(folder, kinds=None, random_state=1)
    named = clone(plain).fit(X, y, sample_weight="balanced").predict_proba(X)
    np.testing.assert_array_equal(named, clone(plain).fit(X, y, sample_weight=by_hand).predict_proba(X))
    assert np.abs(named - clone(plain).fit(X, y).predict_proba(X)).max() > 0
    with pytest.raises(DataError, match="sample_weight='even' must be numbers"):
        plain.fit(X, y, sample_weight="even")


def test_balanced_weights_hold_for_rows_to_judge_by_too() -> None:
    X = pd.DataFrame({"x": np.arange(60.0)})
    y = np.repeat(["a", "b"], [50, 10])
    model = MultimodalClassifier(towers=TOWERS, fusion=FUSION, training=SHORT)
    model.classes_ = np.array(["a", "b"])
    targets = np.repeat([0, 1], [50, 10])
    held = X[48:52].reset_index(drop=True), targets[48:52]
    for validation, sample_weight, ratio in ((None, "balanced", 5.0), (held, "balanced", 5.0), (held, None, 1.0)):
        rows = model._divide(X, targets, validation, sample_weight)
        for part in (rows.kept, rows.aside):
            own = rows.weights[part]
            np.testing.assert_allclose(own[rows.targets[part] == 1], ratio * own[rows.targets[part] == 0][0], rtol=1e-6)
            assert own.mean() == pytest.approx(1)
    model.fit(X, y, sample_weight="balanced", validation=(held[0], y[48:52]))


@pytest.mark.parametrize("weight", [1e-50, 1e39, 1e308])
def test_weights_of_any_size_weigh_alike(weight: float) -> None:
    X, y = pd.DataFrame({"x": np.arange(20.0)}), np.arange(20) % 2
    model = MultimodalClassifier(towers=TOWERS, fusion=FUSION, training=SHORT)
    found = clone(model).fit(X, y, sample_weight=np.full(20, weight)).predict_proba(X)
    np.testing.assert_array_equal(found, clone(model).fit(X, y).predict_proba(X))


@pytest.mark.parametrize("left_out", ["a", "c"])
def test_trees_name_a_class_that_no_row_is_left_of(left_out: str) -> None:
    X, y = pd.DataFrame({"x": np.arange(60.0)}), np.repeat(["a", "b", "c"], 20)
    towers, fusion = TOWERS.replace(table="trees"), FUSION.replace(fusion="gate")
    model = MultimodalClassifier(towers=towers, fusion=fusion, training=SHORT)
    with pytest.raises(DataError, match=f"class '{left_out}' has no row that trees could learn it from"):
        model.fit(X, y, sample_weight=(y != left_out).astype(float))


def test_letters_are_made_small_or_not() -> None:
    X = pd.DataFrame({"story": ["The Cat", "the oak"] * 20})
    for lowercase in (True, False):
        towers = TOWERS.replace(lowercase=lowercase)
        model = MultimodalClassifier(kinds={"story": "text"}, towers=towers, fusion=FUSION, training=SHORT)
        shares = model.fit(X, [0, 1] * 20).predict_proba(pd.DataFrame({"story": ["The Cat", "the cat"]}))
        assert (shares[0] == shares[1]).all() == lowercase


def test_cut_sounds_are_told_of(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    with pytest.warns(TruncatedWarning, match="48 sounds are longer than max_seconds=0.02"):
        made(folder, sounds=SMALL["sounds"].replace(max_seconds=0.02)).fit(*rows)  # type: ignore[attr-defined]


def test_cut_texts_are_told_of(rows: tuple[pd.DataFrame, list[str]]) -> None:
    X = rows[0][["story", "size"]].assign(memo=["", "x " * 30] * 24)
    model = MultimodalClassifier(**{**SMALL, "kinds": {"story": "text", "memo": "text"}})
    with pytest.warns(
        TruncatedWarning, match=r"^24 rows have more than 24 pieces of text, and are cut \(towers\.max_p"
    ):
        model.fit(X, rows[1])
    assert model.results_["cut_texts"] == 24
    with pytest.warns(TruncatedWarning, match="^1 rows have more than 24 pieces"):
        model.predict(X.head(2))


@pytest.mark.parametrize("seed", range(3))
def test_what_no_row_of_training_has_says_little(seed: int) -> None:
    """A level that is new, or a cell that is missing, in columns that always told the class."""
    draw = np.random.default_rng(0)
    X = pd.DataFrame({"k": draw.choice(list("abcd"), 200), "a": draw.normal(size=200)})
    one, other = X["k"].isin(["a", "b"]).to_numpy(), (X["a"] > 0).to_numpy()
    training = LONGER.replace(max_steps=200, batch_tokens=1024)
    settings = {"towers": TOWERS, "fusion": FUSION, "training": training, "random_state": seed}
    unseen = pd.DataFrame({"k": ["new", None, "a"], "a": [0.1, 0.1, None]})
    for y, rows in ((one, [0, 1]), (other, [2])):
        model = MultimodalClassifier(**settings).fit(X, y)  # type: ignore[arg-type]
        assert model.score(X, y) > 0.95
        shares = model.predict_proba(unseen)[rows]
        assert (np.abs(shares[:, 1] - 0.5) < 0.48).all(), shares


def test_lists_keep_their_types_and_empty_cells_are_missing() -> None:
    rows = [[float(i % 2), "", "uv"[i % 2]] for i in range(40)]
    model = MultimodalClassifier(towers=TOWERS, fusion=FUSION, training=SHORT).fit(rows, [i % 2 for i in range(40)])
    assert model.form_.kinds == {"x0": "number", "x1": "ignored", "x2": "category"}
    with pytest.raises(DataError, match="two columns are called 'x0'"):
        model.predict(pd.DataFrame([[1.0, "", "u", 2.0]], columns=["x0", "x1", "x2", "x0"]))


# the scikit-learn contract


def test_it_follows_the_contract(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    X, y = rows
    model = made(folder)
    assert is_classifier(model) and clone(model).get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert model.fit(X, y) is model
    assert model.feature_names_in_.tolist() == X.columns.tolist() and model.n_features_in_ == 5
    assert model.classes_.tolist() == ["a", "b", "c"]
    search = GridSearchCV(made(folder), {"fusion__n_layers": [1, 2]}, cv=2).fit(X, y)
    assert search.best_params_["fusion__n_layers"] in (1, 2)
    assert len(cross_val_score(made(folder), X, y, cv=2)) == 2
    tuned = MultimodalClassifier().set_params(training__epochs=2, towers__text_from="a")
    assert tuned.training == multimodal.FINE_TUNING.replace(epochs=2)
    assert MultimodalRegressor().set_params(training__epochs=2).training == multimodal.TRAINING.replace(epochs=2)
    of_table = made(folder, training=None).set_params(training__max_steps=2)
    epochs = GridSearchCV(of_table, {"training__batch_tokens": [200, 400]}, cv=2, error_score="raise")
    assert epochs.fit(X[["size", "letter"]], y).best_params_["training__batch_tokens"] in (200, 400)
    piped = make_pipeline(FunctionTransformer(lambda frame: frame.drop(columns="clip")), made(folder)).fit(X, y)
    assert piped.predict(X).shape == (48,)


def test_arrays_have_numbered_columns() -> None:
    draw = np.random.default_rng(0)
    X = draw.random((40, 3))
    y = (X[:, 0] > 0.5).astype(int)
    model = MultimodalClassifier(towers=TOWERS, fusion=FUSION, training=SHORT).fit(X, y)
    assert model.feature_names_in_.tolist() == ["x0", "x1", "x2"]
    assert model.predict(X).dtype == y.dtype
    with pytest.raises(DataError, match="X has 6 columns, but the model was trained on 3"):
        model.predict(np.hstack([X, X]))
    with pytest.raises(DataError, match=r"y\[0\] is 0\.\d+, a number and no class; MultimodalRegressor"):
        MultimodalClassifier(towers=TOWERS, fusion=FUSION, training=SHORT).fit(X, X[:, 1])


def test_columns_of_pandas_categories() -> None:
    draw = np.random.default_rng(0)
    X = pd.DataFrame({"same": pd.Categorical(["u"] * 40), "k": pd.Categorical(draw.choice(["p", "q", ""], 40))})
    y = [str(one) for one in X["k"]]
    model = MultimodalClassifier(towers=TOWERS, fusion=FUSION, training=SHORT).fit(X, y)
    some = X[X["k"] != "p"]
    less = some.assign(k=some["k"].cat.remove_unused_categories())
    np.testing.assert_array_equal(model.predict_proba(less), model.predict_proba(some))
    assert model.form_.features.levels["k"] == sorted(["p", "q"], key=lambda k: -(X["k"] == k).sum())


def test_a_failure_leaves_a_fitted_model_as_it_was(
    fitted: MultimodalClassifier, rows: tuple[pd.DataFrame, list[str]]
) -> None:
    before = fitted.predict_proba(rows[0].head(3))
    with pytest.raises(DataError):
        fitted.fit(rows[0], ["a"] * 48)
    np.testing.assert_array_equal(fitted.predict_proba(rows[0].head(3)), before)


def test_big_pictures_cost_what_small_ones_do(folder: Path, rows: tuple[pd.DataFrame, list[str]]) -> None:
    Image.new("RGB", (3000, 2000), "white").save(folder / "big.jpg")
    X = rows[0].copy()
    X.loc[0, "photo"] = "big.jpg"
    model = made(folder).fit(X, rows[1])
    assert model.rows_of(X.head(2)).batch([0, 1]).parts[2][0].shape == (2, 1, 8, 8)
