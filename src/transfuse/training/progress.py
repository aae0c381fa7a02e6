"""Progress of a run: a live bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TextIO

from transfuse.training.loop import Step
from transfuse.training.run import Run

LINE_EVERY = 10.0
"""Seconds between plain lines."""


def with_progress(run: Run, stream: TextIO | None = None) -> Iterator[Step]:
    """`run.steps()`, shown as it goes: loss, target tokens a second, time left, last held-out score."""
    stream = stream or sys.stderr
    meter = _Meter(run)
    if run.total_steps < (warmup := run.config.warmup_steps):
        print(
            f"{run.total_steps} steps end inside of training.warmup_steps={warmup}: lower it, or train for longer",
            file=stream,
        )
    if not stream.isatty():
        yield from _plain(run, meter, stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task("starting", total=run.total_steps, completed=run.state.position.step)
        for step in run.steps():
            bar.update(task, completed=step.position.step, description=meter.describe(step))
            yield step


def _plain(run: Run, meter: _Meter, stream: TextIO) -> Iterator[Step]:
    said, last = -LINE_EVERY, None
    for step in run.steps():
        line, last = meter.describe(step), step
        if time.monotonic() - said >= LINE_EVERY:
            print(f"step {step.position.step}/{run.total_steps}  {line}", file=stream, flush=True)
            said, last = time.monotonic(), None
        yield step
    if last is not None:
        print(f"step {last.position.step}/{run.total_steps}  {line}", file=stream, flush=True)


class _Meter:
    """Means over about the last fifty steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loss = self._tokens = self._seconds = 0.0
        self._began, self._first = time.monotonic(), run.state.position.step

    def describe(self, step: Step) -> str:
        """One line about where the run stands after `step`."""
        fade = 0.98 if self._seconds else 0.0
        self._loss = fade * self._loss + (1 - fade) * step.loss
        self._tokens = fade * self._tokens + step.n_tokens
        self._seconds = fade * self._seconds + step.seconds
        done = step.position.step - self._first
        left = (time.monotonic() - self._began) / done * (self._run.total_steps - step.position.step)
        parts = [
            f"epoch {step.position.epoch + 1}",
            f"loss {self._loss:.3f}",
            f"{self._tokens / self._seconds:,.0f} tokens/s",
            f"{_clock(left)} left",
        ]
        if self._run.state.scores:
            parts.append(f"held-out score {self._run.state.scores[-1]:.3f}")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
