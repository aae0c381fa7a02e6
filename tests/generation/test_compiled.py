"""Compiled steps: against the modules they are made from, at every length, thread by thread, and what they are not
used for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import reference
from transfuse.errors import GenerationError
from transfuse.generation import compiled, cores, generate, ready
from transfuse.generation.compiled import CompiledDecoder, Sheet
from transfuse.generation.config import SearchConfig
from transfuse.generation.sequences import Greedy, write
from transfuse.kernels import step as kernel
from transfuse.kernels.vectors import LANES, UNROLLED
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.nn import linear
from transfuse.reports.compare import _timings

SIZES = {"vocab_size": 211, "d_model": 44, "n_layers": 3, "n_heads": 8, "d_hidden": 68, "max_positions": 300}
PLAIN = {"gated": False, "qkv_bias": True, "out_bias": True, "hidden_bias": True, "norm": "layer"}
CONFIGS = {
    "llama": DecoderConfig(**SIZES, n_kv_heads=2, d_head=48),
    "multi-query": DecoderConfig(**SIZES, n_kv_heads=1, d_head=16, qkv_bias=True),
    "gpt-2": DecoderConfig(**SIZES, **PLAIN, d_head=32, activation="gelu_tanh", positions="learned"),
    "mixed": DecoderConfig(**SIZES, n_kv_heads=(2, 4, 8), d_head=64, activation="gelu", hidden_bias=True),
    "relu": DecoderConfig(**SIZES, d_head=16, activation="relu", gated=False, rotary_factor=2.0, tie_output=False),
}
LENGTHS = [1, 5, 40, 127, 7, 15, 16, 17, 3, 2, 128]


def drawn(name: str, dtype: torch.dtype = torch.float32) -> DecoderModel:
    return reference.draw(DecoderModel(CONFIGS[name]), seed=3, std=0.3).to(dtype).eval()


@torch.inference_mode()
def largest_difference(
    model: DecoderModel,
    reference_model: DecoderModel,
    lengths: list[int],
    n_steps: int = 9,
    break_it: Callable[[Any], None] | None = None,
    by_modules: bool = False,
) -> float:
    """Between both sides' logits, as a share of the largest; on the way most rows leave."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(1, 200, (n,), generator=generator).tolist() for n in lengths]
    worst = 0.0
    with nullcontext(model) if by_modules else CompiledDecoder(model) as decoder:
        ours, ids = decoder.begin(prompts)
        theirs, _ = reference_model.begin(prompts)
        if break_it is not None:
            break_it(ours)
        for number in range(n_steps):
            found = decoder.output(decoder.hidden_step(ids[:, None], ours))[:, 0].float()
            expected = reference_model.output(reference_model.hidden_step(ids[:, None], theirs))[:, 0].float()
            assert found.isfinite().all()
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
            ids = expected.argmax(-1)
            if number == 3 and len(ids) > 3:
                staying = torch.tensor([0, len(ids) - 1, 2])
                ours.select(staying)
                theirs.select(staying)
                ids = ids[staying]
    return worst


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_the_modules_step(name: str, n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "n_threads_to_share", lambda: n_threads)
    monkeypatch.setattr(compiled, "BYTES_A_THREAD", 1)
    model = drawn(name)
    for lengths in ([1], [3, 3], LENGTHS):
        assert largest_difference(model, model, lengths) < 1e-5


def test_a_step_is_the_modules_step_past_every_block() -> None:
    model = drawn("llama")
    assert largest_difference(model, model, [1, 120], n_steps=150) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt-2"])
def test_in_bfloat16_only_keys_and_values_are_rounded(name: str) -> None:
    model = drawn(name, torch.bfloat16)
    exact = drawn(name, torch.bfloat16).float()
    found, modules = (largest_difference(model, exact, LENGTHS, by_modules=way) for way in (False, True))
    assert 1e-5 < found < modules


def every(kind: int, field: str, value: Any) -> Callable[[Any], None]:
    def break_it(state: Any) -> None:
        program = state.sheet.program
        program[field] = np.where(program["kind"] == kind, value, program[field])

    return break_it


