"""What is learned of rows whose columns hold text, images, sounds, numbers and categories."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted

from transfuse.config import Config
from transfuse.data.augmentation import AugmentationConfig
from transfuse.data.columns import Kind, as_strings, check_cells, find_kinds, names_of
from transfuse.data.features import FeatureForm, plain_columns
from transfuse.data.images import ImageConfig
from transfuse.data.modalities import Modality, MultimodalDataset, Scores
from transfuse.data.rows import TABLE, TEXT, Failure, Media, RowForm, band_statistics, columns_of, read_media
from transfuse.data.sounds import SoundConfig
from transfuse.data.wordpiece import WordPiece, WordPieceConfig
from transfuse.errors import ConfigError, DataError, ModelDirectoryError, UnreadableWarning
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, read_about
from transfuse.estimators.fine_tuned import JUDGED_TOKENS, divided
from transfuse.estimators.model_card import model_card
from transfuse.estimators.starts import Starts, fitted_images
from transfuse.estimators.text_encoder import TOKENS
from transfuse.estimators.trained import TrainedEstimator
from transfuse.estimators.tree_tower import TreeTower
from transfuse.metrics.text_scores import Score
from transfuse.models.fusion import PARALLEL, FusionConfig, FusionModel, MultimodalConfig
from transfuse.models.towers import TowersConfig
from transfuse.nn.linear import packed
from transfuse.pretrained.directory import load_model, save_model
from transfuse.pretrained.hub import local_directory
from transfuse.training.config import TrainingConfig
from transfuse.training.loop import mean_loss
from transfuse.training.multimodal import MultimodalLoss
from transfuse.training.run import pick_device

TRAINING = TrainingConfig(
    epochs=20,
    batch_tokens=2048,
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=50,
    weight_decay=0.05,
    label_smoothing=0.0,
    validate_every=100,
    average=1,
)
"""Of towers trained from nothing."""

FINE_TUNING = TRAINING.replace(epochs=6, learning_rate=2e-4)
"""Where a tower starts from a checkpoint and is trained on."""

ROWS = 512
"""Rows whose files are read at a time to predict."""

TREES = "trees.json"

Rows = tuple[pd.DataFrame, list[Any]]
"""A table, and the targets of its rows."""

Unreadable = Literal["refuse", "missing", "drop"]


class MultimodalEstimator(TrainedEstimator):
    """What `MultimodalClassifier` and `MultimodalRegressor` share.

    `kinds` says what columns hold where it is not as it looks, by name: text, image, audio, number, category, date or
    ignored. Files are named relative to `files`, and one that cannot be read is `unreadable`: "refuse" the rows, take
    the value for "missing", or "drop" the row from training (and take it for missing in rows to predict).
    """

    SETTINGS: ClassVar[dict[str, type[Config]]] = {
        "fusion": FusionConfig,
        "towers": TowersConfig,
        "images": ImageConfig,
        "sounds": SoundConfig,
        "augmentation": AugmentationConfig,
        "tokenizer": WordPieceConfig,
    }
    KIND: ClassVar[Literal["class", "number"]]

    fusion: FusionConfig
    towers: TowersConfig
    form_: RowForm
    trees_: TreeTower | None

    def __init__(
        self,
        *,
        kinds: Mapping[str, Kind] | None = None,
        files: str | Path = ".",
        unreadable: Unreadable = "refuse",
        fusion: FusionConfig = FusionConfig(),
        towers: TowersConfig = TowersConfig(),
        images: ImageConfig = ImageConfig(),
        sounds: SoundConfig = SoundConfig(),
        augmentation: AugmentationConfig = AugmentationConfig(),
        tokenizer: WordPieceConfig = TOKENS,
        training: TrainingConfig | None = None,
        validation_fraction: float = 0.1,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.kinds = kinds
        self.files = files
        self.unreadable = unreadable
        self.fusion = fusion
        self.towers = towers
        self.images = images
        self.sounds = sounds
        self.augmentation = augmentation
        self.tokenizer = tokenizer
        self.training = training  # type: ignore[assignment]
        self.validation_fraction = validation_fraction
        self.run_dir = run_dir
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @property
    def default_training(self) -> TrainingConfig:
        """What `training=None` stands for."""
        tuned = not self.towers.frozen and (self.towers.text_from or self.towers.image_from)
        return FINE_TUNING if tuned else TRAINING

    def _learn(
        self,
        X: Any,
        targets: np.ndarray,
        n_outputs: int,
        loss: MultimodalLoss,
        validation: tuple[Any, np.ndarray] | None,
        sample_weight: Iterable[float] | None,
        resume: bool,
    ) -> None:
        """Train on a table and targets, (rows,) classes or (rows, numbers)."""
        seed = self._seed()
        frame = as_frame(X, "X")
        weights = _weights(sample_weight, len(frame))
        if len(frame) != len(targets):
            raise DataError(f"X has {len(frame)} rows and y has {len(targets)}; they must be equally many")
        kinds = find_kinds(frame, self.kinds or {})
        check_cells(frame, kinds)
        kept, aside = np.arange(len(frame)), np.arange(0)
        if validation is None:
            kept, aside = divided(
                len(frame), self.validation_fraction, self._known_seed(), targets if loss.kind == "class" else None
            )
        else:
            further = as_frame(validation[0], "validation[0]")
            if len(further) != len(validation[1]):
                raise DataError(
                    f"validation has {len(further)} rows and {len(validation[1])} targets; one each is needed"
                )
            aside = np.arange(len(frame), len(frame) + len(further))
            frame = pd.concat([frame, further[frame.columns]], ignore_index=True)
            targets = np.concatenate([targets, validation[1]])
            weights = np.concatenate([weights, np.ones(len(further), np.float32)])
        self.feature_names_in_ = np.array(list(kinds), dtype=object)
        self.n_features_in_ = len(kinds)
        starts = Starts.opened(self.towers, kinds)
        with self._run_folder(resume) as folder:
            media = self._read(frame, kinds, starts.image_settings(self.images), folder)
            kept, aside = self._without_unreadable(media, kept, aside)
            self._begin(frame, kinds, media, starts, kept, n_outputs, seed)
            modalities = {name: self.form_.modality(name, frame, media) for name in self.form_.names}
            if self.towers.table == "trees" and TABLE in modalities:
                modalities[TABLE] = self._grow(frame, modalities[TABLE], targets, weights, kept, loss.kind, seed)
            whole = MultimodalDataset(modalities, targets, weights, self.augmentation, seed)
            empty = np.flatnonzero(whole.lengths_NM.sum(1)[np.sort([*kept, *aside])] == 0)
            if len(empty):
                row = int(np.sort([*kept, *aside])[empty[0]]) + 1
                raise DataError(f"row {row}: every modality is missing, so there is nothing to learn from")
            held = whole.choose(aside)
            self._make(starts, whole.lengths_NM[kept], n_outputs, seed)
            self._train_on(folder, whole.choose(kept), held, loss, seed, resume)
            self._judge(held, targets[aside])

    def _read(
        self,
        frame: pd.DataFrame,
        kinds: Mapping[str, Kind],
        images: ImageConfig,
        scratch: Path | None = None,
        first: int = 0,
    ) -> Media:
        """The files that rows name. Raises DataError, or warns, of those that cannot be read, as `unreadable` says."""
        media = read_media(frame, kinds, Path(self.files), images, self.sounds, scratch, first)
        if media.failures and self.unreadable == "refuse":
            more = f" (and {len(media.failures) - 1} more)" if len(media.failures) > 1 else ""
            raise DataError(f"{media.failures[0]}{more}; unreadable='missing' or 'drop' goes on without")
        if media.failures:
            warnings.warn(_told(media.failures, self.unreadable), UnreadableWarning, stacklevel=5)
        return media

    def _without_unreadable(self, media: Media, kept: np.ndarray, aside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.unreadable != "drop" or not media.failures:
            return kept, aside
        bad = {failure.row for failure in media.failures}
        kept, aside = (np.array([row for row in rows if row not in bad], dtype=int) for rows in (kept, aside))
        if not len(kept) or not len(aside):
            raise DataError("no row is left to learn from or to judge by once those with unreadable files are dropped")
        return kept, aside

    def _begin(
        self,
        frame: pd.DataFrame,
        kinds: dict[str, Kind],
        media: Media,
        starts: Starts,
        kept: np.ndarray,
        n_outputs: int,
        seed: int,
    ) -> None:
        """Learn the form of rows from those that are `kept`."""
        if not columns_of(kinds):
            raise DataError(f"every column is ignored ({', '.join(kinds)}); say what they hold by kinds=")
        learned = frame.iloc[kept]
        texts = [text for name in names_of(kinds, "text") for text in as_strings(learned[name]) if text is not None]
        self.tokenizer_ = starts.tokenizer(texts, self.tokenizer) if names_of(kinds, "text") else None
        self.trees_ = None
        self.form_ = RowForm(
            kinds=kinds,
            features=FeatureForm.learn(learned, kinds),
            bands=band_statistics(media, kept),
            tokenizer=self.tokenizer_,
            longest=starts.longest,
            n_segments=starts.n_segments(kinds),
            image_tokens=starts.image_tokens(self.images),
            frames_a_token=2**self.towers.n_halvings,
        )

    def _make(self, starts: Starts, lengths_NM: np.ndarray, n_outputs: int, seed: int) -> None:
        """A model for the form of rows, whose towers are new or start from others."""
        fusion = self.fusion.replace(outputs=self.KIND, n_outputs=n_outputs)
        if fusion.align == "attend" and fusion.longest is None:
            typical = [np.median(one[one > 0]) if (one > 0).any() else 0 for one in lengths_NM.T]
            fusion = fusion.replace(longest=int(np.argmax(typical)))
        n_scores = 1 if self.KIND == "class" and n_outputs == 2 else n_outputs
        towers = starts.configs(self.form_, self.images, self.sounds, n_scores)
        config = MultimodalConfig(fusion=fusion, towers=towers, names=tuple(self.form_.names))
        self.model_ = FusionModel(config).initialise(seed)
        starts.give(self.model_)
        self.model_.to(pick_device(self.device))

    def _grow(
        self,
        frame: pd.DataFrame,
        table: Modality,
        targets: np.ndarray,
        weights: np.ndarray,
        kept: np.ndarray,
        kind: str,
        seed: int,
    ) -> Scores:
        """Grow trees in the place of the table's tower; their scores of the rows they learn from are by trees that did
        not see the row."""
        X = plain_columns(frame, self.form_.features)
        levels = [len(one) for one in self.form_.features.levels.values()]
        y = targets[kept] if kind == "class" else targets[kept, 0]
        self.trees_, unseen = TreeTower.fit(X[kept], y, weights[kept], levels, kind, seed)
        scores = self.trees_.scores(X)
        scores[kept] = unseen
        return Scores(scores, table.lengths_N > 0)

    def _train_on(
        self,
        folder: Path,
        data: MultimodalDataset,
        held: MultimodalDataset,
        loss: MultimodalLoss,
        seed: int,
        resume: bool,
    ) -> None:
        config = self.training or self.default_training
        identity = {
            "model": {"fusion": self.model_.config.fusion.to_dict(), "names": list(self.model_.config.names)},
            "towers": [tower.to_dict() for tower in self.model_.config.towers],
            "augmentation": self.augmentation.to_dict(),
            "data": data.fingerprint(),
            "validation": held.fingerprint(),
            "class_weights": None if loss.weights is None else list(loss.weights),
        }

        def score() -> float:
            return -mean_loss(self.model_, held, loss, config)

        self.results_ = self._train(
            folder, data, loss, score, seed=seed, identity=identity, resume=resume, config=config
        )
        self.results_["held_out_loss"] = mean_loss(self.model_, held, loss, config)
        self.results_["trimmed"] = trimmed_share(held) if self.fusion.align == "trim" else 0.0

    def _judge(self, held: MultimodalDataset, targets: np.ndarray) -> None:
        scores = self.score_of(self.outputs_of(held), self._as_given(targets))
        self.results_ |= {"held_out_rows": len(held), "held_out_metrics": [vars(score) for score in scores]}

    @torch.inference_mode()
    def outputs_of(self, data: MultimodalDataset) -> np.ndarray:
        """What the model gives for each row, (rows, outputs), in float64."""
        device = next(self.model_.parameters()).device
        found = np.empty((len(data), self.model_.config.fusion.n_outputs))
        self.model_.eval()
        with packed(self.model_.modules()):
            for rows in data.in_order(JUDGED_TOKENS):
                found[rows] = self.model_(data.batch(rows).to(device).parts).double().cpu().numpy()
        return found

    def _predicted(self, X: Any, without: Sequence[str] = ()) -> np.ndarray:
        """The model's outputs for each row of a table, read in stretches."""
        check_is_fitted(self, "model_")
        frame = as_frame(X, "X")
        check_cells(frame, self.form_.kinds)  # before it is cut up, so that rows have their numbers
        unknown = sorted(set(without) - set(self.form_.names))
        if unknown:
            raise DataError(f"there is no modality {unknown[0]!r}; there are {', '.join(self.form_.names)}")
        found = [np.empty((0, self.model_.config.fusion.n_outputs))]
        for first in range(0, len(frame), ROWS):
            part = frame.iloc[first : first + ROWS].reset_index(drop=True)
            found.append(self.outputs_of(self.rows_of(part, first, without)))
        return np.concatenate(found)

    def rows_of(self, frame: pd.DataFrame, first: int = 0, without: Sequence[str] = ()) -> MultimodalDataset:
        """Rows as the model takes them, the first being row `first` of those given. Raises DataError as fit does."""
        data = self.rows_and_media(frame, first)[0]
        for name in without:
            data.lengths_NM[:, self.form_.names.index(name)] = 0
        empty = np.flatnonzero(data.lengths_NM.sum(1) == 0)
        if len(empty):
            row = first + int(empty[0]) + 1
            raise DataError(f"row {row}: every modality is missing, so there is nothing to predict from")
        return data

    def rows_and_media(self, frame: pd.DataFrame, first: int = 0) -> tuple[MultimodalDataset, Media]:
        """Rows as the model takes them, and the files they name as they were read."""
        check_cells(frame, self.form_.kinds)
        media = self._read(frame, self.form_.kinds, fitted_images(self.images, self.model_), first=first)
        modalities = {name: self.modality_of(name, frame, media) for name in self.form_.names}
        return MultimodalDataset(modalities, np.zeros(len(frame)), np.ones(len(frame), np.float32)), media

    def modality_of(self, name: str, frame: pd.DataFrame, media: Media) -> Modality:
        """One modality of rows; of a table whose tower is trees, their scores."""
        found = self.form_.modality(name, frame, media)
        if name != TABLE or self.trees_ is None:
            return found
        return Scores(self.trees_.scores(plain_columns(frame, self.form_.features)), found.lengths_N > 0)

    def trees_of(self, X: Any, y: Iterable[Any], names: tuple[str, str] = ("X", "y")) -> tuple[Any, pd.DataFrame, Any]:
        """The trees in the place of the table's tower as a model of their own, and the columns and targets they take.

        Raises DataError if the model has none.
        """
        check_is_fitted(self, "model_")
        if self.trees_ is None:
            raise DataError(f"the table's tower is no trees: towers.table={self.towers.table!r}")
        frame = as_frame(X, names[0])
        check_cells(
            frame, {name: kind for name, kind in self.form_.kinds.items() if name in self.form_.columns_of[TABLE]}
        )
        form = self.form_.features
        columns = [*form.edges, *form.levels]
        told = self.trees_.told(getattr(self, "classes_", None), columns)
        return told, pd.DataFrame(plain_columns(frame, form), columns=columns), self._as_learned(y, names[1])

    def _as_learned(self, y: Iterable[Any], name: str) -> np.ndarray:
        """Targets as the trees have them."""
        return self.targets_of(y, name)

    def divided(self, X: pd.DataFrame, y: Sequence[Any]) -> tuple[Rows, Rows]:
        """Rows to learn from and rows to judge by, as `fit` divides them where it is given none to judge by."""
        classes = np.unique(self.targets_of(y, "y"), return_inverse=True)[1] if self.KIND == "class" else None
        sides = divided(len(X), self.validation_fraction, self._known_seed(), classes)
        learned, judged = ((X.iloc[rows].reset_index(drop=True), [y[row] for row in rows]) for rows in sides)
        return learned, judged

    def evaluate(self, X: Any, y: Iterable[Any]) -> list[Score]:
        """Scores of the predictions for `X` against `y`."""
        return self.score_of(self._predicted(X), self.targets_of(y, "y"))

    def score_of(self, outputs: np.ndarray, wanted: np.ndarray) -> list[Score]:
        """Scores of the model's outputs, the most telling first, higher being better."""
        raise NotImplementedError

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """What the model's outputs come to: a class or a number a row."""
        raise NotImplementedError

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def targets_of(self, y: Iterable[Any], name: str) -> np.ndarray:
        """Targets as an array. Raises DataError naming the row of one that is missing or not usable."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> Path:
        """Write a directory: config.json, model.safetensors, transfuse.json, README.md, and tokenizer.json and
        trees.json where there are any."""
        check_is_fitted(self, "model_")
        name = type(self).__name__
        example = [f"from transfuse import {name}", "", f'{name}.load("this-directory").predict(table)']
        about = self._about(
            training=self.training.to_dict() if self.training else {},
            unreadable=self.unreadable,
            form=self.form_.to_dict(),
            columns=self.feature_names_in_.tolist(),
            **self._labels(),
        )
        beside = {
            ESTIMATOR: json.dumps(about, indent=2, ensure_ascii=False),
            "README.md": model_card(f"{name} ({self.fusion.fusion} fusion)", self.model_, self.results_, example),
        }
        if self.tokenizer_ is not None:
            beside[TOKENIZER] = self.tokenizer_.to_json()
        if self.trees_ is not None:
            beside[TREES] = json.dumps(self.trees_.to_dict())
        save_model(self.model_, Path(folder), beside)
        return Path(folder)

    def _labels(self) -> dict[str, Any]:
        """What a saved directory says of its targets."""
        raise NotImplementedError

    def _take_labels(self, about: dict[str, Any]) -> None:
        """Put back what `_labels` gave."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path, *, files: str | Path = ".", device: str | None = None) -> Self:
        """The estimator saved in `folder`, which finds the files of rows under `files`.

        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there.
        """
        pick_device(device)  # the caller's setting, so not an error of the directory
        folder = local_directory(folder)
        model = load_model(folder)
        if not isinstance(model, FusionModel) or model.config.fusion.outputs != cls.KIND:
            raise ModelDirectoryError(f"{folder}: not a multimodal model of {cls.KIND}s")
        own = {"form": {}, "unreadable": "refuse", "columns": [], "classes": [], "mean": [], "scale": []}
        about = read_about(folder, COMMON | {name: {} for name in cls.SETTINGS} | own)
        tokenizer = WordPiece.load(folder / TOKENIZER) if TEXT in model.config.names else None
        try:
            form = RowForm.from_dict(about["form"], tokenizer)
            trees = json.loads((folder / TREES).read_text(encoding="utf-8")) if (folder / TREES).is_file() else None
            settings: dict[str, Any] = {name: kind.from_dict(about[name]) for name, kind in cls.SETTINGS.items()}
            estimator = cls(
                **settings,
                kinds=form.kinds,
                files=files,
                unreadable=about["unreadable"],
                training=TrainingConfig.from_dict(about["training"]) if about["training"] else None,
                validation_fraction=about["validation_fraction"],
                random_state=about["random_state"],
                device=device,
            )
            estimator.form_, estimator.tokenizer_ = form, tokenizer
            estimator.trees_ = None if trees is None else TreeTower.from_dict(trees)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise ModelDirectoryError(
                f"{folder / ESTIMATOR}: not what a multimodal model says of itself ({error!r})"
            ) from error
        estimator.model_, estimator.results_ = model.to(pick_device(device)), about["results"]
        estimator.feature_names_in_ = np.array(about["columns"], dtype=object)
        estimator.n_features_in_ = len(about["columns"])
        estimator._take_labels(about)
        return estimator

    def _check_settings(self) -> None:
        """Raise ConfigError for settings that fit cannot work with."""
        kinds = dict(self.SETTINGS) | ({"training": TrainingConfig} if self.training is not None else {})
        self._check_common_settings(kinds)
        if self.unreadable not in ("refuse", "missing", "drop"):
            raise ConfigError(f"unreadable={self.unreadable!r} must be refuse, missing or drop")
        if self.towers.table == "trees" and self.fusion.fusion not in PARALLEL:
            raise ConfigError(
                f"table='trees' gives scores, not tokens, so fusion={self.fusion.fusion!r} must be one of "
                + ", ".join(PARALLEL)
            )
        if self.training is not None and self.training.select_by != "loss":
            raise ConfigError(f"select_by={self.training.select_by!r}: these models are judged by their loss")


