"""What is learned of rows whose columns hold text, images, sounds, numbers and categories."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted

from transfuse.config import Config
from transfuse.data.augmentation import AugmentationConfig
from transfuse.data.columns import Kind, as_strings, check_cells, find_kinds, names_of
from transfuse.data.features import FeatureForm, plain_columns
from transfuse.data.images import ImageConfig
from transfuse.data.modalities import Modality, MultimodalDataset, Scores, Texts
from transfuse.data.rows import TABLE, TEXT, Media, RowForm, band_statistics, columns_of, read_media
from transfuse.data.sounds import SoundConfig
from transfuse.data.wordpiece import WordPiece
from transfuse.errors import ConfigError, DataError, ModelDirectoryError, TruncatedWarning, UnreadableWarning
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, read_about
from transfuse.estimators.fine_tuned import JUDGED_TOKENS, divided
from transfuse.estimators.learning_rows import LearningRows, as_frame, row_name
from transfuse.estimators.model_card import model_card
from transfuse.estimators.starts import Starts, fitted_images
from transfuse.estimators.trained import TrainedEstimator
from transfuse.estimators.tree_tower import TreeTower
from transfuse.metrics.text_scores import Score
from transfuse.models.fusion import PARALLEL, FusionConfig, FusionModel, MultimodalConfig
from transfuse.models.towers import ScoreTowerConfig, TowersConfig
from transfuse.nn.linear import packed
from transfuse.pretrained.directory import save_model
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
        validation: tuple[Any, np.ndarray] | None,
        sample_weight: Any,
        resume: bool,
    ) -> None:
        """Train on a table and targets, a number of a class or a number for each row."""
        seed = self._seed()
        rows = self._divide(X, targets, validation, sample_weight)
        starts = Starts.opened(self.towers, rows.kinds)
        with self._run_folder(resume) as folder:
            images = starts.image_settings(self.images)
            media = self._read(rows.frame, rows.kinds, images, scratch=folder, name=rows.name)
            if self.unreadable == "drop":
                rows = rows.without({failure.row for failure in media.failures})
            loss, final = self._settled(rows)
            self._begin(rows, media, starts)
            modalities = {name: self.form_.modality(name, rows.frame, media) for name in self.form_.names}
            cut_texts = self._warn_of_cut(modalities)
            if self.towers.table == "trees" and TABLE in modalities:
                modalities[TABLE] = self._grow(rows, modalities[TABLE], seed)
            whole = MultimodalDataset(modalities, final, rows.weights, self.augmentation, seed)
            empty = [row for row in (*rows.kept, *rows.aside) if not whole.lengths_NM[row].sum()]
            if empty:
                raise DataError(
                    f"{rows.name(min(empty))}: every modality is missing, so there is nothing to learn from"
                )
            held = whole.choose(rows.aside)
            self._make(starts, whole.lengths_NM[rows.kept], n_outputs, seed)
            self._train_on(folder, whole.choose(rows.kept), held, loss, starts.fingerprint(), seed, resume)
            self.results_ |= {"cut_sounds": media.cut, "cut_texts": cut_texts}
            self._judge(held, final[rows.aside])

    def _divide(
        self, X: Any, targets: np.ndarray, validation: tuple[Any, np.ndarray] | None, sample_weight: Any
    ) -> LearningRows:
        weights = self._row_weights(sample_weight, targets)
        frame = as_frame(X, "X")
        if len(frame) != len(targets):
            raise DataError(f"X has {len(frame)} rows and y has {len(targets)}; they must be equally many")
        if len(weights) != len(frame):
            raise DataError(f"sample_weight has {len(weights)} numbers for {len(frame)} rows; one each is needed")
        kinds = find_kinds(frame, {str(name): kind for name, kind in (self.kinds or {}).items()})
        check_cells(frame, kinds)
        self.feature_names_in_ = np.array(list(kinds), dtype=object)
        self.n_features_in_ = len(kinds)
        if validation is None:
            rows = LearningRows(frame, kinds, targets, weights, *self._sides(targets), len(frame))
        else:
            everything, nothing = np.arange(len(frame)), np.arange(0)
            rows = LearningRows(frame, kinds, targets, weights, everything, nothing, len(frame))
            rows = rows.beside(*validation, self._held_weights(sample_weight, targets, validation[1]))
        return rows.weighed()

    def _sides(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows to learn from and rows to judge by, the same for the same targets; two numbers, for R² needs as many."""
        n, fraction, seed = len(targets), self.validation_fraction, self._known_seed()
        if self.KIND == "class":
            return divided(n, fraction, seed, classes=targets)
        return divided(n, max(fraction, 2 / n) if n > 3 else fraction, seed)

    def _held_weights(self, sample_weight: Any, targets: np.ndarray, held: np.ndarray) -> np.ndarray:
        """The weight of each row of a validation table."""
        return np.ones(len(held))

    def _row_weights(self, sample_weight: Any, targets: np.ndarray) -> np.ndarray:
        """The weight of each row. Raises DataError for what is none."""
        if sample_weight is None:
            return np.ones(len(targets))
        if isinstance(sample_weight, str):
            raise DataError(f"sample_weight={sample_weight!r} must be numbers, one a row")
        weights = np.asarray(sample_weight if hasattr(sample_weight, "__array__") else list(sample_weight), np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise DataError("sample_weight must be finite numbers of at least 0, one a row and not all of them 0")
        return weights

    def _settled(self, rows: LearningRows) -> tuple[MultimodalLoss, np.ndarray]:
        """The loss, and targets as it takes them, by what the rows to learn from say."""
        raise NotImplementedError

    def _read(
        self,
        frame: pd.DataFrame,
        kinds: Mapping[str, Kind],
        images: ImageConfig,
        *,
        name: Callable[[int], str],
        scratch: Path | None = None,
    ) -> Media:
        """The files that rows name. Raises DataError, or warns, of those that cannot be read, as `unreadable` says, and
        warns of sounds that are cut. `name` is what a row is called."""
        self._check_unreadable()  # it may have changed since the training
        media = read_media(frame, kinds, Path(self.files), images, self.sounds, scratch)
        if media.failures:
            bad = media.failures[0]
            first = f"{name(bad.row)}, column {bad.column!r}: {bad.reason}"
            if self.unreadable == "refuse":
                more = f" (and {len(media.failures) - 1} more)" if len(media.failures) > 1 else ""
                raise DataError(f"{first}{more}; unreadable='missing' or 'drop' goes on without")
            done = "taken for missing" if self.unreadable == "missing" else "left out of training, or taken for missing"
            n_rows = len({failure.row for failure in media.failures})
            message = f"{len(media.failures)} files of {n_rows} rows cannot be read and are {done}; the first: {first}"
            warnings.warn(message, UnreadableWarning, stacklevel=2)
        if media.cut:
            message = f"{media.cut} sounds are longer than max_seconds={self.sounds.max_seconds}, and cut"
            warnings.warn(message, TruncatedWarning, stacklevel=2)
        return media

    def _warn_of_cut(self, modalities: Mapping[str, Modality]) -> int:
        """Say how many rows have more text than is read; return it."""
        texts = modalities.get(TEXT)
        if not isinstance(texts, Texts) or not texts.cut:
            return 0
        message = (
            f"{texts.cut} rows have more than {self.form_.longest} pieces of text, and are cut (towers.max_pieces)"
        )
        warnings.warn(message, TruncatedWarning, stacklevel=2)
        return texts.cut

    def _begin(self, rows: LearningRows, media: Media, starts: Starts) -> None:
        """Learn the form of rows from those that are learned from."""
        kinds, learned = rows.kinds, rows.frame.iloc[rows.kept]
        if not columns_of(kinds):
            raise DataError(f"every column is ignored ({', '.join(kinds)}); say what they hold by kinds=")
        texts = [text for name in names_of(kinds, "text") for text in as_strings(learned[name]) if text is not None]
        self.tokenizer_ = starts.tokenizer(texts) if names_of(kinds, "text") else None
        self.trees_ = None
        self.form_ = RowForm(
            kinds=kinds,
            features=FeatureForm.learn(learned, kinds),
            bands=band_statistics(media, rows.kept),
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
        towers = starts.configs(self.form_, self.images, self.sounds, n_outputs)
        config = MultimodalConfig(fusion=fusion, towers=towers, names=tuple(self.form_.names))
        self.model_ = FusionModel(config).initialise(seed)
        starts.give(self.model_)
        self.model_.to(pick_device(self.device))

    def _grow(self, rows: LearningRows, table: Modality, seed: int) -> Scores:
        """Grow trees in the place of the table's tower; their scores of the rows they learn from are by trees that did
        not see the row."""
        X = plain_columns(rows.frame, self.form_.features)
        levels = [len(one) for one in self.form_.features.levels.values()]
        y, weights = self._tree_targets(rows.targets[rows.kept]), rows.weights[rows.kept]
        self._check_tree_targets(y)
        self.trees_, unseen = TreeTower.fit(X[rows.kept], y, weights, levels, self.KIND, seed)
        scores = self.trees_.scores(X)
        scores[rows.kept] = unseen
        return Scores(scores, table.lengths_N > 0)

    def _tree_targets(self, targets: np.ndarray) -> np.ndarray:
        """Targets as the trees have them."""
        return targets

    def _check_tree_targets(self, targets: np.ndarray) -> None:
        """Raise DataError for what trees cannot learn from."""

    def _train_on(
        self,
        folder: Path,
        data: MultimodalDataset,
        held: MultimodalDataset,
        loss: MultimodalLoss,
        starts: str,
        seed: int,
        resume: bool,
    ) -> None:
        config = self.training or self.default_training
        identity = {
            "model": {"fusion": self.model_.config.fusion.to_dict(), "names": list(self.model_.config.names)},
            "towers": [tower.to_dict() for tower in self.model_.config.towers],
            "starts": starts,
            # runs begun before cells were hidden go on without
            "augmentation": {n: v for n, v in self.augmentation.to_dict().items() if v or n != "cell_dropout"},
            "data": data.fingerprint(),
            "validation": held.fingerprint(),
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
        if not isinstance(X, pd.DataFrame | Mapping) and frame.shape[1] != self.n_features_in_:
            raise DataError(f"X has {frame.shape[1]} columns, but the model was trained on {self.n_features_in_}")
        # before it is cut up, so that rows have their numbers
        check_cells(frame, self.form_.kinds, self.form_.features.by_day)
        unknown = sorted(set(without) - set(self.form_.names))
        if unknown:
            raise DataError(f"there is no modality {unknown[0]!r}; there are {', '.join(self.form_.names)}")
        found = [np.empty((0, self.model_.config.fusion.n_outputs))]
        for first in range(0, len(frame), ROWS):
            part = frame.iloc[first : first + ROWS].reset_index(drop=True)
            found.append(self.outputs_of(self.rows_of(part, without, partial(row_name, first=first))))
        return np.concatenate(found)

    def rows_of(
        self, frame: pd.DataFrame, without: Sequence[str] = (), name: Callable[[int], str] = row_name
    ) -> MultimodalDataset:
        """Rows as the model takes them; `name` is what each is called. Raises DataError as fit does."""
        data = self.rows_and_media(frame, name)[0]
        data = replace(data, left_out=frozenset(without))
        empty = np.flatnonzero(data.lengths_NM.sum(1) == 0)
        if len(empty):
            raise DataError(f"{name(int(empty[0]))}: every modality is missing, so there is nothing to predict from")
        return data

    def rows_and_media(
        self, frame: pd.DataFrame, name: Callable[[int], str] = row_name, *, scratch: Path | None = None
    ) -> tuple[MultimodalDataset, Media]:
        """Rows as the model takes them, and the files they name as they were read, in `scratch` where it is given."""
        check_cells(frame, self.form_.kinds, self.form_.features.by_day)
        media = self._read(frame, self.form_.kinds, fitted_images(self.images, self.model_), name=name, scratch=scratch)
        modalities = {one: self.modality_of(one, frame, media) for one in self.form_.names}
        self._warn_of_cut(modalities)
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
        wanted = self._tree_targets(self.targets_of(y, names[1]))
        return told, pd.DataFrame(plain_columns(frame, form), columns=columns), wanted

    def divided(self, X: pd.DataFrame, y: Sequence[Any]) -> tuple[Rows, Rows]:
        """Rows to learn from and rows to judge by, as `fit` divides them where it is given none to judge by."""
        parts = self._sides(np.unique(self.targets_of(y, "y"), return_inverse=True)[1])
        learned, judged = ((X.iloc[rows].reset_index(drop=True), [y[row] for row in rows]) for rows in parts)
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

    def as_learned(self, targets: np.ndarray) -> np.ndarray:
        """Targets spelled as those that the model learned from."""
        return targets

    def save(self, folder: str | Path) -> Path:
        """Write a directory: config.json, model.safetensors, transfuse.json, README.md, and tokenizer.json and
        trees.json where there are any."""
        check_is_fitted(self, "model_")
        name = type(self).__name__
        example = [f"from transfuse import {name}", "", f'{name}.load("this-directory").predict(table)']
        about = self._about(
            training=self.training.to_dict() if self.training else {},
            unreadable=self.unreadable,
            kinds={str(name): kind for name, kind in (self.kinds or {}).items()},
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
        folder, model = cls._model_in(folder, device)
        if not isinstance(model, FusionModel) or model.config.fusion.outputs != cls.KIND:
            raise ModelDirectoryError(f"{folder}: not a multimodal model of {cls.KIND}s")
        own: dict[str, Any] = {"form": {}, "kinds": {}, "unreadable": "refuse", "columns": []}
        own |= {"classes": [], "mean": [], "scale": []}
        about = read_about(folder, COMMON | {name: {} for name in cls.SETTINGS} | own)
        tokenizer = WordPiece.load(folder / TOKENIZER) if TEXT in model.config.names else None
        try:
            form = RowForm.from_dict(about["form"], tokenizer)
            of_trees = any(isinstance(tower, ScoreTowerConfig) for tower in model.config.towers)
            trees = json.loads((folder / TREES).read_text(encoding="utf-8")) if of_trees else None
            settings: dict[str, Any] = {name: kind.from_dict(about[name]) for name, kind in cls.SETTINGS.items()}
            estimator = cls(
                **settings,
                kinds=about["kinds"],
                files=files,
                unreadable=about["unreadable"],
                training=TrainingConfig.from_dict(about["training"]) if about["training"] else None,
                validation_fraction=about["validation_fraction"],
                random_state=about["random_state"],
                device=device,
            )
            estimator.form_, estimator.tokenizer_ = form, tokenizer
            estimator.trees_ = None if trees is None else TreeTower.from_dict(trees)
        except OSError as error:
            raise ModelDirectoryError(f"{folder / TREES}: {error.strerror or error}") from error
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
        self._check_unreadable()
        if self.towers.table == "trees" and self.fusion.fusion not in PARALLEL:
            raise ConfigError(
                f"table='trees' gives scores, not tokens, so fusion={self.fusion.fusion!r} must be one of "
                + ", ".join(PARALLEL)
            )
        if self.training is not None and self.training.select_by != "loss":
            raise ConfigError(f"select_by={self.training.select_by!r}: these models are judged by their loss")

    def _check_unreadable(self) -> None:
        if self.unreadable not in get_args(Unreadable):
            raise ConfigError(f"unreadable={self.unreadable!r} must be {', '.join(get_args(Unreadable))}")


def trimmed_share(data: MultimodalDataset) -> float:
    """The share of tokens that align="trim" throws away."""
    lengths = data.lengths_NM
    shortest = np.where(lengths > 0, lengths, np.iinfo(lengths.dtype).max).min(1, keepdims=True)
    return float(1 - np.minimum(lengths, shortest).sum() / lengths.sum())