MUTANTS = {
    "no rotation": ("llama", every(kernel.ATTEND, "cosines", -1)),
    "mean subtracted": ("llama", every(kernel.NORM, "centred", 1)),
    "mean not subtracted": ("gpt-2", every(kernel.NORM, "centred", 0)),
    "another epsilon": ("gpt-2", every(kernel.NORM, "epsilon", 1e-2)),
    "no bias of norms": ("gpt-2", every(kernel.NORM, "bias", -1)),
    "no bias of products": ("gpt-2", every(kernel.PRODUCT, "bias", -1)),
    "no residual": ("llama", every(kernel.PRODUCT, "epilogue", kernel.STORE)),
    "gelu without tanh": ("gpt-2", lambda state: _activate(state, kernel.GELU)),
    "silu for gelu": ("mixed", lambda state: _activate(state, kernel.SILU)),
}


def _activate(state: Any, activation: int) -> None:
    program = state.sheet.program
    program["activation"] = np.where(program["activation"] == kernel.IDENTITY, kernel.IDENTITY, activation)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_parity_notices(mutant: str) -> None:
    name, break_it = MUTANTS[mutant]
    model = drawn(name)
    assert largest_difference(model, model, [9, 21], n_steps=2, break_it=break_it) > 2e-5


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compile however small a model is; how many threads each state's steps had."""
    seen: list[int] = []
    original = CompiledDecoder._n_threads

    def counted(self: CompiledDecoder) -> int:
        seen.append(original(self))
        return seen[-1]

    monkeypatch.setattr(ready, "FEWEST_WEIGHTS", 0)
    monkeypatch.setattr(compiled, "BYTES_A_THREAD", 1)
    monkeypatch.setattr(CompiledDecoder, "_n_threads", counted)
    return seen


@torch.no_grad()
def plain_greedy(model: DecoderModel, prompt: list[int], limit: int) -> list[int]:
    ids = list(prompt)
    for _ in range(limit):
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in model.config.end_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("n_cores", [1, 2])
def test_generation_is_the_plain_search(n_cores: int, always: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "n_cores_of", lambda device: n_cores)
    monkeypatch.setattr(generate, "FEWEST", 2)
    model, config = drawn("llama"), SearchConfig(beams=1, max_tokens=12)
    prompts = [list(range(1, 1 + n)) for n in (3, 1, 8, 20, 2)]
    n_threads = torch.get_num_threads()
    found = [one[0].ids for one in generate.generate(model, prompts, config)]
    assert found == [plain_greedy(model, prompt, 12) for prompt in prompts]
    assert torch.get_num_threads() == n_threads
    assert set(always) == ({1} if n_cores == 2 else {n_threads})
    parts = list(generate.stream(model, prompts[0], config))
    assert parts[-1] == found[0] and torch.get_num_threads() == n_threads


def test_a_consumer_of_a_stream_has_all_threads(always: list[int]) -> None:
    n_threads = torch.get_num_threads()
    config = SearchConfig(beams=1, max_tokens=3)
    seen = [torch.get_num_threads() for _ in generate.stream(drawn("llama"), [4, 5], config)]
    assert set(seen) == {n_threads}


def test_threads_for_a_step_nest_and_end_with_an_error() -> None:
    n_threads, seen = torch.get_num_threads(), []

    class Sharing(cores.SharesOut):
        pass

    def fail() -> None:
        with cores.threads_for(Sharing()):
            seen.append((torch.get_num_threads(), cores.n_threads_to_share()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(1, n_threads)]
    assert (torch.get_num_threads(), cores.n_threads_to_share()) == (n_threads, n_threads)
    with cores.threads_for(object()):
        assert torch.get_num_threads() == n_threads


def test_a_comparison_times_the_steps_that_generation_takes(always: list[int]) -> None:
    several = [SimpleNamespace(model_=drawn(name)) for name in ("llama", "multi-query")]
    first, second = _timings(several, contexts=(7, 140), batches=(1, 3))
    assert always
    for timing in first + second:
        assert timing.milliseconds > 0 and timing.cache_bytes == timing.computed_cache_bytes
    assert first[0].cache_bytes == 6 * second[0].cache_bytes  # 2 heads of 48 against 1 of 16


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "n_threads_to_share", lambda: 3)
    monkeypatch.setattr(compiled, "BYTES_A_THREAD", 1)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("when", ["before the step", "while threads are taken"])
