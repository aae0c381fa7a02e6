"""Opening a saved model without knowing which estimator it is."""

from __future__ import annotations

from pathlib import Path

from transfuse.errors import ModelDirectoryError
from transfuse.estimators.about import ESTIMATOR, read_about
from transfuse.estimators.seq2seq import Seq2Seq

_ESTIMATORS = {"Seq2Seq": Seq2Seq}


def load(folder: str | Path, *, device: str | None = None) -> Seq2Seq:
    """The estimator saved in `folder`; a bare encoder–decoder directory of `transformers` opens as a `Seq2Seq`.

    Raises ModelDirectoryError naming file and rule.
    """
    folder = Path(folder)
    name = read_about(folder)["estimator"]
    if name not in _ESTIMATORS:
        raise ModelDirectoryError(f"{folder / ESTIMATOR}: estimator={name!r} must be one of {', '.join(_ESTIMATORS)}")
    return _ESTIMATORS[name].load(folder, device=device)
