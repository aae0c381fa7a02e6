"""Text to vectors and classes from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import failure, run

SIZES = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_positions=32", "model.vocab_size=120"]
STEPS = ["training.max_steps=6", "training.validate_every=3", "training.batch_tokens=128"]
ROWS = [
    f"{word} the {thing}\t{kind}" for word in ("see", "find") for thing, kind in (("cat", "beast"), ("oak", "herb"))
]


def settings(*names: str) -> list[str]:
    return [word for name in names for word in ("--set", name)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("text")
    (home / "story.txt").write_text("The cat saw the oak. It sat. The oak was old.\n" * 30)
    (home / "rows.tsv").write_text("text\tkind\n" + "\n".join(ROWS * 8) + "\n")
    (home / "texts.txt").write_text("see the cat\nfind the oak\n")
    done = run(
        "fit", "encode", home / "story.txt", "--out", home / "encoder", "--context", "24", *settings(*SIZES, *STEPS)
    )
    assert done.stdout == f"{home / 'encoder'}\n"
    assert "held out: word accuracy" in done.stderr and "held out: pair accuracy" in done.stderr
    return home


def test_vectors(home: Path) -> None:
    lines = run("predict", home / "encoder", home / "texts.txt").stdout.splitlines()
    assert [len(line.split("\t")) for line in lines] == [16, 16]
    records = [
        json.loads(line) for line in run("predict", home / "encoder", home / "texts.txt", "--json").stdout.splitlines()
    ]
    assert records[0]["source"] == "see the cat" and "\t".join(map(str, records[0]["vector"])) == lines[0]


def test_in_half_precision(home: Path) -> None:
    exact, half = (
        [list(map(float, line.split("\t"))) for line in run(*words).stdout.splitlines()]
        for words in (
            ["predict", home / "encoder", home / "texts.txt"],
            ["predict", home / "encoder", home / "texts.txt", "--dtype", "bfloat16"],
        )
    )
    assert half != exact and half == [pytest.approx(row, abs=0.05) for row in exact]
    code, said = failure("predict", home / "encoder", home / "texts.txt", "--dtype", "int8")
    assert (code, said) == (2, "transfuse: dtype='int8' must be one of float32, bfloat16, float16")


def test_classes(home: Path) -> None:
    table = [home / "rows.tsv", "--source", "text", "--target", "kind"]
    words = ["fit", "classify", *table, "--from", home / "encoder", *settings(*STEPS)]
    done = run(*words, "--out", home / "classes", "--seeds", "2", "--balanced")
    assert done.stdout == f"{home / 'classes'}\n"
    assert "2 seeds: accuracy" in done.stderr
    assert set(run("predict", home / "classes", home / "texts.txt").stdout.split()) <= {"beast", "herb"}
    (first, _) = run("predict", home / "classes", home / "texts.txt", "--json").stdout.splitlines()
    record = json.loads(first)
    assert sum(record["probabilities"].values()) == pytest.approx(1)
    assert record["output"] == max(record["probabilities"], key=record["probabilities"].get)
    scores = json.loads(run("evaluate", home / "classes", *table, "--json").stdout)
    assert scores["rows"] == 32 and [score["name"] for score in scores["scores"]] == ["F1", "accuracy"]


def test_what_is_refused(home: Path) -> None:
    words = ["fit", "classify", home / "rows.tsv", "--out", home / "never", "--source", "text"]
    code, last = failure(*words, "--target", "sort")
    assert code == 2 and "no column 'sort' in the header" in last
    code, last = failure(*words, "--target", "kind", "--from", home / "nothing")
    assert code == 1 and "no such directory" in last
    from_encoder = [*words, "--target", "kind", "--from", home / "encoder", "--set"]
    for setting in ("model.d_model=8", "tokenizer.lowercase=false"):
        code, last = failure(*from_encoder, setting)
        assert code == 2 and f"--set {setting}: --from {home / 'encoder'} has its own" in last
    code, last = failure("predict", home / "encoder", home / "texts.txt", "--beams", "2")
    assert code == 2 and "are for models that write text" in last
    code, last = failure("evaluate", home / "encoder", home / "rows.tsv")
    assert code == 2 and "an encoder" in last
