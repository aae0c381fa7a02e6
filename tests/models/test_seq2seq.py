"""`Seq2SeqModel` and its directories against tiny random Marian and M2M100 models of `transformers`, in float64."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import reference
from transfuse.errors import ModelDirectoryError
from transfuse.generation import ready
from transfuse.generation.config import SearchConfig
from transfuse.generation.generate import generate
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.nn.attention import Attention
from transfuse.nn.positions import Sinusoidal
from transfuse.pretrained import bart_shaped
from transfuse.pretrained.directory import load_model, save_model
from transfuse.pretrained.renames import to_theirs

B, S, T = 3, 11, 7
START, PAD, END = 0, 1, 2
TOLERANCE = 1e-12

SIZES = {
    "d_model": 12,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_heads": 2,
    "decoder_heads": 3,
    "encoder_hidden": 17,
    "decoder_hidden": 19,
    "vocab_size": 31,
    "max_positions": 64,
    "activation": "gelu",
    "dropout": 0.0,
    "start_id": START,
    "pad_id": PAD,
    "end_id": END,
}
POST_NORM = SIZES | {"positions": "sinusoidal", "norm_first": False, "output_bias": True}
SEPARATE = {"share_embeddings": False, "target_vocab_size": 29}
CONFIGS = {
    "marian": Seq2SeqConfig(**POST_NORM),
    "marian separate": Seq2SeqConfig(**POST_NORM, **SEPARATE),
    "marian separate untied": Seq2SeqConfig(**POST_NORM, **SEPARATE, tie_output=False, scale_embeddings=False),
    "marian padding starts": Seq2SeqConfig(**POST_NORM | {"start_id": 30, "pad_id": 30, "end_id": 0}),
    "marian without bias": Seq2SeqConfig(**POST_NORM | {"output_bias": False, "activation": "silu"}),
    "m2m100": Seq2SeqConfig(**SIZES),
    "m2m100 end starts": Seq2SeqConfig(**SIZES | {"start_id": END}),
    "marian end pads": Seq2SeqConfig(**POST_NORM | {"pad_id": END}),
    "m2m100 relu unscaled": Seq2SeqConfig(**SIZES | {"activation": "relu", "scale_embeddings": False, "pad_id": 5}),
}
READ_ONLY = {
    "marian untied": Seq2SeqConfig(**POST_NORM, tie_output=False),
    "m2m100 untied": Seq2SeqConfig(**SIZES, tie_output=False),
}
"""One table for source and target, another for the output: `transformers` 5 then has three tables, here equal."""

OUR_OWN = {
    "grouped": Seq2SeqConfig(
        **SIZES | {"encoder_heads": 6, "decoder_heads": 6},
        encoder_kv_heads=3,
        decoder_kv_heads=2,
        cross_kv_heads=1,
    ),
    "rotary": Seq2SeqConfig(**SIZES, positions="rotary", norm="rms", scale_embeddings=False),
    "learned": Seq2SeqConfig(**SIZES, positions="learned", norm_first=False),
    "gated": Seq2SeqConfig(**SIZES | {"activation": "silu"}, gated=True, bias=False),
    "untied pre-norm": Seq2SeqConfig(**SIZES, tie_output=False, output_bias=True),
}

Model = Seq2SeqModel
Theirs = Any


pytestmark = pytest.mark.usefixtures("quiet_transformers")


# Both sides, with random weights


def our_model(config: Seq2SeqConfig, seed: int = 1) -> Model:
    return reference.draw(Seq2SeqModel(config), seed).eval()


def their_model(config: Seq2SeqConfig, seed: int = 1) -> Theirs:
    """A model of theirs with the sizes of `config`, random weights, and the ties that `config` has."""
    import transformers

    sizes = {theirs: getattr(config, ours) for ours, theirs in bart_shaped._FIELDS.items()}
    sizes |= {"activation_function": config.activation, "attn_implementation": "eager", "forced_eos_token_id": None}
    sizes |= {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "bos_token_id": None}
    if config.norm_first:
        model = transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**sizes))
    else:
        sizes |= {
            "share_encoder_decoder_embeddings": config.share_embeddings,
            "decoder_vocab_size": config.n_target_tokens,
        }
        model = transformers.MarianMTModel(transformers.MarianConfig(**sizes))
    reference.draw(model, seed)
    with torch.no_grad():
        if config.share_embeddings:
            for stack in (model.model.encoder, model.model.decoder):
                stack.embed_tokens.weight.copy_(model.model.shared.weight)
        if config.output_bias:
            model.final_logits_bias.copy_(0.3 * torch.randn(1, config.n_target_tokens))
    return model.eval()


def loaded(theirs: Theirs, folder: Path) -> Model:
    theirs.save_pretrained(folder)
    return load_model(folder)


def opened(folder: Path) -> Theirs:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)


def batch(config: Seq2SeqConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Source with padding, its mask, target; no special tokens inside."""
    generator = torch.Generator().manual_seed(2)
    source = torch.randint(6, 29, (B, S), generator=generator)
    keep = torch.arange(S) < torch.tensor([[S], [4], [7]])
    target = torch.randint(6, 29, (B, T), generator=generator)
    target[:, 0] = config.start_id
    return source.masked_fill(~keep, config.pad_id), keep, target


