"""The loss of a class, and its gradients, against `transformers` on a padded batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from transfuse.data.labelled import LabelledDataset
from transfuse.data.wordpiece import Pieces
from transfuse.models.bert import BertModel
from transfuse.pretrained.directory import load_model
from transfuse.training.classification import SequenceLoss

LENGTHS, CLASSES = (5, 3, 7, 3, 5, 9), np.array([0, 1, 2, 1, 0, 2])


@pytest.mark.usefixtures("quiet_transformers")
def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=20, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(config).eval()
    for weight in theirs.parameters():
        weight.data.add_(0.2 * torch.randn(weight.shape))
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, torch.float64)
    assert isinstance(ours, BertModel)
    rows = [np.random.default_rng(i).integers(5, 50, length).tolist() for i, length in enumerate(LENGTHS)]
    data = LabelledDataset([Pieces(row, [0] * len(row), [], []) for row in rows], CLASSES)
    (SequenceLoss("class")(ours, data.batch(range(6))) / 6).backward()
    ids = torch.tensor([row + [0] * (9 - len(row)) for row in rows])
    keep = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    theirs.double()(input_ids=ids, attention_mask=keep, labels=torch.tensor(CLASSES)).loss.backward()
    expected = dict(theirs.named_parameters())
    own = dict(ours.named_parameters())
    for name, their_name in (
        ("encoder.blocks.0.attention.query.weight", "bert.encoder.layer.0.attention.self.query.weight"),
        ("encoder.blocks.1.feed_forward.up.weight", "bert.encoder.layer.1.intermediate.dense.weight"),
        ("embedding.token.weight", "bert.embeddings.word_embeddings.weight"),
        ("labels.weight", "classifier.weight"),
        ("pooler.weight", "bert.pooler.dense.weight"),
    ):
        torch.testing.assert_close(own[name].grad, expected[their_name].grad, rtol=1e-5, atol=1e-7)
