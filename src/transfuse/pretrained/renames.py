"""Weight names and values of one family against ours, as a table used both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from transfuse.errors import ConfigError, ModelDirectoryError


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rename:
    """One line of a table: `*` stands for a number, equal on both sides. `give` and `take` are inverse functions that
    turn our value into theirs and back, where a name alone is not enough."""

    ours: str
    theirs: str
    give: Callable[[Tensor], Tensor] = _same
    take: Callable[[Tensor], Tensor] = _same


def to_theirs(table: Iterable[Rename], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names. Every one of ours must be in the table."""
    lines = list(table)
    renamed = {}
    for name, tensor in weights.items():
        found = _find(name, [(line.ours, line) for line in lines])
        assert found is not None, f"{name} is not in the table"
        line, numbers = found
        renamed[_fill(line.theirs, numbers)] = line.give(tensor)
    return renamed


def to_ours(table: Iterable[Rename], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Their weights under our names, and the names that the table does not have."""
    lines = list(table)
    renamed, unknown = {}, []
    for name, tensor in weights.items():
        found = _find(name, [(line.theirs, line) for line in lines])
        if found is None:
            unknown.append(name)
        else:
            line, numbers = found
            renamed[_fill(line.ours, numbers)] = line.take(tensor)
    return renamed, unknown


def drop_copy(weights: dict[str, Tensor], copy: str, original: str) -> None:
    """Leave a tied table under its `original` name alone, whichever of the two names a file has kept.

    Raises ModelDirectoryError if the two hold different numbers.
    """
    if copy in weights and original not in weights:
        weights[original] = weights.pop(copy)
    elif copy in weights:
        if not weights[copy].equal(weights[original]):
            raise ModelDirectoryError(f"config.json ties {copy} to {original}, but the two differ")
        del weights[copy]


def renamed_error(error: ConfigError, names: Mapping[str, str]) -> ModelDirectoryError:
    """What is wrong with one of our fields, said of the key that their config.json has for it."""
    message = str(error)
    for ours, theirs in names.items():
        message = re.sub(rf"\b{ours}=", f"{theirs}=", message)
    return ModelDirectoryError(message)


def _find(name: str, patterns: list[tuple[str, Rename]]) -> tuple[Rename, tuple[str, ...]] | None:
    for pattern, line in patterns:
        match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
        if match:
            return line, match.groups()
    return None


def _fill(pattern: str, numbers: tuple[str, ...]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern
