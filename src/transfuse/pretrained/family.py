"""What a family of models elsewhere has to say so that its directories open here, and ours there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from transfuse.pretrained.renames import Rename

C = TypeVar("C")


@dataclass(frozen=True)
class Family(Generic[C]):
    """A `model_type` of config.json, and the way there and back, for models with a config of type C.

    `architecture` is the class that `transformers` opens it as. `model` makes a model of a config. `expresses` says
    whether the family has a config's architecture; `values` writes it as their config.json, `config` reads it; `table`
    renames weights. `fitted` adds to a config what only the weights tell. `complete` adds to weights under their names
    what the family always has, `reduce` takes out what ours never has; both work in place.
    """

    model_type: str
    architecture: str | Callable[[C], str]
    model: Callable[[C], nn.Module]
    expresses: Callable[[C], bool]
    values: Callable[[C], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], C]
    table: Callable[[C], list[Rename]]
    fitted: Callable[[C, Mapping[str, Tensor]], C] = lambda config, weights: config
    complete: Callable[[C, dict[str, Tensor]], None] = lambda config, weights: None
    reduce: Callable[[C, dict[str, Tensor]], None] = lambda config, weights: None
