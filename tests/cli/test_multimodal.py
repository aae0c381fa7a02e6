"""`transfuse fit multimodal`, and predict, evaluate and compare --align on what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import transfuse
from commands import call, failure
from media import table

SIZES = [
    *(
        "--set",
        "towers.d_model=16",
        "--set",
        "towers.n_layers=1",
        "--set",
        "towers.n_heads=2",
        "--set",
        "towers.patch=4",
    ),
    *("--set", "fusion.d_model=16", "--set", "fusion.n_layers=1", "--set", "fusion.n_heads=2"),
    *("--set", "images.size=8", "--set", "images.channels=1", "--set", "sounds.rate=4000", "--set", "sounds.n_mels=10"),
    *("--set", "training.max_steps=3", "--set", "training.batch_tokens=400", "--set", "training.warmup_steps=1"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multimodal")
    X, y = table(folder, 40)
    X.assign(answer=y, score=[f"{1.5 * 'abc'.index(label)}" for label in y]).to_csv(folder / "rows.csv", index=False)
    return folder


def test_from_a_table_to_a_report(data: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "model", data / "rows.csv"
    code, output, messages = call(
        "fit",
        "multimodal",
        rows,
        "--target",
        "answer",
        "--out",
        out,
        "--category",
        "letter",
        "--ignore",
        "score",
        *SIZES,
    )
    assert code == 0, messages
    assert output.strip() == str(out) and (out / "modalities.html").exists()
    assert "photo: photo (image)" in messages and "clip: clip (audio)" in messages and "left out: score" in messages
    assert "all together" in messages and "story alone" not in messages and "text alone" in messages
    assert "Combining" in messages
    code, output, _ = call("predict", out, rows)
    assert code == 0 and set(output.split()) <= set("abc") and len(output.split()) == 40
    code, output, _ = call("predict", out, rows, "--json")
    record = json.loads(output.splitlines()[6])
    assert record["row"] == 7 and sum(record["probabilities"].values()) == pytest.approx(1)
    code, output, _ = call("evaluate", out, rows, "--target", "answer", "--json")
    assert code == 0 and json.loads(output)["rows"] == 40
    (data / "broken.csv").write_text(rows.read_text().replace("3.png", "gone.png"))
    for words in (("predict", out, data / "broken.csv"), ("evaluate", out, data / "broken.csv", "--target", "answer")):
        code, last = failure(*words)
        assert code == 2 and "row 4, column 'photo': gone.png: No such file or directory (and" in last
        code, _, messages = call(*words, "--unreadable", "missing")
        assert code == 0 and "cannot be read and are taken for missing" in messages
        assert failure(*words, "--unreadable", "never")[0] == 2
    assert failure("predict", out, rows, "--source", "story")[1].endswith(
        "--source and --second are for models of texts"
    )
    assert failure("evaluate", out, rows)[1].endswith("which has to be named")
    assert failure("evaluate", out, rows, "--target", "answer", "--beams", "2") == (
        2,
        "transfuse: --beams: not for a MultimodalClassifier",
    )


def test_numbers_and_settings(data: Path, tmp_path: Path) -> None:
    code, output, messages = call(
        *("fit", "multimodal", data / "rows.csv", "--target", "score", "--number", "--out", tmp_path / "n"),
        *("--ignore", "answer", "--ignore", "clip", "--ignore", "photo", "--fusion", "gate", "--no-alone", "--json"),
        *SIZES,
    )
    assert code == 0, messages
    assert json.loads(output)["fused"][0]["name"] == "R²" and json.loads(output)["alone"] == {}


def test_files_may_lie_elsewhere_and_gaps_do_not_change_classes(data: Path, tmp_path: Path) -> None:
    lines = (data / "rows.csv").read_text().splitlines()
    numbered = [f"{line.rsplit(',', 2)[0]},{'abc'.index(line.rsplit(',', 2)[1])}" for line in lines[1:]]
    (tmp_path / "whole.csv").write_text("\n".join(["photo,clip,story,size,letter,answer", *numbered]) + "\n")
    (tmp_path / "gap.csv").write_text(
        "\n".join(["photo,clip,story,size,letter,answer", *numbered, numbered[0][:-1]]) + "\n"
    )
    out, files = tmp_path / "m", ("--files", data)
    code, _, messages = call(
        *("fit", "multimodal", tmp_path / "gap.csv", "--target", "answer", "--out", out, "--skip-bad-rows"),
        *("--category", "letter", "--no-alone", *files, *SIZES),
    )
    assert code == 0, messages
    code, output, _ = call("predict", out, tmp_path / "whole.csv", *files)
    assert code == 0 and set(output.split()) <= set("012")
    shown = [int(one) for one in output.split()]
    right = sum(one == int(line[-1]) for one, line in zip(shown, numbered, strict=True)) / 40
    code, output, _ = call("evaluate", out, tmp_path / "whole.csv", "--target", "answer", "--json", *files)
    assert json.loads(output)["scores"][0]["value"] == pytest.approx(100 * right)


def test_alignments(data: Path) -> None:
    code, output, messages = call(
        *("compare", data / "rows.csv", "--align", "pad,trim", "--target", "answer", "--kind", "score=ignored"),
        *("--kind", "letter=category", "--json", *SIZES),
    )
    assert code == 0, messages
    assert [way["align"] for way in json.loads(output)["ways"]] == ["pad", "trim"]
    assert "--align is for one TABLE and its --target" in failure("compare", data / "rows.csv", "--align", "pad")[1]
    assert (
        "--data, --context and --report are not for it"
        in failure(*("compare", data / "rows.csv", "--align", "pad", "--target", "answer", "--context", "8"))[1]
    )
    for idle in (("--validation", data / "rows.csv"), ("--unreadable", "drop"), ("--number",)):
        assert "are for --align" in failure("compare", data, "--data", data / "rows.csv", *idle)[1]


def test_alignments_where_files_are_broken(data: Path, tmp_path: Path) -> None:
    lines = (data / "rows.csv").read_text().splitlines()
    header = lines[0].split(",")
    broken = lines[1].split(",")
    broken[header.index("photo")] = "nowhere.png"
    for name, rows in (("train.csv", lines[1:]), ("held.csv", [",".join(broken), *lines[2:12]])):
        (tmp_path / name).write_text("\n".join([lines[0], *rows]) + "\n")
    files = ("--files", data, "--validation", tmp_path / "held.csv", "--kind", "letter=category")
    words = ("compare", tmp_path / "train.csv", "--align", "pad", "--target", "answer", *files, *SIZES)
    code, last = failure(*words)
    assert code == 2 and "validation row 1, column 'photo': nowhere.png: No such file" in last
    for unreadable in ("missing", "drop"):
        code, output, messages = call(*words, "--unreadable", unreadable, "--json")
        assert code == 0, messages
        assert [way["align"] for way in json.loads(output)["ways"]] == ["pad"]


def test_bad_tables_are_named(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    fit = ("fit", "multimodal")
    code, last = failure(*fit, data / "rows.csv", "--target", "nothing", "--out", out)
    assert code == 2 and "there is no column 'nothing'; there are photo, clip" in last
    holes = tmp_path / "holes.csv"
    holes.write_text("x,y\n1,a\n2,\n3,b\n")
    code, last = failure(*fit, holes, "--target", "y", "--out", out)
    assert code == 2 and "row 2: the target 'y' is missing" in last
    code, last = failure(*fit, data / "rows.csv", "--target", "answer", "--image", "video", "--out", out)
    assert code == 2 and "'video' is not a column" in last
    code, last = failure(
        *fit, data / "rows.csv", "--target", "answer", "--text", "story", "--category", "story", "--out", out
    )
    assert code == 2 and "'story' is given as text and as category" in last
    code, last = failure(*fit, data / "rows.csv", "--target", "answer", "--files", tmp_path, "--out", out, *SIZES)
    assert code == 2 and last.startswith("transfuse: row 1, column 'clip':") and "(and 79 more)" in last
    assert not out.exists() or not (out / "config.json").exists()


def test_cells_mean_what_they_are_spelled_whatever_else_is_in_their_column(tmp_path: Path) -> None:
    """Codes that look like numbers in a file without the one that does not, and classes likewise."""
    rows = [f"{code},{label}" for code, label in (("01", "1"), ("02", "2"), ("03", "2"), ("2A", "x"))]
    (tmp_path / "codes.csv").write_text("\n".join(["code,label", *rows * 15]) + "\n")
    for name, lines in (("held", rows[:3] * 4), ("one", rows[1:2])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["code,label", *lines]) + "\n")
    steps = [one.replace("max_steps=3", "max_steps=80") for one in SIZES]
    code, _, messages = call(
        *("fit", "multimodal", tmp_path / "codes.csv", "--target", "label", "--category", "code", "--no-alone"),
        *(
            "--validation",
            tmp_path / "held.csv",
            "--out",
            tmp_path / "m",
            "--set",
            "training.learning_rate=5e-3",
            *steps,
        ),
    )
    assert code == 0, messages
    for name in ("held", "one"):
        _, output, _ = call("evaluate", tmp_path / "m", tmp_path / f"{name}.csv", "--target", "label", "--json")
        assert json.loads(output)["scores"][0]["value"] == 100, output
    assert call("predict", tmp_path / "m", tmp_path / "one.csv")[1] == "2\n"
    decimal = [line.replace(",1", ",1.0").replace(",2", ",2.0").replace("01,", "1.0,") for line in rows[:3]]
    (tmp_path / "decimal.csv").write_text("\n".join(["code,label", *decimal]) + "\n")  # as pandas writes gaps
    _, output, _ = call("evaluate", tmp_path / "m", tmp_path / "decimal.csv", "--target", "label", "--json")
    assert json.loads(output)["scores"][0]["value"] == 100, output
    code, _, messages = call(  # and the report draws them
        *("fit", "multimodal", tmp_path / "codes.csv", "--target", "label", "--category", "code", "--no-alone"),
        *("--validation", tmp_path / "decimal.csv", "--out", tmp_path / "decimal", *SIZES),
    )
    assert code == 0 and (tmp_path / "decimal" / "modalities.html").exists(), messages
    model = transfuse.load(tmp_path / "m")
    assert model.score(pd.DataFrame({"code": ["01", 2, "03"]}), [1, 2, 2]) == 1


def test_numbers_that_are_no_classes_and_cells_that_are_no_numbers(tmp_path: Path) -> None:
    table, fit = tmp_path / "t.csv", ("fit", "multimodal", tmp_path / "t.csv", "--target", "y")
    table.write_text("x,y\n" + "".join(f"{i},{i / 7:.3f}\n" for i in range(40)))
    code, last = failure(*fit, "--out", tmp_path / "m", *SIZES)
    assert code == 2 and "column 'y' holds numbers, as 0.143, and no classes; --number learns them" in last
    (tmp_path / "one.csv").write_text("x,y\n1,2.5\n")
    code, last = failure(*fit, "--number", "--validation", tmp_path / "one.csv", "--out", tmp_path / "m", *SIZES)
    assert code == 2 and last.endswith("one.csv has 1 row; R² of numbers needs at least 2")
    code, _, messages = call(*fit, "--number", "--validation-fraction", "0.01", "--out", tmp_path / "m", *SIZES)
    assert code == 0, messages
    _, output, _ = call("evaluate", tmp_path / "m", tmp_path / "one.csv", "--target", "y", "--json")
    assert [score["name"] for score in json.loads(output)["scores"]] == ["RMSE", "MAE"]
    table.write_text("x,y\n1,2\n2,abc\n3,4\n")
    code, last = failure(*fit, "--number", "--out", tmp_path / "m", *SIZES)
    assert code == 2 and last == f"transfuse: {table}: column 'y', row 2: 'abc' is not a number"
    table.write_text("x,y\n" + "".join(f"{i},{i % 3 / 2}\n" for i in range(40)))
    assert call(*fit, "--out", tmp_path / "classes", *SIZES)[0] == 0  # few decimal numbers may be classes
