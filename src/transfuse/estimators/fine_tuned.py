"""What every estimator with a BERT and a head for a task shares: where it starts from, its training, its directory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.utils.validation import check_is_fitted

from transfuse.config import Config
from transfuse.data.labelled import LabelledBatch, LabelledDataset
from transfuse.data.wordpiece import WordPiece, WordPieceConfig
from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, TOKENIZER_CONFIG, read_about
from transfuse.estimators.limits import warn_of_longer, warn_of_unknown, warn_of_untrained
from transfuse.estimators.model_card import model_card
from transfuse.estimators.text_encoder import (
    MODEL,
    TOKENS,
    TextEncoder,
    begun_from,
    bert_tokenizer_values,
    opened,
)
from transfuse.estimators.trained import TrainedEstimator
from transfuse.metrics.text_scores import Score
from transfuse.models.bert import BertConfig, BertModel, Head
from transfuse.nn.embeddings import only
from transfuse.nn.linear import packed
from transfuse.pretrained.directory import CONFIG, read_json, save_model
from transfuse.training.config import TrainingConfig
from transfuse.training.loop import Loss, mean_loss
from transfuse.training.run import pick_device

T = TypeVar("T")

FINE_TUNING = TrainingConfig(
    epochs=3,
    batch_tokens=1024,
    learning_rate=5e-5,
    schedule="cosine",
    warmup_steps=50,
    label_smoothing=0.0,
    average=1,
)
"""From a pre-trained encoder."""

FROM_SCRATCH = FINE_TUNING.replace(epochs=10, learning_rate=1e-3)
"""Without one."""

JUDGED_TOKENS = 4096
"""Tokens that are judged together."""


class FineTuned(TrainedEstimator):
    """An estimator whose model is a BERT with a head.

    `encoder` is what it starts from: a `TextEncoder`, or the directory or hub id of any BERT; None starts from nothing,
    with the sizes in `model` and a vocabulary learned from the texts. `training=None` are settings that suit the case.
    """

    SETTINGS: ClassVar[dict[str, type[Config]]] = {"tokenizer": WordPieceConfig}
    HEAD: ClassVar[Head]
    SAID: ClassVar[dict[str, Any]] = {}
    """What a directory says of its labels besides, and what stands for it where it says nothing."""

    model: BertConfig

    def __init__(
        self,
        *,
        encoder: str | Path | TextEncoder | None = None,
        model: BertConfig = MODEL,
        tokenizer: WordPieceConfig = TOKENS,
        training: TrainingConfig | None = None,
        validation_fraction: float = 0.1,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.encoder = encoder
        self.model = model
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
        return FROM_SCRATCH if self.encoder is None else FINE_TUNING

    def _begin(self, texts: Iterable[str], n_labels: int, seed: int) -> int:
        """Take the tokenizer, and a model whose head is new; the positions that pre-training saw, all without one."""
        device = pick_device(self.device)
        if self.encoder is None:
            self.tokenizer_ = WordPiece.train(texts, self.model.vocab_size, self.tokenizer)
            config = self.model.replace(vocab_size=len(self.tokenizer_), head=self.HEAD, n_labels=n_labels, pad_id=0)
            self.model_ = BertModel(config).initialise(seed).to(device)
            return config.max_positions
        start = opened(self.encoder)
        self.tokenizer_ = start.tokenizer_
        self.model_ = begun_from(start, seed, head=self.HEAD, n_labels=n_labels).to(device)
        return start.trained_positions

    def _fine_tune(
        self,
        data: LabelledDataset,
        held: LabelledDataset,
        loss: Loss,
        seed: int,
        resume: bool,
        positions: int,
        **identity: Any,
    ) -> None:
        """Train on `data`, judged by the loss on `held`: all weights but the vectors of pieces that are in neither.
        Warnings where `data` reaches past `positions`, and where its words are unknown."""
        warn_of_untrained(data.pieces, positions)
        warn_of_unknown(data.pieces, self.tokenizer_)
        config = self.training or self.default_training
        identity |= {
            "model": self.model_.config.to_dict(),
            "data": data.fingerprint(),
            "validation": held.fingerprint(),
        }

        def score() -> float:
            return -mean_loss(self.model_, held, loss, config)

        occurring = itertools.chain.from_iterable(one.ids for side in (data, held) for one in side.pieces)
        with self._run_folder(resume) as folder, only(self.model_.embedding, occurring) as some:
            identity["token_vectors"] = some.num_embeddings
            self.results_ = self._train(
                folder, data, loss, score, seed=seed, identity=identity, resume=resume, config=config
            )
        learned = max(map(len, data.pieces))
        self.results_ |= {
            "held_out_loss": mean_loss(self.model_, held, loss, config),
            "positions": learned if self.encoder is None else max(positions, learned),
        }

    @property
    def _trained_positions(self) -> int:
        """Tokens of the longest row of any training, as far as a directory says; else all positions."""
        found: int = self.results_.get("positions", self.model_.config.max_positions)
        return found

    def divided(self, X: Iterable[Any], y: Iterable[Any]) -> tuple[tuple[list[Any], list[Any]], ...]:
        """X and y of the rows that `fit` learns from where it is given no validation, and of those it judges by."""
        rows, targets = (list(side.to_numpy() if hasattr(side, "to_numpy") else side) for side in (X, y))
        sides = divided(len(rows), self.validation_fraction, self._seed(), **self._likeness(rows, targets))

        named = isinstance(y, pd.DataFrame)

        def of(side: np.ndarray) -> tuple[list[Any], Any]:
            # the columns of a frame are labels
            return [rows[i] for i in side], cast(Any, y).iloc[side] if named else [targets[i] for i in side]

        return tuple(of(side) for side in sides)

    def _likeness(self, X: Sequence[Any], y: Any) -> dict[str, Any]:
        """What the function `divided` is told of rows."""
        raise NotImplementedError

    def _judge(self, X: Sequence[Any], y: Any) -> None:
        """Add the scores on held-out rows to the results."""
        self.results_ |= {
            "held_out_rows": len(X),
            "held_out_metrics": [vars(score) for score in self.evaluate(X, y)],
        }

    def evaluate(self, X: Any, y: Any) -> list[Score]:
        """Scores of the predictions for `X` against `y`."""
        raise NotImplementedError

    @torch.inference_mode()
    def _found(
        self, data: LabelledDataset, logits: Callable[[BertModel, LabelledBatch], T]
    ) -> Iterator[tuple[LabelledBatch, T]]:
        """Batches of all of `data`, and what `logits` makes of each. Warnings where rows are much longer than those of
        training, and where their words are unknown."""
        warn_of_longer(data.pieces, self._trained_positions)
        warn_of_unknown(data.pieces, self.tokenizer_)
        device = next(self.model_.parameters()).device
        self.model_.eval()
        with packed(self.model_.modules()):
            for rows in data.in_order(JUDGED_TOKENS):
                batch = data.batch(rows).to(device)
                yield batch, logits(self.model_, batch)

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face style directory, which `transformers` opens as the BERT of this task."""
        check_is_fitted(self, "model_")
        name = type(self).__name__
        example = [f"from transfuse import {name}", "", f'{name}.load("this-directory").predict({self._example()})']
        beside = {
            TOKENIZER: self.tokenizer_.to_json(),
            TOKENIZER_CONFIG: json.dumps(bert_tokenizer_values(self.model_.config.max_positions), indent=2),
            ESTIMATOR: json.dumps(
                self._about(training=self.training.to_dict() if self.training else {}, **self._labels()),
                indent=2,
                ensure_ascii=False,
            ),
            "README.md": model_card(f"{name} (BERT)", self.model_, self.results_, example, self._loss_name()),
        }
        save_model(self.model_, Path(folder), beside, says=self._says())
        return Path(folder)

    def _says(self) -> dict[str, Any]:
        """What config.json says of the labels to `transformers`: their names, where they have any."""
        if not hasattr(self, "classes_"):
            return {}
        names = [str(name) for name in self.classes_.tolist()]
        return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}

    def _loss_name(self) -> str:
        """What the held-out loss is, with the unit."""
        raise NotImplementedError

    def _example(self) -> str:
        """What the model card gives to `predict`."""
        raise NotImplementedError

    def _labels(self) -> dict[str, Any]:
        """What a saved directory says of its labels."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None, dtype: str = "float32") -> Self:
        """The estimator saved in `folder`, or one around anyone's BERT for this task, a directory or hub id.

        `dtype` ("float32", "bfloat16" or "float16") is what it computes in, and what `save` writes; training is in
        float32 weights whatever it is.
        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there or another dtype.
        """
        folder, model = cls._model_in(folder, device, dtype)
        if not isinstance(model, BertModel) or model.config.head != cls.HEAD:
            raise ModelDirectoryError(f"{folder}: not a BERT with a head for {cls.HEAD}s")
        defaults: dict[str, Any] = {name: {} for name in cls.SETTINGS}
        about = read_about(folder, COMMON | defaults | cls.SAID)
        tokenizer = WordPiece.load(folder / TOKENIZER)
        try:
            training = TrainingConfig.from_dict(about["training"]) if about["training"] else None
        except ConfigError as error:
            raise ModelDirectoryError(f"{folder / ESTIMATOR}: {error}") from error
        estimator = cls._opened(folder, model, tokenizer, about, device=device, training=training)
        estimator._take_labels(folder, about)
        return estimator

    def _take_labels(self, folder: Path, about: dict[str, Any]) -> None:
        """Put back what `_labels` gave."""
        raise NotImplementedError

    def _check_settings(self) -> None:
        """Raise ConfigError for settings that fit cannot work with."""
        kinds: dict[str, type[Config]] = {"model": BertConfig, **self.SETTINGS}
        self._check_common_settings(kinds | ({"training": TrainingConfig} if self.training is not None else {}))
        if self.training is not None and self.training.select_by != "loss":
            raise ConfigError(f"select_by={self.training.select_by!r}: these models are judged by their loss")


def label_names(folder: Path, n_labels: int) -> list[str]:
    """The names of labels in a directory's config.json, in the order of their numbers.

    Raises ModelDirectoryError unless there is one for each.
    """
    named = read_json(folder / CONFIG).get("id2label") or {}
    missing = [number for number in range(n_labels) if str(number) not in named]
    if missing or len(named) != n_labels:
        raise ModelDirectoryError(f"{folder / CONFIG}: id2label has {len(named)} names for {n_labels} labels")
    return [str(named[str(number)]) for number in range(n_labels)]


def divided(
    n: int,
    fraction: float,
    seed: int,
    *,
    classes: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    labels: Sequence[Collection[Any]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to judge by: each class in its share, or each group on one side, where it can be.

    A class, or any of a row's `labels`, that would be judged alone is learned from instead, if other rows remain to
    judge by.
    """
    if n < 2:
        raise DataError(f"{n} row; at least 2 are needed, one to learn from and one to judge by")
    n_aside = min(max(1, round(fraction * n)), n - 1)
    n_groups = len(set(groups or ()))
    if groups is not None and n_groups > 1:
        n_aside = min(max(1, round(fraction * n_groups)), n_groups - 1)
        kept, aside = next(GroupShuffleSplit(1, test_size=n_aside, random_state=seed).split(groups, groups=groups))
        return kept, aside
    rows, strata = np.arange(n), None
    if classes is not None:
        labels = classes[:, None].tolist()
        _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        shared = counts[numbers] > 1  # a class of one row cannot be on both sides
        if shared.sum() > 1:
            rows = rows[shared]
            n_aside = min(n_aside, len(rows) - 1)
            # nor can there be a share of each class in fewer rows than classes
            if (counts > 1).sum() <= min(n_aside, len(rows) - n_aside):
                strata = numbers[rows]
    _, aside = train_test_split(rows, test_size=n_aside, random_state=seed, stratify=strata)
    kept = np.setdiff1d(np.arange(n), aside)
    if labels is not None:
        learned = {label for row in kept for label in labels[row]}
        alone = [row for row in aside if not learned.issuperset(labels[row])]
        if len(alone) < len(aside):
            kept, aside = np.sort([*kept, *alone]), np.setdiff1d(aside, alone)
    return kept, np.sort(aside)
