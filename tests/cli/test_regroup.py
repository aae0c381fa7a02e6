"""`transfuse regroup` and `compare` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import failure, run

SMALL = ["model.d_model=16", "model.encoder_layers=1", "model.decoder_layers=1", "model.encoder_hidden=16"]
SMALL += ["model.decoder_hidden=16", "model.vocab_size=300", "training.max_steps=12", "training.validate_every=6"]
SMALL += ["training.batch_tokens=256", "model.max_positions=64", "search.beams=1"]
WORDS = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("regroup")
    rows = [f"{a} {b} {c}\t{c} {b} {a}" for a in WORDS for b in WORDS for c in WORDS]
    (home / "pairs.tsv").write_text("\n".join(rows) + "\n")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    run("fit", "seq2seq", home / "pairs.tsv", "--out", home / "model", *settings)
    return home


def test_a_model_is_converted_trained_compared_and_saved(home: Path) -> None:
    out, wide = home / "grouped", home / "expanded"
    words = ["regroup", home / "model", "--data", home / "pairs.tsv", "--kv-heads", "2", "--out", out]
    done = run(*words, "--tokens", "1500", "--cross-entropy", "0.5", "--expand", wide)
    assert done.stdout == f"{out}\n"
    for name in ("original", "converted", "trained", "original, trained alike"):
        assert f"\n{name}  " in done.stderr
    assert json.loads((out / "config.json").read_text())["decoder_kv_heads"] == 2
    assert json.loads((wide / "config.json").read_text())["model_type"] in ("marian", "m2m_100")
    assert "| original | 4 |" in (out / "README.md").read_text()
    assert "data:image/png" in (out / "comparison.html").read_text()
    (home / "texts.txt").write_text("one two three\nsix six five\n")
    outputs = [run("predict", folder, home / "texts.txt").stdout for folder in (out, wide)]
    assert outputs[0] == outputs[1]

    table = run("compare", home / "model", out, "--data", home / "pairs.tsv", "--context", "8", "--json")
    found = json.loads(table.stdout)["models"]
    assert [one["kv_heads"] for one in found] == [[4, 4], [2, 2]]
    assert found[0]["timings"][0]["cache_bytes"] == 2 * found[1]["timings"][0]["cache_bytes"]

    weights = (out / "model.safetensors").read_bytes()
    for further in (["--tokens", "1500"], []):  # with and without a training, which has checkpoints of its own
        code, last = failure(*words, *further)
        assert code == 2 and f"--out {out}: holds a model already; choose another folder" in last
    assert (out / "model.safetensors").read_bytes() == weights
    (out / "config.json").rename(out / "aside.json")  # as a run that was cut off left it
    code, last = failure(*words, "--tokens", "1500")
    assert code == 1 and "resume it, or choose another folder" in last
    (out / "aside.json").rename(out / "config.json")
    again = run(*words, "--tokens", "1500", "--cross-entropy", "0.5", "--resume")
    assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kv-heads", "3"], "n_kv_heads=3"),
        (["--kv-heads", "two"], "--kv-heads two: expected a number, or numbers with commas between them"),
        (["--kv-heads", "0"], "--kv-heads 0: at least 1 is needed"),
        (["--kv-heads", "2", "--method", "median"], "method='median' must be one of aligned"),
        (["--kv-heads", "2", "--tokens", "5", "--alpha", "0.1"], "give one of them"),
        (["--kv-heads", "2", "--divergence", "0"], "nor both 0"),
        (["--kv-heads", "2", "--tokens", "5", "--trains", "heads"], "trains='heads' must be one of"),
    ],
)
def test_usage_errors_say_what_is_wrong(home: Path, words: list[str], message: str) -> None:
    common = ["regroup", home / "model", "--data", home / "pairs.tsv", "--out", home / "never"]
    code, last = failure(*common, *words)
    assert code == 2 and message in last
    assert not (home / "never" / "config.json").exists()


def test_no_model_is_written_over(home: Path) -> None:
    words = ["regroup", home / "model", "--data", home / "pairs.tsv", "--kv-heads", "2"]
    for further, said in (
        (["--out", home / "model"], f"--out {home / 'model'} is the model itself"),
        (["--out", home / "x", "--expand", home / "model" / ".." / "x"], "is --expand; a model would be lost"),
        (["--out", home / "x", "--expand", home / "model"], f"--expand {home / 'model'} is the model itself"),
    ):
        code, last = failure(*words, *further)
        assert code == 2 and said in last
    assert json.loads((home / "model" / "config.json").read_text()).get("decoder_kv_heads") is None
