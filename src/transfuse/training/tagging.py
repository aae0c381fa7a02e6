"""The loss of a label for each piece of a text."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from transfuse.data.batches import IGNORED
from transfuse.data.labelled import LabelledBatch
from transfuse.models.bert import BertModel
from transfuse.training.pretraining import token_vectors


def piece_logits(model: BertModel, batch: LabelledBatch) -> Tensor:
    """What the head makes of each piece: (N, labels)."""
    return model.label_logits(token_vectors(model, batch.sequences))


def tagging_loss(model: BertModel, batch: LabelledBatch, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, summed over the pieces that have a label."""
    logits = piece_logits(model, batch).float()
    return F.cross_entropy(logits, batch.targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
