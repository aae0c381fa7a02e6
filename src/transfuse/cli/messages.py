"""What a person is told: messages on stderr, and how a training that was asked to stop reaches the exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from transfuse.errors import DataError, TrainingInterrupted


def say(message: str) -> None:
    """A line on stderr."""
    typer.echo(message, err=True)


class Stopped(Exception):
    """Carries a TrainingInterrupted through typer, which takes every KeyboardInterrupt for its own."""

    def __init__(self, interrupted: TrainingInterrupted) -> None:
        self.interrupted = interrupted


@contextmanager
def stoppable(*data: Path) -> Iterator[None]:
    """Inside, a training that is interrupted raises `Stopped`, and what is wrong with its rows names the files they are
    of."""
    try:
        yield
    except TrainingInterrupted as interrupted:
        raise Stopped(interrupted) from interrupted
    except DataError as error:
        if any(str(path) in str(error) for path in data) or not data:
            raise
        raise DataError(f"{', '.join(map(str, data))}: {error}") from error
