"""Classes of two origins as they compare."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_NUMBERS = "biuf"
_WHOLE = re.compile(r"-?\d+(?:\.0+)?")


def as_classes(labels: Sequence[Any], classes: Sequence[Any]) -> list[Any]:
    """Labels as the classes that they are, however spelled: the same text, or the same whole number; others as they
    are."""
    spelled = {str(one): one for one in classes}
    whole = {_number(one): one for one in classes if _number(one) is not None}
    return [spelled.get(str(one), whole.get(_number(one), one)) for one in labels]


def _number(label: Any) -> int | None:
    text = str(label)
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None


def alike(wanted: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as numbers where both are (1, 1.0 and True are one class), as they are where both are strings, and otherwise
    as strings, those of whole numbers without decimals."""
    if wanted.dtype.kind in _NUMBERS and found.dtype.kind in _NUMBERS:
        kind = np.float64 if "f" in (wanted.dtype.kind, found.dtype.kind) else np.int64
        return wanted.astype(kind), found.astype(kind)
    return _strings(wanted), _strings(found)


def _strings(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "f" and (labels == labels.round()).all():
        labels = labels.astype(np.int64)
    return labels.astype(str)
