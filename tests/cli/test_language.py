"""A language model from the command line: trained on files, continuing prompts, scored, and refusing what it must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import transfuse
from commands import failure, run

TEXT = "ten green bottles, hanging on the wall.\nnine green bottles, hanging on the wall.\n" * 30
SMALL = ["model.vocab_size=300", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.d_hidden=24"]
SMALL += ["model.max_positions=64", "training.max_steps=8", "training.batch_tokens=256", "training.validate_every=4"]
SETTINGS = ["--context", "32", *(word for setting in SMALL for word in ("--set", setting))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("language")
    (home / "song.txt").write_text(TEXT)
    done = run("fit", "generate", home / "song.txt", "--out", home / "model", *SETTINGS)
    assert done.stdout == f"{home / 'model'}\n"
    assert "held out: bits a byte" in done.stderr
    return home


def test_standard_input_is_one_prompt_continued_as_it_is_written(home: Path) -> None:
    prompt = "ten green bottles,\nnine"
    done = run("predict", home / "model", "-", "--set", "search.max_tokens=12", given=f"{prompt}\n".encode())
    model = transfuse.load(home / "model")
    assert isinstance(model, transfuse.LanguageModel)
    expected = model.predict_n_best([prompt], model.search.replace(max_tokens=12))[0][0].text
    assert done.stdout == expected + "\n"


def test_a_file_has_a_prompt_a_line(home: Path) -> None:
    (home / "prompts.txt").write_text("ten\nnine green\n")
    settings = ["--set", "search.sample=false", "--set", "search.max_tokens=60", "--set", "search.loop_repeats=2"]
    done = run("predict", home / "model", home / "prompts.txt", "--json", *settings)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["source"] for row in rows] == ["ten", "nine green"]
    for row in rows:
        (output,) = row["outputs"]
        assert set(output) == {"text", "score", "log_probability", "finished", "loop"}
        assert output["loop"] is None or set(output["loop"]) == {"start", "period"}
    plain = run("predict", home / "model", home / "prompts.txt", *settings)
    assert len(plain.stdout.splitlines()) == 2


def test_text_is_scored(home: Path) -> None:
    done = run("evaluate", home / "model", home / "song.txt", "--json")
    scores = json.loads(done.stdout)["scores"]
    assert [score["name"] for score in scores] == ["perplexity", "word perplexity", "bits a byte"]


def test_standard_input_is_learned_from_and_a_run_resumed(home: Path, tmp_path: Path) -> None:
    run("fit", "generate", "-", "--out", tmp_path / "m", *SETTINGS, given=TEXT.encode())
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert weights == (home / "model" / "model.safetensors").read_bytes()
    code, message = failure("fit", "generate", "-", "--out", tmp_path / "m", *SETTINGS, given=TEXT.encode())
    assert code == 2
    assert "stdin.txt is there from an earlier run; resume it" in message
    run("fit", "generate", "-", "--out", tmp_path / "m", "--resume", *SETTINGS)  # the text was kept
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == weights


def test_bad_input_is_named(home: Path, tmp_path: Path) -> None:
    model, prompt = home / "model", b"ten"
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"fine\nf\xfcr\n")
    (tmp_path / "c.jsonl").write_text('{"body": "a"}\n')
    fit = ["fit", "generate"]
    cases: list[tuple[tuple[int, str], int, str]] = [
        (failure(*fit, tmp_path / "empty.txt", "--out", tmp_path / "a"), 2, "the corpus holds no text"),
        (failure(*fit, tmp_path / "latin.txt", "--out", tmp_path / "b"), 2, "latin.txt:2: byte 2 of the line is 0xfc"),
        (
            failure(*fit, tmp_path / "c.jsonl", "--out", tmp_path / "c"),
            2,
            "c.jsonl:1: expected an object with a string",
        ),
        (failure(*fit, tmp_path / "none", "--out", tmp_path / "d"), 2, "none: No such file"),
        (failure("predict", model, "-", given=b"a\xff"), 2, "stdin: byte 2 is 0xff, which is not UTF-8"),
        (failure("predict", model, "-", given=b"\n"), 2, "X[0]: the text is empty"),
        (failure("predict", model, "-", given=b"%$ " * 99), 2, "tokens; at least 1 is needed and the model has 64"),
        (failure("predict", model, "-", "--beams", "4", given=prompt), 2, "needs beams=1, not beams=4"),
        (failure("predict", model, "-", "--set", "training.epochs=3", given=prompt), 2, "only settings of search"),
        (failure("evaluate", model, home / "song.txt", "--metric", "bleu"), 2, "not for a LanguageModel"),
        (failure("inspect", model, "ten"), 2, "is a LanguageModel; inspect shows encoder"),
    ]
    for (code, message), expected, part in cases:
        assert (code, part in message) == (expected, True), (message, part)
