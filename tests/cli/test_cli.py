"""The command line as a stranger meets it: exit codes, what goes to stdout and what to stderr, nothing lost."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import transfuse
from commands import COMMAND, call, failure
from transfuse import Seq2Seq
from transfuse.training.checkpoint import Checkpoints
from transfuse.training.metrics_log import read_metrics

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMANDS = [
    [],
    ["fit"],
    ["fit", "seq2seq"],
    ["fit", "generate"],
    ["predict"],
    ["evaluate"],
    ["inspect"],
    ["regroup"],
    ["compare"],
    ["demo"],
]

WORDS = ["zero", "one", "two", "three", "four", "five"]
TINY = [
    "model.vocab_size=300",
    "model.d_model=16",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.encoder_heads=2",
    "model.decoder_heads=2",
    "model.encoder_hidden=16",
    "model.decoder_hidden=16",
    "training.batch_tokens=256",
    "training.warmup_steps=2",
    "training.epochs=1000",
    "search.max_tokens=8",
]

Finished = subprocess.CompletedProcess[str]


def process(*arguments: str | Path) -> Finished:
    """The command with these arguments in a process of its own, as a user has it."""
    words = [COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


def run(*arguments: str | Path, given: str | bytes = "") -> Finished:
    """The command with these arguments and `given` on its standard input, in this process."""
    code, output, messages = call(*arguments, given=given.encode() if isinstance(given, str) else given)
    return Finished([COMMAND, *map(str, arguments)], code, output, messages)


def run_all(commands: Sequence[Sequence[str | Path]]) -> list[Finished]:
    """The commands, one after another."""
    return [run(*command) for command in commands]


def fit(data: Path, out: Path, *settings: str) -> list[str | Path]:
    sets = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
    return ["fit", "seq2seq", data, "--out", out, "--metric", "exact", *sets]


def write_pairs(path: Path, count: int = 60) -> Path:
    draw = random.Random(0)
    rows = [[draw.randrange(6) for _ in range(draw.randint(1, 4))] for _ in range(count)]
    path.write_text("".join(f"{' '.join(WORDS[i] for i in row)}\t{''.join(map(str, row))}\n" for row in rows))
    return path


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_failed(done: Finished, code: int, *parts: str) -> None:
    """One line on stderr that says what is wrong, nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("transfuse: ")
    for part in parts:
        assert part in last


# Help