def test_an_interrupt_leaves_no_thread_waiting(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = drawn("llama"), kernel.run

    def interrupted(*arguments: Any) -> None:
        if arguments[-1] == 0:
            raise KeyboardInterrupt
        run(*arguments)

    with torch.inference_mode(), CompiledDecoder(model) as decoder:
        state, ids = decoder.begin([[5, 6]])
        if when == "before the step":
            monkeypatch.setattr(kernel, "run", interrupted)
        else:
            submit, taken = ThreadPoolExecutor.submit, []

            def refused(pool: ThreadPoolExecutor, *arguments: Any) -> Any:
                taken.append(arguments)
                if len(taken) == 2:
                    raise RuntimeError("can't start new thread")
                return submit(pool, *arguments)

            monkeypatch.setattr(ThreadPoolExecutor, "submit", refused)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            decoder.hidden_step(ids[:, None], state)
    # leaving the writer waits for its threads: that this line is reached is the test


@pytest.mark.usefixtures("three_threads")
def test_more_threads_may_be_had_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model = drawn("llama")
    with torch.inference_mode(), CompiledDecoder(model) as decoder:
        state, ids = decoder.begin([[5, 6]])
        decoder.hidden_step(ids[:, None], state)
        monkeypatch.setattr(compiled, "n_threads_to_share", lambda: 5)
        assert decoder.hidden_step(ids[:, None], state).isfinite().all()


@pytest.mark.usefixtures("three_threads")
def test_several_threads_may_write_with_one_model(always: list[int]) -> None:
    model, config = drawn("llama"), SearchConfig(beams=1, max_tokens=10)
    expected = plain_greedy(model, [3, 4, 5], 10)
    with ready.ready(model, 1) as writer, ThreadPoolExecutor(3) as users:

        def use(_: int) -> list[int]:
            with torch.inference_mode():
                *_, last = write(writer, [[3, 4, 5]], Greedy(), config)
            return last[0][1].hypothesis(model.config.end_ids, 1.0).ids

        assert list(users.map(use, range(6))) == [expected] * 6


def test_a_core_to_itself_is_one_thread() -> None:
    class Sharing(cores.SharesOut):
        pass

    def work(_: int) -> tuple[int, int]:
        with cores.threads_for(Sharing()):
            return torch.get_num_threads(), cores.n_threads_to_share()

    assert cores.each_on_a_core(work, [0, 1], 2) == [(1, 1), (1, 1)]


def test_autocast_and_other_defaults(always: list[int]) -> None:
    model, config = drawn("llama"), SearchConfig(beams=1, max_tokens=6)
    expected = [one[0].ids for one in generate.generate(model, [[5, 6, 7]], config)]
    with torch.autocast("cpu", torch.bfloat16), ready.ready(model, 1) as writer:
        assert writer is model
    torch.set_default_dtype(torch.float64)
    try:
        found = [one[0].ids for one in generate.generate(model, [[5, 6, 7]], config)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
    mixed = drawn("llama")
    mixed.output = mixed.output.bfloat16()
    with ready.ready(mixed, 1) as writer:
        assert writer is mixed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_memory_for_a_second_copy_nothing_is_compiled_or_packed(
    dtype: torch.dtype, always: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_packable", lambda weight: True)
    model = drawn("llama").to(dtype)
    n_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    for available, compiles in ((n_bytes - 1, False), (n_bytes, True), (None, True)):
        monkeypatch.setattr(ready, "available_bytes", lambda device, found=available: found)
        with ready.ready(model, 1) as writer:
            assert (writer is not model) == compiles
            assert not any(part._n_packed for part in model.modules() if isinstance(part, linear.Linear))
    monkeypatch.setattr(ready, "FEWEST_WEIGHTS", 10**9)
    with ready.ready(model, 1) as writer:
        assert writer is model and all(part._n_packed for part in model.modules() if isinstance(part, linear.Linear))


NAN = float("nan")


@pytest.mark.parametrize("part", ["attention.query", "attention.value", "feed_forward.up", "feed_forward.down"])
@pytest.mark.parametrize("name", ["llama", "gpt-2", "mixed", "relu"])
def test_damaged_weights_are_said_to_be(name: str, part: str, always: list[int]) -> None:
    model = drawn(name)
    with torch.no_grad():
        model.get_parameter(f"decoder.blocks.2.{part}.weight")[3, 5] = NAN
    with pytest.raises(GenerationError, match="its weights are damaged"):
        generate.generate(model, [[5, 6, 7]], SearchConfig(beams=1, max_tokens=2))


def test_scores_too_large_for_an_exponential() -> None:
    model = drawn("llama")
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.attention.query.weight *= 40  # type: ignore[union-attr]
    ids = torch.randint(1, 200, (1, 30), generator=torch.Generator().manual_seed(0))
    first: Any = model.decoder.blocks[0]
    q, k, _ = first.attention.project(first.attention_norm(model.embedding(ids)))
    assert (q[:, :4] @ k[:, :1].transpose(2, 3)).max() / 48**0.5 > 100  # exp(89) is no float32
    assert largest_difference(model, model, [30, 21], n_steps=3) < 1e-4  # a near tie moves by its rounding


def test_what_lies_behind_a_row_s_keys_does_not_matter() -> None:
    found = []
    for filling in (0.0, 1e4):
        with torch.inference_mode(), CompiledDecoder(drawn("llama")) as decoder:
            state, ids = decoder.begin([[5, 6, 7], list(range(1, 41))])
            for cache, layer in zip(state.held.caches, decoder.weights.layers, strict=True):
                kv = cache.own.reserve(64, torch.empty(1, layer.n_kv_heads, 1, 48))
                for row, length in enumerate(state.held.rows.lengths):
                    kv[:, row, :, length:] = filling
            found.append(decoder.hidden_step(ids[:, None], state))
    assert torch.equal(*found)


@pytest.mark.parametrize(("name", "n_rows"), [("llama", 150), ("multi-query", 2)])
def test_threads_stay_within_their_memory(name: str, n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, checked = 7.5, []

    def exact(sheet: Sheet, n_keys: int, n_threads: int) -> torch.Tensor:
        sheet.private = torch.zeros(n_threads, sheet._room(n_keys) + 4096)
        sheet.private[:, -4096:] = guard
        checked.append(sheet.private)
        return sheet.private

    monkeypatch.setattr(Sheet, "make_room", exact)
    model = drawn(name)
    assert largest_difference(model, model, [3] * n_rows, n_steps=2) < 1e-5
    assert checked and all((private[:, -4096:] == guard).all() for private in checked)


@pytest.mark.usefixtures("three_threads")
def test_a_writer_leaves_no_threads(always: list[int]) -> None:
    before = threading.active_count()
    generate.generate(drawn("llama"), [[5, 6, 7]], SearchConfig(beams=1, max_tokens=3))
    assert max(always) == 3 and threading.active_count() == before


def test_vectors_of_a_step_stay_what_they_are() -> None:
    with torch.inference_mode(), CompiledDecoder(drawn("llama")) as decoder:
        state, ids = decoder.begin([[5, 6]])
        first = decoder.hidden_step(ids[:, None], state)
        kept = first.clone()
        assert not torch.equal(decoder.hidden_step(ids[:, None], state), kept)
        assert torch.equal(first, kept)


def test_small_models_have_one_thread() -> None:
    with CompiledDecoder(drawn("llama")) as decoder:
        assert decoder._n_threads() == 1


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (CONFIGS["llama"], torch.float64),
        (CONFIGS["llama"], torch.float16),
        (CONFIGS["llama"].replace(d_head=LANES + 2), torch.float32),
        (CONFIGS["llama"].replace(d_model=2 * UNROLLED + 2), torch.float32),
        (CONFIGS["llama"].replace(d_hidden=2 * UNROLLED + 2), torch.float32),
    ],
)
def test_what_does_not_fit_is_written_by_its_modules(
    config: DecoderConfig, dtype: torch.dtype, always: list[int]
) -> None:
    model = reference.draw(DecoderModel(config), seed=3, std=0.3).to(dtype).eval()
    with ready.ready(model, 1) as writer:
        assert writer is model


def test_a_few_weights_are_not_worth_compiling() -> None:
    model = drawn("llama")
    with ready.ready(model, 1) as writer:
        assert writer is model
