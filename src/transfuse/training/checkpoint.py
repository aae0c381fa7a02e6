"""Checkpoints that a crash at any moment cannot damage.

A checkpoint is staged in a hidden folder, every file and its sha256 manifest flushed to disk, then renamed into place
and the rename flushed too. So a folder named `step-…` is complete or does not exist; the manifest catches what the
disk itself does to it later. Weights are safetensors, the rest JSON; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from transfuse.durable import flush, flush_folder
from transfuse.errors import CheckpointError

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


class Checkpoints:
    """The checkpoints of one run, folders `step-00000042` under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps with a folder, oldest first."""
        names = [path.name for path in self.folder.glob("step-*")]
        return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d{8,}", name))

    def save(self, step: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Any) -> None:
        """Write a checkpoint. Raises CheckpointError, leaving the earlier ones untouched, if the disk refuses."""
        stage = self.folder / f".staging-{step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".*"):
                shutil.rmtree(stale, ignore_errors=True)
            stage.mkdir()
            save_file(dict(weights), stage / WEIGHTS)
            save_file(dict(optimizer), stage / OPTIMIZER)
            (stage / STATE).write_text(json.dumps(state, indent=2))
            manifest = {name: _sha256(stage / name) for name in (WEIGHTS, OPTIMIZER, STATE)}
            (stage / MANIFEST).write_text(json.dumps(manifest, indent=2))
            flush_folder(stage)
            if self.path(step).exists():
                self._remove(self.path(step))
            stage.rename(self.path(step))
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(stage, ignore_errors=True)
            raise CheckpointError(f"cannot write {self.path(step)}: {error}; earlier checkpoints are intact") from error

    def latest(self) -> int | None:
        """The newest step whose checkpoint is whole; damaged ones are passed over."""
        for step in reversed(self.steps()):
            try:
                for name in (WEIGHTS, OPTIMIZER, STATE):
                    self._verify(step, name)
            except CheckpointError:
                continue
            return step
        return None

    def state(self, step: int) -> Any:
        """The JSON saved with `step`."""
        return json.loads(self._verify(step, STATE).read_text())

    def weights(self, step: int) -> dict[str, Tensor]:
        """The weights of `step`. Raises CheckpointError if they are missing or not what was written."""
        return load_file(self._verify(step, WEIGHTS))

    def optimizer(self, step: int) -> dict[str, Tensor]:
        """The optimiser's tensors of `step`."""
        return load_file(self._verify(step, OPTIMIZER))

    def mean_weights(self, steps: Iterable[int], further: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The mean, taken in float64, of the weights of `steps` and of `further` ones (checkpoint averaging)."""
        chosen: list[Mapping[str, Tensor]] = [self.weights(step) for step in steps]
        if further is not None:
            chosen.append({name: weight.cpu() for name, weight in further.items()})
        return {
            name: torch.stack([weights[name].double() for weights in chosen]).mean(0).to(chosen[0][name].dtype)
            for name in chosen[0]
        }

    def prune(self, *, whole: set[int], weights: set[int]) -> None:
        """Keep the checkpoints of `whole`, of those in `weights` all but the optimiser, and remove the rest."""
        for step in self.steps():
            if step not in whole | weights:
                self._remove(self.path(step))
            elif step not in whole:
                (self.path(step) / OPTIMIZER).unlink(missing_ok=True)

    def _remove(self, path: Path) -> None:
        # renamed first, so that a half-removed folder never looks like a checkpoint
        shutil.rmtree(path.rename(path.with_name(f".removed-{path.name}")), ignore_errors=True)

    def _verify(self, step: int, name: str) -> Path:
        path = self.path(step) / name
        try:
            expected = json.loads((self.path(step) / MANIFEST).read_text())[name]
            if _sha256(path) == expected:
                return path
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        raise CheckpointError(f"{path}: does not match its sha256 in {MANIFEST}; the file was changed or damaged")


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once under its first name; a tied one does not appear again. Views, not copies."""
    return {name: weight.detach() for name, weight in model.named_parameters()}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's weights, as float32, to tell one from another."""
    digest = hashlib.sha256()
    for weight in own_weights(model).values():
        digest.update(weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what `own_weights` gave into a model of the same shape."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat `parameter/quantity` names."""
    return {
        f"{name}/{quantity}": tensor
        for name, parameter in model.named_parameters()
        for quantity, tensor in optimizer.state.get(parameter, {}).items()
    }


def set_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, quantity = key.rsplit("/", 1)
        optimizer.state[parameters[name]][quantity] = tensor.to(parameters[name].device)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
