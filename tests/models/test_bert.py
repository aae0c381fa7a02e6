"""`BertModel` and its directories against tiny random BERTs of `transformers`, with every head."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.models.bert import BertConfig, BertModel
from transfuse.nn.attention import Attention, BlockDiagonal
from transfuse.nn.dropout import Dropout
from transfuse.pretrained.bert import ARCHITECTURES
from transfuse.pretrained.directory import load_model, save_model

SIZES = {
    "vocab_size": 53,
    "hidden_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,
    "intermediate_size": 37,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

pytestmark = pytest.mark.usefixtures("quiet_transformers")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def theirs(architecture: str, folder: Path, **changes: Any) -> Any:
    """A BERT of `transformers` with weights at std 0.3, saved in `folder`."""
    import transformers

    if architecture == "BertForQuestionAnswering":
        changes["num_labels"] = 2  # start and end
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.BertConfig(**SIZES | changes)).double().eval()
    for weight in model.parameters():
        weight.data.add_(0.3 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    return model


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, 53, (5, 13))
    keep = torch.arange(13) < torch.tensor([[13], [7], [11], [1], [3]])
    return {"input_ids": ids, "attention_mask": keep, "token_type_ids": (torch.arange(13) > 5).long().expand(5, -1)}


def ours(model: BertModel, given: dict[str, Tensor]) -> list[Tensor]:
    """What the model gives on real tokens: vectors, then what its head makes of them."""
    keep = given["attention_mask"]
    x = model(given["input_ids"], keep, given["token_type_ids"])
    head, found = model.config.head, []
    if model.words is not None:
        found.append(model.words(x)[keep])
    if head in ("pretraining", "sequence"):
        found.append(model.label_logits(model.pool(x[:, 0])))
    elif head == "none":
        found += [x[keep], model.pool(x[:, 0])]
    elif head != "words":
        found.append(model.label_logits(x)[keep])
    return found


def expected(model: Any, given: dict[str, Tensor]) -> list[Tensor]:
    out, keep, kind = model(**given), given["attention_mask"], type(model).__name__
    return {
        "BertModel": lambda: [out.last_hidden_state[keep], out.pooler_output],
        "BertForMaskedLM": lambda: [out.logits[keep]],
        "BertForPreTraining": lambda: [out.prediction_logits[keep], out.seq_relationship_logits],
        "BertForSequenceClassification": lambda: [out.logits],
        "BertForTokenClassification": lambda: [out.logits[keep]],
        "BertForQuestionAnswering": lambda: [torch.stack([out.start_logits, out.end_logits], -1)[keep]],
    }[kind]()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parity_there_and_back(architecture: str, training: bool, tmp_path: Path) -> None:
    import transformers

    reference = theirs(architecture, tmp_path / "theirs").train(training)
    model = load_model(tmp_path / "theirs").train(training)
    assert isinstance(model, BertModel)
    for found, wanted in zip(ours(model, inputs()), expected(reference, inputs()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    save_model(model, tmp_path / "ours")
    again = getattr(transformers, architecture).from_pretrained(tmp_path / "ours", dtype=torch.float64)
    for name, weight in reference.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("holds", "says", "head", "pooled"),
    [
        ("BertForPreTraining", ["BertForMaskedLM"], "pretraining", True),  # as bert-base-uncased
        ("BertForPreTraining", ["BertModel"], "none", True),
        ("BertForMaskedLM", ["BertModel"], "none", False),
        ("BertForMaskedLM", ["BertForTokenEverything", "BertForMaskedLM"], "words", False),
        ("BertForSequenceClassification", ["BertForTokenClassification"], "token", False),  # as bert-base-NER
        ("BertForSequenceClassification", ["BertModel"], "none", True),
    ],
)
def test_published_files_hold_more_than_they_name(
    holds: str, says: list[str], head: str, pooled: bool, tmp_path: Path
) -> None:
    reference = theirs(holds, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"architectures": says}))
    model = load_model(tmp_path)
    assert isinstance(model, BertModel)
    assert (model.config.head, model.config.has_pooler) == (head, pooled)
    given = inputs()
    x_BTD = model(given["input_ids"], given["attention_mask"], given["token_type_ids"])
    keep = given["attention_mask"]
    wanted = reference.bert(**given)
    torch.testing.assert_close(x_BTD[keep], wanted.last_hidden_state[keep], rtol=1e-9, atol=1e-9)
    if holds == "BertForPreTraining":
        torch.testing.assert_close(model.pool(x_BTD[:, 0]), wanted.pooler_output, rtol=1e-9, atol=1e-9)
    if head == "pretraining":
        for found, there in zip(ours(model, given), expected(reference, given), strict=True):
            torch.testing.assert_close(found, there, rtol=1e-9, atol=1e-9)
    save_model(model, tmp_path / "again")
    assert load_model(tmp_path / "again").config == model.config


def packed(lengths: list[int]) -> tuple[Tensor, BlockDiagonal, Tensor, list[Tensor]]:
    """Rows laid end to end, equal lengths side by side."""
    torch.manual_seed(2)
    rows = [torch.randint(1, 53, (length,)) for length in lengths]
    groups = [(lengths.count(length), length) for length in sorted(set(lengths))]
    assert lengths == sorted(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return torch.cat(rows)[None], BlockDiagonal(groups), positions, rows


def test_packed_is_padded_is_alone(tmp_path: Path) -> None:
    theirs("BertModel", tmp_path)
    model = load_model(tmp_path)
    ids, blocks, positions, rows = packed([2, 3, 3, 3, 7, 11, 11])
    together = model(ids, blocks, positions=positions)[0]
    first = 0
    for row in rows:
        alone = model(row[None])[0]
        torch.testing.assert_close(together[first : first + len(row)], alone, rtol=1e-10, atol=1e-10)
        wide = torch.cat([row, torch.full((13 - len(row),), 9)])[None]
        padded = model(wide, (torch.arange(13) < len(row))[None])[0, : len(row)]
        torch.testing.assert_close(padded, alone, rtol=1e-10, atol=1e-10)
        first += len(row)


def test_dropout_is_where_it_is_there() -> None:
    """On vectors, on what each sub-layer adds, on attention weights, and before the labels."""
    model = BertModel(BertConfig(dropout=0.1, attention_dropout=0.2, head_dropout=0.3, head="sequence", n_layers=2))
    rates = [module.rate for module in model.modules() if isinstance(module, Dropout)]
    assert rates.count(0.3) == 1 and rates.count(0.2) == 2 and rates.count(0.1) == 3


def test_labels_are_dropped_out_where_they_are_there() -> None:
    for head, drops in (("sequence", True), ("token", True), ("span", False), ("pretraining", False)):
        model = BertModel(BertConfig(dropout=0.0, head_dropout=0.9, head=head, n_layers=1, vocab_size=9)).train()  # type: ignore[arg-type]
        x = torch.ones(3, model.config.d_model)
        torch.manual_seed(0)
        assert torch.equal(model.label_logits(x), model.eval().label_logits(x)) != drops


def _segments_ignored(patch: pytest.MonkeyPatch) -> None:
    forward = BertModel.forward
    patch.setattr(
        BertModel, "forward", lambda self, ids, keep=None, segments=None, positions=None: forward(self, ids, keep)
    )


def _padding_seen(patch: pytest.MonkeyPatch) -> None:
    heads = Attention.heads
    patch.setattr(Attention, "heads", lambda self, x, memory=None, *, keep=None, cache=None: heads(self, x, memory))


def _tanh_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BertModel, "pool", lambda self, first: self.pooler(first))


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    from transfuse.models import bert

    patch.setitem(bert.ACTIVATIONS, "gelu", bert.ACTIVATIONS["gelu_tanh"])


@pytest.mark.parametrize("plant", [_segments_ignored, _padding_seen, _tanh_forgotten, _other_gelu])
def test_parity_notices_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = theirs("BertModel", tmp_path)
    plant(monkeypatch)
    pairs = zip(ours(load_model(tmp_path), inputs()), expected(reference, inputs()), strict=True)
    assert any((found - wanted).abs().max() > 1e-6 for found, wanted in pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"hidden_act": "tanh"}, "hidden_act='tanh' is not supported"),
        ({"num_attention_heads": 5}, "multiple of"),
        ({"architectures": ["BertLMHeadModel"]}, r"architectures=\['BertLMHeadModel'\] is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    import json

    theirs("BertModel", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ModelDirectoryError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "refused"), [("BertForMaskedLM", True), ("BertForTokenClassification", False)]
)
def test_an_untied_word_head_is_refused_by_that_name(architecture: str, refused: bool, tmp_path: Path) -> None:
    theirs(architecture, tmp_path, tie_word_embeddings=False)
    if not refused:
        load_model(tmp_path)
        return
    with pytest.raises(ModelDirectoryError, match="tie_word_embeddings=false is not supported: words are guessed by"):
        load_model(tmp_path)


def test_positions_may_begin_as_sinusoids() -> None:
    config = BertConfig(vocab_size=9, d_model=64, n_layers=1, max_positions=300)
    drawn, waves = (BertModel(config.replace(position_start=start)).initialise(3) for start in ("random", "sinusoidal"))
    for name, weight in drawn.named_parameters():
        if "positions" not in name:
            assert torch.equal(weight, waves.get_parameter(name))
    table, before = waves.get_parameter("embedding.positions.weight"), drawn.get_parameter("embedding.positions.weight")
    assert table.square().mean().sqrt().item() == pytest.approx(before.std().item(), rel=0.02)
    # how like two positions are depends on how far apart they are, wherever that is
    likeness = table @ table.T
    for distance in (1, 5, 40):
        torch.testing.assert_close(likeness.diagonal(distance), likeness[0, distance].expand(300 - distance))
    with pytest.raises(ConfigError, match="position_start='even' must be one of"):
        config.replace(position_start="even")
