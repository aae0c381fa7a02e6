"""Fewer key/value heads for a trained estimator, and the little training that follows (arXiv 2305.13245)."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from sklearn.utils.validation import check_is_fitted

from transfuse.errors import ConfigError
from transfuse.estimators.language_model import LanguageModel
from transfuse.estimators.seq2seq import Seq2Seq
from transfuse.estimators.trained import Prepared, scratch_folder
from transfuse.models.seq2seq import Seq2SeqConfig
from transfuse.regrouping.convert import Counts, convert
from transfuse.regrouping.sharing import Method
from transfuse.training.checkpoint import fingerprint, own_weights, set_weights
from transfuse.training.config import TrainingConfig
from transfuse.training.distillation import Distillation, DistillationConfig, train_only, without_dropout
from transfuse.training.loop import mean_loss

CALIBRATION_TOKENS = 30_000
"""Tokens that heads are aligned and refitted on, if there are as many."""

CALIBRATION_BATCH = 1024

UPTRAINING = TrainingConfig(
    batch_tokens=512,
    learning_rate=7e-4,
    schedule="cosine",
    warmup_steps=10,
    weight_decay=0.0,
    label_smoothing=0.0,
    average=1,
)
"""How `uptrain` trains; `max_steps` and `epochs` follow from its budget of tokens."""

DISTILLATION = DistillationConfig()
"""The divergence from the teacher alone, which keeps a model closest to it."""

VALIDATIONS = 4
"""Held-out scores taken on the way."""

E = TypeVar("E", Seq2Seq, LanguageModel)


def regroup(
    model: E,
    n_kv_heads: Counts,
    X: Any = None,
    y: Any = None,
    *,
    method: Method = "aligned",
    refit: bool = True,
    calibration_tokens: int = CALIBRATION_TOKENS,
    random_state: int = 0,
) -> E:
    """A new estimator whose decoder has `n_kv_heads` key/value heads (one number, or one a layer); `model` stays as it
    is.

    `X` (and `y`, for an encoder–decoder) is data like that the model was trained on, of which about
    `calibration_tokens` are used; "mean", "first" and "random" without `refit` need none. Encoders are left alone.
    Methods: `transfuse.regrouping.sharing`. Raises ConfigError for heads that do not divide those there are,
    DataError for unusable or too little data.
    """
    check_comparable({"model": model})
    if X is not None:
        check_given(model, y)
    batches: list[Any] = []
    with scratch_folder() as folder:
        if X is not None:
            data = model.prepare(Path(folder), X, y, None, random_state).data
            enough = 0
            for rows in data.epoch(CALIBRATION_BATCH, random_state, 0):
                if enough >= calibration_tokens:
                    break
                batches.append(data.batch(rows))
                enough += batches[-1].n_tokens
        converted = convert(model.model_, n_kv_heads, method, batches, refit=refit, seed=random_state)
    about = {"method": method, "refit": refit, "n_kv_heads": n_kv_heads}
    return model.with_model(converted, _origin_of(model) | {"regrouped": about})


def uptrain(
    model: E,
    teacher: E,
    X: Any,
    y: Any = None,
    *,
    tokens: int | None = None,
    alpha: float | None = None,
    distillation: DistillationConfig = DISTILLATION,
    trains: str = "attention",
    training: TrainingConfig = UPTRAINING,
    validation: Any = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    random_state: int = 0,
) -> E:
    """A new estimator: `model` trained a little further to do as its `teacher` does.

    The budget is `tokens`, or `alpha` of the tokens the teacher was trained on, which directories written here record.
    `distillation` weighs the divergence from the teacher and the data's own cross-entropy; with the latter a model also
    learns what the data has that the teacher does not know, so compare with a teacher trained the same way.
    Nothing is dropped out, and where no validation is better than the beginning, the beginning is what comes back.
    `trains` is "attention" (of the decoder), "decoder" or "all". Models of half precision are trained in float32 and
    come back in theirs. With `run_dir` there are checkpoints, and `resume` goes on from them. Raises ConfigError for a
    budget that is not one and a teacher of another kind or vocabulary; otherwise as `fit`.
    """
    check_comparable({"teacher": teacher, "model": model})
    check_given(model, y)
    dtype = model.model_.output.weight.dtype
    # a step of training is below what half precision can tell apart
    student = model.with_model(copy.deepcopy(model.model_).to(_wide(dtype)), dict(model.results_))
    student.run_dir = run_dir
    train_only(student.model_, trains)
    taught = teacher.model_.output.weight.dtype
    teaching = teacher.model_ if _wide(taught) == taught else copy.deepcopy(teacher.model_).float()
    loss = Distillation(teaching, distillation)
    with student._unchanged_on_failure(), student._run_folder(resume) as folder:
        prepared = student.prepare(folder, X, y, validation, random_state)
        config = _within_budget(prepared, training, _budget(teacher, tokens, alpha), random_state)
        identity = {
            "data": prepared.data.fingerprint(),
            "validation": prepared.held.fingerprint(),
            "model": student.model_.config.to_dict(),
            "distillation": distillation.to_dict(),
            "trains": trains,
            "start": fingerprint(student.model_),
            "teacher": fingerprint(teacher.model_),
        }

        def score() -> float:
            return -mean_loss(student.model_, prepared.held, loss, config)

        start, before = own_weights(copy.deepcopy(student.model_)), score()
        with without_dropout(student.model_):
            found = student._train(
                folder,
                prepared.data,
                loss,
                score,
                seed=random_state,
                identity=identity,
                resume=resume,
                config=config,
            )
        if found["held_out_score"] < before:  # a training that did not help is none
            set_weights(student.model_, start)
            found |= {"best_step": 0, "averaged_steps": [0], "held_out_score": before}
    student.model_.requires_grad_(True).to(dtype)
    student.run_dir = model.run_dir
    student.results_ = student.results_ | {"uptraining": found | {"trains": trains} | distillation.to_dict()}
    return student


def expand_heads(model: E) -> E:
    """The same function with as many key/value heads as query heads everywhere, each group's copied: what families
    without grouped heads can hold."""
    check_comparable({"model": model})
    config = model.model_.config.with_kv_heads(None)
    if isinstance(config, Seq2SeqConfig):
        config = config.replace(encoder_kv_heads=None)
    expanded = type(model.model_)(config).to(model.model_.output.weight)
    weights = dict(model.model_.named_parameters())
    for name, parameter in expanded.named_parameters():
        weight = weights[name].detach()
        if weight.shape != parameter.shape:
            layer: Any = expanded.get_submodule(name.rsplit(".", 2)[0])
            by_head = weight.view(-1, len(parameter) // layer.n_heads, *weight.shape[1:])
            weight = by_head.repeat_interleave(layer.n_heads // len(by_head), 0).flatten(0, 1)
        parameter.data.copy_(weight)
    return model.with_model(expanded.eval(), dict(model.results_))


def check_comparable(models: Mapping[str, Any]) -> None:
    """Raise ConfigError unless all write text and are of the first one's kind and vocabulary."""
    if not models:
        raise ConfigError("no model is given")
    first_name, first = next(iter(models.items()))
    for name, one in models.items():
        if not isinstance(one, Seq2Seq | LanguageModel):
            raise ConfigError(f"{name}: a {type(one).__name__}, and not one of an encoder–decoder or a language model")
        check_is_fitted(one, "model_")
        if type(one) is not type(first) or one.tokenizer_.to_json() != first.tokenizer_.to_json():
            raise ConfigError(f"{name} and {first_name} are of different kinds or vocabularies; they do not compare")


