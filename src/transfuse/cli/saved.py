"""Saved models as commands open them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfuse.cli.options import parse_settings
from transfuse.errors import ConfigError

if TYPE_CHECKING:
    from transfuse import LanguageModel, SearchConfig, Seq2Seq


def kind_of(directory: Path) -> str:
    """Which estimator a directory holds; of one that cannot be opened, loading says why."""
    from transfuse import ModelDirectoryError, kind_of

    try:
        return kind_of(directory)
    except ModelDirectoryError:
        return ""


def load_model(directory: Path, device: str | None, dtype: str = "float32") -> Any:
    """The estimator in a directory, computing in `dtype`."""
    from transfuse import load

    return load(directory, device=device, dtype=dtype)


def search_of(
    model: Seq2Seq | LanguageModel, beams: int | None, n_best: int | None = None, settings: list[str] | None = None
) -> SearchConfig:
    """The model's search with what the command line changes of it."""
    changes = {name.removeprefix("search__"): value for name, value in parse_settings(model, settings or []).items()}
    unknown = sorted(set(changes) - set(model.search.to_dict()))
    if unknown:
        raise ConfigError(f"--set {unknown[0]}: only settings of search can change after training")
    if beams is not None:
        changes |= {"beams": beams, "n_best": min(model.search.n_best, beams)}
    if n_best is not None:
        changes["n_best"] = n_best
    return model.search.replace(**changes)
