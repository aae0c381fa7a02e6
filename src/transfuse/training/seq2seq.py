"""The loss of an encoder–decoder on a batch of pairs."""

from __future__ import annotations

from torch import Tensor

from transfuse.data.batches import IGNORED, PairBatch
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.training.losses import linear_cross_entropy


def seq2seq_loss(model: Seq2SeqModel, batch: PairBatch, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over the real target positions; padding is never projected to the vocabulary."""
    hidden_BTD = model.hidden(batch.source_BS, batch.source_keep_BS, batch.target_BT)
    labels = batch.labels_BT.flatten()
    real = (labels != IGNORED).nonzero().squeeze(1)
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, real)
    return linear_cross_entropy(hidden_ND, model.output.weight, model.output.bias, labels[real], smoothing)
