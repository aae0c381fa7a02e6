"""What a person is told: messages on stderr, and how a training that was asked to stop reaches the exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from transfuse.errors import TrainingInterrupted


def say(message: str) -> None:
    """A line on stderr."""
    typer.echo(message, err=True)


class Stopped(Exception):
    """Carries a TrainingInterrupted through typer, which takes every KeyboardInterrupt for its own."""

    def __init__(self, interrupted: TrainingInterrupted) -> None:
        self.interrupted = interrupted


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a training that is interrupted raises `Stopped`."""
    try:
        yield
    except TrainingInterrupted as interrupted:
        raise Stopped(interrupted) from interrupted
