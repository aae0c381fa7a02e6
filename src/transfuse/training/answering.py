"""The loss of an answer that stands in the text: where it begins and where it ends.

Shapes: B texts, T pieces of each of n texts of one length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from transfuse.data.labelled import LabelledBatch
from transfuse.models.bert import BertModel
from transfuse.training.tagging import piece_logits


def end_logits(model: BertModel, batch: LabelledBatch) -> list[Tensor]:
    """Logits of each piece as the first and as the last of the answer, (n, T, 2), for the texts of each length."""
    logits_N2 = piece_logits(model, batch).float()
    parts = torch.split(logits_N2, [n * T for n, T in batch.sequences.groups])
    return [part.view(n, T, 2) for part, (n, T) in zip(parts, batch.sequences.groups, strict=True)]


def answering_loss(model: BertModel, batch: LabelledBatch, smoothing: float = 0.0) -> Tensor:
    """Mean of the cross-entropies of the first and of the last piece, summed over texts. Targets are (B, 2) places in
    each text."""
    logits = end_logits(model, batch)
    targets = torch.split(batch.targets, [len(part) for part in logits])
    losses = [
        F.cross_entropy(part[:, :, end], places[:, end], reduction="sum", label_smoothing=smoothing)
        for part, places in zip(logits, targets, strict=True)
        for end in (0, 1)
    ]
    return torch.stack(losses).sum() / 2
