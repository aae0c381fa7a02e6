"""The small files beside the weights: what an estimator says of itself, and what others read of its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transfuse.data.tokenizer import Tokenizer
from transfuse.errors import ModelDirectoryError
from transfuse.models.seq2seq import Seq2SeqConfig
from transfuse.pretrained.directory import read_json

ESTIMATOR = "transfuse.json"


def read_about(folder: Path) -> dict[str, Any]:
    """What a directory says of its estimator, defaults where it says nothing. Raises ModelDirectoryError."""
    defaults = {"estimator": "Seq2Seq", "metric": "bleu", "validation_fraction": 0.05, "random_state": None}
    defaults |= {"characters": "", "tokenizer": {}, "training": {}, "search": {}, "results": {}}
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


def tokenizer_values(config: Seq2SeqConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.backend.id_to_token(config.start_id),
        "eos_token": tokenizer.backend.id_to_token(config.end_id),
        "pad_token": tokenizer.backend.id_to_token(config.pad_id),
        "model_max_length": config.max_positions,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
