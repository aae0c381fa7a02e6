"""Losses of tags and of answers, and their gradients, against `transformers` on a padded batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from transfuse.data.batches import IGNORED
from transfuse.data.labelled import LabelledBatch, LabelledDataset
from transfuse.data.wordpiece import Pieces
from transfuse.models.bert import BertModel
from transfuse.pretrained.directory import load_model
from transfuse.training.answering import answering_loss
from transfuse.training.tagging import tagging_loss

LENGTHS = (5, 3, 7, 3, 5, 9)
NAMES = {
    "encoder.blocks.0.attention.query.weight": "bert.encoder.layer.0.attention.self.query.weight",
    "encoder.blocks.1.feed_forward.up.weight": "bert.encoder.layer.1.intermediate.dense.weight",
    "embedding.token.weight": "bert.embeddings.word_embeddings.weight",
}

pytestmark = pytest.mark.usefixtures("quiet_transformers")


def pair(tmp_path: Path, architecture: str) -> tuple[BertModel, torch.nn.Module]:
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=20, num_labels=2 if architecture.endswith("Answering") else 3,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = getattr(transformers, architecture)(config).eval()
    for weight in theirs.parameters():
        weight.data.add_(0.2 * torch.randn(weight.shape))
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, torch.float64)
    assert isinstance(ours, BertModel)
    return ours, theirs.double()


def rows() -> list[list[int]]:
    return [np.random.default_rng(i).integers(5, 50, length).tolist() for i, length in enumerate(LENGTHS)]


def padded(values: list[list[int]], filling: int) -> torch.Tensor:
    return torch.tensor([row + [filling] * (max(LENGTHS) - len(row)) for row in values])


def agree(ours: BertModel, theirs: torch.nn.Module, loss: torch.Tensor, head: str, **labels: torch.Tensor) -> None:
    keep = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    expected = theirs(input_ids=padded(rows(), 0), attention_mask=keep, **labels).loss
    torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    own, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for name, their_name in {**NAMES, "labels.weight": head}.items():
        torch.testing.assert_close(own[name].grad, other[their_name].grad, rtol=1e-5, atol=1e-7)


def batch_of(targets: list[np.ndarray], per_piece: bool) -> LabelledBatch:
    pieces = [Pieces(row, [0] * len(row), [], []) for row in rows()]
    return LabelledDataset(pieces, targets, per_piece).batch(range(len(LENGTHS)))


def test_tags(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, "BertForTokenClassification")
    tags = [np.random.default_rng(9 + i).choice([0, 1, 2, IGNORED], length) for i, length in enumerate(LENGTHS)]
    batch = batch_of(tags, per_piece=True)
    assert batch.n_tokens == sum(int((row != IGNORED).sum()) for row in tags)
    labels = padded([row.tolist() for row in tags], IGNORED)
    agree(ours, theirs, tagging_loss(ours, batch) / batch.n_tokens, "classifier.weight", labels=labels)


def test_answers(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, "BertForQuestionAnswering")
    places = np.array([(1, 3), (0, 0), (2, 6), (2, 2), (1, 4), (0, 8)])
    # theirs also chooses among padding, so texts of one length each
    for theirs_row, length in enumerate(LENGTHS):
        batch = LabelledDataset([Pieces(rows()[theirs_row], [0] * length, [], [])], places[[theirs_row]]).batch([0])
        expected = theirs(
            input_ids=torch.tensor([rows()[theirs_row]]),
            start_positions=torch.tensor([places[theirs_row, 0]]),
            end_positions=torch.tensor([places[theirs_row, 1]]),
        ).loss
        torch.testing.assert_close(answering_loss(ours, batch), expected.float(), rtol=1e-6, atol=0)
    together = answering_loss(ours, batch_of(list(places), per_piece=False))
    alone = sum(
        answering_loss(ours, LabelledDataset([Pieces(row, [0] * len(row), [], [])], places[[i]]).batch([0]))
        for i, row in enumerate(rows())
    )
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    together.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in (ours.labels.weight,))  # type: ignore[union-attr]
