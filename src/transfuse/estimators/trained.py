"""What every estimator does around its training."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

from sklearn.base import clone
from sklearn.utils import check_random_state

import transfuse
from transfuse.config import Config
from transfuse.data.batches import PairDataset
from transfuse.data.packing import PackedDataset
from transfuse.data.tokenizer import TokenizerConfig
from transfuse.errors import (
    CheckpointError,
    ConfigError,
    ModelDirectoryError,
    ResumeWarning,
    TrainingDiverged,
    TrainingInterrupted,
)
from transfuse.estimators.about import ESTIMATOR, TOKENIZER
from transfuse.estimators.configured import ConfiguredEstimator
from transfuse.generation.config import SearchConfig
from transfuse.pretrained.directory import load_model
from transfuse.pretrained.hub import local_directory
from transfuse.training.checkpoint import Checkpoints
from transfuse.training.config import TrainingConfig
from transfuse.training.lock import exclusive
from transfuse.training.loop import Dataset, Loss
from transfuse.training.progress import with_progress
from transfuse.training.run import CHECKPOINTS, Run, Score, pick_device, pick_dtype


@dataclass(frozen=True)
class Prepared:
    """Data as a training takes it: what to learn from, what to judge by, the loss of the task, and what gives the
    results of a trained model on the held-out data."""

    data: PairDataset | PackedDataset
    held: PairDataset | PackedDataset
    loss: Loss
    judge: Callable[[], dict[str, Any]]


class TrainedEstimator(ConfiguredEstimator):
    """An estimator with `model`, the arguments of `SETTINGS`, `validation_fraction`, `run_dir`, `device`,
    `random_state` and `verbose`."""

    SETTINGS: ClassVar[dict[str, type[Config]]] = {
        "tokenizer": TokenizerConfig,
        "training": TrainingConfig,
        "search": SearchConfig,
    }
    """Arguments that are settings, besides `model`."""

    tokenizer: Any
    training: TrainingConfig
    validation_fraction: float
    run_dir: str | Path | None
    device: str | None
    random_state: Any
    verbose: bool
    model_: Any
    tokenizer_: Any
    results_: dict[str, Any]

    @property
    def default_training(self) -> TrainingConfig:
        """What `training=None` stands for."""
        return self.training

    def set_params(self, **params: Any) -> Self:
        """Set arguments, or fields of configs by `argument__field`; those of `training=None` are of what it stands for.

        Raises ValueError for an unknown name.
        """
        of_training = {name: value for name, value in params.items() if name.startswith("training__")}
        if of_training and params.get("training", self.training) is None:
            super().set_params(**{name: value for name, value in params.items() if name not in of_training})
            params = {"training": self.default_training, **of_training}
        return super().set_params(**params)

    def prepare(self, folder: Path, X: Any, y: Any, validation: Any, seed: int) -> Prepared:
        """The fitted estimator's own form of data, ordered by `seed`, divided without it; `folder` is for what is too
        large for memory, and stays in use."""
        raise NotImplementedError

    def with_model(self, model: Any, results: dict[str, Any]) -> Self:
        """A copy around another model of the same vocabulary. Nothing of it is shared but the tokenizer."""
        copied = copy.copy(self)
        copied.model, copied.model_, copied.results_ = model.config, model, results
        return copied

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31))

    def _known_seed(self) -> int:
        """The same at every call, so that rows held out of a training are held out of what follows it."""
        return self._seed() if isinstance(self.random_state, Integral) else 0

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        """Inside `fit`: a failure leaves the estimator what it was, and says whether anything is kept."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException as error:
            self.__dict__ = before
            if self.run_dir is None and isinstance(error, TrainingInterrupted):
                raise TrainingInterrupted(error.signal_number, error.step, None) from None
            if self.run_dir is None and isinstance(error, TrainingDiverged):
                raise TrainingDiverged(error.step, error.quantity, error.value, kept=False) from None
            raise

    @contextmanager
    def _run_folder(self, resume: bool) -> Iterator[Path]:
        """`run_dir`, or a folder that is deleted afterwards, held against other trainings.

        Raises CheckpointError, before anything in it changes, if it holds an earlier run that is not to be resumed.
        """
        if resume and self.run_dir is None:
            raise ConfigError("resume=True goes on from run_dir, and none is given")
        with ExitStack() as stack:
            folder = Path(self.run_dir or stack.enter_context(scratch_folder()))
            stack.enter_context(exclusive(folder))
            checkpoints = Checkpoints(folder / CHECKPOINTS)
            if not resume and checkpoints.steps():
                raise CheckpointError(
                    f"{checkpoints.folder} holds checkpoints of an earlier run; resume it, or choose another folder"
                )
            yield folder

    def __sklearn_clone__(self) -> Self:
        """An unfitted copy; a fitted estimator that it starts from is where the copy starts from as well."""
        settings = self.get_params(deep=False).items()
        return type(self)(
            **{name: one if isinstance(one, TrainedEstimator) else clone(one, safe=False) for name, one in settings}
        )

    def _train(
        self,
        folder: Path,
        data: Dataset,
        loss: Loss,
        score: Callable[[], Score],
        *,
        seed: int,
        identity: dict[str, Any],
        resume: bool,
        config: TrainingConfig | None = None,
    ) -> dict[str, Any]:
        """Train `model_` to its end, by `config` instead of `training` if given; return what the run came to."""
        config = config or self.training
        run = Run(self.model_, data, loss, config, folder=folder, seed=seed, score=score, identity=identity)
        if resume and not run.resume():
            message = f"nothing to resume in {run.checkpoints.folder}; starting anew"
            warnings.warn(message, ResumeWarning, stacklevel=5)
        for _ in with_progress(run) if self.verbose else run.steps():
            pass
        return run.finish()

    @staticmethod
    def _model_in(folder: str | Path, device: str | None, dtype: str = "float32") -> tuple[Path, Any]:
        """Where a directory or hub id lies, and its model in `dtype`, still on the CPU.

        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there or another dtype.
        """
        pick_device(device)  # the caller's settings, so not errors of the directory
        computed_in = pick_dtype(dtype)
        folder = local_directory(folder)
        return folder, load_model(folder, computed_in)

    @classmethod
    def _opened(cls, folder: Path, model: Any, tokenizer: Any, about: dict[str, Any], **own: Any) -> Self:
        """An estimator around a model and what its directory says of it; `own` are arguments of its class alone.

        Raises ModelDirectoryError if model and tokenizer do not fit, or for settings that contradict themselves.
        """
        if len(tokenizer) > model.config.vocab_size:
            raise ModelDirectoryError(
                f"{folder / TOKENIZER}: {len(tokenizer)} tokens, but the model has {model.config.vocab_size}"
            )
        try:
            estimator = cls(
                model=model.config,
                **{name: kind.from_dict(about[name]) for name, kind in cls.SETTINGS.items()},
                validation_fraction=about["validation_fraction"],
                random_state=about["random_state"],
                **own,
            )
            estimator._check_settings()
        except ConfigError as error:
            raise ModelDirectoryError(f"{folder / ESTIMATOR}: {error}") from error
        estimator.model_, estimator.tokenizer_ = model.to(pick_device(estimator.device)), tokenizer
        estimator.results_ = about["results"]
        return estimator

    def _about(self, **own: Any) -> dict[str, Any]:
        """What a saved directory says of its estimator; `own` is what its class alone has to say."""
        return {
            "estimator": type(self).__name__,
            "version": transfuse.__version__,
            "validation_fraction": self.validation_fraction,
            "random_state": int(self.random_state) if isinstance(self.random_state, Integral) else None,
            **{name: getattr(self, name).to_dict() for name in self.SETTINGS},
            "results": self.results_,
            **own,
        }

    def _check_settings(self) -> None:
        """Raise ConfigError for settings that fit cannot work with."""
        raise NotImplementedError

    def _check_common_settings(self, kinds: dict[str, type[Config]]) -> None:
        """Raise ConfigError for settings that no fit can work with; `kinds` names the arguments that are configs."""
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a {kind.__name__}")
        pick_device(self.device)
        fraction: Any = self.validation_fraction
        if not isinstance(fraction, Real) or not 0 < float(fraction) < 1:
            raise ConfigError(f"validation_fraction={fraction!r} must be above 0 and below 1")
        try:
            check_random_state(self.random_state)
        except ValueError as error:
            raise ConfigError(
                f"random_state={self.random_state!r} must be a whole number of at least 0 and below 2**32, None or a "
                "RandomState"
            ) from error


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is deleted on leaving it."""
    return tempfile.TemporaryDirectory(prefix="transfuse-")
