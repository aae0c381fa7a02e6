"""A class, several labels or a number for a text or a pair of texts: BERT fine-tuned, or trained from scratch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted

from transfuse.config import Config
from transfuse.data.labelled import LabelledDataset
from transfuse.data.pairs import as_texts
from transfuse.data.wordpiece import Pieces, WordPiece, WordPieceConfig
from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, TOKENIZER_CONFIG, read_about
from transfuse.estimators.model_card import model_card
from transfuse.estimators.text_encoder import MODEL, TOKENS, TextEncoder, bert_tokenizer_values, cut
from transfuse.estimators.trained import TrainedEstimator
from transfuse.metrics.text_scores import Score
from transfuse.models.bert import BertConfig, BertModel
from transfuse.nn.linear import packed
from transfuse.pretrained.directory import CONFIG, load_model, read_json, save_model
from transfuse.pretrained.hub import local_directory
from transfuse.training.classification import SequenceLoss, sequence_logits
from transfuse.training.config import TrainingConfig
from transfuse.training.loop import mean_loss
from transfuse.training.run import pick_device

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

Texts = Iterable[str] | Iterable[Sequence[str]]
"""Texts, or pairs of texts."""


class _TextHead(TrainedEstimator):
    """What a classifier and a regressor of texts share."""

    SETTINGS: ClassVar[dict[str, type[Config]]] = {"tokenizer": WordPieceConfig}

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

    kind_: Literal["class", "labels", "number"]

    @property
    def default_training(self) -> TrainingConfig:
        """What `training=None` stands for."""
        return FROM_SCRATCH if self.encoder is None else FINE_TUNING

    def _learn(
        self, X: Texts, targets: np.ndarray, n_labels: int, loss: SequenceLoss, validation: Any, resume: bool
    ) -> None:
        """Train on texts and targets, (rows,) or (rows, labels)."""
        seed = self._seed()
        texts, seconds = _columns(X, "X")
        if len(texts) != len(targets):
            raise DataError(f"X has {len(texts)} rows and y has {len(targets)}; they must be equally many")
        if validation is None:
            kept, aside = _divided(targets, self.validation_fraction, seed, loss.kind == "class")
        else:
            further, further_seconds = _columns(validation[0], "validation[0]")
            if (seconds is None) != (further_seconds is None):
                raise DataError("X and validation[0] must both be texts or both be pairs")
            kept, aside = np.arange(len(texts)), np.arange(len(texts), len(texts) + len(further))
            texts = texts + further
            seconds = None if seconds is None or further_seconds is None else seconds + further_seconds
            targets = np.concatenate([targets, validation[1]])
        self._begin([texts[row] for row in kept], [seconds[row] for row in kept] if seconds else None, n_labels, seed)
        pieces = cut(self.tokenizer_.encode(texts, seconds), self.model_.config.max_positions, self.tokenizer_)
        data, held = (LabelledDataset([pieces[row] for row in rows], targets[rows]) for rows in (kept, aside))
        config = self.training or self.default_training
        identity = {"model": self.model_.config.to_dict(), "data": data.fingerprint(), "validation": held.fingerprint()}

        def score() -> float:
            return -mean_loss(self.model_, held, loss, config)

        with self._run_folder(resume) as folder:
            self.results_ = self._train(
                folder, data, loss, score, seed=seed, identity=identity, resume=resume, config=config
            )
        judged = [(texts[row], seconds[row]) for row in aside] if seconds else [texts[row] for row in aside]
        scores = self.evaluate(judged, self._as_given(targets[aside]))
        self.results_ |= {
            "held_out_loss": mean_loss(self.model_, held, loss, config),
            "held_out_rows": len(held),
            "held_out_metrics": [vars(score) for score in scores],
        }

    def evaluate(self, X: Texts, y: Iterable[Any]) -> list[Score]:
        """Scores of the predictions for `X` against `y`."""
        raise NotImplementedError

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        """Targets as `fit` was given them."""
        raise NotImplementedError

    def _begin(self, texts: list[str], seconds: list[str] | None, n_labels: int, seed: int) -> None:
        """The tokenizer, and a model whose head is new."""
        device = pick_device(self.device)
        if self.encoder is None:
            self.tokenizer_ = WordPiece.train([*texts, *(seconds or [])], self.model.vocab_size, self.tokenizer)
            config = self.model.replace(vocab_size=len(self.tokenizer_), head="sequence", n_labels=n_labels, pad_id=0)
            self.model_ = BertModel(config).initialise(seed).to(device)
            return
        encoder = self.encoder if isinstance(self.encoder, TextEncoder) else TextEncoder.load(self.encoder)
        check_is_fitted(encoder, "model_")
        self.tokenizer_ = encoder.tokenizer_
        config = encoder.model_.config.replace(head="sequence", n_labels=n_labels, pooler=None)
        self.model_ = BertModel(config).initialise(seed)
        known = dict(encoder.model_.named_parameters())
        with torch.no_grad():
            for name, weight in self.model_.named_parameters():
                if name in known and not name.startswith("labels"):
                    weight.copy_(known[name])
        self.model_.to(device)

    @torch.inference_mode()
    def _logits(self, X: Texts) -> np.ndarray:
        """What the head makes of each text, (texts, labels), in float64."""
        check_is_fitted(self, "model_")
        texts, seconds = _columns(X, "X")
        pieces: list[Pieces] = cut(
            self.tokenizer_.encode(texts, seconds), self.model_.config.max_positions, self.tokenizer_
        )
        data = LabelledDataset(pieces, np.zeros(len(pieces)))
        found = np.empty((len(pieces), self.model_.config.n_labels))
        self.model_.eval()
        with packed(self.model_.modules()):
            for rows in data.in_order(4096):
                batch = data.batch(rows).to(next(self.model_.parameters()).device)
                found[list(batch.sequences.rows)] = sequence_logits(self.model_, batch).double().cpu().numpy()
        return found

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face style directory; `transformers` opens it as BertForSequenceClassification."""
        check_is_fitted(self, "model_")
        name = type(self).__name__
        example = [f"from transfuse import {name}", "", f'{name}.load("this-directory").predict(["a text"])']
        beside = {
            TOKENIZER: self.tokenizer_.to_json(),
            TOKENIZER_CONFIG: json.dumps(bert_tokenizer_values(self.model_.config.max_positions), indent=2),
            ESTIMATOR: json.dumps(
                self._about(training=self.training.to_dict() if self.training else {}, **self._labels()),
                indent=2,
                ensure_ascii=False,
            ),
            "README.md": model_card(f"{name} (BERT)", self.model_, self.results_, example),
        }
        save_model(self.model_, Path(folder), beside)
        return Path(folder)

    def _labels(self) -> dict[str, Any]:
        """What a saved directory says of its labels."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> Self:
        """The estimator saved in `folder`, or one around anyone's BertForSequenceClassification directory or hub id.

        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there.
        """
        pick_device(device)  # the caller's setting, so not an error of the directory
        folder = local_directory(folder)
        model = load_model(folder)
        if not isinstance(model, BertModel) or model.config.head != "sequence":
            raise ModelDirectoryError(f"{folder}: not a BERT with a head for sequences")
        about = read_about(folder, COMMON | {"kind": "class", "classes": [], "mean": [], "scale": []})
        tokenizer = WordPiece.load(folder / TOKENIZER)
        training = TrainingConfig.from_dict(about["training"]) if about["training"] else None
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
            raise ConfigError(f"select_by={self.training.select_by!r}: texts' labels are judged by their loss")


class TextClassifier(ClassifierMixin, _TextHead):  # type: ignore[misc]
    """Learns to put texts, or pairs of texts, into classes.

    `encoder` is what it starts from: a `TextEncoder`, or the directory or hub id of any BERT; None starts from nothing,
    with the sizes in `model` and a vocabulary learned from the texts. `training=None` are settings that suit the case.
    `class_weight` is as in scikit-learn: None, "balanced" or {class: weight}. A two-dimensional y of zeros and ones
    (texts × labels) is several labels a text, each by itself.

    After `fit`: `classes_`, `model_` (the torch module), `tokenizer_`, `results_` (what the training came to).
    """

    def __init__(
        self,
        *,
        encoder: str | Path | TextEncoder | None = None,
        model: BertConfig = MODEL,
        tokenizer: WordPieceConfig = TOKENS,
        training: TrainingConfig | None = None,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        validation_fraction: float = 0.1,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            encoder=encoder,
            model=model,
            tokenizer=tokenizer,
            training=training,
            validation_fraction=validation_fraction,
            run_dir=run_dir,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(
        self, X: Texts, y: Iterable[Any], *, validation: tuple[Texts, Iterable[Any]] | None = None, resume: bool = False
    ) -> Self:
        """Learn the class of each text; `validation` holds texts and classes to judge by, by default a share of these.

        Raises DataError for unusable rows, fewer than two classes, or a class in `validation` that y does not have.
        """
        with self._unchanged_on_failure():
            self._check_settings()
            labels = np.asarray(y if hasattr(y, "__array__") else list(y))
            self.kind_ = "labels" if labels.ndim == 2 else "class"
            if self.kind_ == "labels":
                self.classes_ = np.arange(labels.shape[1])
                targets, weights = _indicators(labels, "y"), None
            else:
                self.classes_, targets = np.unique(labels, return_inverse=True)
                if len(self.classes_) < 2:
                    raise DataError(
                        f"y has {len(self.classes_)} class ({self.classes_.tolist()[0]!r}); at least 2 are needed"
                    )
                weights = self._weights(labels)
            held = None if validation is None else (validation[0], self._known(validation[1]))
            self._learn(X, targets, len(self.classes_), SequenceLoss(self.kind_, weights), held, resume)
        return self

    def predict_proba(self, X: Texts) -> np.ndarray:
        """Probability of each class, (texts, classes); of several labels, that of each by itself."""
        logits = torch.from_numpy(self._logits(X))
        found: np.ndarray = (logits.sigmoid() if self.kind_ == "labels" else logits.softmax(-1)).numpy()
        return found

    def predict(self, X: Texts) -> np.ndarray:
        """The likeliest class of each text; of several labels, zeros and ones, (texts, labels)."""
        probabilities = self.predict_proba(X)
        if self.kind_ == "labels":
            return (probabilities > 0.5).astype(int)
        found: np.ndarray = self.classes_[probabilities.argmax(1)]
        return found

    def evaluate(self, X: Texts, y: Iterable[Any]) -> list[Score]:
        """Mean F1 of the classes, and accuracy (of several labels: the share of texts with all right), in percent."""
        wanted, found = np.asarray(y if hasattr(y, "__array__") else list(y)), self.predict(X)
        f1 = f1_score(wanted, found, average="macro", zero_division=0)
        return [
            Score("F1", 100 * float(f1), "average:macro|sklearn.metrics.f1_score"),
            Score("accuracy", 100 * float(accuracy_score(wanted, found)), "sklearn.metrics.accuracy_score"),
        ]

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        return targets.astype(int) if self.kind_ == "labels" else self.classes_[targets]

    def _weights(self, labels: np.ndarray) -> tuple[float, ...] | None:
        if self.class_weight is None:
            return None
        weights = compute_class_weight(self.class_weight, classes=self.classes_, y=labels)
        return tuple(float(weight) for weight in weights)

    def _known(self, y: Iterable[Any]) -> np.ndarray:
        """Numbers of classes that y had."""
        labels = np.asarray(y if hasattr(y, "__array__") else list(y))
        if self.kind_ == "labels":
            return _indicators(labels, "validation[1]")
        unknown = sorted(set(labels.tolist()) - set(self.classes_.tolist()))
        if unknown:
            raise DataError(f"validation[1] has {unknown[0]!r}, which is not among the classes of y")
        return np.searchsorted(self.classes_, labels)

    def _labels(self) -> dict[str, Any]:
        return {"kind": self.kind_, "classes": self.classes_.tolist()}

    def _take_labels(self, folder: Path, about: dict[str, Any]) -> None:
        self.kind_ = about["kind"]
        names = about["classes"] or list((read_json(folder / CONFIG).get("id2label") or {}).values())
        if len(names) != self.model_.config.n_labels:
            raise ModelDirectoryError(
                f"{folder / ESTIMATOR}: {len(names)} classes, but the model has {self.model_.config.n_labels}"
            )
        self.classes_ = np.array(names)


class TextRegressor(RegressorMixin, _TextHead):  # type: ignore[misc]
    """Learns a number, or several, for each text or pair of texts; arguments as `TextClassifier` has them.

    Numbers are brought to mean 0 and deviation 1 for training and back afterwards.
    """

    def fit(
        self, X: Texts, y: Iterable[Any], *, validation: tuple[Texts, Iterable[Any]] | None = None, resume: bool = False
    ) -> Self:
        """Learn the numbers of each text. Raises DataError for unusable rows and numbers that are not finite."""
        with self._unchanged_on_failure():
            self._check_settings()
            self.kind_ = "number"
            numbers = _numbers(y, "y")
            self._one = numbers.ndim == 1
            columns = numbers.reshape(len(numbers), -1)
            self.mean_, self.scale_ = columns.mean(0), columns.std(0)
            self.scale_ = np.where(self.scale_ > 0, self.scale_, 1.0)
            held = None
            if validation is not None:
                held = validation[0], self._scaled(_numbers(validation[1], "validation[1]"))
            self._learn(X, self._scaled(numbers), columns.shape[1], SequenceLoss("number"), held, resume)
        return self

    def predict(self, X: Texts) -> np.ndarray:
        """A number a text, (texts,), or several, (texts, numbers)."""
        found: np.ndarray = self._logits(X) * self.scale_ + self.mean_
        return found[:, 0] if self._one else found

    def evaluate(self, X: Texts, y: Iterable[Any]) -> list[Score]:
        """Mean absolute error, and R²."""
        wanted, found = _numbers(y, "y"), self.predict(X)
        return [
            Score("mean absolute error", float(mean_absolute_error(wanted, found)), "sklearn.metrics"),
            Score("R²", float(r2_score(wanted, found)) if len(found) > 1 else float("nan"), "sklearn.metrics.r2_score"),
        ]

    def _as_given(self, targets: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = targets * self.scale_ + self.mean_
        return numbers[:, 0] if self._one else numbers

    def _scaled(self, numbers: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = ((numbers.reshape(len(numbers), -1) - self.mean_) / self.scale_).astype(np.float32)
        return scaled

    def _labels(self) -> dict[str, Any]:
        return {"kind": "number", "mean": self.mean_.tolist(), "scale": self.scale_.tolist()}

    def _take_labels(self, folder: Path, about: dict[str, Any]) -> None:
        n = self.model_.config.n_labels
        self.kind_, self._one = "number", n == 1
        self.mean_, self.scale_ = np.array(about["mean"] or [0.0] * n), np.array(about["scale"] or [1.0] * n)


def _columns(X: Any, name: str) -> tuple[list[str], list[str] | None]:
    """Texts, and the second ones where rows are pairs."""
    if isinstance(X, str | bytes):
        return as_texts(X, name), None
    rows = X.to_numpy() if hasattr(X, "to_numpy") else X if isinstance(X, np.ndarray) else list(X)
    paired = len(rows) > 0 and not isinstance(rows[0], str) and isinstance(rows[0], tuple | list | np.ndarray)
    if not paired:
        return as_texts(rows, name), None
    for row, pair in enumerate(rows):
        if len(pair) != 2:
            raise DataError(f"{name}[{row}]: {len(pair)} texts; a row is one text or a pair")
    return as_texts([a for a, _ in rows], name), as_texts([b for _, b in rows], name)


def _divided(targets: np.ndarray, fraction: float, seed: int, stratified: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to judge by, each class in its share where it can be."""
    if len(targets) < 2:
        raise DataError(f"{len(targets)} row; at least 2 are needed, one to learn from and one to judge by")
    n = min(max(1, round(fraction * len(targets))), len(targets) - 1)
    _, counts = np.unique(targets, return_counts=True)
    # a class of one row cannot be on both sides, nor can there be a share of each class in fewer rows than classes
    possible = stratified and counts.min() > 1 and len(counts) <= min(n, len(targets) - n)
    kept, aside = train_test_split(
        np.arange(len(targets)), test_size=n, random_state=seed, stratify=targets if possible else None
    )
    return np.sort(kept), np.sort(aside)


def _indicators(labels: np.ndarray, name: str) -> np.ndarray:
    if not np.isin(labels, (0, 1)).all() or labels.ndim != 2 or not labels.shape[1]:
        raise DataError(f"{name}: several labels a text are zeros and ones, one column a label")
    return labels.astype(np.float32)


def _numbers(y: Iterable[Any], name: str) -> np.ndarray:
    try:
        numbers = np.asarray(y if hasattr(y, "__array__") else list(y), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers ({error})") from error
    bad = np.flatnonzero(~np.isfinite(numbers.reshape(len(numbers), -1)).all(1))
    if len(bad):
        raise DataError(f"{name}[{bad[0]}] is not a finite number")
    return numbers
