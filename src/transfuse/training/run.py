"""A training run: the loop, held-out scores, early stopping, averaging, checkpoints and resuming."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfuse.errors import CheckpointError, ConfigError, ResumeWarning, TrainingDiverged, TrainingInterrupted
from transfuse.training.checkpoint import (
    Checkpoints,
    optimizer_tensors,
    own_weights,
    set_optimizer,
    set_weights,
)
from transfuse.training.config import TrainingConfig
from transfuse.training.interrupt import Interrupts
from transfuse.training.loop import Dataset, Loss, Position, Step, count_steps, make_optimizer, train
from transfuse.training.metrics_log import MetricsLog

CHECKPOINTS = "checkpoints"
"""Where a run's checkpoints are in its folder."""

FINGERPRINTS = {"data", "validation"}
"""Parts of a run's identity whose values say nothing to a reader."""


Score = float | dict[str, float]
"""What a validation finds: a number, higher is better, or such a "score" with other figures."""


@dataclass
class RunState:
    """Everything of a run that is neither weights nor optimiser, as saved in a checkpoint's state.json.

    `validated` lists the steps with a held-out score, `best_step` is the one whose score is highest, `waited` counts
    validations since then; `n_tokens` have been learned from. `identity` is what must be equal for a resume to make
    sense, `machine` what must be for it to come to the same weights bit for bit.
    """

    identity: dict[str, Any]
    position: Position = field(default_factory=Position)
    validated: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0
    n_tokens: int = 0
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def best_step(self) -> int:
        """The validated step with the highest score, the earliest of equals."""
        return self.validated[self.scores.index(max(self.scores))]

    @property
    def waited(self) -> int:
        """Validations since the best one."""
        return len(self.scores) - 1 - self.scores.index(max(self.scores))

    def window(self, step: int, length: int) -> list[int]:
        """The last `length` validated steps up to `step`: those whose weights are averaged there."""
        return [earlier for earlier in self.validated if earlier <= step][-length:]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunState:
        """The state that `asdict` wrote."""
        return cls(**{**values, "position": Position(**values["position"])})


