"""Every exception transfuse raises on purpose, in one tree.

TransfuseError                 the root: anything below is a message for the reader, not a bug
├── ConfigError                a setting contradicts another or the mathematics (also a ValueError)
├── DataError                  a file, row or argument breaks a rule (also a ValueError)
├── ModelDirectoryError        a saved model is missing, truncated or contradicts itself
├── CheckpointError            a checkpoint could not be written or read
├── GenerationError            a model cannot write: its scores are not numbers
│   └── CacheTooLargeError     … or its keys and values would not fit the memory
└── TrainingDiverged           loss, gradient or held-out score is no longer a finite number

TrainingInterrupted            a signal ended the training after a checkpoint was written (a KeyboardInterrupt)
"""

from __future__ import annotations

from typing import Any


class TransfuseError(Exception):
    """Root of every error whose message is meant for the person at the keyboard."""


class ConfigError(TransfuseError, ValueError):
    """A setting that contradicts another setting, named with both values and the rule."""


class DataError(TransfuseError, ValueError):
    """Input data that breaks a rule, named with file and line (or argument and row) and the rule."""


class ModelDirectoryError(TransfuseError):
    """A model directory that is missing, unreadable, truncated or contradicts itself."""


class CheckpointError(TransfuseError):
    """A checkpoint that could not be written or read; those already written are intact."""


class GenerationError(TransfuseError):
    """A model that cannot write, as one whose scores for the next token are not numbers, so that none can be chosen."""


class CacheTooLargeError(GenerationError):
    """Keys and values of a generation that would not fit the memory there is."""


class TrainingDiverged(TransfuseError):
    """Loss, gradient norm or held-out score became NaN or infinite; the last good checkpoint is kept, if any is."""

    def __init__(self, step: int, quantity: str, value: float, kept: bool = True) -> None:
        checkpoints = "checkpoints already written are intact (" if kept else "("
        super().__init__(
            f"training stopped at step {step}: {quantity} is {value}; "
            f"{checkpoints}try a lower learning rate or a longer warm-up)"
        )
        self.step, self.quantity, self.value, self.kept = step, quantity, value, kept

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.quantity, self.value, self.kept)


class TrainingInterrupted(KeyboardInterrupt):
    """A signal asked the training to stop; everything up to `step` is in the checkpoint `where`, if one is kept.

    A KeyboardInterrupt, so that a parameter search stops as well instead of noting a failure. `signal_number` is 2
    (SIGINT), 15 (SIGTERM) or 1 (SIGHUP); a shell reports 128 more.
    """

    def __init__(self, signal_number: int, step: int, where: str | None) -> None:
        rest = "nothing is kept without a run_dir" if where is None else f"resume from {where}"
        super().__init__(f"interrupted after step {step}; {rest}")
        self.signal_number, self.step, self.where = signal_number, step, where

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal_number, self.step, self.where)


class ResumeWarning(UserWarning):
    """A run was not taken up where it was asked to be: there is nothing there, or what is newest is damaged."""


class UnseenCharactersWarning(UserWarning):
    """Input holds characters that occurred nowhere in the training text."""


class TruncatedWarning(UserWarning):
    """Input was longer than the model's limit and was cut."""


class UnknownWordsWarning(UserWarning):
    """Much of the input is words that the vocabulary has no pieces for."""


class UntrainedPositionsWarning(UserWarning):
    """Input reaches past the positions that pre-training, or any training, ever saw."""


class UnreadableWarning(UserWarning):
    """Files that rows name could not be read, and the rows are used without them or left out."""
