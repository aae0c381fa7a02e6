"""What a family of models elsewhere has to say so that its directories open here, and ours there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from transfuse.models.seq2seq import Seq2SeqConfig
from transfuse.pretrained.renames import Rename


@dataclass(frozen=True)
class Family:
    """A `model_type` of config.json, and the way there and back.

    `expresses` says whether the family has a config's architecture; `values` writes it as their config.json, `config`
    reads it; `table` renames weights. `complete` adds to weights under their names what the family always has,
    `reduce` takes out what ours never has; both work in place.
    """

    model_type: str
    architecture: str
    expresses: Callable[[Seq2SeqConfig], bool]
    values: Callable[[Seq2SeqConfig], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], Seq2SeqConfig]
    table: Callable[[Seq2SeqConfig], list[Rename]]
    complete: Callable[[Seq2SeqConfig, dict[str, Tensor]], None]
    reduce: Callable[[Seq2SeqConfig, dict[str, Tensor]], None]
