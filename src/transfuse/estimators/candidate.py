"""One of several outputs for a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transfuse.generation.loops import Loop


@dataclass(frozen=True)
class Candidate:
    """An output: its text, its score (higher is better), its log-probability, whether it came to its end rather than to
    the limit of tokens, and the loop it had begun and was cut off for, where that was asked for."""

    text: str
    score: float
    log_probability: float
    finished: bool
    loop: Loop | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return vars(self) | {"loop": None if self.loop is None else vars(self.loop)}