def as_frame(X: Any, name: str) -> pd.DataFrame:
    """A table with columns called by strings and rows numbered from 0; columns of an array are x0, x1, …"""
    if isinstance(X, pd.DataFrame):
        frame = X.reset_index(drop=True)
        frame.columns = [str(column) for column in frame.columns]
    elif isinstance(X, Mapping):
        frame = pd.DataFrame(X).reset_index(drop=True)
    else:
        values = np.asarray(X)
        if values.ndim != 2:
            raise DataError(f"{name} has {values.ndim} dimensions; expected a DataFrame, or rows and columns")
        frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"{name} has {len(frame)} rows and {len(frame.columns)} columns; at least one of each is needed"
        )
    return frame


def trimmed_share(data: MultimodalDataset) -> float:
    """The share of tokens that align="trim" throws away."""
    lengths = data.lengths_NM
    shortest = np.where(lengths > 0, lengths, np.iinfo(lengths.dtype).max).min(1, keepdims=True)
    return float(1 - np.minimum(lengths, shortest).sum() / lengths.sum())


def _told(failures: list[Failure], unreadable: str) -> str:
    rows = len({failure.row for failure in failures})
    done = "taken for missing" if unreadable == "missing" else "left out of training, or taken for missing"
    return f"{len(failures)} files of {rows} rows cannot be read and are {done}; the first: {failures[0]}"


def _weights(sample_weight: Iterable[float] | None, n: int) -> np.ndarray:
    """Weights with a mean of 1."""
    if sample_weight is None:
        return np.ones(n, np.float32)
    weights = np.asarray(sample_weight if hasattr(sample_weight, "__array__") else list(sample_weight), np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
        raise DataError(f"sample_weight must be {n} finite numbers of at least 0, not all of them 0")
    return (weights / weights.mean()).astype(np.float32)
