"""The losses of a label for a sequence.

Shapes: B sequences, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transfuse.data.labelled import LabelledBatch
from transfuse.models.bert import BertModel
from transfuse.training.pretraining import token_vectors


def sequence_logits(model: BertModel, batch: LabelledBatch) -> Tensor:
    """What the head makes of each sequence, (B, L)."""
    first_BD = token_vectors(model, batch.sequences)[batch.sequences.starts[:-1]]
    return model.label_logits(model.pool(first_BD))


@dataclass(frozen=True)
class SequenceLoss:
    """Summed over sequences: cross-entropy of one class out of several ("class", `weights` a class), of each label by
    itself ("labels"), or half the squared error of numbers ("number")."""

    kind: str
    weights: tuple[float, ...] | None = None

    def __call__(self, model: BertModel, batch: LabelledBatch, smoothing: float = 0.0) -> Tensor:
        """The loss of a batch, in the form the training loop takes."""
        logits = sequence_logits(model, batch).float()
        if self.kind == "number":
            return F.mse_loss(logits, batch.targets, reduction="sum") / 2
        if self.kind == "labels":
            return F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum")
        losses_B = F.cross_entropy(logits, batch.targets, reduction="none", label_smoothing=smoothing)
        if self.weights is None:
            return losses_B.sum()
        return (losses_B * torch.tensor(self.weights, device=logits.device)[batch.targets]).sum()
