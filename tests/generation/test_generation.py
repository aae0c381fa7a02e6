"""Generation against plain searches over whole forward passes: no cache, no batch, no padding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import reference
from transfuse.errors import ConfigError, DataError
from transfuse.generation import candidates
from transfuse.generation.config import SearchConfig
from transfuse.generation.generate import generate
from transfuse.generation.sampling import Sampler, filtered
from transfuse.generation.sequences import Hypothesis
from transfuse.models.seq2seq import DecoderState, Seq2SeqConfig, Seq2SeqModel
from transfuse.nn import linear

LIMIT = 20
ROUNDING = 1e-12

SIZES = {
    "d_model": 12,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_heads": 3,
    "decoder_heads": 6,
    "decoder_kv_heads": 3,
    "cross_kv_heads": 2,
    "encoder_hidden": 17,
    "decoder_hidden": 19,
    "vocab_size": 31,
    "target_vocab_size": 29,
    "share_embeddings": False,
    "tie_output": False,
    "output_bias": True,
    "dropout": 0.1,
}


def make(seed: int = 2, std: float = 0.4, end: float = 3.0, **changes: Any) -> Seq2SeqModel:
    """A random model whose sentences differ in length: its end token is favoured by `end`."""
    model = reference.draw(Seq2SeqModel(Seq2SeqConfig(**SIZES | changes)), seed, std)
    with torch.no_grad():
        model.output.bias[model.config.end_id] += end
    return model.double().eval()


# draws found by trying, see `test_the_models_write_sentences_of_many_lengths`
MODELS: dict[str, dict[str, Any]] = {
    "closed-sinusoidal": {},
    "post-norm": {"norm_first": False, "positions": "sinusoidal", "std": 0.3, "seed": 7, "end": 4.0},
    "rotary": {"positions": "rotary", "norm": "rms", "std": 0.6, "seed": 7, "end": 2.0},
    "learned": {"positions": "learned", "max_positions": 40, "seed": 6, "end": 4.0},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Seq2SeqModel:
    return make(**MODELS[request.param])


def sources(n_rows: int = 13) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 11, (n_rows,), generator=generator).tolist()
    return [[*torch.randint(3, 31, (n,), generator=generator).tolist(), 2] for n in lengths]


def next_log_p(model: Seq2SeqModel, source: list[int], temperature: float = 1.0) -> reference.NextLogP:
    ids = torch.tensor([source])

    @torch.no_grad()
    def whole_forward(written: list[int]) -> list[float]:
        logits = model(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([written]))[0, -1]
        return (logits / temperature).log_softmax(-1).tolist()

    return whole_forward


def forbidden(model: Seq2SeqModel) -> set[int]:
    return {model.config.pad_id, model.config.start_id}


def tokens(found: Hypothesis, model: Seq2SeqModel) -> list[int]:
    return [*found.ids, *[model.config.end_id] * found.finished]


def log_probability(model: Seq2SeqModel, source: list[int], written: list[int]) -> float:
    look, ids = next_log_p(model, source), [model.config.start_id]
    total = 0.0
    for token in written:
        total += look(ids)[token]
        ids.append(token)
    return total


def assert_same_found(actual: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[one.ids for one in found] for found in actual] == [[one.ids for one in found] for found in expected]
    for found, other in zip(actual, expected, strict=True):
        for one, two in zip(found, other, strict=True):
            assert one.finished == two.finished
            assert one.score == pytest.approx(two.score, rel=ROUNDING)
            assert one.log_probability == pytest.approx(two.log_probability, rel=ROUNDING)


# Against the plain searches


def test_greedy_is_the_plain_search(model: Seq2SeqModel) -> None:
    rows = sources()
    found = generate(model, rows, SearchConfig(beams=1, max_tokens=LIMIT))
    for (one,), source in zip(found, rows, strict=True):
        expected = reference.greedy(next_log_p(model, source), 0, 2, forbidden(model), LIMIT)
        assert tokens(one, model) == expected
        assert one.finished == (expected[-1] == 2)


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beam_search_is_the_plain_search(beams: int, length_penalty: float) -> None:
    model, rows = make(), sources(7)
    config = SearchConfig(beams=beams, n_best=beams, length_penalty=length_penalty, max_tokens=11)
    for found, source in zip(generate(model, rows, config), rows, strict=True):
        look = next_log_p(model, source)
        expected = reference.beam_search(look, 0, 2, forbidden(model), 11, beams, length_penalty)
        assert [tokens(one, model) for one in found] == [ids for _, ids in expected]
        assert [one.score for one in found] == pytest.approx([score for score, _ in expected], rel=ROUNDING)


def test_beam_search_is_the_plain_search_in_every_architecture(model: Seq2SeqModel) -> None:
    assert_like_the_plain_search(model)


@pytest.mark.parametrize("seed", range(1, 12))
def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_sequence_there_is(seed: int) -> None:
    model, source = make(seed, end=0.0, target_vocab_size=6), [7, 9, 2]
    (found,) = generate(model, [source], SearchConfig(beams=3, max_tokens=2))
    everything = reference.every_sequence(next_log_p(model, source), 2, 0, forbidden(model), 2)
    assert len(everything) == 1 + 3 * 4
    score, best = max((total / len(ids), ids) for total, ids in everything)
    assert tokens(found[0], model) == best
    assert found[0].score == pytest.approx(score, rel=ROUNDING)


def test_the_models_write_sentences_of_many_lengths(model: Seq2SeqModel) -> None:
    for beams in (1, 4):
        found = generate(model, sources(), SearchConfig(beams=beams, max_tokens=LIMIT))
        assert len({len(one.ids) for (one,) in found}) >= 6
        assert sum(one.finished for (one,) in found) >= 10


# Mutants: each bug is planted in the code, and the plain search must notice it.


def plant_beams_not_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderState, "reorder", lambda self, parents: None)


def plant_position_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderState, "n_positions", 0)


def plant_source_mask_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Seq2SeqModel.start
    monkeypatch.setattr(Seq2SeqModel, "start", lambda self, ids, keep: start(self, ids, torch.ones_like(keep)))


def plant_scores_normalised_after_forbidding(monkeypatch: pytest.MonkeyPatch) -> None:
    most_probable = candidates._most_probable

    def forbidding(logits: Tensor, config: Seq2SeqConfig, k: int) -> tuple[Tensor, Tensor]:
        logits[:, [config.pad_id, config.start_id]] = -math.inf
        return most_probable(logits, config, k)

    monkeypatch.setattr(candidates, "_most_probable", forbidding)


def plant_the_wrong_sources_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    select = DecoderState.select
    monkeypatch.setattr(DecoderState, "select", lambda self, rows: select(self, torch.arange(len(rows))))


def assert_like_the_plain_search(model: Seq2SeqModel) -> None:
    rows, config = sources(7), SearchConfig(beams=4, n_best=4, max_tokens=11)
    for found, source in zip(generate(model, rows, config), rows, strict=True):
        expected = reference.beam_search(next_log_p(model, source), 0, 2, forbidden(model), 11, 4, 1.0)
        assert [tokens(one, model) for one in found] == [ids for _, ids in expected]
        assert [one.score for one in found] == pytest.approx([score for score, _ in expected], rel=ROUNDING)


@pytest.mark.parametrize(
    "plant",
    [
        plant_beams_not_reordered,
        plant_position_stuck,
        plant_source_mask_forgotten,
        plant_scores_normalised_after_forbidding,
        plant_the_wrong_sources_dropped,
    ],
)
def test_the_plain_search_notices_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"assert \[|approx"):
        assert_like_the_plain_search(make())


# Equalities


@pytest.mark.parametrize("beams", [1, 4])
def test_alone_is_batched_is_batched_otherwise(model: Seq2SeqModel, beams: int) -> None:
    rows, config = sources(), SearchConfig(beams=beams, n_best=beams, max_tokens=LIMIT)
    together = generate(model, rows, config)
    assert_same_found([found for row in rows for found in generate(model, [row], config)], together)
    assert_same_found(generate(model, rows, config.replace(batch_tokens=30)), together)
    assert_same_found(generate(model, rows[::-1], config)[::-1], together)


@pytest.mark.parametrize("beams", [1, 4])
def test_appended_padding_changes_nothing(model: Seq2SeqModel, beams: int) -> None:
    rows, config = sources(), SearchConfig(beams=beams, max_tokens=LIMIT)
    short = [row for row in rows if len(row) < 5]
    # the longest row of a batch makes the padding of the others
    with_long_row = generate(model, [*short, [3] * 37], config)[:-1]
    assert_same_found(with_long_row, generate(model, short, config))
    assert len(short) >= 3


def test_one_beam_is_greedy(model: Seq2SeqModel) -> None:
    from transfuse.generation.beam import beam_search

    rows = [row for row in sources() if len(row) == 7] or sources()[:1]
    config = SearchConfig(beams=1, max_tokens=LIMIT)
    with torch.inference_mode():
        beamed = beam_search(model, rows, config)
    assert_same_found(beamed, generate(model, rows, config))


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_scores_are_log_probabilities_over_length(beams: int, length_penalty: float) -> None:
    model, rows = make(), sources(7)
    config = SearchConfig(beams=beams, n_best=beams, length_penalty=length_penalty, max_tokens=LIMIT)
    for found, source in zip(generate(model, rows, config), rows, strict=True):
        for one in found:
            written = tokens(one, model)
            expected = log_probability(model, source, written)
            assert one.log_probability == pytest.approx(expected, rel=ROUNDING)
            assert one.score == pytest.approx(expected / len(written) ** length_penalty, rel=ROUNDING)


def test_n_best_are_sorted_and_different() -> None:
    model = make()
    for found in generate(model, sources(), SearchConfig(beams=5, n_best=5, max_tokens=LIMIT)):
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(tokens(one, model)) for one in found}) == 5


def test_n_best_begins_with_the_best() -> None:
    model, rows = make(), sources()
    five = generate(model, rows, SearchConfig(beams=5, n_best=5, max_tokens=LIMIT))
    assert_same_found(
        [found[:2] for found in five], generate(model, rows, SearchConfig(beams=5, n_best=2, max_tokens=LIMIT))
    )


def test_a_larger_length_penalty_does_not_shorten_sentences() -> None:
    model, rows = make(), sources()
    mean = {
        penalty: sum(
            len(one.ids)
            for (one,) in generate(model, rows, SearchConfig(beams=4, length_penalty=penalty, max_tokens=LIMIT))
        )
        for penalty in (0.0, 1.0, 3.0)
    }
    assert mean[0.0] < mean[1.0] < mean[3.0]


def test_generation_puts_the_model_in_evaluation_mode() -> None:
    model, rows = make(), sources(3)
    expected = generate(model, rows)
    model.train()
    assert_same_found(generate(model, rows), expected)
    assert not model.training


def test_no_sources_no_sentences() -> None:
    assert generate(make(), []) == []


def test_a_source_without_tokens_is_refused() -> None:
    for rows in ([[]], [[3, 2], []]):
        with pytest.raises(DataError, match="a source has no tokens"):
            generate(make(), rows)


@pytest.mark.parametrize("beams", [1, 4])
def test_float32_on_packed_weights_is_the_plain_search(beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "prefers_onednn", lambda: torch.backends.mkldnn.is_available())
    model, rows = make(), sources(7)
    expected = generate(model, rows, SearchConfig(beams=beams, max_tokens=LIMIT))
    model.float()
    found = generate(model, rows, SearchConfig(beams=beams, max_tokens=LIMIT))
    assert [[one.ids for one in row] for row in found] == [[one.ids for one in row] for row in expected]
    for (one,), (other,) in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-5)


def test_padding_and_start_are_never_written() -> None:
    model = make()
    with torch.no_grad():
        model.output.bias[[model.config.pad_id, model.config.start_id]] += 100
    for config in (
        SearchConfig(beams=1, max_tokens=5),
        SearchConfig(beams=4, n_best=4, max_tokens=5),
        SearchConfig(beams=1, sample=True, n_best=3, max_tokens=5),
    ):
        for found in generate(model, sources(), config):
            assert not forbidden(model) & {token for one in found for token in one.ids}


# Work done


def rows_passed(model: Seq2SeqModel, rows: list[list[int]], config: SearchConfig) -> list[int]:
    """Sequences given to each step."""
    step, passed = model.hidden_step, []

    def counting(ids: Tensor, state: DecoderState) -> Tensor:
        passed.append(ids.numel())
        return step(ids, state)

    model.hidden_step = counting  # type: ignore[method-assign]
    generate(model, rows, config)
    del model.hidden_step
    return passed


def test_finished_sentences_leave_the_batch() -> None:
    model, rows = make(), sources()
    config = SearchConfig(beams=1, max_tokens=LIMIT)
    lengths = [len(tokens(one, model)) for (one,) in generate(model, rows, config)]
    expected = [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert rows_passed(model, rows, config) == expected
    assert len(set(expected)) >= 5


def test_finished_sources_leave_the_beams() -> None:
    model, rows = make(), sources()
    config = SearchConfig(beams=4, max_tokens=LIMIT)
    alone = [rows_passed(model, [row], config) for row in rows]
    together = rows_passed(model, rows, config)
    assert together == [sum(passed[step] for passed in alone if step < len(passed)) for step in range(len(together))]
    assert together[:2] == [len(rows), 4 * sum(len(passed) > 1 for passed in alone)]
    assert len({len(passed) for passed in alone}) >= 3


@pytest.mark.parametrize("config", [SearchConfig(beams=1), SearchConfig(beams=4), SearchConfig(beams=1, sample=True)])
def test_limits_are_kept(config: SearchConfig) -> None:
    model, rows = make(end=-100.0), [[5, 2], [5, 6, 7, 8, 9, 10, 11, 2]]
    assert [len(one.ids) for (one,) in generate(model, rows, config)] == [2 * 2 + 32, 2 * 8 + 32]
    for (one,) in generate(model, rows, config.replace(max_tokens=3)):
        assert len(one.ids) == 3
        assert not one.finished
    short = make(end=-100.0, max_positions=17)
    assert [len(one.ids) for (one,) in generate(short, rows, config)] == [17, 17]


def test_learned_positions_suffice_to_the_last() -> None:
    model = make(end=-100.0, positions="learned", max_positions=17)
    for beams in (1, 3):
        ((one,),) = generate(model, [[5, 2]], SearchConfig(beams=beams, max_tokens=100))
        assert len(one.ids) == 17


# Sampling


def stated(logits: list[float], config: SearchConfig) -> list[float]:
    """The distribution that `SearchConfig` describes, token by token."""
    exponentials = [math.exp(logit / config.temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: -exponentials[i])[: config.top_k]
    total, held, kept = sum(exponentials[i] for i in order), 0.0, []
    for i in order:
        if kept and held >= config.top_p:
            break
        kept.append(i)
        held += exponentials[i] / total
    mass = sum(exponentials[i] for i in kept)
    return [exponentials[i] / mass if i in kept else 0.0 for i in range(len(logits))]


LOGITS = [0.3, -1.2, 1.9, 0.0, 1.1, -0.4, 0.8]
FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 3},
    {"top_p": 0.7},
    {"top_p": 0.05},
    {"temperature": 2.0, "top_k": 5, "top_p": 0.8},
]


def sampling(**changes: Any) -> SearchConfig:
    return SearchConfig(beams=1, sample=True, **changes)


@pytest.mark.parametrize("changes", FILTERS, ids=str)
def test_filtered_is_the_stated_distribution(changes: dict[str, Any]) -> None:
    config = sampling(**changes)
    log_p, ids = torch.tensor([LOGITS], dtype=torch.float64).log_softmax(-1).topk(config.top_k or len(LOGITS))
    probabilities = filtered(log_p, config)
    found = torch.zeros(len(LOGITS), dtype=torch.float64).index_add_(0, ids[0], probabilities[0])
    assert found.tolist() == pytest.approx(stated(LOGITS, config), abs=1e-12)


def draws(config: SearchConfig, n: int) -> Counter[int]:
    log_p, ids = torch.tensor(LOGITS).log_softmax(-1).topk(config.top_k or len(LOGITS))
    chosen = Sampler(config, list(range(n)))(log_p.expand(n, -1), torch.arange(n))
    return Counter(ids[chosen].tolist())


def p_value(counts: Counter[int], probabilities: list[float]) -> float:
    """Of Pearson's chi-squared test; 0 where something impossible was drawn."""
    possible = [i for i, p in enumerate(probabilities) if p > 0]
    if set(counts) - set(possible):
        return 0.0
    n = sum(counts.values())
    return float(chisquare([counts[i] for i in possible], [n * probabilities[i] for i in possible]).pvalue)