class Run:
    """Train `model` in place under `folder`; iterate over `steps()`, then call `finish()`.

    `score` judges the model as it stands on held-out data, higher is better; it gives a number, or one called "score"
    among other figures, which are logged beside it. `identity` is any JSON object that must be the same when the run is
    resumed: settings, data fingerprint, seed.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        loss: Loss,
        config: TrainingConfig,
        *,
        folder: Path,
        seed: int,
        score: Callable[[], Score],
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.data, self.loss, self.config = model, data, loss, config
        self.seed, self.score = seed, score
        self.optimizer = make_optimizer(model, config)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS)
        self.metrics_path = folder / "metrics.jsonl"
        self.total_steps = count_steps(data, config, seed)
        device = next(model.parameters()).device.type
        machine = {"threads": torch.get_num_threads(), "device": device, "torch": torch.__version__}
        self.state = RunState({"seed": seed, "training": config.to_dict(), **(identity or {})}, machine=machine)
        self._saved: int | None = None

    def resume(self) -> bool:
        """Take up the newest checkpoint that is whole, as are the weights it is averaged with; False if there is none.

        Passing over damaged ones is a ResumeWarning. Raises CheckpointError if all are damaged or if, named with both
        values, settings or data are not those of the run; another number of threads, device or torch is a
        ResumeWarning.
        """
        damage: list[str] = []
        for step in reversed(self.checkpoints.steps()):
            try:
                state = RunState.from_dict(self.checkpoints.state(step))
                weights, optimizer = self.checkpoints.weights(step), self.checkpoints.optimizer(step)
                for earlier in self._needed(state, step):
                    self.checkpoints.weights(earlier)
            except CheckpointError as error:
                damage.append(str(error))
                continue
            _check_identity(self.checkpoints.path(step), state.identity, self.state.identity)
            if damage:
                warnings.warn(f"resuming at step {step}, because {damage[0]}", ResumeWarning, stacklevel=2)
            here, there = self.state.machine, state.machine
            other = [f"{name} {there[name]}, here {here[name]}" for name in there if there[name] != here[name]]
            if other:
                message = f"the run had {'; '.join(other)}: it will not come to the same weights bit for bit"
                warnings.warn(message, ResumeWarning, stacklevel=2)
            self.state, self._saved = replace(state, machine=here), step
            set_weights(self.model, weights)
            set_optimizer(self.model, self.optimizer, optimizer)
            return True
        if damage:
            raise CheckpointError(f"no checkpoint in {self.checkpoints.folder} can be taken up: {damage[0]}")
        return False

    def steps(self) -> Iterator[Step]:
        """Train on, yielding every step; validations and checkpoints happen on the way.

        Raises TrainingInterrupted after a checkpoint when SIGINT or SIGTERM arrives, TrainingDiverged on NaN.
        """
        if self._out_of_patience():
            return
        log = MetricsLog(self.metrics_path, self.state.position.step)
        began = time.perf_counter() - self.state.seconds
        with Interrupts() as interrupts:
            loop = train(
                self.model,
                self.data,
                self.loss,
                self.optimizer,
                self.config,
                seed=self.seed,
                start=self.state.position,
            )
            for step in loop:
                self.state.position = step.position
                self.state.seconds = time.perf_counter() - began
                self.state.n_tokens += step.n_tokens
                log.write(kind="step", **_record(step), elapsed=round(self.state.seconds, 3))
                yield step
                if step.position.step % self.config.validate_every == 0:
                    self._validate(log)
                self._stop_if_asked(interrupts)
                if self._out_of_patience():
                    return
            if not self.state.validated or self.state.validated[-1] != self.state.position.step:
                self._validate(log)
                self._stop_if_asked(interrupts)

    def finish(self) -> dict[str, Any]:
        """Give the model the averaged weights with the best held-out score; return what the run came to."""
        best = self.state.best_step
        averaged = self.state.window(best, self.config.average)
        set_weights(self.model, self.checkpoints.mean_weights(averaged))
        self.model.eval()
        return {
            "steps": self.state.position.step,
            "tokens": self.state.n_tokens,
            "best_step": best,
            "averaged_steps": averaged,
            "held_out_score": max(self.state.scores),
            "seconds": round(self.state.seconds, 1),
        }

    def _out_of_patience(self) -> bool:
        return (
            bool(self.state.scores) and self.config.patience is not None and self.state.waited >= self.config.patience
        )

    def _stop_if_asked(self, interrupts: Interrupts) -> None:
        if interrupts.signal_number is None:
            return
        step = self.state.position.step
        if self._saved != step:
            self._save()
        raise TrainingInterrupted(interrupts.signal_number, step, str(self.checkpoints.path(step)))

    def _validate(self, log: MetricsLog) -> None:
        """Score the averaged weights, log it, and write a checkpoint of the weights as they are.

        Raises TrainingDiverged, before anything is written, if the score is not a finite number.
        """
        step = self.state.position.step
        own = {name: weight.clone() for name, weight in own_weights(self.model).items()}
        earlier = [*self.state.validated, step][-self.config.average : -1]
        set_weights(self.model, self.checkpoints.mean_weights(earlier, own))
        found = self.score()
        figures = found if isinstance(found, dict) else {"score": found}
        score = figures["score"]
        set_weights(self.model, own)
        if not math.isfinite(score):
            raise TrainingDiverged(step, "the held-out score", score)
        self.state.validated.append(step)
        self.state.scores.append(score)
        log.write(kind="validation", step=step, **figures, elapsed=round(self.state.seconds, 3))
        self._save()

    def _save(self) -> None:
        step = self.state.position.step
        self.checkpoints.save(
            step, own_weights(self.model), optimizer_tensors(self.model, self.optimizer), asdict(self.state)
        )
        self._saved = step
        whole = set(self.checkpoints.steps()[-self.config.keep :])
        self.checkpoints.prune(
            whole=whole, weights={early for kept in whole for early in self._needed(self.state, kept)}
        )

    def _needed(self, state: RunState, step: int) -> set[int]:
        """Steps whose weights the averages after `step`, and the best so far, are made of."""
        best = state.window(state.best_step, self.config.average) if state.validated else []
        return {*state.window(step, self.config.average), *best}


def _check_identity(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    there, here = _flat(theirs), _flat(ours)
    differing = sorted(name for name in here if there.get(name) != here[name])
    if differing:
        named = ", ".join(
            name if name in FINGERPRINTS else f"{name} ({there.get(name)} there, {here[name]} here)"
            for name in differing
        )
        raise CheckpointError(
            f"{path} is of another run, with other {named}; "
            "resume with the same data and settings, or start anew in another folder"
        )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """`{"training": {"epochs": 3}}` as `{"training.epochs": 3}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _record(step: Step) -> dict[str, Any]:
    return {
        "step": step.position.step,
        "epoch": step.position.epoch,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "n_tokens": step.n_tokens,
        "seconds": round(step.seconds, 4),
    }


def pick_device(name: str | None) -> torch.device:
    """The device called `name`, or the best there is: CUDA, then CPU."""
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(f"device={name!r} must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but no CUDA device can be used here")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def pick_dtype(name: str) -> torch.dtype:
    """The dtype called `name`, of those that a model can compute in."""
    if name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype={name!r} must be one of float32, bfloat16, float16")
    found: torch.dtype = getattr(torch, name)
    return found