def test_help_and_reading_data_never_import_torch(tmp_path: Path) -> None:
    program = f"""
import sys
from transfuse.cli.main import app
for command in {COMMANDS!r}:
    app([*command, "--help"], standalone_mode=False)
try:
    app(["fit", "seq2seq", {str(tmp_path / "nowhere.tsv")!r}, "--out", "x"], standalone_mode=False)
except ValueError:
    print(sorted({{"torch", "numpy", "pandas", "sklearn", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_version() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"transfuse {transfuse.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["fly"], ["predict"], ["fit", "seq2seq", "pairs.tsv"], ["predict", "x", "--bems"]]
)
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    done = process(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: transfuse" in done.stderr


# From pairs to predictions


@dataclass
class Trained:
    """A model directory, the pairs it learned from, and what `fit` said."""

    folder: Path
    pairs: Path
    done: Finished


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("cli")
    pairs = write_pairs(home / "pairs.tsv")
    settings = "training.max_steps=20", "training.validate_every=10", "search.beams=2", "tokenizer.lowercase=true"
    return Trained(home / "model", pairs, process(*fit(pairs, home / "model", *settings)))


def test_fit_prints_where_the_model_is_and_reports_on_stderr(trained: Trained) -> None:
    done = trained.done
    assert (done.returncode, done.stdout) == (0, f"{trained.folder}\n")
    assert f"60 pairs; the model goes to {trained.folder}\n" in done.stderr
    assert re.search(r"^step 20/20 .*loss \d", done.stderr, re.MULTILINE)
    assert re.search(r"^held out: exact \d+\.\d\d \(strip:yes\|case:mixed\)$", done.stderr, re.MULTILINE)
    assert Checkpoints(trained.folder / "training" / "checkpoints").steps() == [10, 20]


def test_fit_used_every_setting(trained: Trained) -> None:
    model = transfuse.load(trained.folder)
    assert (model.metric, model.search.beams, model.tokenizer.lowercase) == ("exact", 2, True)
    assert (model.model.d_model, model.model.encoder_hidden, model.training.max_steps) == (16, 16, 20)


def test_predict_prints_a_line_for_each_text(trained: Trained, tmp_path: Path) -> None:
    texts = ["one two", "five", "two zero one"]
    (tmp_path / "texts.txt").write_text("".join(f"{text}\r\n" for text in texts), newline="")
    plain, best = run_all(
        [
            ["predict", trained.folder, tmp_path / "texts.txt"],
            ["predict", trained.folder, tmp_path / "texts.txt", "--beams", "3", "--n-best", "3"],
        ]
    )
    assert (plain.returncode, plain.stderr, best.returncode, best.stderr) == (0, "", 0, "")
    model = Seq2Seq.load(trained.folder)
    assert plain.stdout.split("\n") == [*(" ".join(text.split()) for text in model.predict(texts)), ""]
    assert [line.count("\t") for line in best.stdout.splitlines()] == [2, 2, 2]
    three = tmp_path / "three"  # as trained with, where it is not said otherwise
    shutil.copytree(trained.folder, three, ignore=shutil.ignore_patterns("training"))
    about = json.loads((three / "transfuse.json").read_text())
    about["search"] |= {"beams": 4, "n_best": 3}
    (three / "transfuse.json").write_text(json.dumps(about))
    for beams, tabs in ((5, 2), (2, 1)):
        output = call("predict", three, tmp_path / "texts.txt", "--beams", str(beams))[1]
        assert [line.count("\t") for line in output.splitlines()] == [tabs] * 3


def test_predict_reads_standard_input_as_it_reads_files(trained: Trained) -> None:
    texts = "\ufeffone two\r\nfive ☃\r\n"
    done = run("predict", trained.folder, "-", "--json", "--n-best", "2", given=texts)
    assert done.returncode == 0
    assert done.stderr == (
        "warning: 1 of 2 texts hold characters that never occurred in training (the first is row 1): '☃'; "
        "expect little of what depends on them\n"
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["source"] for record in records] == ["one two", "five ☃"]
    for record in records:
        assert [sorted(one) for one in record["outputs"]] == [
            ["finished", "log_probability", "loop", "score", "text"]
        ] * 2
        assert record["outputs"][0]["score"] >= record["outputs"][1]["score"]


def test_evaluate_prints_every_metric_with_its_signature(trained: Trained) -> None:
    command = ["evaluate", trained.folder, trained.pairs, "--metric", "exact", "--metric", "chrf"]
    as_json, plain = run_all([[*command, "--json"], [*command, "--beams", "2"]])
    assert (as_json.returncode, as_json.stderr, plain.returncode, plain.stderr) == (0, "", 0, "")
    values = json.loads(as_json.stdout)
    assert values["rows"] == 60
    assert [score["name"] for score in values["scores"]] == ["exact", "chrF"]
    assert plain.stdout == "".join(
        f"{score['name']} {score['value']:.2f} ({score['signature']})\n" for score in values["scores"]
    )


def test_inspect_prints_json_and_draws(trained: Trained, tmp_path: Path) -> None:
    picture = tmp_path / "cross.png"
    done, bad = run_all(
        [
            ["inspect", trained.folder, "one two", "--target", "12", "--json", "--picture", picture],
            ["inspect", trained.folder, "one two", "--picture", tmp_path / "attention.nonsense"],
        ]
    )
    code, output, messages = call("inspect", trained.folder, "one two", "--picture", tmp_path / "no" / "a.png")
    assert (
        code == 1 and output.startswith("source  one two") and "cannot draw" in messages and "No such file" in messages
    )
    assert (done.returncode, done.stderr) == (0, f"attention drawn to {picture}\n")
    values = json.loads(done.stdout)
    assert (values["source"], values["target"]) == ("one two", "12")
    assert sum(values["parameters"].values()) == sum(
        w.numel() for w in Seq2Seq.load(trained.folder).model_.parameters()
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert bad.returncode == 2
    assert "nonsense" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_the_demonstration_writes_over_nobody_s_project(tmp_path: Path) -> None:
    for name in ("demo", "demo-multi-query"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text("my project")
        code, last = failure("demo", "--out", tmp_path / "demo")
        assert code == 2 and f"{tmp_path / name}: holds a README.md that transfuse did not write" in last
        (tmp_path / name / "README.md").unlink()


# What can be wrong with the data


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(b"", "pairs.tsv: no pairs in it", id="empty"),
        pytest.param(b"a\nb\n", "pairs.tsv:1: 1 columns, expected 2 (source<TAB>target)", id="one column"),
        pytest.param(b"a\tb\na\tb\tc\n", "pairs.tsv:2: 3 columns, expected 2 (source<TAB>target)", id="ragged"),
        pytest.param("a\tö\n".encode("latin-1"), "pairs.tsv:1: byte 3 of the line is 0xf6, which is not", id="latin-1"),
        pytest.param(b"a\tb\n\tc\n", "pairs.tsv:2: the source is empty", id="empty side"),
        pytest.param(
            b"a\t" + b"x" * 1_000_000,
            "pairs.tsv:1: the target has 1,000,000 characters, at most 100,000 are allowed",
            id="a million characters",
        ),
    ],
)
def test_bad_data_is_code_2_with_line_and_rule(tmp_path: Path, rows: bytes, message: str) -> None:
    (tmp_path / "pairs.tsv").write_bytes(rows)
    for command in (
        ["fit", "seq2seq", tmp_path / "pairs.tsv", "--out", tmp_path / "m"],
        ["evaluate", "m", tmp_path / "pairs.tsv"],
    ):
        done = run(*command)
        assert_failed(done, 2, f"{tmp_path}/{message}")
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_parallel_files_of_different_length_and_too_many_files_are_code_2(tmp_path: Path) -> None:
    paths = [tmp_path / "a.de", tmp_path / "a.en", tmp_path / "third"]
    for path, text in zip(paths, ("eins\nzwei\n", "one\n", "x\n"), strict=True):
        path.write_text(text)
    done = run("fit", "seq2seq", *paths[:2], "--out", tmp_path / "m")
    assert_failed(done, 2, f"{paths[0]} has 2 lines and {paths[1]} has 1; line i of one must belong to line i")
    assert_failed(
        run("fit", "seq2seq", *paths, "--out", tmp_path / "m"), 2, "3 files given; expected one file of pairs"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "stdin: no texts in it"),
        (b"a\n\nb\n", "stdin:2: the source is empty"),
        (b"a\n\xf6\n", "stdin:2: "),
        (b"x" * 1_000_000, "stdin:1: the source has 1,000,000 characters, at most 100,000 are allowed"),
    ],
)
def test_bad_standard_input_is_code_2_with_its_line(tmp_path: Path, given: bytes, message: str) -> None:
    assert_failed(run("predict", tmp_path, given=given), 2, message)


def test_unusable_rows_are_left_out_where_asked_and_counted(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("a\tb\n\tc\nd\t\n")
    done = run("evaluate", tmp_path / "nowhere", tmp_path / "pairs.tsv", "--skip-bad-rows")
    assert f"{tmp_path / 'pairs.tsv'}: 2 unusable rows left out, 1 kept\n" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "fit", "seq2seq", tmp_path / "nowhere.tsv", "--out", tmp_path / "m")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "DataError: " in done.stderr


def test_wrong_settings_are_code_2_before_anything_is_written(tmp_path: Path) -> None:
    pairs, out = write_pairs(tmp_path / "pairs.tsv"), tmp_path / "m"
    begin = ["fit", "seq2seq", pairs, "--out", out]
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    name, value, size, metric, device, seed, project = run_all(
        [
            [*begin, "--set", "model.widht=3"],
            [*begin, "--set", "training.epochs=many"],
            [*begin, "--set", "model.vocab_size=20"],
            [*begin, "--metric", "accuracy"],
            [*begin, "--device", "abacus"],
            [*begin, "--seed", "-1"],
            ["fit", "seq2seq", pairs, "--out", tmp_path / "project"],
        ]
    )
    assert_failed(name, 2, "--set model.widht=3: expected NAME=VALUE with NAME one of model.activation, ")
    assert_failed(value, 2, "epochs='many' must be int")
    assert_failed(size, 2, "vocab_size=20 must be at least 259")
    assert_failed(metric, 2, "metric='accuracy' must be one of bleu, bleu-lc, bleu-char, chrf, rouge, exact")
    assert_failed(device, 2, "abacus")
    assert seed.returncode == 2
    assert_failed(project, 2, "holds a README.md that transfuse did not write; choose another folder")
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_no_traceback(trained: Trained) -> None:
    done = run("predict", trained.folder, "--device", "cuda", given="one\n")
    assert done.returncode == 2
    assert "CUDA" in done.stderr.upper()
    assert "Traceback" not in done.stderr


# What can be wrong with a model directory


def test_broken_model_directories_are_code_1(trained: Trained, tmp_path: Path) -> None:
    truncated, contradictory, unnamed = (
        Path(shutil.copytree(trained.folder, tmp_path / name, ignore=shutil.ignore_patterns("training")))
        for name in ("truncated", "contradictory", "unnamed")
    )
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    values = json.loads((contradictory / "config.json").read_text())
    (contradictory / "config.json").write_text(json.dumps({**values, "d_model": 32}))
    (unnamed / "transfuse.json").write_text('{"search": {"beams": "two"}}')
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n")
    folders = [tmp_path / "nowhere", tmp_path, truncated, contradictory, unnamed]
    missing, empty, short, wrong, setting = run_all([["predict", folder, texts] for folder in folders])
    assert_failed(missing, 1, f"{tmp_path / 'nowhere'}: no such directory")
    assert_failed(empty, 1, f"{tmp_path}: no config.json in it; not a model directory")
    assert_failed(short, 1, f"{weights}: damaged or truncated (")
    assert_failed(wrong, 1, f"{contradictory}", "config.json asks for")
    assert_failed(setting, 1, f"{unnamed / 'transfuse.json'}: ", "beams='two' must be int")


# Runs that are stopped


N_STEPS = 300
RUN = f"training.max_steps={N_STEPS}", "training.validate_every=100"


@dataclass
class Interrupted:
    """A run in `out` that a signal stopped: what it said, and its exit code."""

    out: Path
    code: int
    stdout: str
    stderr: str

    @property
    def step(self) -> int:
        return int(re.search(r"interrupted after step (\d+); resume from ", self.stderr)[1])  # type: ignore[index]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.out / "training" / "checkpoints")


def interrupt(pairs: Path, out: Path, number: signal.Signals) -> Interrupted:
    """Start a run, and send it the signal once it has taken a few steps."""
    arguments = [COMMAND, *map(str, fit(pairs, out, *RUN))]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
    while process.poll() is None and len(read_metrics(out / "training" / "metrics.jsonl")) < 5:
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    return Interrupted(out, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("runs") / "pairs.tsv")


@pytest.fixture(scope="module")
def interrupted(pairs: Path) -> dict[signal.Signals, Interrupted]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda number: interrupt(pairs, pairs.with_name(number.name), number), numbers)
        return dict(zip(numbers, runs, strict=True))


@pytest.fixture(scope="module")
def refused(pairs: Path, interrupted: dict[signal.Signals, Interrupted]) -> list[Finished]:
    """The interrupted run begun anew, and resumed with other settings, another seed and other data; all unchanged."""
    out, other = interrupted[signal.SIGINT].out, write_pairs(pairs.with_name("other.tsv"), 70)
    before = content(out)
    commands = [
        fit(pairs, out, *RUN),
        [*fit(pairs, out, *RUN, "training.learning_rate=0.5"), "--resume"],
        [*fit(pairs, out, *RUN, "model.dropout=0.0"), "--resume", "--seed", "1"],
        [*fit(other, out, *RUN), "--resume"],
    ]
    done = run_all(commands)
    assert content(out) == before
    return done


@pytest.fixture(scope="module")
def resumed(
    pairs: Path, interrupted: dict[signal.Signals, Interrupted], refused: list[Finished]
) -> dict[Path, Finished]:
    outs = [one.out for one in interrupted.values()]
    return dict(zip(outs, run_all([[*fit(pairs, out, *RUN), "--resume"] for out in outs]), strict=True))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_its_own_code(
    interrupted: dict[signal.Signals, Interrupted], number: signal.Signals, code: int
) -> None:
    one = interrupted[number]
    assert (one.code, one.stdout) == (code, "")
    assert one.stderr.splitlines()[-1].startswith("transfuse: interrupted after step ")
    assert "Traceback" not in one.stderr
    assert 5 <= one.step < N_STEPS
    assert one.checkpoints.latest() == one.step
    assert str(one.checkpoints.path(one.step)) in one.stderr
    assert not (one.out / "config.json").exists()


def test_an_unfinished_run_is_not_begun_anew(refused: list[Finished]) -> None:
    assert_failed(refused[0], 1, "holds checkpoints of an earlier run; resume it, or choose another folder")


def test_resuming_another_run_is_refused_naming_what_differs(refused: list[Finished]) -> None:
    assert_failed(refused[1], 1, "is of another run, with other training.learning_rate (")
    assert_failed(refused[2], 1, "is of another run, with other ", "model.dropout (", "seed (")
    assert_failed(refused[3], 1, "is of another run, with other data, validation; resume with")


def test_resumed_runs_finish_as_if_never_stopped(
    interrupted: dict[signal.Signals, Interrupted], resumed: dict[Path, Finished]
) -> None:
    for out, done in resumed.items():
        assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
        assert Seq2Seq.load(out).results_["steps"] == N_STEPS
        steps = [
            record["step"] for record in read_metrics(out / "training" / "metrics.jsonl") if record["kind"] == "step"
        ]
        assert steps == list(range(1, N_STEPS + 1))
    one, other = ((out / "model.safetensors").read_bytes() for out in resumed)
    assert one == other


def test_a_run_that_diverges_names_its_step_and_keeps_the_last_good_checkpoint(pairs: Path, tmp_path: Path) -> None:
    # the learning rate rises without end; after some ten steps scores overflow float32
    steep = "training.learning_rate=1e8", "training.warmup_steps=1000000", "training.validate_every=1"
    done = run(*fit(pairs, tmp_path / "m", *steep, "training.average=1"))
    assert_failed(done, 1, "training stopped at step ", "checkpoints already written are intact")
    assert re.search(r" is (nan|-?inf); ", done.stderr)
    step = int(re.search(r"stopped at step (\d+)", done.stderr)[1])  # type: ignore[index]
    checkpoints = Checkpoints(tmp_path / "m" / "training" / "checkpoints")
    latest = checkpoints.latest()
    assert latest is not None
    assert 1 <= latest <= step
    assert all(weight.isfinite().all() for weight in checkpoints.weights(latest).values())
    assert abs(checkpoints.state(latest)["scores"][-1]) < float("inf")
    assert not (tmp_path / "m" / "config.json").exists()
