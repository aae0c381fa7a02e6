"""`Seq2SeqModel` and its directories against tiny random Marian and M2M100 models of `transformers`, in float64."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.errors import ModelDirectoryError
from transfuse.generation.config import SearchConfig
from transfuse.generation.generate import generate
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.nn.attention import Attention
from transfuse.nn.positions import Sinusoidal
from transfuse.pretrained import bart_shaped
from transfuse.pretrained.directory import load_model, save_model

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
    "marian untied": Seq2SeqConfig(**POST_NORM, tie_output=False),
    "marian separate": Seq2SeqConfig(**POST_NORM, **SEPARATE),
    "marian separate untied": Seq2SeqConfig(**POST_NORM, **SEPARATE, tie_output=False, scale_embeddings=False),
    "marian padding starts": Seq2SeqConfig(**POST_NORM | {"start_id": 30, "pad_id": 30, "end_id": 0}),
    "marian without bias": Seq2SeqConfig(**POST_NORM | {"output_bias": False, "activation": "silu"}),
    "m2m100": Seq2SeqConfig(**SIZES),
    "m2m100 relu unscaled": Seq2SeqConfig(**SIZES | {"activation": "relu", "scale_embeddings": False, "pad_id": 5}),
}
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


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """No look-ups on the network, no progress bars, no advice on standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        yield


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
    target[:, 0] = config.start_id if config.start_id != config.pad_id else 3
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


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("training", [False, True])
def test_theirs_opens_here_with_the_same_logits(name: str, training: bool, tmp_path: Path) -> None:
    theirs = their_model(CONFIGS[name])
    ours = loaded(theirs, tmp_path)
    assert replace(ours.config, output_bias=False) == replace(CONFIGS[name], output_bias=False)
    assert_parity(ours, theirs, training)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("training", [False, True])
def test_ours_opens_there_with_the_same_logits(name: str, training: bool, tmp_path: Path) -> None:
    ours = our_model(CONFIGS[name])
    save_model(ours, tmp_path)
    theirs = opened(tmp_path)
    assert type(theirs).__name__ == ("MarianMTModel" if name.startswith("marian") else "M2M100ForConditionalGeneration")
    assert_parity(ours, theirs, training)


def test_gradients_are_theirs(tmp_path: Path) -> None:
    theirs = their_model(CONFIGS["marian separate untied"])
    ours = loaded(theirs, tmp_path).double().train()
    theirs.double().train()
    inputs = batch(ours.config)
    labels = inputs[2].roll(-1, 1).flatten()
    F.cross_entropy(ours(*inputs).flatten(0, 1), labels).backward()
    F.cross_entropy(their_logits(theirs, *inputs).flatten(0, 1), labels).backward()
    table = bart_shaped._table(ours.config)
    gradients = bart_shaped_gradients(ours, table)
    compared = 0
    for name, weight in theirs.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-10, atol=1e-12)
            compared += 1
    assert compared == len(gradients) - 1  # all but final_logits_bias, which they keep as a buffer


def bart_shaped_gradients(ours: Model, table: list[Any]) -> dict[str, Tensor]:
    from transfuse.pretrained.renames import to_theirs

    return to_theirs(table, {name: weight.grad for name, weight in ours.named_parameters()})


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


WORDY = {
    "marian separate untied": 0.0,
    "marian padding starts": 0.0,
    "m2m100": 0.0,
}
"""Models whose sentences differ in length, and how much their end tokens are favoured."""


def sources(config: Seq2SeqConfig, n_rows: int = 13) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, S, (n_rows,), generator=generator).tolist()
    return [[*torch.randint(6, 29, (n,), generator=generator).tolist(), config.end_id] for n in lengths]


def padded(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    keep = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    return ids, keep


def favour_the_end(model: Model, amount: float) -> None:
    """Raise the end token's logit everywhere by about `amount`."""
    with torch.no_grad():
        if model.output.bias is not None:
            model.output.bias[model.config.end_id] += amount
        else:
            row = model.output.weight[model.config.end_id]
            model.decoder.norm.bias += amount * row / row.square().sum()


def their_texts(theirs: Theirs, rows: list[list[int]], config: Seq2SeqConfig, beams: int, limit: int) -> list[list[int]]:
    ids, keep = padded(rows, config.pad_id)
    found = theirs.generate(
        input_ids=ids, attention_mask=keep.long(), num_beams=beams, do_sample=False, max_length=limit + 1
    )
    texts = []
    for row in found[:, 1:].tolist():
        end = row.index(config.end_id) if config.end_id in row else len(row)
        texts.append(row[:end])
    return texts