@pytest.mark.parametrize("changes", [f for f in FILTERS if f.get("top_p") != 0.05], ids=str)
def test_draws_follow_the_stated_distribution(changes: dict[str, Any]) -> None:
    config = sampling(**changes)
    assert p_value(draws(config, 10_000), stated(LOGITS, config)) > 0.01


@pytest.mark.parametrize("changes", [{"temperature": 1.1}, {"top_k": 6}, {"top_p": 0.97}], ids=str)
def test_the_draws_notice_another_distribution(changes: dict[str, Any]) -> None:
    assert p_value(draws(sampling(**changes), 10_000), stated(LOGITS, sampling())) < 1e-4


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}], ids=str)
def test_generated_tokens_follow_the_models_distribution(changes: dict[str, Any]) -> None:
    model, source, n = make(end=0.0, target_vocab_size=9), [7, 9, 2], 4000
    config = sampling(max_tokens=1, batch_tokens=10**6, **changes)
    counts = Counter(tokens(one, model)[0] for (one,) in generate(model, [source] * n, config))
    logits = next_log_p(model, source)([0])
    for i in forbidden(model):
        logits[i] = -math.inf
    assert p_value(counts, stated(logits, config)) > 0.01


def test_later_tokens_are_drawn_anew() -> None:
    model, n = make(end=-1e6, target_vocab_size=9), 300
    found = generate(model, [[7, 9, 2]] * n, sampling(max_tokens=6, batch_tokens=10**6, temperature=100.0))
    pairs = Counter((one.ids[i], one.ids[i + 1]) for (one,) in found for i in range(5))
    assert len(pairs) == 6 * 6  # nearly uniform over the words, so every pair occurs


