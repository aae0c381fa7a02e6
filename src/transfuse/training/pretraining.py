"""The losses of BERT's pre-training: masked words, and next sentence where there are pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transfuse.data.batches import IGNORED
from transfuse.data.masking import MaskedBatch, MaskedDataset
from transfuse.models.bert import BertModel
from transfuse.nn.attention import BlockDiagonal
from transfuse.training.config import TrainingConfig
from transfuse.training.loop import autocast
from transfuse.training.losses import linear_cross_entropy


def token_vectors(model: BertModel, sequences: Any) -> Tensor:
    """One vector a token of sequences laid end to end, (N, D)."""
    blocks = BlockDiagonal(sequences.groups)
    found: Tensor = model(sequences.ids_1N, blocks, sequences.segments_1N, sequences.positions_N)
    return found[0]


def pretraining_loss(model: BertModel, batch: MaskedBatch, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the hidden words plus that of the pairs, times the hidden words."""
    assert model.words is not None
    x_ND = token_vectors(model, batch.sequences)
    hidden_MD = model.words.transformed(x_ND[batch.hidden_M])
    output = model.words.output
    loss = linear_cross_entropy(hidden_MD, output.weight, output.bias, batch.labels_M, smoothing)
    if (batch.next_B != IGNORED).any():
        pairs = F.cross_entropy(_pair_logits(model, x_ND, batch), batch.next_B, ignore_index=IGNORED)
        loss = loss + pairs * batch.n_tokens
    return loss


@dataclass(frozen=True)
class PretrainingScores:
    """Held-out figures: mean losses in nats and shares of right guesses. The pairs' are None where there are none."""

    word_loss: float
    word_accuracy: float
    pair_loss: float | None
    pair_accuracy: float | None

    @property
    def loss(self) -> float:
        """What training minimises: both losses."""
        return self.word_loss + (self.pair_loss or 0.0)


@torch.no_grad()
def pretraining_scores(model: BertModel, data: MaskedDataset, config: TrainingConfig) -> PretrainingScores:
    """Both losses and accuracies over all of `data`, in evaluation mode."""
    model.eval()
    assert model.words is not None
    sums, n_words, n_pairs = torch.zeros(4, dtype=torch.float64), 0, 0
    device = next(model.parameters()).device
    for rows in data.in_order(config.batch_tokens):
        batch = data.batch(rows).to(device)
        with autocast(model, config):
            x_ND = token_vectors(model, batch.sequences)
            logits_MV = model.words(x_ND[batch.hidden_M])
        sums[0] += F.cross_entropy(logits_MV.float(), batch.labels_M, reduction="sum").item()
        sums[1] += (logits_MV.argmax(-1) == batch.labels_M).sum().item()
        n_words += batch.n_tokens
        labelled = batch.next_B != IGNORED
        if labelled.any():
            with autocast(model, config):
                logits_B2 = _pair_logits(model, x_ND, batch)[labelled]
            sums[2] += F.cross_entropy(logits_B2.float(), batch.next_B[labelled], reduction="sum").item()
            sums[3] += (logits_B2.argmax(-1) == batch.next_B[labelled]).sum().item()
            n_pairs += int(labelled.sum())
    word_loss, word_accuracy = (sums[:2] / n_words).tolist()
    pair_loss, pair_accuracy = (sums[2:] / n_pairs).tolist() if n_pairs else (None, None)
    return PretrainingScores(word_loss, word_accuracy, pair_loss, pair_accuracy)


def _pair_logits(model: BertModel, x_ND: Tensor, batch: MaskedBatch) -> Tensor:
    return model.label_logits(model.pool(x_ND[batch.sequences.starts[:-1]]))
