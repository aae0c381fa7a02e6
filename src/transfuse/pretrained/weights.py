"""The weights of a model directory: one safetensors file, or several with an index."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from transfuse.errors import ModelDirectoryError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory by their names, in the dtypes they were stored in.

    Raises ModelDirectoryError naming the file that is missing, damaged or not what the index says. Pickles are refused.
    """
    if (folder / WEIGHTS).is_file():
        return _read(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickled = sorted(folder.glob("*.bin"))
    reason = f"; {pickled[0].name} is a pickle, which can run any code and is not read" if pickled else ""
    raise ModelDirectoryError(f"{folder}: no {WEIGHTS} in it{reason}")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    path = folder / INDEX
    try:
        shard_of = {str(name): str(shard) for name, shard in json.loads(path.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelDirectoryError(f"{path}: not an index of shards ({error!r})") from error
    weights: dict[str, Tensor] = {}
    for name in sorted(set(shard_of.values())):
        shard = folder / name
        if shard.parent != folder or not shard.is_file():
            raise ModelDirectoryError(f"{path}: names {name}, which is not a file of {folder}")
        held = _read(shard)
        listed = {tensor for tensor, place in shard_of.items() if place == name}
        if listed != set(held):
            differing = ", ".join(sorted(listed ^ set(held))[:5])
            raise ModelDirectoryError(f"{shard}: does not hold what {INDEX} says of it; differing: {differing}")
        weights |= held
    return weights


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelDirectoryError(f"{path}: damaged or truncated ({error})") from error
