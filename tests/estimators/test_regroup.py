"""Fewer heads for fitted estimators: conversion, the training that follows, comparison, and what is refused."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import transfuse
from transfuse import (
    CheckpointError,
    ConfigError,
    DataError,
    DecoderConfig,
    DistillationConfig,
    GenerationError,
    LanguageModel,
    SearchConfig,
    Seq2Seq,
    Seq2SeqConfig,
    TextEncoder,
    TrainingConfig,
    compare,
    expand_heads,
    regroup,
    uptrain,
)
from transfuse.estimators import regroup as estimators_regroup
from transfuse.metrics.text_scores import Score
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.nn.dropout import Dropout
from transfuse.reports.compare import _shared_start, _wins_from
from transfuse.reports.comparison import Compared, Comparison, Timing
from transfuse.training.checkpoint import set_weights
from transfuse.training.metrics_log import read_metrics

TRAINING = TrainingConfig(
    epochs=10, batch_tokens=256, learning_rate=1e-2, warmup_steps=5, validate_every=40, average=1, label_smoothing=0.0
)
SENTENCES = [
    " ".join(random.Random(i).choice(words) for words in (["a", "the", "one"], ["cat", "dog", "hen"], ["ran", "sat"]))
    for i in range(200)
]


@pytest.fixture(scope="module")
def reverser() -> Seq2Seq:
    model = Seq2SeqConfig(
        vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=2, encoder_heads=4, decoder_heads=4, dropout=0.0,
        encoder_hidden=48, decoder_hidden=48, max_positions=48,
    )  # fmt: skip
    return Seq2Seq(model=model, training=TRAINING, search=SearchConfig(beams=1)).fit(
        SENTENCES, [" ".join(text.split()[::-1]) for text in SENTENCES]
    )


@pytest.fixture(scope="module")
def talker() -> LanguageModel:
    model = DecoderConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=4, d_hidden=48, max_positions=64)
    return LanguageModel(model=model, training=TRAINING, context=32).fit([text + ".\n" for text in SENTENCES])


ALONE = DistillationConfig(divergence=0.0, cross_entropy=1.0)


def data(model: Seq2Seq | LanguageModel) -> tuple[list[str], list[str] | None]:
    if isinstance(model, LanguageModel):
        return [text + ".\n" for text in SENTENCES], None
    return SENTENCES, [" ".join(text.split()[::-1]) for text in SENTENCES]


@pytest.fixture(params=["reverser", "talker"])
def model(request: pytest.FixtureRequest) -> Seq2Seq | LanguageModel:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def weights(model: Seq2Seq | LanguageModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.model_.named_parameters()}


def test_training_brings_a_pooled_model_back_to_its_teacher(model: Seq2Seq | LanguageModel) -> None:
    before = weights(model)
    pooled = regroup(model, 1, method="mean", refit=False)
    trained = uptrain(pooled, model, *data(model), tokens=12_000, training=TRAINING)
    found = compare({"own": model, "pooled": pooled, "trained": trained}, *model.held_out(*data(model)), contexts=(8,))
    own, first, last = found.models
    assert own.divergence == 0 and own.agreement == own.same_outputs == 1
    assert last.divergence < first.divergence / 2
    assert last.agreement >= first.agreement
    # what was given is as it was, and only attention was trained
    assert all(torch.equal(before[name], weight) for name, weight in model.model_.named_parameters())
    changed = {name for name, weight in weights(trained).items() if not torch.equal(weight, weights(pooled)[name])}
    assert changed and all(name.startswith("decoder") and "attention." in name for name in changed)
    assert all(weight.requires_grad for weight in trained.model_.parameters())
    assert trained.results_["uptraining"]["tokens"] >= 12_000


def test_calibrated_heads_are_nearer_than_pooled_ones(model: Seq2Seq | LanguageModel) -> None:
    several = {method: regroup(model, 1, *data(model), method=method) for method in ("aligned", "mean")}
    found = compare({"own": model, **several}, *model.held_out(*data(model)), contexts=(8,))
    assert found.models[1].divergence < found.models[2].divergence


def test_figures_are_what_they_say(model: Seq2Seq | LanguageModel) -> None:
    grouped = regroup(model, 2, method="first", refit=False)
    X, y = model.held_out(*data(model))
    found = compare({"own": model, "<grouped>": grouped}, X, y, contexts=(5, 16), batches=(1, 3))
    for one, estimator in zip(found.models, (model, grouped), strict=True):
        assert [(t.batch, t.context) for t in one.timings] == [(1, 5), (1, 16), (3, 5), (3, 16)]
        assert all(t.cache_bytes == t.computed_cache_bytes for t in one.timings)
        assert one.parameters == sum(weight.numel() for weight in estimator.model_.parameters())
        if isinstance(estimator, LanguageModel):
            assert math.exp(one.loss) == pytest.approx(one.scores[0].value, rel=1e-3)
        else:
            assert one.scores[0].value == pytest.approx(estimator.score(X, y))
    assert found.models[1].timings[0].cache_bytes * 2 == found.models[0].timings[0].cache_bytes
    page = found.to_html()
    assert "&lt;grouped&gt;" in page and "<grouped>" not in page and page.count("data:image/png;base64") == 2
    assert len(found.to_markdown().splitlines()[0].split("|")) == len(found.to_markdown().splitlines()[2].split("|"))
    assert found.to_dict()["models"][1]["name"] == "<grouped>"


def test_expanded_heads_say_the_same(model: Seq2Seq | LanguageModel, tmp_path: Path) -> None:
    grouped = regroup(model, 2, *data(model))
    expanded = expand_heads(grouped)
    X, y = model.held_out(*data(model))
    found = compare({"grouped": grouped, "expanded": expanded}, X, y, contexts=(8,))
    assert found.models[1].divergence < 1e-6 and found.models[1].kv_heads[0] == 4
    # a family that has no grouped heads holds the expanded model, our own directory the grouped one
    grouped.save(tmp_path / "grouped")
    expanded.save(tmp_path / "expanded")
    again = transfuse.load(tmp_path / "grouped")
    assert weights(again).keys() == weights(grouped).keys()
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(grouped).items())
    card = (tmp_path / "grouped" / "README.md").read_text()
    assert "method 'aligned' and a refit of the outputs" in card


def test_the_seed_draws_calibration_data_and_the_order_of_training(model: Seq2Seq | LanguageModel) -> None:
    def flat(found: Seq2Seq | LanguageModel) -> torch.Tensor:
        return torch.cat([weight.flatten() for weight in weights(found).values()])

    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        shared = regroup(model, 1, *data(model), calibration_tokens=100, random_state=seed)
        return flat(shared), flat(uptrain(pooled, model, *data(model), tokens=600, random_state=seed))

    pooled = regroup(model, 1, method="mean", refit=False)
    once, again, other = (drawn(seed) for seed in (0, 0, 1))
    for one, same, another in zip(once, again, other, strict=True):
        assert torch.equal(one, same) and not torch.equal(one, another)
    assert not torch.equal(once[1], flat(pooled))


def test_the_budget_is_kept(reverser: Seq2Seq) -> None:
    converted = regroup(reverser, 2, method="mean", refit=False)
    original_tokens = reverser.results_["tokens"]
    assert converted.results_ == {
        "tokens": original_tokens,
        "regrouped": {"method": "mean", "refit": False, "n_kv_heads": 2},
    }
    trained = uptrain(converted, reverser, *data(reverser), alpha=0.05)
    spent = trained.results_["uptraining"]["tokens"]
    assert 0.05 * original_tokens <= spent < 0.05 * original_tokens + 1024


def test_cross_entropy_alone_is_ordinary_training(reverser: Seq2Seq) -> None:
    control = uptrain(reverser, reverser, *data(reverser), tokens=2000, distillation=ALONE, trains="all")
    held = control.results_["uptraining"]["held_out_score"]
    assert held == pytest.approx(-compare({"a": control}, *reverser.held_out(*data(reverser))).models[0].loss, rel=1e-4)


def test_a_student_that_is_its_teacher_stays_it(reverser: Seq2Seq, tmp_path: Path) -> None:
    config = reverser.model_.config.replace(dropout=0.3)
    noisy = reverser.with_model(Seq2SeqModel(config).eval(), {})
    set_weights(noisy.model_, weights(reverser))
    same = uptrain(noisy, reverser, *data(reverser), tokens=1500, run_dir=tmp_path)
    # nothing is dropped out, so there is nothing to learn
    assert all(abs(record["loss"]) < 1e-5 for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record)
    assert same.model_.config.dropout == 0.3
    assert {layer.rate for layer in same.model_.modules() if isinstance(layer, Dropout)} == {0.0, 0.3}


def test_a_training_that_does_not_help_is_none(reverser: Seq2Seq) -> None:
    wild = TRAINING.replace(learning_rate=0.3, warmup_steps=0)
    same = uptrain(reverser, reverser, *data(reverser), tokens=1500, training=wild, distillation=ALONE)
    assert same.results_["uptraining"]["best_step"] == 0
    assert all(torch.equal(weight, weights(same)[name]) for name, weight in weights(reverser).items())


def test_a_context_wins_from_where_it_wins_ever_after() -> None:
    def timings(*milliseconds: float) -> list[Timing]:
        return [Timing(8, 10 * (i + 1), value, 0, 0) for i, value in enumerate(milliseconds)]

    first = timings(5, 5, 5, 5)
    assert _wins_from(timings(4, 4, 4, 4), first) == 10
    assert _wins_from(timings(4, 6, 4, 4), first) == 30
    assert _wins_from(timings(4, 4, 4, 5), first) is None


def test_a_run_goes_on_where_it_was(reverser: Seq2Seq, tmp_path: Path) -> None:
    converted = regroup(reverser, 1, method="mean", refit=False)
    whole = uptrain(converted, reverser, *data(reverser), tokens=3000, run_dir=tmp_path / "whole")
    with pytest.raises(CheckpointError, match="earlier run"):
        uptrain(converted, reverser, *data(reverser), tokens=3000, run_dir=tmp_path / "whole")
    (tmp_path / "part").mkdir()
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(checkpoints) == 3
    (tmp_path / "whole").rename(tmp_path / "part" / "run")
    for checkpoint in (tmp_path / "part" / "run" / "checkpoints").iterdir():
        if checkpoint.name == checkpoints[-1].name:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    again = uptrain(converted, reverser, *data(reverser), tokens=3000, run_dir=tmp_path / "part" / "run", resume=True)
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(whole).items())
    other = regroup(reverser, 2, method="mean", refit=False)
    with pytest.raises(CheckpointError, match=r"n_kv_heads|decoder_kv_heads"):
        uptrain(other, reverser, *data(reverser), tokens=3000, run_dir=tmp_path / "part" / "run", resume=True)


def test_what_makes_no_sense_is_refused(reverser: Seq2Seq, talker: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        uptrain(reverser, reverser, *data(reverser))
    with pytest.raises(ConfigError, match="0 tokens"):
        uptrain(reverser, reverser, *data(reverser), tokens=0)
    with pytest.raises(ConfigError, match="trains='heads' must be one of"):
        uptrain(reverser, reverser, *data(reverser), tokens=10, trains="heads")
    with pytest.raises(ConfigError, match="which is not known"):
        uptrain(reverser, reverser.with_model(reverser.model_, {}), *data(reverser), alpha=0.1)
    with pytest.raises(ConfigError, match="nor both 0"):
        DistillationConfig(divergence=0.0)
    with pytest.raises(ConfigError, match="different kinds or vocabularies"):
        compare({"a": reverser, "b": talker}, *data(reverser))  # type: ignore[dict-item]
    with pytest.raises(DataError, match="calibration tokens"):
        regroup(reverser, 2, SENTENCES[:2], SENTENCES[:2])
    with pytest.raises(ConfigError, match=r"^no model is given$"):
        compare({}, *data(reverser))
    X, y = data(reverser)
    with pytest.raises(ConfigError, match=r"^y is missing: an encoder–decoder needs the targets of X$"):
        regroup(reverser, 1, X)
    with pytest.raises(ConfigError, match=r"^y is missing"):
        compare({"own": reverser}, X)
    with pytest.raises(DataError, match=r"^X is one string"):
        compare({"own": reverser}, "a cat ran", "ran cat a")
    with pytest.raises(DataError, match=r"^validation must be two columns, the texts and what they become$"):
        uptrain(reverser, reverser, X, y, tokens=10, validation=X)
    with pytest.raises(ConfigError, match=r"^y is not for a language model$"):
        uptrain(talker, talker, X, y, tokens=10)
    with pytest.raises(ConfigError, match=r"^alpha=nan must be a number$"):
        uptrain(reverser, reverser, X, y, alpha=math.nan)
    with pytest.raises(ConfigError, match=r"^model and teacher are of different kinds or vocabularies"):
        uptrain(reverser, talker, X, y, tokens=10)  # type: ignore[type-var]
    encoder = TextEncoder()
    for refused in (lambda: regroup(encoder, 1), lambda: expand_heads(encoder)):  # type: ignore[type-var]
        with pytest.raises(ConfigError, match=r"^model: a TextEncoder, and not one of an encoder–decoder or"):
            refused()
    for wrong in ({"contexts": []}, {"batches": [0]}):
        with pytest.raises(ConfigError, match="must hold whole numbers from 1 up"):
            compare({"own": reverser}, X, y, **wrong)  # type: ignore[arg-type]
    short = reverser.with_model(copy.deepcopy(reverser.model_), {})
    short.model_.config = short.model_.config.replace(max_positions=11)
    with pytest.raises(ConfigError, match=r"^max_positions=11: a context and 11 timed steps need more$"):
        compare({"short": short}, X, y)


def test_agreement_is_the_share_of_equal_successors(model: Seq2Seq | LanguageModel) -> None:
    worse = regroup(model, 1, method="random", refit=False)
    X, y = model.held_out(*data(model))
    X = (text for text in X)  # read once
    found = compare({"own": model, "worse": worse}, X, y, contexts=(8, 100, 1000))
    held = model.judging(Path(), SENTENCES[-10:], y and y[-10:]) if y else None
    own, other = found.models
    assert 0 < other.agreement < 1 and 0 <= other.same_outputs < 1
    # contexts beyond the positions are cut to them
    longest = model.model_.config.max_positions - 11
    assert [timing.context for timing in own.timings[: len(own.timings) // 2]] == [8, longest]
    if held is None:
        return
    equal = n = 0
    for rows in held.in_order(256):
        batch = held.batch(rows)
        first, second = (
            one.model_(batch.source_BS, batch.source_keep_BS, batch.target_BT).argmax(-1)[batch.real_BT]
            for one in (model, worse)
        )
        equal, n = equal + int((first == second).sum()), n + len(first)
    (_, part) = compare({"own": model, "worse": worse}, SENTENCES[-10:], y[-10:], contexts=(8,)).models  # type: ignore[index]
    assert part.agreement == pytest.approx(equal / n)


def test_outputs_are_the_same_as_far_as_they_are() -> None:
    assert [_shared_start(*pair) for pair in (("a", "a"), ("a", "b"))] == [1.0, 0.0]
    assert _shared_start((1, 2, 3, 4), (1, 2, 9, 4)) == 0.5
    assert _shared_start((1, 2), (1, 2, 3, 4)) == 0.5
    assert _shared_start((), ()) == 1.0


def test_a_table_of_speeds_and_of_scores_that_not_all_have() -> None:
    def one(name: str, milliseconds: float, *scores: tuple[str, float]) -> Compared:
        timings = [Timing(8, 64, milliseconds, 1000, 1000)]
        return Compared(name, [4], 10, 1.0, 0.0, 1.0, [Score(n, v, "how") for n, v in scores], 1.0, timings, None)

    slow = one("slow", 20.0, ("perplexity", 3.0), ("bits", 1.5))
    table = Comparison([slow, one("quick", 5.0, ("perplexity", 4.0), ("word perplexity", 9.0), ("bits", 2.0))], 5)
    header, (first, second) = table.header(), table.rows()
    assert header[6:9] == ["perplexity", "bits", "word perplexity"]
    assert (first[6:9], second[6:9]) == (["3.00", "1.50", ""], ["4.00", "2.00", "9.00"])
    place = header.index("speed")
    assert (first[place], second[place]) == ("1.00 x", "4.00 x")
    assert (first[place - 1], second[place - 1]) == ("400", "1,600")
    assert "word perplexity: how" in table.to_text() and "<table" in table.to_html()


def test_models_are_scored_by_one_metric(reverser: Seq2Seq) -> None:
    other = reverser.with_model(reverser.model_, {}).set_params(metric="chrf")
    found = compare({"own": reverser, "other": other}, *reverser.held_out(*data(reverser)), contexts=(8,)).models
    assert found[0].scores == found[1].scores


def test_calibration_reads_as_many_tokens_as_it_is_told(
    model: Seq2Seq | LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def convert(own: Any, *_: Any, **__: Any) -> Any:
        seen.append(sum(batch.n_tokens for batch in _[2]))
        return own

    monkeypatch.setattr(estimators_regroup, "convert", convert)
    monkeypatch.setattr(estimators_regroup, "CALIBRATION_BATCH", 64)
    for wanted in (100, 500):
        regroup(model, 2, *data(model), calibration_tokens=wanted)
    assert 100 <= seen[0] < 200 and 500 <= seen[1] < 600


def test_a_run_is_not_taken_up_by_another_conversion(reverser: Seq2Seq, tmp_path: Path) -> None:
    one = regroup(reverser, 1, method="mean", refit=False)
    uptrain(one, reverser, *data(reverser), tokens=1500, run_dir=tmp_path)
    other = regroup(reverser, 1, method="random", refit=False)
    with pytest.raises(CheckpointError, match="start"):
        uptrain(other, reverser, *data(reverser), tokens=1500, run_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="teacher"):
        uptrain(one, expand_heads(one), *data(reverser), tokens=1500, run_dir=tmp_path, resume=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_trained_in_float32(model: Seq2Seq | LanguageModel, tmp_path: Path, dtype: Any) -> None:
    model.save(tmp_path / "own")
    half = transfuse.load(tmp_path / "own", dtype=dtype)
    half.training = half.training.replace(precision="bfloat16")  # type: ignore[union-attr]  # which is of float32 alone
    assert isinstance(half, Seq2Seq | LanguageModel)
    pooled: Any = regroup(half, 1, method="mean", refit=False)
    budget: Any = {"tokens": 2000, "training": TRAINING.replace(learning_rate=1e-4)}
    trained = uptrain(pooled, half, *data(model), **budget)
    assert {weight.dtype for weight in trained.model_.parameters()} == {getattr(torch, dtype)}
    # the same as in float32, rounded at the end
    for one in (half, pooled):
        one.model_.float()
    whole = uptrain(pooled, half, *data(model), **budget)
    for name, weight in weights(whole).items():
        assert torch.equal(weight.to(getattr(torch, dtype)), weights(trained)[name])
    (found,) = compare({"trained": trained}, *model.held_out(*data(model)), contexts=(8,)).models
    assert math.isfinite(found.loss) and all(math.isfinite(score.value) for score in found.scores)


def test_a_loss_that_is_no_number_is_an_error(talker: LanguageModel) -> None:
    for dtype, said in ((torch.float32, r"its weights are damaged$"), (torch.float16, "which bfloat16 would")):
        broken = talker.with_model(copy.deepcopy(talker.model_).to(dtype), {})
        broken.model_.output.weight.data[0] = math.nan
        with pytest.raises(GenerationError, match=rf"^the loss on this text is not a number; .*{said}"):
            broken.evaluate(data(talker)[0])


def test_encoders_are_expanded_too() -> None:
    sizes = Seq2SeqConfig(
        vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1, encoder_heads=8, decoder_heads=4,
        encoder_kv_heads=2, decoder_kv_heads=2, cross_kv_heads=1, encoder_hidden=16, decoder_hidden=16,
        max_positions=48, dropout=0.0,
    )  # fmt: skip
    grouped = Seq2Seq(model=sizes, training=TRAINING.replace(max_steps=1)).fit(*data(Seq2Seq()))
    expanded = expand_heads(grouped)
    assert expanded.model_.config.encoder_kv_heads is None and set(expanded.model_.config.cached_heads) == {4}
    ids = torch.tensor([[5, 9, 7, 11, 6, 2]])
    keep = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(expanded.model_(ids, keep, ids), grouped.model_(ids, keep, ids))


LANGUAGE_KINDS = {
    "Llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
PAIR_SIZES = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4}


@pytest.mark.usefixtures("quiet_transformers")
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Marian", "M2M100"])
def test_directories_of_others_are_converted_and_open_there_again(
    kind: str, reverser: Seq2Seq, talker: LanguageModel, tmp_path: Path
) -> None:
    import transformers

    own = talker if kind in LANGUAGE_KINDS else reverser
    if kind in LANGUAGE_KINDS:
        sizes = LANGUAGE_KINDS[kind] | {"bos_token_id": 0, "eos_token_id": 0}
        architecture, auto = f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}", "AutoModelForCausalLM"
    else:
        sizes = PAIR_SIZES | {"d_model": 32, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "pad_token_id": 1}
        sizes |= {"decoder_start_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 64}
        architecture = "MarianMTModel" if kind == "Marian" else "M2M100ForConditionalGeneration"
        auto = "AutoModelForSeq2SeqLM"
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(own.tokenizer_), **sizes)
    theirs = getattr(transformers, architecture)(config)
    for weight in theirs.parameters():
        weight.data.add_(0.1 * torch.randn(weight.shape))
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text(own.tokenizer_.to_json(), encoding="utf-8")
    model = transfuse.load(tmp_path / "theirs")
    grouped = regroup(model, 2, *data(model))
    result = grouped if kind == "Llama" else expand_heads(grouped)
    result.save(tmp_path / "ours")
    again = getattr(transformers, auto).from_pretrained(tmp_path / "ours").eval()
    assert type(again).__name__ == architecture
    ids = torch.tensor([[5, 9, 7, 11, 6, 2]])
    with torch.no_grad():
        if isinstance(grouped, LanguageModel):
            found, expected = grouped.model_(ids), again(input_ids=ids).logits
        else:
            found = grouped.model_(ids, torch.ones_like(ids, dtype=torch.bool), ids.roll(1))
            expected = again(input_ids=ids, decoder_input_ids=ids.roll(1)).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert again.config.to_dict().get("num_key_value_heads", 2) == 2