def their_logits(theirs: Theirs, source: Tensor, keep: Tensor, target: Tensor) -> Tensor:
    return theirs(input_ids=source, attention_mask=keep.long(), decoder_input_ids=target).logits


@torch.no_grad()
def assert_parity(ours: Model, theirs: Theirs, training: bool = False) -> None:
    ours.double().train(training)
    theirs.double().train(training)
    inputs = batch(ours.config)
    expected = their_logits(theirs, *inputs)
    torch.testing.assert_close(ours(*inputs), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_tiny_models_depend_on_every_input() -> None:
    for name in ("marian", "m2m100"):
        model = our_model(CONFIGS[name]).double()
        source, keep, target = batch(model.config)
        logits = model(source, keep, target)
        other_source, other_target = source.clone(), target.clone()
        other_source[:, 0], other_target[:, 0] = 4, 4
        assert (model(other_source, keep, target)[:, -1] - logits[:, -1]).abs().max() > 0.01
        assert (model(source, keep, other_target)[:, -1] - logits[:, -1]).abs().max() > 0.01


# Logits, both directions


@pytest.mark.parametrize("name", [*CONFIGS, *READ_ONLY])
@pytest.mark.parametrize("training", [False, True])
def test_theirs_opens_here_with_the_same_logits(name: str, training: bool, tmp_path: Path) -> None:
    config = (CONFIGS | READ_ONLY)[name]
    theirs = their_model(config)
    ours = loaded(theirs, tmp_path)
    assert replace(ours.config, output_bias=False) == replace(config, output_bias=False)
    assert_parity(ours, theirs, training)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("training", [False, True])
def test_ours_opens_there_with_the_same_logits(name: str, training: bool, tmp_path: Path) -> None:
    ours = our_model(CONFIGS[name])
    save_model(ours, tmp_path)
    theirs = opened(tmp_path)
    assert type(theirs).__name__ == ("MarianMTModel" if name.startswith("marian") else "M2M100ForConditionalGeneration")
    assert_parity(ours, theirs, training)


@pytest.mark.parametrize(
    "config",
    [*READ_ONLY.values(), Seq2SeqConfig(**SIZES | {"start_id": PAD})],
    ids=[*READ_ONLY, "m2m100 padding starts"],
)
def test_a_directory_claims_to_be_theirs_only_where_theirs_computes_the_same(
    config: Seq2SeqConfig, tmp_path: Path
) -> None:
    ours = our_model(config)
    save_model(ours, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "transfuse-seq2seq"
    assert load_model(tmp_path).config == config


def test_gradients_are_theirs(tmp_path: Path) -> None:
    theirs = their_model(CONFIGS["marian separate untied"])
    ours = loaded(theirs, tmp_path).double().train()
    theirs.double().train()
    inputs = batch(ours.config)
    labels = inputs[2].roll(-1, 1).flatten()
    F.cross_entropy(ours(*inputs).flatten(0, 1), labels).backward()
    F.cross_entropy(their_logits(theirs, *inputs).flatten(0, 1), labels).backward()
    gradients = to_theirs(
        bart_shaped._table(ours.config), {name: weight.grad for name, weight in ours.named_parameters()}
    )
    compared = 0
    for name, weight in theirs.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-10, atol=1e-12)
            compared += 1
    assert compared == len(gradients) - 1  # all but final_logits_bias, which they keep as a buffer


# Mutants: each bug is planted before loading, or in the loaded model, and parity must not survive it.


def plant_query_and_key_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = {"query": "key", "key": "query"}
    lines = []
    for line in bart_shaped._RENAMES:
        parts = line.ours.split(".")
        lines.append(replace(line, ours=".".join(swap.get(part, part) for part in parts)))
    monkeypatch.setattr(bart_shaped, "_RENAMES", lines)


def plant_self_and_cross_attention_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = {"attention": "cross_attention", "cross_attention": "attention"}
    lines = []
    for line in bart_shaped._RENAMES:
        parts = line.ours.split(".")
        changed = [swap.get(part, part) if parts[0] == "decoder" else part for part in parts]
        lines.append(replace(line, ours=".".join(changed)))
    monkeypatch.setattr(bart_shaped, "_RENAMES", lines)


def plant_heads_split_the_wrong_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(self: Attention, x: Tensor, n_heads: int) -> Tensor:
        return x.view(*x.shape[:2], self.d_head, n_heads).permute(0, 3, 1, 2)

    monkeypatch.setattr(Attention, "_split", split)


def plant_activation_approximated(monkeypatch: pytest.MonkeyPatch) -> None:
    from transfuse.nn import feed_forward

    monkeypatch.setitem(feed_forward.ACTIVATIONS, "gelu", lambda x: F.gelu(x, approximate="tanh"))


def alter_embedding_scale(model: Model) -> None:
    model.source_embedding.scale = 1.0


def alter_norm_first(model: Model) -> None:
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.norm_first = not block.norm_first


def alter_position_offset(model: Model) -> None:
    right = model.target_embedding.positions
    model.target_embedding.positions = Sinusoidal(right.d_model, offset=right.offset + 1, closed=right.closed)


def alter_wavelengths(model: Model) -> None:
    right = model.source_embedding.positions
    model.source_embedding.positions = Sinusoidal(right.d_model, offset=right.offset, closed=not right.closed)


def alter_heads(model: Model) -> None:
    for block in model.decoder.blocks:
        attention = block.attention
        attention.n_heads, attention.n_kv_heads, attention.d_head = 2, 2, 6


def alter_causal(model: Model) -> None:
    for block in model.decoder.blocks:
        block.attention.causal = False


def alter_block_order(model: Model) -> None:
    model.encoder.blocks = nn.ModuleList(reversed(list(model.encoder.blocks)))


PLANTS = [
    plant_query_and_key_swapped,
    plant_self_and_cross_attention_swapped,
    plant_heads_split_the_wrong_way,
    plant_activation_approximated,
]
ALTERATIONS = [
    alter_embedding_scale,
    alter_norm_first,
    alter_position_offset,
    alter_wavelengths,
    alter_heads,
    alter_causal,
    alter_block_order,
]


@pytest.mark.parametrize("name", ["marian", "m2m100"])
@pytest.mark.parametrize("plant", PLANTS)
def test_parity_notices_a_bug_in_the_code(
    name: str, plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    theirs = their_model(CONFIGS[name])
    ours = loaded(theirs, tmp_path)
    with pytest.raises(AssertionError, match="not close"):
        assert_parity(ours, theirs)


@pytest.mark.parametrize("name", ["marian", "m2m100"])
@pytest.mark.parametrize("alter", ALTERATIONS)
def test_parity_notices_a_bug_in_the_model(name: str, alter: Callable[[Model], None], tmp_path: Path) -> None:
    theirs = their_model(CONFIGS[name])
    ours = loaded(theirs, tmp_path)
    alter(ours)
    with pytest.raises(AssertionError, match="not close"):
        assert_parity(ours, theirs)


def test_parity_notices_a_forgotten_source_mask(tmp_path: Path) -> None:
    theirs = their_model(CONFIGS["m2m100"])
    ours = loaded(theirs, tmp_path)
    encode = ours.encode
    ours.encode = lambda source, keep: encode(source, torch.ones_like(keep))
    with pytest.raises(AssertionError, match="not close"):
        assert_parity(ours, theirs)


# Generated text


@dataclass(frozen=True)
class Wordy:
    """A model whose sentences differ in length, found by trying: weights N(0, std²), the end token favoured."""

    name: str
    std: float
    seed: int
    end: float

    def model(self) -> Model:
        model = reference.draw(Seq2SeqModel(CONFIGS[self.name]), self.seed, self.std).eval()
        with torch.no_grad():
            if model.output.bias is not None:
                model.output.bias[model.config.end_id] += self.end
            else:  # through the closing norm, which is all that comes before the output
                row = model.output.weight[model.config.end_id]
                model.decoder.norm.bias += self.end * row / row.square().sum()
        return model


WORDY = [
    Wordy("marian separate untied", 0.4, 5, 2.0),
    Wordy("marian padding starts", 0.3, 8, 1.6),
    Wordy("m2m100", 0.6, 4, 2.5),
    Wordy("marian end pads", 0.3, 12, 1.6),
]
LIMIT = 20


def source_rows(config: Seq2SeqConfig) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, S, (13,), generator=generator).tolist()
    return [[*torch.randint(6, 29, (n,), generator=generator).tolist(), config.end_id] for n in lengths]


def their_texts(theirs: Theirs, rows: list[list[int]], config: Seq2SeqConfig, beams: int) -> list[list[int]]:
    keep = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
    tensors = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=config.pad_id)
    written = theirs.generate(
        input_ids=ids, attention_mask=keep.long(), num_beams=beams, do_sample=False, max_length=LIMIT + 1
    )
    texts = written[:, 1:].tolist()  # without the start token
    return [text[: text.index(config.end_id)] if config.end_id in text else text for text in texts]


