"""Commands run in this process: one of their own would import torch every time."""

from __future__ import annotations

import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from transfuse.cli import main
from transfuse.errors import (
    ResumeWarning,
    TruncatedWarning,
    UnreadableWarning,
    UnseenCharactersWarning,
    UntrainedPositionsWarning,
)

COMMAND = str(Path(sys.executable).with_name("transfuse"))
OURS = (
    ResumeWarning,
    TruncatedWarning,
    UnreadableWarning,
    UnseenCharactersWarning,
    UntrainedPositionsWarning,
)
"""Warnings that a command shows; any other fails a test."""


def call(*words: str | Path, given: bytes = b"") -> tuple[int, str, str]:
    """Exit code, output and messages of a command."""
    errors = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()) as output,
        redirect_stderr(errors),
    ):
        for kind in OURS:
            warnings.simplefilter("default", kind)
        patch.setattr(sys, "argv", [COMMAND, *map(str, words)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        try:
            main.run()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, output.getvalue(), errors.getvalue()


def failure(*words: str | Path, given: bytes = b"") -> tuple[int, str]:
    """Exit code and last message of a command that fails."""
    code, output, messages = call(*words, given=given)
    assert output == ""
    return code, messages.strip().splitlines()[-1]


@dataclass(frozen=True)
class Done:
    """What a command that went well printed."""

    stdout: str
    stderr: str


def run(*words: str | Path, given: bytes = b"") -> Done:
    """A command that goes well."""
    code, output, messages = call(*words, given=given)
    assert code == 0, messages
    return Done(output, messages)
