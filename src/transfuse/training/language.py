"""The loss of a language model on packed documents."""

from __future__ import annotations

from torch import Tensor

from transfuse.data.batches import IGNORED
from transfuse.data.packing import PackedBatch
from transfuse.models.decoder import DecoderModel
from transfuse.training.losses import linear_cross_entropy


def language_loss(model: DecoderModel, batch: PackedBatch, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over the labelled positions."""
    hidden_ND = model.hidden(batch.ids_BT, batch.keep_BTT, batch.positions_BT).flatten(0, 1)
    labels = batch.labels_BT.flatten()
    if (labels == IGNORED).any():
        real = (labels != IGNORED).nonzero().squeeze(1)
        hidden_ND, labels = hidden_ND.index_select(0, real), labels[real]
    return linear_cross_entropy(hidden_ND, model.output.weight, model.output.bias, labels, smoothing)