@pytest.mark.parametrize("wordy", WORDY, ids=lambda wordy: wordy.name)
@pytest.mark.parametrize("beams", [1, 4])
def test_generates_the_same_text_as_theirs(wordy: Wordy, beams: int, tmp_path: Path) -> None:
    ours = wordy.model()
    save_model(ours, tmp_path)
    rows, search = source_rows(ours.config), SearchConfig(beams=beams, max_tokens=LIMIT)
    texts = [found[0].ids for found in generate(ours.double(), rows, search)]
    assert len({len(text) for text in texts}) >= 5
    assert sum(len(text) < LIMIT for text in texts) >= 10
    assert texts == their_texts(opened(tmp_path), rows, ours.config, beams)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_start_token_that_also_ends_is_written(beams: int, tmp_path: Path) -> None:
    ours = Wordy("m2m100 end starts", 0.6, 4, 20.0).model()
    save_model(ours, tmp_path)
    rows, search = source_rows(ours.config), SearchConfig(beams=beams, max_tokens=LIMIT)
    found = [row[0] for row in generate(ours.double(), rows, search)]
    assert all(one.finished for one in found)
    assert [one.ids for one in found] == their_texts(opened(tmp_path), rows, ours.config, beams)


@pytest.mark.parametrize("name", ["m2m100", "marian separate untied"])
@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_a_first_token_and_bad_words_are_theirs(name: str, where: str, tmp_path: Path) -> None:
    wordy = next(one for one in WORDY if one.name == name)
    ours = wordy.model()
    rows = source_rows(ours.config)
    free = their_texts(save_and_open(ours, tmp_path), rows, ours.config, 1)
    banned = free[0][:2]
    for file, values in (("config.json", {}), ("generation_config.json", {"bad_words_ids": None}), (where, None)):
        told = json.loads((tmp_path / file).read_text())
        told |= {"forced_bos_token_id": 13, "bad_words_ids": [[one] for one in banned]} if values is None else values
        (tmp_path / file).write_text(json.dumps(told))
    again = load_model(tmp_path)
    assert again.config.first_id == 13 and again.config.banned_ids == tuple(banned)
    texts = [row[0].ids for row in generate(again.double(), rows, SearchConfig(beams=1, max_tokens=LIMIT - 1))]
    save_model(again, tmp_path / "again")
    assert load_model(tmp_path / "again").config == again.config
    theirs = their_texts(opened(tmp_path / "again"), rows, ours.config, 1)
    assert all(text[0] == 13 for text in theirs) and not {one for text in texts for one in text} & set(banned)
    assert texts == [text[1:] for text in theirs] and texts != free


