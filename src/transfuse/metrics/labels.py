"""Classes of two origins as they compare."""

from __future__ import annotations

import numpy as np

_NUMBERS = "biuf"


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
