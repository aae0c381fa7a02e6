"""What modalities and columns are worth, and ways of aligning side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from estimators.test_multimodal import FUSION, LONGER, SHORT, SMALL, TOWERS
from media import table
from transfuse import (
    ConfigError,
    DataError,
    MultimodalClassifier,
    MultimodalRegressor,
    Score,
    UnreadableWarning,
    compare_alignments,
    load,
    modality_report,
    tree_importance,
)
from transfuse.data.modalities import Chosen
from transfuse.data.rows import read_media
from transfuse.estimators import multimodal
from transfuse.reports.alignments import kept_bytes
from transfuse.reports.modalities import Alone, Drop, ModalityReport


def cells(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Two columns that tell the class, and one that does not."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, n)
    frame = pd.DataFrame({"good": y + 0.1 * draw.standard_normal(n), "noise": draw.random(n)})
    return frame.assign(also=np.where(y == 1, "u", "v")), y


@pytest.fixture(scope="module")
def fitted() -> tuple[MultimodalClassifier, tuple[Any, Any], tuple[Any, Any]]:
    learned, judged = cells(120, 0), cells(60, 1)
    model = MultimodalClassifier(towers=TOWERS, fusion=FUSION, training=LONGER).fit(*learned, validation=judged)
    return model, learned, judged


def test_shuffling_a_column_of_noise_costs_nothing(fitted: Any) -> None:
    model, learned, judged = fitted
    report = modality_report(model, *learned, held=judged, n_repeats=4)
    drops = {drop.name: drop for drop in report.columns}
    assert set(drops) == {"good", "noise", "also"}
    assert drops["noise"].mean < 5 < drops["good"].mean + drops["also"].mean
    assert report.modalities[0].name == "table" and report.modalities[0].mean > 25
    assert report.alone == {} and "one modality" in report.sentence


def test_a_drop_is_the_score_less_that_of_the_shuffled_rows(fitted: Any) -> None:
    """From the definition, by way of predict on a shuffled table."""
    model, learned, (X, y) = fitted
    report = modality_report(model, *learned, held=(X, y), n_repeats=3, random_state=9)
    draw = np.random.default_rng(9)
    orders = [draw.permutation(len(X)) for _ in range(3)]
    whole = 100 * (model.predict(X) == y).mean()
    for drop in report.columns:
        shuffled = [X.assign(**{drop.name: X[drop.name].to_numpy()[order]}) for order in orders]
        wanted = [whole - 100 * (model.predict(one) == y).mean() for one in shuffled]
        assert drop.mean == pytest.approx(np.mean(wanted)) and drop.deviation == pytest.approx(np.std(wanted, ddof=1))


def test_each_modality_alone_stands_beside_all(tmp_path: Path) -> None:
    X, y = table(tmp_path, 48)
    X.loc[3, "photo"] = None
    model = MultimodalClassifier(files=tmp_path, **SMALL).fit(X, y)
    learned, judged = model.divided(X, y)
    report = modality_report(model, *learned, held=judged, n_repeats=2)
    assert list(report.alone) == ["text", "table", "photo", "clip"]
    own = MultimodalClassifier(
        files=tmp_path,
        **{**SMALL, "kinds": {"letter": "category", "photo": "ignored", "clip": "ignored", "story": "ignored"}},
    ).fit(*learned, validation=judged)
    assert report.alone["table"].scores[0].value == pytest.approx(own.evaluate(*judged)[0].value)
    assert {drop.name for drop in report.columns} == {"letter", "size"}
    content = report.save(tmp_path / "r.html").read_text()
    assert report.sentence.split(":")[0] in content and content.count("data:image/png") == 1
    assert "all together" in report.to_text() and report.to_dict()["rows"] == 12


def report_of(fused: float, alone: float, n: int = 1000) -> ModalityReport:
    scores = [Score("accuracy", fused, "s")]
    drops = [Drop("a", 1.0, 0.1), Drop("b", 2.0, 0.1)]
    single = {"a": Alone(n, [Score("accuracy", alone, "s")], scores), "b": Alone(3, [], [], why="one class")}
    return ModalityReport(n + 5, scores, single, drops, [], [1], [1], [0, 1], 1.0)


def test_it_says_when_combining_did_not_help() -> None:
    helped = report_of(90, 80)
    assert helped.sentence.startswith(
        "Combining helped: accuracy 90 against 80 of the best single modality, a, on 1,000"
    )
    assert report_of(80, 80).sentence.startswith(
        "Combining did not help: accuracy 80, no better than the 80 of a alone"
    )
    assert "chance" in report_of(81, 80, 100).sentence and "chance" not in helped.sentence
    assert "one class" in helped.to_text() and "all together where a is" in helped.to_text()


def test_a_modality_is_judged_on_the_rows_that_have_it(tmp_path: Path) -> None:
    """Half of the pictures are missing, one is broken, one text is empty, no held-out row has a sound."""
    X, y = table(tmp_path, 48)
    model = MultimodalClassifier(files=tmp_path, unreadable="missing", **SMALL)
    (tmp_path / "9.png").write_bytes(b"no picture")
    X.loc[::2, "photo"] = None
    X.loc[5, "story"] = "  "
    learned, judged = model.divided(X, np.array(y))
    judged[0]["clip"] = None
    with pytest.warns(UnreadableWarning):
        model.fit(*learned, validation=judged)
    report = modality_report(model, *learned, held=judged, n_repeats=2)
    with_photo = judged[0]["photo"].notna() & (judged[0]["photo"] != "9.png")
    assert report.alone["photo"].n_rows == with_photo.sum() < report.n_rows == 12
    rows = judged[0][with_photo.to_numpy()]
    wanted = [label for label, there in zip(judged[1], with_photo, strict=True) if there]
    assert report.alone["photo"].fused[0].value == pytest.approx(100 * np.mean(model.predict(rows) == wanted))
    assert "none to judge by" in report.alone["clip"].why and report.alone["text"].scores


def test_residuals_of_numbers_are_drawn() -> None:
    X, y = cells(60, 0)
    model = MultimodalRegressor(towers=TOWERS, fusion=FUSION, training=SHORT).fit(X, y.astype(float))
    report = modality_report(model, X, y, held=(X, y), n_repeats=2)
    assert report.classes is None and report.outcome_picture().axes[0].get_ylabel() == "predicted minus true"
    with pytest.raises(DataError, match="60 rows and 59 targets"):
        modality_report(model, X, y, held=(X, y[:-1]))
    with pytest.raises(DataError, match="1 held-out row; R² of numbers needs at least 2"):
        modality_report(model, X, y, held=(X[:1], y[:1]))
    assert [score.name for score in model.evaluate(X[:1], y[:1])] == ["RMSE", "MAE"]
    few = MultimodalRegressor(towers=TOWERS, fusion=FUSION, training=SHORT).fit(X[:8], y[:8].astype(float))
    assert few.results_["held_out_rows"] == 2 and len(few.divided(X[:8], y[:8])[1][1]) == 2


def test_labels_may_be_spelled_otherwise(fitted: Any) -> None:
    model, learned, (X, y) = fitted
    reports = [modality_report(model, *learned, held=(X, wanted), n_repeats=2) for wanted in (y, y.astype(float))]
    pictures = [report.outcome_picture().axes[0].images[0].get_array() for report in reports]
    np.testing.assert_array_equal(*pictures)
    np.testing.assert_allclose(np.sum(pictures[0], axis=1), 1)


def test_files_of_all_rows_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = table(tmp_path, 24)
    model = MultimodalClassifier(files=tmp_path, **SMALL).fit(X, y)
    scratches = []

    def read(*given: Any) -> Any:
        scratches.append(given[-1])
        return read_media(*given)

    monkeypatch.setattr(multimodal, "read_media", read)
    modality_report(model, X, y, held=(X, y), n_repeats=1)
    assert len(scratches) >= 6 and scratches.count(None) < len(scratches)
    big = [where for where in scratches if where is not None]
    assert len(big) >= 6 and not any(where.exists() for where in big)


def test_a_shuffled_modality_is_that_of_other_rows(fitted: Any) -> None:
    model, _, (X, _) = fitted
    data = model.rows_of(X)
    order = np.random.default_rng(0).permutation(len(X))
    own = data.modalities["table"]
    shuffled = Chosen(own, order)
    there = np.ones(4, bool)
    found, wanted = (
        shuffled.part([3, 1, 4, 1], there, None, data.augmentation),
        own.part(order[[3, 1, 4, 1]].tolist(), there, None, data.augmentation),
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert (shuffled.lengths_N == own.lengths_N[order]).all()


def test_alignments_stand_side_by_side(tmp_path: Path) -> None:
    X, y = table(tmp_path, 32)
    model = MultimodalClassifier(files=tmp_path, **SMALL)
    found = compare_alignments(model, X, y, ways=["pad", "trim", "attend", "resample"])
    ways = {way.align: way for way in found.ways}
    assert list(ways) == ["pad", "trim", "attend", "resample"]
    lengths = sum(found.lengths.values())
    assert ways["pad"].tokens == pytest.approx(1 + lengths) and ways["pad"].thrown_away == 0
    assert ways["trim"].tokens == pytest.approx(1 + lengths * (1 - ways["trim"].thrown_away))
    assert ways["resample"].tokens == 1 + 4 * 16
    assert 1 + max(found.lengths.values()) >= ways["attend"].tokens - 1e-6
    assert all(way.milliseconds > 0 and way.mebibytes > 0 for way in found.ways)
    assert found.to_text().splitlines()[1].startswith("align") and len(found.to_dict()["ways"]) == 4
    with pytest.raises(ConfigError, match="align='cut' must be one of pad, trim"):
        compare_alignments(model, X, y, ways=["cut"])
    with pytest.raises(ConfigError, match="nothing is aligned"):
        compare_alignments(MultimodalClassifier(fusion=FUSION.replace(fusion="gate")), X, y, ways=["pad", "trim"])


def test_kept_bytes_are_those_of_the_graph(fitted: Any) -> None:
    model, _, (X, _) = fitted
    data = model.rows_of(X)
    small, large = (kept_bytes(model.model_, data.batch(list(range(n)))) for n in (10, 40))
    assert 3.5 < large / small < 4.1


@pytest.mark.parametrize("number", [False, True])
def test_importance_of_the_trees_in_a_multimodal_model_is_that_of_their_ensemble(number: bool, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    X = pd.DataFrame({"x": draw.random(400), "noise": draw.random(400), "letter": draw.choice(list("ab"), 400)})
    y: Any = (
        3 * X["x"] + (X["letter"] == "a") if number else np.where(X["x"] + 0.3 * (X["letter"] == "a") > 0.6, "u", "v")
    )
    kind: Any = MultimodalRegressor if number else MultimodalClassifier
    towers, fusion = TOWERS.replace(table="trees"), FUSION.replace(fusion="gate")
    model = kind(towers=towers, fusion=fusion, training=SHORT).fit(X.head(300), y[:300])
    assert model.trees_ is not None
    _, columns, wanted = model.trees_of(X.tail(100), y[300:])
    learned = model.trees_of(X.head(300), y[:300])[1:]
    found = tree_importance(model, X.tail(100), y[300:], X_train=X.head(300), y_train=y[:300])
    own = tree_importance(
        model.trees_.model,
        columns.to_numpy(),
        _numbered(wanted, number),
        X_train=learned[0].to_numpy(),
        y_train=_numbered(learned[1], number),
    )
    assert found.table.index[0] == "x" and set(found.table.index) == {"x", "noise", "letter"}
    names = dict(enumerate(columns.columns))
    theirs = own.table.rename(index=lambda name: names[int(name)])
    for column in ("permutation", "variance_held_out" if number else "gini_held_out"):
        np.testing.assert_allclose(
            found.table[column].astype(float), theirs[column].loc[found.table.index].astype(float), atol=1e-9
        )
    saved = load(model.save(tmp_path))
    again = tree_importance(saved, X.tail(100), y[300:], X_train=X.head(300), y_train=y[:300])
    pd.testing.assert_frame_equal(again.table, found.table)
    with pytest.raises(ConfigError, match="noise and drop"):
        tree_importance(model, X, y, X_train=X, y_train=y, noise=2)
    with pytest.raises(DataError, match="tower is no trees"):
        tree_importance(kind(towers=TOWERS, fusion=FUSION, training=SHORT).fit(X, y), X, y)


def _numbered(y: Any, number: bool) -> np.ndarray:
    return np.asarray(y) if number else np.unique(y, return_inverse=True)[1]
