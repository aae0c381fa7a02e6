"""A student learns from a teacher: the divergence of their next-token distributions, the data's own loss, or both.

Cross-entropy on new text also teaches what is new in it, which the teacher never learned; the divergence alone keeps
the student what the teacher was.

Shapes: N positions, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transfuse.config import Config
from transfuse.data.batches import PairBatch
from transfuse.errors import ConfigError
from transfuse.models.decoder import DecoderModel
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.nn.attention import Attention
from transfuse.nn.dropout import Dropout
from transfuse.training.losses import linear_loss, log_probabilities


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Config):
    """Weights of the two losses, each a sum over positions: KL(teacher ‖ student) and cross-entropy with the data."""

    divergence: float = 1.0
    cross_entropy: float = 0.0

    def __post_init__(self) -> None:
        self.check_types()
        self.check_finite("divergence", "cross_entropy")
        if min(self.divergence, self.cross_entropy) < 0 or self.divergence + self.cross_entropy == 0:
            raise ConfigError(
                f"divergence={self.divergence} and cross_entropy={self.cross_entropy} must not be negative, nor both 0"
            )


class Distillation:
    """The loss of a student beside a frozen teacher, in the form the training loop takes."""

    def __init__(self, teacher: DecoderModel | Seq2SeqModel, config: DistillationConfig = DistillationConfig()) -> None:
        self.teacher, self.config = teacher.eval(), config

    def __call__(self, model: DecoderModel | Seq2SeqModel, batch: Any, smoothing: float = 0.0) -> Tensor:
        """Summed over the batch's labelled positions; `smoothing` is of the cross-entropy."""
        with torch.no_grad():
            taught_ND = hidden_vectors(self.teacher, batch)
        labels_N = batch.labels_BT[batch.real_BT]
        teacher, output = self.teacher.output, model.output

        def criterion(log_p_NV: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
            log_q_NV = log_probabilities(taught_ND[part].to(teacher.weight.dtype), teacher.weight, teacher.bias)
            return _mixed(log_p_NV, log_q_NV.to(log_p_NV.dtype), labels_N[part], self.config, smoothing)

        return linear_loss(hidden_vectors(model, batch), output.weight, output.bias, criterion)


def hidden_vectors(model: DecoderModel | Seq2SeqModel, batch: Any) -> Tensor:
    """The model's last vectors at a batch's labelled positions, (N, D)."""
    if isinstance(batch, PairBatch):
        assert isinstance(model, Seq2SeqModel)
        hidden_BTD = model.hidden(batch.source_BS, batch.source_keep_BS, batch.target_BT)
    else:
        assert isinstance(model, DecoderModel)
        hidden_BTD = model.hidden(batch.ids_BT, batch.keep_BTT, batch.positions_BT)
    return hidden_BTD[batch.real_BT]


def _mixed(
    log_p: Tensor, log_q: Tensor, labels: Tensor, config: DistillationConfig, smoothing: float
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The weighted losses of student p against teacher q and labels, and their gradient: p minus what it should be."""
    q = log_q.exp()
    wanted = config.divergence * q
    loss = config.divergence * (q * (log_q - log_p)).sum()
    if config.cross_entropy:
        target = torch.full_like(log_p, smoothing / log_p.shape[1])
        target[torch.arange(len(labels), device=labels.device), labels] += 1 - smoothing
        loss = loss - config.cross_entropy * (target * log_p).sum()
        wanted += config.cross_entropy * target
    total = config.divergence + config.cross_entropy
    return loss, lambda: log_p.exp_().mul_(total).sub_(wanted)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside, nothing of `model` is dropped, in training either: a student under noise learns to make up for the noise,
    and moves away from a teacher that has none."""
    layers = [layer for layer in model.modules() if isinstance(layer, Dropout)]
    rates = [layer.rate for layer in layers]
    for layer in layers:
        layer.rate = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.rate = rate


def train_only(model: DecoderModel | Seq2SeqModel, part: str) -> None:
    """Freeze all weights but those of `part`: "attention" (of the decoder), "decoder" (with its norms and
    feed-forwards) or "all". Raises ConfigError for another name."""
    parts: dict[str, list[nn.Module]] = {
        "attention": [layer for layer in model.decoder.modules() if isinstance(layer, Attention)],
        "decoder": [model.decoder],
        "all": [model],
    }
    if part not in parts:
        raise ConfigError(f"trains={part!r} must be one of {', '.join(parts)}")
    model.requires_grad_(False)
    for module in parts[part]:
        module.requires_grad_(True)
