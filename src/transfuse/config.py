"""Settings as frozen dataclasses that survive a JSON round trip unchanged."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from transfuse.errors import ConfigError


class Config:
    """Base of every settings class: a frozen keyword-only dataclass of JSON values.

    Subclasses are decorated with `@dataclass(frozen=True, kw_only=True)`, check relations between fields in
    `__post_init__` after calling `check_types()`, and compare equal after `from_json(to_json())`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Field names to plain JSON values."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_json(self) -> str:
        """Indented JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config holding `values`. Raises ConfigError on a name the class does not have."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
        if unknown:
            raise ConfigError(f"{cls.__name__} has no field named {', '.join(unknown)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`. Raises ConfigError if it is not a JSON object of this class's fields."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"not JSON ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"a JSON {type(values).__name__}, expected an object")
        return cls.from_dict(values)

    def replace(self, **changes: Any) -> Self:
        """A copy with the named fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def check_types(self) -> None:
        """Raise ConfigError unless every field holds a value of its annotated type.

        Numbers of other libraries (numpy's, as a parameter search draws them) become Python's own, lists tuples.
        """
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            kinds = (hints[field.name], *get_args(hints[field.name]))
            if any(get_origin(kind) is tuple for kind in kinds) and isinstance(value, list | tuple):
                value = tuple(map(_plain_number, value))
            value = _plain_number(value)
            object.__setattr__(self, field.name, value)
            if not _is_a(value, hints[field.name]):
                raise ConfigError(f"{field.name}={value!r} must be {_describe(hints[field.name])}")

    def check_finite(self, *names: str) -> None:
        """Raise ConfigError if a named field is infinite or not a number."""
        for name in names:
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} must be a finite number")

    def check_positive(self, *names: str) -> None:
        """Raise ConfigError unless each named field is None or greater than zero."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be greater than 0")

    def check_fraction(self, *names: str) -> None:
        """Raise ConfigError unless each named field lies in [0, 1)."""
        for name in names:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"{name}={value} must be at least 0 and below 1")


def _plain_number(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(member, get_args(kind)[0]) for member in value)
    if get_args(kind):  # a union such as int | None
        return any(_is_a(value, member) for member in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of {_describe(get_args(kind)[0])}"
    if get_origin(kind) is Union or get_args(kind):
        return " or ".join(_describe(member) for member in get_args(kind))
    return "None" if kind is type(None) else str(kind.__name__)