def check_given(model: Seq2Seq | LanguageModel, y: Any) -> None:
    """Raise ConfigError for an encoder–decoder without targets, and targets for a language model."""
    if isinstance(model, Seq2Seq) == (y is None):
        rule = "is missing: an encoder–decoder needs the targets of X" if y is None else "is not for a language model"
        raise ConfigError(f"y {rule}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to train in."""
    return torch.promote_types(dtype, torch.float32)


def _origin_of(model: Any) -> dict[str, Any]:
    """What a conversion's results keep of the original's: how much it was trained on."""
    return {name: model.results_[name] for name in ("tokens",) if name in model.results_}


def _budget(teacher: Any, tokens: int | None, alpha: float | None) -> int:
    if (tokens is None) == (alpha is None):
        raise ConfigError(f"tokens={tokens} and alpha={alpha}: give one of them")
    if tokens is None:
        assert alpha is not None
        if not math.isfinite(alpha):
            raise ConfigError(f"alpha={alpha} must be a number")
        if "tokens" not in teacher.results_:
            raise ConfigError(f"alpha={alpha} needs the number of tokens of the original training, which is not known")
        tokens = round(alpha * teacher.results_["tokens"])
    if tokens < 1:
        raise ConfigError(f"{tokens} tokens to train on (tokens={tokens}, alpha={alpha}); at least 1 is needed")
    return tokens


def _within_budget(prepared: Prepared, training: TrainingConfig, tokens: int, seed: int) -> TrainingConfig:
    """The training, ended by the batch that uses the last of `tokens`."""
    spent = steps = 0
    for epoch in itertools.count():
        batches = prepared.data.epoch(training.batch_tokens, seed, epoch)
        for first in range(0, len(batches), training.accumulate):
            spent += sum(prepared.data.batch(rows).n_tokens for rows in batches[first : first + training.accumulate])
            steps += 1
            if spent >= tokens:
                return training.replace(
                    max_steps=steps, epochs=epoch + 1, validate_every=max(1, -(-steps // VALIDATIONS))
                )
    raise AssertionError("unreachable")
