"""Compiled steps of an encoder–decoder: against its own, beam by beam, and whole searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import reference
from transfuse.generation import compiled, generate, ready
from transfuse.generation.compiled import CompiledTranslator
from transfuse.generation.config import SearchConfig
from transfuse.kernels import step as kernel
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel

SIZES = {
    **{"vocab_size": 157, "encoder_layers": 1, "decoder_layers": 2, "decoder_heads": 6, "encoder_heads": 2},
    **{"encoder_hidden": 20, "decoder_hidden": 68, "dropout": 0.0, "max_positions": 300},
}
CONFIGS = {
    "pre-norm": Seq2SeqConfig(**SIZES, d_model=96),
    "post-norm": Seq2SeqConfig(**SIZES, d_model=96, norm_first=False, activation="silu"),
    "rotary": Seq2SeqConfig(
        **SIZES, d_model=192, positions="rotary", decoder_kv_heads=(2, 1), cross_kv_heads=(3, 6), gated=True, bias=False
    ),
    "rms": Seq2SeqConfig(**SIZES, d_model=96, norm="rms", positions="learned", decoder_kv_heads=3, output_bias=True),
}
LENGTHS = [5, 1, 17, 16, 33, 2, 48]


def drawn(name: str, dtype: torch.dtype = torch.float32) -> Seq2SeqModel:
    std = 0.25 * (96 / CONFIGS[name].d_model) ** 0.5  # sums as large whatever the width
    return reference.draw(Seq2SeqModel(CONFIGS[name]), seed=3, std=std).to(dtype).eval()


def sources(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(4, 150, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def largest_difference(
    model: Seq2SeqModel,
    exact: Seq2SeqModel,
    width: int,
    n_steps: int = 7,
    break_it: Callable[[Any], None] | None = None,
) -> float:
    """Between both sides' logits, as a share of the largest; beams are exchanged and sources leave on the way."""
    worst, generator = 0.0, torch.Generator().manual_seed(2)
    with CompiledTranslator(model) as translator:
        ours, first = translator.begin(sources(LENGTHS))
        theirs, _ = exact.begin(sources(LENGTHS))
        ids = first[:, None]
        for number in range(n_steps):
            if break_it is not None:
                break_it(ours)
            found = translator.output(translator.hidden_step(ids, ours)).float()
            expected = exact.step(ids, theirs).float()
            assert found.isfinite().all()
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
            if number == 1 and width > 1:
                ours.widen(width)
                theirs.widen(width)
            elif number > 1 and width > 1:
                parents = torch.randint(width, (len(found), width), generator=generator)
                ours.reorder(parents)
                theirs.reorder(parents)
            if number == 4:
                staying = torch.tensor([0, len(found) - 1, 2, 3])
                for state in (ours, theirs):
                    state.select(staying)
                found = found[staying]
            ids = torch.randint(4, 150, (len(found), width if number else 1), generator=generator)
    return worst


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_the_model_s_step(name: str, width: int, n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "n_threads_to_share", lambda: n_threads)
    monkeypatch.setattr(compiled, "BYTES_A_THREAD", 1)
    model = drawn(name)
    assert largest_difference(model, model, width) < 1e-5


def test_steps_go_on_past_every_block() -> None:
    model = drawn("pre-norm")
    assert largest_difference(model, model, 3, n_steps=90) < 1e-5


def test_in_bfloat16_steps_are_no_further_from_exact_arithmetic_than_the_modules() -> None:
    model, exact = drawn("pre-norm", torch.bfloat16), drawn("pre-norm", torch.bfloat16).float()
    with torch.inference_mode():
        ids = torch.randint(4, 150, (2, 7, 30), generator=torch.Generator().manual_seed(1))
        keep = torch.ones(7, 30, dtype=torch.bool)
        logits = exact(ids[0], keep, ids[1])
        by_modules = float((model(ids[0], keep, ids[1]).float() - logits).abs().max() / logits.abs().max())
    assert 1e-5 < largest_difference(model, exact, 4) < 1.5 * by_modules


def every(kind: int, field: str, value: Any) -> Callable[[Any], None]:
    def break_it(state: Any) -> None:
        program = state.sheet.program
        program[field] = np.where(program["kind"] == kind, value, program[field])

    return break_it


def forget_padding(state: Any) -> None:
    state.lengths = np.full_like(state.lengths, max(LENGTHS))


def see_every_beam(state: Any) -> None:
    state.seen_BWS = torch.ones_like(state.seen_BWS)


MUTANTS = {
    "padding seen": ("pre-norm", forget_padding),
    "every beam seen": ("pre-norm", see_every_beam),
    "no rotation": ("rotary", every(kernel.ATTEND, "cosines", -1)),
    "no bias": ("pre-norm", every(kernel.PRODUCT, "bias", -1)),
    "no residual": ("post-norm", every(kernel.PRODUCT, "epilogue", kernel.STORE)),
    "norms' biases forgotten": ("post-norm", every(kernel.NORM, "bias", -1)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_parity_notices(mutant: str) -> None:
    name, break_it = MUTANTS[mutant]
    model = drawn(name)
    assert largest_difference(model, model, 3, n_steps=4, break_it=break_it) > 2e-5


@pytest.mark.parametrize("n_cores", [1, 2])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["pre-norm", "post-norm", "rotary"])
def test_searches_find_the_same(name: str, beams: int, n_cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "n_cores_of", lambda device: n_cores)
    monkeypatch.setattr(generate, "FEWEST", 2)
    model, config = drawn(name), SearchConfig(beams=beams, n_best=beams, max_tokens=14, sample=False)
    expected = generate.generate(model, sources(LENGTHS), config)
    monkeypatch.setattr(ready, "FEWEST_WEIGHTS", 0)
    with ready.ready(model, 1) as writer:
        assert isinstance(writer, CompiledTranslator)
    found = generate.generate(model, sources(LENGTHS), config)
    for one, other in zip(found, expected, strict=True):
        assert [hypothesis.ids for hypothesis in one] == [hypothesis.ids for hypothesis in other]
        assert [hypothesis.log_probability for hypothesis in one] == pytest.approx(
            [hypothesis.log_probability for hypothesis in other], rel=1e-4
        )


def test_steps_of_many_tokens_are_the_model_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "FEWEST_WEIGHTS", 0)
    model = drawn("pre-norm")
    with ready.ready(model, ready.MOST_BEAMS + 1) as writer:
        assert writer is model


def test_bytes_held_are_the_closed_form() -> None:
    model = drawn("rotary")
    with torch.inference_mode(), CompiledTranslator(model) as translator:
        state, first = translator.begin(sources([9, 9]))
        for _ in range(3):
            translator.hidden_step(first[:, None], state)
        assert state.n_bytes == 2 * model.cache_bytes([0] * 9, 3, 1)
        state.widen(4)
        assert state.n_bytes == 2 * model.cache_bytes([0] * 9, 3, 4)