def test_more_samples_begin_with_the_same_ones() -> None:
    model, rows = make(end=-100.0), sources(5)
    (one, three) = (generate(model, rows, sampling(n_best=n, max_tokens=8)) for n in (1, 3))
    for (only,), found in zip(one, three, strict=True):
        assert only.ids in [sample.ids for sample in found]


def test_samples_repeat_with_the_seed_and_only_then() -> None:
    model, rows = make(), sources()
    first, again, other = (generate(model, rows, sampling(seed=seed, max_tokens=LIMIT)) for seed in (1, 1, 2))
    assert first == again
    assert [found[0].ids for found in first] != [found[0].ids for found in other]


def test_samples_do_not_touch_the_global_generator() -> None:
    model = make()
    before = torch.get_rng_state()
    generate(model, sources(3), sampling(max_tokens=5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n_best", [1, 3])
def test_samples_do_not_depend_on_the_rest_of_the_batch(n_best: int) -> None:
    model, rows, config = make(), sources(), sampling(n_best=n_best, max_tokens=LIMIT)
    together = generate(model, rows, config)
    assert_same_found(generate(model, rows, config.replace(batch_tokens=1)), together)
    others = [row if i == 5 else [3, 2] for i, row in enumerate(rows)]
    assert_same_found(generate(model, others, config)[5:6], together[5:6])
    assert_same_found(generate(model, rows[:6], config)[5:6], together[5:6])


def test_equal_rows_and_repeats_have_samples_of_their_own() -> None:
    model = make(end=-100.0)
    found = generate(model, [[7, 9, 2]] * 5, sampling(n_best=4, max_tokens=12))
    assert len({tuple(one.ids) for row in found for one in row}) == 20
    for row in found:
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)


def test_sample_scores_are_the_models_and_not_the_filtered() -> None:
    model, rows = make(), sources(5)
    found = generate(model, rows, sampling(temperature=0.5, top_k=3, max_tokens=LIMIT))
    for (one,), source in zip(found, rows, strict=True):
        assert one.log_probability == pytest.approx(log_probability(model, source, tokens(one, model)), rel=ROUNDING)


def test_drawing_from_the_one_most_probable_token_is_greedy(model: Seq2SeqModel) -> None:
    rows = sources()
    expected = generate(model, rows, SearchConfig(beams=1, max_tokens=LIMIT))
    for changes in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-7}, {"temperature": 1e-40}):
        assert_same_found(generate(model, rows, sampling(max_tokens=LIMIT, **changes)), expected)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams=0 must be greater than 0"),
        ({"beams": 2.0}, r"beams=2\.0 must be int"),
        ({"n_best": 0}, "n_best=0 must be greater than 0"),
        ({"n_best": 5, "beams": 4}, "n_best=5 must be at most beams=4"),
        ({"sample": True, "beams": 4}, "sample=True .* not beams=4"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be greater than 0"),
        ({"top_k": 0}, "top_k=0 must be greater than 0"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be greater than 0"),
        ({"top_p": 1.5}, r"top_p=1\.5 must be at most 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"max_tokens": 0}, "max_tokens=0 must be greater than 0"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be greater than 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**settings)


def test_more_beams_than_the_vocabulary_allows_are_refused() -> None:
    with pytest.raises(ConfigError, match="beams=15 must be at most half the vocabulary of 29"):
        generate(make(), sources(1), SearchConfig(beams=15))
    assert len(generate(make(), sources(1), SearchConfig(beams=14, n_best=14, max_tokens=5))[0]) == 14
