"""The small files beside the weights: what an estimator says of itself, and what others read of its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transfuse.data.tokenizer import Tokenizer
from transfuse.errors import ModelDirectoryError
from transfuse.pretrained.directory import read_json

ESTIMATOR, TOKENIZER, TOKENIZER_CONFIG = "transfuse.json", "tokenizer.json", "tokenizer_config.json"

COMMON: dict[str, Any] = {
    "validation_fraction": 0.05,
    "random_state": None,
    "tokenizer": {},
    "training": {},
    "search": {},
    "results": {},
}
"""What every estimator says, and what stands for it in a directory of other origin."""


def read_about(folder: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """What a directory says of its estimator, `defaults` where it says nothing. Raises ModelDirectoryError for a value
    of another type."""
    path = folder / ESTIMATOR
    about = defaults | read_json(path, missing={})
    for name, default in defaults.items():
        value = about[name]
        if name == "random_state":
            fits = value is None or (isinstance(value, int) and not isinstance(value, bool))
        else:
            fits = isinstance(value, type(default))
        if not fits:
            raise ModelDirectoryError(f"{path}: {name}={value!r} must be {type(default).__name__}")
    return about


def tokenizer_values(tokenizer: Tokenizer, max_positions: int, **special_ids: int | None) -> dict[str, Any]:
    """The content of tokenizer_config.json; `special_ids` are those of bos_token, eos_token, …"""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokenizer.backend.id_to_token(i) for name, i in special_ids.items() if i is not None},
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