def save_and_open(model: Model, folder: Path) -> Theirs:
    save_model(model, folder)
    return opened(folder)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_first_token_is_read_by_compiled_steps_too(beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"d_model": 64, "encoder_heads": 4, "decoder_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
    config = Seq2SeqConfig(vocab_size=29, encoder_hidden=64, decoder_hidden=64, max_positions=32, first_id=7, **sizes)  # type: ignore[arg-type]
    model = reference.draw(Seq2SeqModel(config), 3, 0.2).eval()
    rows, search = source_rows(config), SearchConfig(beams=beams, max_tokens=LIMIT)
    plain = generate(model, rows, search)
    monkeypatch.setattr(ready, "FEWEST_WEIGHTS", 0)
    for found, expected in zip(generate(model, rows, search), plain, strict=True):
        assert found[0].ids == expected[0].ids
    without = Seq2SeqModel(config.replace(first_id=None)).eval()
    without.load_state_dict(model.state_dict())
    assert [one[0].ids for one in generate(without, rows, search)] != [one[0].ids for one in plain]
    longest = generate(model, rows[:1], search.replace(max_tokens=None))[0][0]
    assert longest.finished or len(longest.ids) <= config.max_positions - 1


def test_bad_words_of_several_tokens_are_told_of(tmp_path: Path) -> None:
    save_model(our_model(CONFIGS["marian"]), tmp_path)
    told = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(told | {"bad_words_ids": [[9], [4, 5]]}))
    values = json.loads((tmp_path / "config.json").read_text())
    with pytest.warns(UserWarning, match="1 bad_words_ids of more than one token are ignored"):
        assert load_model(tmp_path).config.banned_ids == (9,)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(values | {"forced_bos_token_id": 10_000}))
    assert_refused(tmp_path, "first_id=10000 must be of")


