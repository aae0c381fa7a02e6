"""Killed with SIGKILL at random moments and taken up again, a run must end in exactly the weights of a quiet one."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tiny_training import train_to_the_end
from transfuse.training.metrics_log import read_metrics

KILLS = 20


def test_a_run_killed_twenty_times_ends_in_the_weights_of_a_quiet_one(tmp_path: Path) -> None:
    quiet = tmp_path / "quiet"
    began = time.monotonic()
    start(quiet).join()
    duration = time.monotonic() - began
    expected, expected_steps = load_file(quiet / "final.safetensors"), logged_steps(quiet)
    draw = random.Random(0)
    kills = survivors = 0
    while kills < KILLS or not survivors:
        folder = tmp_path / f"killed-{survivors}"
        while not (folder / "final.safetensors").exists():
            process = start(folder)
            # late enough to get somewhere, early enough to need several attempts
            process.join(draw.uniform(0.1, 0.7) * duration if kills < KILLS else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                kills += 1
            else:
                assert process.exitcode == 0
        assert identical(load_file(folder / "final.safetensors"), expected)
        assert logged_steps(folder) == expected_steps
        survivors += 1
    assert kills >= KILLS


def start(folder: Path) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])
    process = context.Process(target=train_to_the_end, args=(str(folder),))
    process.start()
    return process


def logged_steps(folder: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_metrics(folder / "metrics.jsonl")]


def identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
