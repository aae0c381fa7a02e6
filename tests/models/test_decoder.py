"""`DecoderModel` and its directories against tiny random Llama, Mistral, Qwen2 and GPT-2 models of `transformers`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import reference
from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.models import decoder
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.nn.attention import Attention
from transfuse.nn.positions import Rotary
from transfuse.nn.ragged import GROWTH, RaggedCache, RaggedRows
from transfuse.pretrained import gpt2
from transfuse.pretrained.directory import load_model, read_origin, save_model

B, T, V = 3, 11, 31
TOLERANCE = 1e-5
"""Rotary angles and root mean squares are float32 there, whatever the weights are."""

EXACT = 1e-12
"""GPT-2 has neither."""

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 17, "vocab_size": V, "max_position_embeddings": 64}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "attn_implementation": "eager"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
GPT2 = {"n_embd": 24, "n_layer": 3, "n_head": 6, "vocab_size": V, "n_positions": 64, "eos_token_id": 2}
GPT2 |= {"bos_token_id": 2, "attn_implementation": "eager", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES | {"tie_word_embeddings": False}),
    "llama multi-head": ("Llama", SIZES | {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    "llama multi-query": ("Llama", SIZES | {"num_key_value_heads": 1, "eos_token_id": [2, 5]}),
    "llama biased": ("Llama", SIZES | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama wide heads": ("Llama", SIZES | {"head_dim": 10}),
    "llama 3": ("Llama", SIZES | {"rope_parameters": LLAMA3}),
    "llama linear": ("Llama", SIZES | {"rope_parameters": LINEAR}),
    "mistral": ("Mistral", SIZES | {"sliding_window": None}),
    "mistral wide window": ("Mistral", SIZES | {"sliding_window": 64}),
    "qwen2": ("Qwen2", SIZES | {"tie_word_embeddings": True}),
    "gpt2": ("GPT2", GPT2),
    "gpt2 narrow": ("GPT2", GPT2 | {"n_inner": 17, "activation_function": "relu"}),
}
TYPES = {"Llama": "llama", "Mistral": "mistral", "Qwen2": "qwen2", "GPT2": "gpt2"}


pytestmark = pytest.mark.usefixtures("quiet_transformers")


def their_model(name: str, seed: int = 1) -> Any:
    import transformers

    kind, values = THEIRS[name]
    architecture = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    config = getattr(transformers, f"{kind}Config")(**values)
    theirs = getattr(transformers, architecture)(config)
    reference.draw(theirs, seed)
    with torch.no_grad():
        for module in theirs.modules():  # their GPT-2 calls its norms ln_1, ln_2 and ln_f
            if "Norm" in type(module).__name__:
                module.weight.add_(1.0 - module.weight.mean())
    return theirs.eval()


def batch() -> Tensor:
    return torch.randint(6, V, (B, T), generator=torch.Generator().manual_seed(2))


def opened(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)


@torch.no_grad()
def assert_parity(ours: DecoderModel, theirs: Any, training: bool = False) -> None:
    ours.double().train(training)
    theirs.double().train(training)
    expected = theirs(batch()).logits
    assert expected.std() > 0.05
    tolerance = EXACT if ours.config.norm == "layer" else TOLERANCE
    torch.testing.assert_close(ours(batch()), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_theirs_opens_here_with_the_same_logits(name: str, training: bool, tmp_path: Path) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    assert_parity(load_model(tmp_path), theirs, training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", THEIRS)
def test_a_round_trip_gives_back_every_tensor(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = their_model(name).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    origin = read_origin(tmp_path / "theirs")
    assert (origin.model_type, origin.dtype) == (TYPES[THEIRS[name][0]], dtype)
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours", origin=origin)
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == dtype
        assert torch.equal(after[key], tensor), key
    again = opened(tmp_path / "ours")
    assert type(again) is type(theirs)
    assert_parity(load_model(tmp_path / "theirs"), again)


def test_a_sharded_directory_opens(tmp_path: Path) -> None:
    theirs = their_model("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    ours = load_model(tmp_path)
    assert_parity(ours, theirs)
    save_model(ours.float(), tmp_path)  # over it: one file now, and no index that points elsewhere
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert_parity(load_model(tmp_path), theirs)


def test_a_bare_gpt2_of_older_files_opens(tmp_path: Path) -> None:
    theirs = their_model("gpt2")
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    older = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    older |= {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(3)}
    save_file(older, tmp_path / "model.safetensors", {"format": "pt"})
    assert_parity(load_model(tmp_path), theirs)


# Mutants


def plant_heads_read_kv_modulo(patch: pytest.MonkeyPatch) -> None:
    project = Attention.project

    def modulo(self: Attention, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = project(self, *arguments)
        each = [h % self.n_kv_heads for h in range(self.n_heads)]
        return q, k[:, each], v[:, each]

    patch.setattr(Attention, "project", modulo)


def plant_rotary_removed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rotary, "forward", lambda self, x, positions: x)


def plant_rotary_neighbours_paired(patch: pytest.MonkeyPatch) -> None:
    turn = Rotary.forward

    def interleaved(self: Rotary, x: Tensor, positions: Tensor) -> Tensor:
        halves = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
        return torch.stack(turn(self, halves, positions).chunk(2, dim=-1), dim=-1).flatten(-2)

    patch.setattr(Rotary, "forward", interleaved)


def plant_scale_forgotten(patch: pytest.MonkeyPatch) -> None:
    from transfuse.nn import attention

    attend = attention.attend
    patch.setattr(attention, "attend", lambda q, k, v, **named: attend(q * q.shape[-1] ** 0.5, k, v, **named))


def plant_gate_and_up_swapped(patch: pytest.MonkeyPatch) -> None:
    from transfuse.nn import feed_forward

    together = feed_forward.together
    patch.setattr(feed_forward, "together", lambda layers, x: together(layers, x)[::-1])


def plant_exact_gelu(patch: pytest.MonkeyPatch) -> None:
    from transfuse.nn import feed_forward

    patch.setitem(feed_forward.ACTIVATIONS, "gelu_tanh", F.gelu)


def plant_not_transposed(patch: pytest.MonkeyPatch) -> None:
    attention_out = [line for line in gpt2._TABLE if ".out." in line.ours]
    plain = [type(line)(line.ours, line.theirs) for line in attention_out]
    patch.setattr(gpt2, "_TABLE", [line for line in gpt2._TABLE if line not in attention_out] + plain)
    from transfuse.pretrained import directory

    mutant = type(gpt2.GPT2)(**vars(gpt2.GPT2) | {"table": lambda config: gpt2._TABLE})
    patch.setitem(directory.FAMILIES, DecoderConfig, (mutant,))


def plant_scaling_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoder.RotaryScaling, "apply", lambda self, frequencies: frequencies)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (plant_heads_read_kv_modulo, "llama"),
    (plant_rotary_removed, "qwen2"),
    (plant_rotary_neighbours_paired, "mistral"),
    (plant_scale_forgotten, "gpt2"),
    (plant_gate_and_up_swapped, "llama"),
    (plant_exact_gelu, "gpt2"),
    (plant_not_transposed, "gpt2"),
    (plant_scaling_ignored, "llama 3"),
    (plant_scaling_ignored, "llama linear"),
]


@pytest.mark.parametrize(("plant", "name"), MUTANTS, ids=lambda part: getattr(part, "__name__", part))
def test_parity_notices_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        assert_parity(load_model(tmp_path), theirs)


# Cached == uncached == batched == chunked == alone

CONFIGS = {
    "grouped rotary": DecoderConfig(vocab_size=V, d_model=24, n_layers=2, n_heads=6, n_kv_heads=2, d_hidden=17),
    "multi-query": DecoderConfig(vocab_size=V, d_model=24, n_layers=2, n_heads=6, n_kv_heads=1, d_head=10, d_hidden=17),
    "learned": DecoderConfig(
        vocab_size=V, d_model=24, n_layers=2, n_heads=6, d_hidden=17, gated=False, norm="layer", positions="learned"
    ),
}


def make(name: str, **changes: Any) -> DecoderModel:
    config = CONFIGS[name].replace(max_positions=3 * GROWTH, **changes)
    return reference.draw(DecoderModel(config), seed=3).double().eval()


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, V, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def stepwise(model: DecoderModel, rows: list[list[int]], further: list[list[int]]) -> Tensor:
    """Logits after each prompt and after each of the `further` tokens fed to it, (B, 1 + n, V)."""
    state, first_B = model.begin(rows)
    logits = [model.output(model.hidden_step(first_B[:, None], state))]
    for column in zip(*further, strict=True):
        logits.append(model.output(model.hidden_step(torch.tensor(column)[:, None], state)))
    expected = 2 * model.config.n_layers * (model.config.n_kv_heads or 6) * model.config.head_width * 8
    assert state.n_bytes == expected * sum(len(row) + len(more) for row, more in zip(rows, further, strict=True))
    return torch.cat(logits, dim=1)


@torch.no_grad()
def whole(model: DecoderModel, row: list[int], more: list[int]) -> Tensor:
    return model(torch.tensor([[*row, *more]]))[0, len(row) - 1 :]


LENGTHS = {
    "every length": [1, 2, 3, 5, 8, 13],
    "across a block": [GROWTH - 2, GROWTH - 1, GROWTH, GROWTH + 1],
    "far apart": [1, GROWTH + 5, 2, 90],
}


def assert_stepwise_like_whole(model: DecoderModel, lengths: list[int]) -> None:
    rows, further = prompts(lengths), prompts([5] * len(lengths))
    together = stepwise(model, rows, further)
    for found, row, more in zip(together, rows, further, strict=True):
        torch.testing.assert_close(found, whole(model, row, more), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, stepwise(model, [row], [more])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("chunk", [2048, 7, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_cached_like_uncached_batched_chunked_and_alone(
    name: str, chunk: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "PREFILL_TOKENS", chunk)
    assert_stepwise_like_whole(make(name), lengths)


def test_every_length_from_one_to_past_a_block_boundary() -> None:
    model = make("grouped rotary")
    (row,) = prompts([GROWTH + 9])
    found = stepwise(model, [row[:1]], [row[1:]])[0]
    torch.testing.assert_close(found, whole(model, row[:1], row[1:]), rtol=1e-12, atol=1e-12)


def plant_positions_from_zero(patch: pytest.MonkeyPatch) -> None:
    extend_each = RaggedRows.extend_each

    def mutant(self: RaggedRows) -> None:
        extend_each(self)
        self.positions = self.positions * 0

    patch.setattr(RaggedRows, "extend_each", mutant)


def plant_padding_attended(patch: pytest.MonkeyPatch) -> None:
    decoding = RaggedRows._decoding

    def mutant(self: RaggedRows, rows: slice) -> Any:
        part = decoding(self, rows)
        return type(part)(part.rows, part.tokens, part.n_queries, part.n_keys, None)

    patch.setattr(RaggedRows, "_decoding", mutant)


def plant_growth_loses_what_was_held(patch: pytest.MonkeyPatch) -> None:
    reserve = RaggedCache.reserve

    def mutant(self: RaggedCache, n_positions: int, like: Tensor) -> Tensor:
        held = self._kv_2BGSK
        grown = reserve(self, n_positions, like)
        return grown if held is None or held is grown else grown.zero_()

    patch.setattr(RaggedCache, "reserve", mutant)


@pytest.mark.parametrize("plant", [plant_positions_from_zero, plant_padding_attended, plant_growth_loses_what_was_held])
def test_the_whole_pass_notices_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        assert_stepwise_like_whole(make("grouped rotary"), LENGTHS["across a block"])


@torch.no_grad()
def test_rows_that_stay_keep_their_caches() -> None:
    model = make("grouped rotary")
    rows, further = prompts([4, 9, 2, 6]), prompts([3] * 4)
    state, first_B = model.begin(rows)
    model.hidden_step(first_B[:, None], state)
    state.select(torch.tensor([3, 1]))
    fed = torch.tensor([[further[3][0]], [further[1][0]]])
    logits = model.output(model.hidden_step(fed, state))[:, 0]
    for found, i in zip(logits, (3, 1), strict=True):
        torch.testing.assert_close(found, whole(model, rows[i], further[i][:1])[-1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_the_future_cannot_change_the_past(name: str) -> None:
    model, ids = make(name), batch()
    changed = ids.clone()
    changed[:, 7] = 3
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax((1, 2)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model = make(name)
    one, other = prompts([5, 8])
    documents = torch.tensor([[0] * 5 + [1] * 8])
    positions = torch.tensor([[*range(5), *range(8)]])
    packed = model(torch.tensor([[*one, *other]]), documents[:, :, None] == documents[:, None], positions)[0]
    torch.testing.assert_close(packed[:5], model(torch.tensor([one]))[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(packed[5:], model(torch.tensor([other]))[0], rtol=1e-12, atol=1e-12)


# What is refused


def refused(folder: Path, **changes: Any) -> str:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "remove"}))
    with pytest.raises(ModelDirectoryError) as caught:
        load_model(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn' is not supported"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "rope_type='dynamic' is not"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "known are default, linear, llama3"),
        ("llama", {"partial_rotary_factor": 0.5, "rope_parameters": None}, "partial_rotary_factor"),
        ("llama", {"hidden_act": "mish"}, "hidden_act='mish' is not supported"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads=4"),
        ("llama", {"rms_norm_eps": "remove", "hidden_size": "remove"}, "has no hidden_size, rms_norm_eps"),
        ("llama", {"eos_token_id": None}, "no eos_token_id"),
        ("llama", {"intermediate_size": 18}, r"asks for \(18, 24\)"),
        ("llama", {"num_hidden_layers": 2}, "unknown: decoder.blocks.2"),
        ("llama", {"num_hidden_layers": 4}, "missing: decoder.blocks.3"),
        ("mistral", {"sliding_window": 16}, "sliding_window=16 is shorter than max_position_embeddings=64"),
        ("mistral", {"sliding_window": "remove", "max_position_embeddings": 8192}, "sliding_window=4096 is shorter"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window=8 is shorter"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh' is not supported"),
        ("gpt2", {"n_head": 5}, "n_embd=24 must be a multiple of n_head=5"),
        ("llama", {"model_type": "mamba"}, "model_type='mamba' is not known here"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    their_model(name).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()  # where an end token may be named, too
    assert re.search(message, refused(tmp_path, **changes))


def test_a_model_saved_over_shards_takes_their_place(tmp_path: Path) -> None:
    theirs = their_model("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    (tmp_path / "model-of-mine.safetensors").write_bytes(b"not one of the index")
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 2
    save_model(load_model(tmp_path), tmp_path, origin=read_origin(tmp_path))
    assert {path.name for path in tmp_path.glob("*.safetensors*")} == {"model.safetensors", "model-of-mine.safetensors"}
    assert_parity(load_model(tmp_path), theirs)


def test_shards_that_are_not_what_the_index_says_are_named(tmp_path: Path) -> None:
    their_model("llama").save_pretrained(tmp_path, max_shard_size="5KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-7])
    with pytest.raises(ModelDirectoryError, match=f"{shards[1].name}: damaged or truncated"):
        load_model(tmp_path)
    shards[1].write_bytes(shards[2].read_bytes())
    with pytest.raises(ModelDirectoryError, match=f"{shards[1].name}: does not hold what"):
        load_model(tmp_path)
    shards[1].unlink()
    with pytest.raises(ModelDirectoryError, match=f"names {shards[1].name}, which is not a file"):
        load_model(tmp_path)


def test_a_pickle_is_refused_with_the_reason(tmp_path: Path) -> None:
    their_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError, match=r"pytorch_model.bin is a pickle, which can run any code"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 4}, "n_heads=6 must be a multiple of n_kv_heads=4"),
        ({"d_head": 5}, "d_head=5 must be even for rotary positions"),
        ({"end_ids": ()}, "end_ids=\\(\\) must name one token"),
        ({"end_ids": (40,)}, "end_ids=\\(40,\\) must be tokens of vocab_size=31"),
        ({"rotary_factor": 2.0, "rotary_low": 1.0}, "belong together, and to rotary_factor=2.0"),
        ({"rotary_low": 1.0, "rotary_high": 4.0, "rotary_original_positions": 16}, "and to rotary_factor=None"),
        (
            {"rotary_factor": 2.0, "rotary_low": 4.0, "rotary_high": 4.0, "rotary_original_positions": 16},
            "rotary_low=4.0 must be below rotary_high=4.0",
        ),
        ({"start_id": -1}, "start_id=-1 must be tokens"),
        ({"n_layers": 0}, "n_layers=0 must be greater than 0"),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONFIGS["grouped rotary"].replace(**changes)


def test_a_config_survives_json() -> None:
    config = CONFIGS["multi-query"].replace(end_ids=(2, 5), start_id=1)
    assert DecoderConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("lengths", [[0], [3, 0], [3 * GROWTH + 1]])
def test_prompts_that_are_empty_or_too_long_are_refused(lengths: list[int]) -> None:
    with pytest.raises(DataError, match=rf"prompt {len(lengths) - 1} has {lengths[-1]} tokens; at least 1"):
        make("learned").begin([[3] * n for n in lengths])


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral"])
def test_a_directory_keeps_its_form_however_often_it_is_saved(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "0"
    their_model(name).save_pretrained(folder)
    for i in (1, 2, 3):
        origin, again = read_origin(folder), tmp_path / str(i)
        save_model(load_model(folder), again, origin=origin)
        folder = again
    assert read_origin(folder).model_type == name
    assert_parity(load_model(folder), opened(folder))


@pytest.mark.parametrize(
    ("name", "table"), [("qwen2", "model.embed_tokens.weight"), ("gpt2", "transformer.wte.weight")]
)
def test_a_tied_table_is_found_under_either_name(name: str, table: str, tmp_path: Path) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights.pop(table)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert_parity(load_model(tmp_path), theirs)
    save_file(weights | {table: weights["lm_head.weight"] + 1}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelDirectoryError, match=f"ties lm_head.weight to {table}, but the two differ"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "linear"}},
        {"rope_parameters": "linear"},
        {"hidden_act": ["silu"]},
        {"num_key_value_heads": 0},
        {"eos_token_id": "two"},
    ],
)
def test_a_config_with_values_of_other_types_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    their_model("llama").save_pretrained(tmp_path)
    assert "config.json: " in refused(tmp_path, **changes)


def test_dropout_in_training_keeps_no_llama_from_opening_there(tmp_path: Path) -> None:
    config = CONFIGS["grouped rotary"].replace(dropout=0.25, attention_dropout=0.5)
    save_model(reference.draw(DecoderModel(config), seed=3), tmp_path)
    assert load_model(tmp_path).config == config.replace(d_head=4)
    assert_parity(load_model(tmp_path), opened(tmp_path))