# Round trips


@pytest.mark.parametrize("name", [*CONFIGS, *READ_ONLY, *OUR_OWN])
def test_what_is_saved_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    model = our_model((CONFIGS | READ_ONLY | OUR_OWN)[name])
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert not again.training
    expected = dict(model.named_parameters())
    assert dict(again.named_parameters()).keys() == expected.keys()
    for key, weight in again.named_parameters():
        assert torch.equal(weight, expected[key]), key


@pytest.mark.parametrize("name", OUR_OWN)
def test_our_own_architectures_compute_the_same_after_a_round_trip(name: str, tmp_path: Path) -> None:
    model = our_model(OUR_OWN[name])
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "transfuse-seq2seq"
    inputs = batch(model.config)
    assert torch.equal(load_model(tmp_path)(*inputs), model(*inputs))


@pytest.mark.parametrize("name", ["marian", "marian separate", "marian separate untied", "m2m100"])
def test_their_weights_pass_through_unchanged(name: str, tmp_path: Path) -> None:
    save_model(loaded(their_model(CONFIGS[name]), tmp_path / "theirs"), tmp_path / "ours")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for key, weight in before.items():
        assert torch.equal(weight, after[key]), key


def test_files_beside_the_model_are_written_and_nothing_else(tmp_path: Path) -> None:
    save_model(our_model(CONFIGS["m2m100"]), tmp_path, {"note.txt": "für später"})
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "für später"
    names = ["config.json", "generation_config.json", "model.safetensors", "note.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_tied_copies_and_position_tables_of_older_directories_are_read(tmp_path: Path) -> None:
    model = our_model(CONFIGS["marian"])
    save_model(model, tmp_path)
    with rewritten(tmp_path) as weights:
        for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights["model.shared.weight"].clone()
        weights["model.encoder.embed_positions.weight"] = torch.zeros(64, 12)
    inputs = batch(model.config)
    assert torch.equal(load_model(tmp_path)(*inputs), model(*inputs))


# What load_model refuses


@contextmanager
def rewritten(folder: Path) -> Iterator[dict[str, Tensor]]:
    """The weights of a directory, to be changed in place."""
    weights = load_file(folder / "model.safetensors")
    yield weights
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def rewrite_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(our_model(CONFIGS["marian"]), tmp_path / "model")
    return tmp_path / "model"


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelDirectoryError) as caught:
        load_model(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)


