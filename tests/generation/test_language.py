"""Language models that write: against the plain search, streamed, sampled, cut off, and refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

import reference
from transfuse.errors import ConfigError, DataError, GenerationError
from transfuse.generation import cores, generate, memory
from transfuse.generation.config import SearchConfig
from transfuse.generation.loops import LoopFinder
from transfuse.models.decoder import DecoderConfig, DecoderModel

V, LIMIT = 31, 20
GREEDY = SearchConfig(beams=1, max_tokens=LIMIT)
CONFIG = DecoderConfig(
    vocab_size=V, d_model=24, n_layers=2, n_heads=6, n_kv_heads=2, d_hidden=17, max_positions=64, end_ids=(0, 5)
)


@pytest.fixture
def model() -> DecoderModel:
    return reference.draw(DecoderModel(CONFIG), seed=9, std=0.4).double().eval()


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(6, V, (n,), generator=generator).tolist() for n in lengths]


PROMPTS = prompts([3, 1, 8, 5, 5, 2, 13, 4, 7, 6, 1, 9, 11])


@torch.no_grad()
def plain_greedy(model: DecoderModel, prompt: list[int], limit: int = LIMIT) -> list[int]:
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in model.config.end_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_greedy_is_the_plain_search(model: DecoderModel) -> None:
    expected = [plain_greedy(model, prompt) for prompt in PROMPTS]
    assert len({len(ids) for ids in expected}) >= 3  # some end by themselves, some at the limit
    assert [found[0].ids for found in generate.generate(model, PROMPTS, GREEDY)] == expected
    alone = [generate.generate(model, [prompt], GREEDY)[0][0].ids for prompt in PROMPTS]
    assert alone == expected


@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
@pytest.mark.parametrize("n_cores", [1, 2, 3])
def test_batches_and_cores_change_nothing(
    model: DecoderModel, batch_tokens: int, n_cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "n_cores_of", lambda device: n_cores)
    monkeypatch.setattr(generate, "FEWEST", 2)
    threads = torch.get_num_threads()
    found = generate.generate(model, PROMPTS, GREEDY.replace(batch_tokens=batch_tokens))
    assert [one[0].ids for one in found] == [plain_greedy(model, prompt) for prompt in PROMPTS]
    assert torch.get_num_threads() == threads


def test_an_error_on_one_core_is_the_error() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ZeroDivisionError(item)
        return 2 * item

    assert cores.each_on_a_core(work, [1, 2, 4, 5], 2) == [2, 4, 8, 10]
    with pytest.raises(ZeroDivisionError):
        cores.each_on_a_core(work, [1, 2, 3, 4], 2)


def test_scores_are_log_probabilities(model: DecoderModel) -> None:
    for prompt, (found,) in zip(PROMPTS, generate.generate(model, PROMPTS, GREEDY), strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + found.ids]))[0, len(prompt) - 1 :].log_softmax(-1)
        total = sum(float(row[token]) for row, token in zip(log_p, found.ids, strict=False))
        if found.finished:
            total += float(log_p[-1, list(CONFIG.end_ids)].max())
        assert found.log_probability == pytest.approx(total, rel=1e-9)


def test_a_continuation_stops_where_the_positions_do(model: DecoderModel) -> None:
    (prompt,) = prompts([60])
    # the last token written is never fed, so it needs no position
    (found,) = generate.generate(model, [prompt], GREEDY.replace(max_tokens=None))[0]
    assert found.finished or len(found.ids) == CONFIG.max_positions - 60 + 1
    (found,) = generate.generate(model, prompts([CONFIG.max_positions]), GREEDY)[0]
    assert len(found.ids) <= 1
    with pytest.raises(DataError, match="has 65 tokens; at least 1 is needed and the model has 64 positions"):
        generate.generate(model, prompts([65]), GREEDY)


def test_a_stream_is_the_generation_token_by_token(model: DecoderModel) -> None:
    for config in (GREEDY, GREEDY.replace(sample=True, seed=3, top_p=0.9)):
        for prompt in PROMPTS[:4]:
            parts = list(generate.stream(model, prompt, config))
            assert [len(part) for part in parts[:-1]] == list(range(1, len(parts)))
            assert parts[-1] == generate.generate(model, [prompt], config)[0][0].ids


def test_samples_are_a_function_of_the_seed_and_have_the_distribution(model: DecoderModel) -> None:
    prompt, n = PROMPTS[2], 4000
    config = SearchConfig(beams=1, sample=True, max_tokens=1, temperature=1.3, n_best=1, batch_tokens=10**6)
    drawn = generate.generate(model, [prompt] * n, config)
    assert [one[0].ids for one in generate.generate(model, [prompt] * n, config)] == [one[0].ids for one in drawn]
    other = generate.generate(model, [prompt] * 50, config.replace(seed=1))
    assert [one[0].ids for one in other] != [one[0].ids for one in drawn[:50]]
    with torch.no_grad():
        logits = model(torch.tensor([prompt]))[0, -1] / 1.3
    expected = n * logits.softmax(-1)
    counts = Counter(one[0].ids[0] if one[0].ids else -1 for one in drawn)
    common = [i for i in range(V) if expected[i] >= 5 and i not in CONFIG.end_ids]
    observed = [counts[i] for i in common]
    observed.append(n - sum(observed))
    wanted = [float(expected[i]) for i in common]
    wanted.append(n - sum(wanted))
    assert len(common) >= 5
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_a_generation_that_repeats_itself_is_cut(model: DecoderModel) -> None:
    with torch.no_grad():  # the same token for ever: no attention, no feed-forward, the embedding decides
        for weight in model.parameters():
            weight.zero_()
        model.decoder.norm.weight.fill_(1.0)
        model.embedding.token.weight.copy_(torch.randn(V, 24, generator=torch.Generator().manual_seed(1)))
    plain = generate.generate(model, [[7]], GREEDY)[0][0]
    assert plain.loop is None
    (found,) = generate.generate(model, [[7]], GREEDY.replace(loop_repeats=3))[0]
    finder, expected = LoopFinder(3), None
    for token in plain.ids:
        expected = expected or finder.push(token)
    assert expected is not None
    assert found.loop == expected
    assert found.ids == plain.ids[: expected.start]
    assert not found.finished
    with torch.no_grad():
        log_p = model(torch.tensor([[7, *found.ids]]))[0, :-1].log_softmax(-1)
    total = float(log_p.gather(1, torch.tensor(found.ids)[:, None]).sum())
    assert found.log_probability == pytest.approx(total, rel=1e-9)  # of what is left
    assert found.score == pytest.approx(total / len(found.ids))


@pytest.mark.parametrize("temperature", [1e-30, 1e-46, 5e-324])
def test_the_lowest_temperatures_are_greedy(model: DecoderModel, temperature: float) -> None:
    cold = GREEDY.replace(sample=True, temperature=temperature)
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        found = [row[0].ids for row in generate.generate(model, PROMPTS, cold)]
        assert found == [row[0].ids for row in generate.generate(model, PROMPTS, GREEDY)]


def test_a_cache_that_would_not_fit_is_refused_with_its_bytes(
    model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 2 * CONFIG.n_layers * 2 * 4 * 8 * (8 + LIMIT - 1)
    monkeypatch.setattr(generate, "available_bytes", lambda device: needed)
    generate.generate(model, [PROMPTS[2]], GREEDY)
    monkeypatch.setattr(generate, "available_bytes", lambda device: needed - 1)
    with pytest.raises(
        GenerationError, match=f"may need {needed:,} bytes of keys and values, and {needed - 1:,} bytes"
    ):
        generate.generate(model, [PROMPTS[2]], GREEDY)
    monkeypatch.setattr(generate, "available_bytes", lambda device: None)
    generate.generate(model, [PROMPTS[2]], GREEDY)


def test_available_memory_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 9 kB\nMemAvailable:   5 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", path)
    assert memory.available_bytes(torch.device("cpu")) == 5 * 1024
    path.unlink()
    assert memory.available_bytes(torch.device("cpu")) is None


def test_beams_need_a_model_that_has_them(model: DecoderModel) -> None:
    with pytest.raises(ConfigError, match="beams=4: this model writes one sequence a row"):
        generate.generate(model, PROMPTS, SearchConfig(beams=4))


def test_batches_side_by_side_share_the_memory(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "n_cores_of", lambda device: 2)
    monkeypatch.setattr(generate, "FEWEST", 1)
    positions = [4 + LIMIT - 1] * 6
    largest_batch = 2 * CONFIG.n_layers * 2 * 4 * 8 * sum(positions[:3])
    config = GREEDY.replace(batch_tokens=10**6)
    monkeypatch.setattr(generate, "available_bytes", lambda device: 2 * largest_batch)
    generate.generate(model, prompts([4] * 6), config)
    monkeypatch.setattr(generate, "available_bytes", lambda device: 2 * largest_batch - 1)
    with pytest.raises(GenerationError, match="lower batch_tokens"):
        generate.generate(model, prompts([4] * 6), config)