def test_refuses_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "no such directory")


def test_refuses_a_directory_without_config(saved: Path) -> None:
    (saved / "config.json").unlink()
    assert_refused(saved, "no config.json in it")


@pytest.mark.parametrize("text", ["{not json", "", "\ufeff{}"])
def test_refuses_a_config_that_is_not_json(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text, encoding="utf-8")
    assert_refused(saved, "config.json: not readable as JSON")


def test_refuses_a_config_that_is_no_object(saved: Path) -> None:
    (saved / "config.json").write_text("[1, 2]")
    assert_refused(saved, "config.json", "holds a list, expected an object")


@pytest.mark.parametrize("model_type", ["t5", None, 3])
def test_refuses_an_unknown_model_type(saved: Path, model_type: object) -> None:
    rewrite_config(saved, model_type=model_type)
    assert_refused(saved, f"model_type={model_type!r}", "marian, m2m_100, transfuse-seq2seq")


def test_refuses_a_config_with_fields_missing(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    del values["d_model"], values["eos_token_id"]
    (saved / "config.json").write_text(json.dumps(values))
    (saved / "generation_config.json").unlink()
    assert_refused(saved, "config.json has no d_model, eos_token_id")


def test_refuses_our_own_config_with_fields_missing(tmp_path: Path) -> None:
    save_model(our_model(OUR_OWN["rotary"]), tmp_path)  # which does not scale embeddings, as the default does
    values = json.loads((tmp_path / "config.json").read_text())
    del values["scale_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert_refused(tmp_path, "config.json", "scale_embeddings")


def test_refuses_our_own_config_with_an_impossible_width(tmp_path: Path) -> None:
    save_model(our_model(OUR_OWN["rotary"]), tmp_path)
    rewrite_config(tmp_path, d_model=6)  # heads of width 3 and 2, where rotary needs pairs
    assert_refused(tmp_path, "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "tanh"}, ["activation_function='tanh'", "relu, gelu, silu"]),
        ({"d_model": "12"}, ["d_model='12' must be int"]),
        ({"decoder_attention_heads": 5}, ["d_model=12", "n_heads=5"]),
        ({"eos_token_id": [2, 3]}, ["eos_token_id=[2, 3] must be int"]),
    ],
)
def test_refuses_a_config_that_is_wrong_in_itself(saved: Path, changes: dict[str, Any], words: list[str]) -> None:
    rewrite_config(saved, **changes)
    assert_refused(saved, "config.json", *words)


def test_refuses_weights_of_another_size(saved: Path) -> None:
    rewrite_config(saved, d_model=18)
    assert_refused(saved, "source_embedding.token.weight has shape (31, 12), config.json asks for (31, 18)")


def test_refuses_weights_of_fewer_layers(saved: Path) -> None:
    rewrite_config(saved, encoder_layers=4)
    assert_refused(saved, "missing: ", "encoder.blocks.3.attention.query.weight")


def test_refuses_a_missing_tensor_by_name(saved: Path) -> None:
    with rewritten(saved) as weights:
        del weights["model.decoder.layers.1.fc2.bias"]
    assert_refused(saved, "missing: decoder.blocks.1.feed_forward.down.bias")


@pytest.mark.parametrize("name", ["model.decoder.layers.1.adapter.weight", "model.encoder.layer_norm.weight"])
def test_refuses_an_unknown_tensor_by_name(saved: Path, name: str) -> None:
    with rewritten(saved) as weights:
        weights[name] = torch.zeros(12)
    ours = {"model.encoder.layer_norm.weight": "encoder.norm.weight"}
    assert_refused(saved, f"unknown: {ours.get(name, name)}")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_refuses_truncated_weights(saved: Path, share: float) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(saved, "model.safetensors: damaged or truncated")


def test_refuses_pickled_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert_refused(saved, "no model.safetensors in it")
    torch.save({}, saved / "pytorch_model.bin")
    assert_refused(saved, "no model.safetensors in it", "pytorch_model.bin is a pickle")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.encoder.embed_tokens.weight"])
def test_refuses_tied_copies_that_differ(saved: Path, name: str) -> None:
    with rewritten(saved) as weights:
        weights[name] = weights["model.shared.weight"] + 1
    assert_refused(saved, f"ties {name} to model.shared.weight, but the two differ")


def test_refuses_tables_that_transformers_keeps_apart_where_one_is_expected(tmp_path: Path) -> None:
    theirs = their_model(READ_ONLY["marian untied"])
    with torch.no_grad():
        theirs.model.encoder.embed_tokens.weight += 1
    theirs.save_pretrained(tmp_path)
    assert_refused(tmp_path, "model.encoder.embed_tokens.weight", "model.shared.weight", "the two differ")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.decoder.embed_tokens.weight"])
def test_a_tied_table_is_found_under_any_of_its_names(saved: Path, name: str) -> None:
    expected = load_model(saved)
    with rewritten(saved) as weights:
        weights[name] = weights.pop("model.shared.weight")
    for parameter, other in zip(load_model(saved).parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("shape", [(31,), (2, 31), (1, 30), ()], ids=str)
def test_refuses_a_bias_of_another_shape(saved: Path, shape: tuple[int, ...]) -> None:
    with rewritten(saved) as weights:
        weights["final_logits_bias"] = torch.ones(shape)
    if shape == (31,):  # one row without its row axis is the same bias
        assert load_model(saved).output.bias.eq(1).all()
    else:
        assert_refused(saved, "output.bias has shape", "config.json asks for (31,)")


def test_refuses_a_bias_that_its_config_denies(saved: Path) -> None:
    rewrite_config(saved, output_bias=False)
    assert_refused(saved, "output_bias=false, but final_logits_bias holds more than zeros")


def test_refuses_weights_that_are_whole_numbers(saved: Path) -> None:
    with rewritten(saved) as weights:
        weights["model.encoder.layers.0.fc1.weight"] = weights["model.encoder.layers.0.fc1.weight"].to(torch.int8)
    assert_refused(saved, "encoder.blocks.0.feed_forward.up.weight holds torch.int8, expected floating-point numbers")


def test_refuses_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    assert_refused(tmp_path / "model", "no such directory")


# What save_model survives


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_config_names_the_precision_of_the_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    save_model(our_model(CONFIGS["m2m100"]).to(dtype), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {dtype}


@pytest.mark.parametrize("n_moved", range(5))
def test_a_crash_while_files_are_moved_is_mended_when_the_directory_is_opened(
    saved: Path, n_moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    moves, replace = [], Path.replace

    def crashing(self: Path, target: Path) -> Path:
        if len(moves) == n_moved:
            raise Crash
        moves.append(target)
        return replace(self, target)

    newer = our_model(CONFIGS["marian"], seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crashing)
        patch.setattr(Path, "rmdir", lambda self: crashing(self, self))
        with pytest.raises(Crash):
            save_model(newer, saved, {"note.txt": "new"})
    model = load_model(saved)
    assert (saved / "note.txt").read_text() == "new"
    assert not list(saved.glob(".*"))
    for name, weight in newer.named_parameters():
        assert torch.equal(weight, model.get_parameter(name))


def test_files_that_cannot_be_put_in_place_are_kept_beside_it(saved: Path) -> None:
    (saved / "config.json").unlink()
    (saved / "config.json").mkdir()
    with pytest.raises(ModelDirectoryError, match=r"cannot move .*\.saved/\* to .*; move them yourself"):
        save_model(our_model(CONFIGS["marian"], seed=2), saved)
    assert (saved / ".saved" / "config.json").is_file()


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond `n_bytes`; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [0, 100, 20_000], ids=["nothing fits", "a header fits", "half fits"])
def test_a_full_disk_leaves_what_was_there(saved: Path, n_bytes: int) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert len(before["model.safetensors"]) > 20_000
    with full_disk(n_bytes), pytest.raises(ModelDirectoryError, match="what was there is unchanged") as caught:
        save_model(our_model(CONFIGS["marian"], seed=2), saved)
    assert str(saved) in str(caught.value)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    model = load_model(saved)
    for name, weight in our_model(CONFIGS["marian"]).named_parameters():
        assert torch.equal(weight, model.get_parameter(name))


def test_saving_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelDirectoryError, match="cannot write"):
        save_model(our_model(CONFIGS["marian"]), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
