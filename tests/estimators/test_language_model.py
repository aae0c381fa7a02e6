"""`LanguageModel` as a user meets it: learn, go on, stream, save, load, resume, refuse."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from sklearn.base import clone
from tokenizers import decoders, models

import transfuse
from transfuse import (
    CheckpointError,
    ConfigError,
    Corpus,
    DataError,
    DecoderConfig,
    LanguageModel,
    ModelDirectoryError,
    SearchConfig,
    TokenizerConfig,
    TrainingConfig,
    TrainingInterrupted,
)
from transfuse.data.corpus import Texts
from transfuse.data.token_file import TokenFile
from transfuse.data.tokenizer import Tokenizer
from transfuse.estimators import language_model
from transfuse.models.decoder import DecoderModel

TEXTS = [
    f"{n} green bottles, {n} green bottles, hanging on the wall.\n" for n in ("ten", "nine", "eight", "seven")
] * 12
TINY = DecoderConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=48, max_positions=64)
TRAINING = TrainingConfig(
    epochs=12, batch_tokens=256, label_smoothing=0.0, learning_rate=1e-2, warmup_steps=5, validate_every=20, average=1
)
GREEDY = SearchConfig(beams=1, max_tokens=30)


def make(**changes: Any) -> LanguageModel:
    return LanguageModel(**{"model": TINY, "training": TRAINING, "search": GREEDY, "context": 32, **changes})


@pytest.fixture(scope="module")
def fitted() -> LanguageModel:
    return make().fit(TEXTS)


@pytest.fixture(scope="module")
def saved(fitted: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted.save(tmp_path_factory.mktemp("language") / "model")


def test_it_learns_the_song_number_and_all(fitted: LanguageModel) -> None:
    # that the second number is the first takes longer to learn than the words: some 300 steps
    longer = TRAINING.replace(epochs=120, schedule="cosine", validate_every=40)
    model = make(training=longer).fit(TEXTS)
    beginnings = ["ten green", "nine green bottles,", "eight", "seven green bottles, seven"]
    expected = [text[len(beginning) :] for beginning, text in zip(beginnings, TEXTS, strict=False)]
    assert model.predict(beginnings) == expected
    # the first number is all there is to guess, one of four, in 15 tokens
    assert model.results_["held_out_loss"] == pytest.approx(math.log(4) / 15, rel=0.2)
    assert fitted.score(TEXTS[:4]) > -0.5
    assert fitted.score(["Quite another kind of text, one never seen."]) < -3


def test_scores_are_one_loss_in_three_units(fitted: LanguageModel) -> None:
    token, word, byte = fitted.evaluate(TEXTS[:7])
    n_tokens = sum(map(len, fitted.encode(TEXTS[:7])))
    total = math.log(token.value) * n_tokens
    assert word.value == pytest.approx(math.exp(total / sum(len(text.split()) for text in TEXTS[:7])))
    assert byte.value == pytest.approx(total / math.log(2) / sum(len(text.encode()) for text in TEXTS[:7]))
    assert "context:32" in token.signature


def test_a_stream_is_the_prediction_in_pieces(fitted: LanguageModel) -> None:
    for search in (GREEDY, SearchConfig(beams=1, sample=True, temperature=3.0, max_tokens=40)):
        pieces = list(fitted.stream("ten green", search))
        assert "".join(pieces) == fitted.predict_n_best(["ten green"], search)[0][0].text
        assert len(pieces) > 3
        assert not any(piece.startswith("\ufffd") for piece in pieces[:-1]) or search.sample


def test_several_samples_come_best_first(fitted: LanguageModel) -> None:
    search = SearchConfig(beams=1, sample=True, n_best=5, temperature=2.0, max_tokens=8)
    (found,) = fitted.predict_n_best(["ten"], search)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len({one.text for one in found}) > 1


def test_a_loop_is_reported(fitted: LanguageModel) -> None:
    (found,) = fitted.predict_n_best(["ten green"], GREEDY.replace(loop_repeats=2, max_tokens=60))[0]
    assert found.to_dict()["loop"] == (None if found.loop is None else vars(found.loop))


def test_a_loaded_model_is_the_saved_one(fitted: LanguageModel, saved: Path) -> None:
    again = transfuse.load(saved)
    assert isinstance(again, LanguageModel)
    assert again.predict(["ten green"]) == fitted.predict(["ten green"])
    assert again.score(TEXTS[:3]) == fitted.score(TEXTS[:3])
    parameters = again.get_params(deep=False) | {"model": fitted.model, "device": fitted.device}
    assert parameters == fitted.get_params(deep=False)
    assert "Language model" in (saved / "README.md").read_text()


def test_transformers_opens_the_directory_and_goes_on_alike(fitted: LanguageModel, saved: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    inputs = tokenizer(["nine green"], return_tensors="pt", return_token_type_ids=False)
    assert inputs.input_ids.tolist() == fitted.encode(["nine green"])
    torch.testing.assert_close(theirs(**inputs).logits, fitted.model_(inputs.input_ids), rtol=1e-5, atol=1e-5)
    written = theirs.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == fitted.predict(["nine green"])[0]


def test_a_directory_of_theirs_opens_and_is_saved_in_its_own_form(fitted: LanguageModel, tmp_path: Path) -> None:
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=len(fitted.tokenizer_),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=20,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text(fitted.tokenizer_.to_json())
    model = transfuse.load(tmp_path / "theirs")
    assert isinstance(model, LanguageModel)
    assert model.model_.output.weight.dtype == torch.float32
    model.predict(["ten"])
    model.save(tmp_path / "ours")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").model_type == "qwen2"
    half = LanguageModel.load(tmp_path / "ours", dtype="bfloat16")
    assert half.model_.output.weight.dtype == torch.bfloat16
    assert torch.equal(half.model_.output.weight.float(), model.model_.output.weight)
    half.predict(["ten"])


def test_files_of_any_size_are_learned_from(tmp_path: Path) -> None:
    (tmp_path / "song.txt").write_text("".join(TEXTS))
    model = make(run_dir=tmp_path / "run").fit(Corpus(tmp_path / "song.txt"), validation=TEXTS[:2])
    assert (tmp_path / "run" / "tokens" / "tokens.bin").stat().st_size > 0
    assert model.results_["held_out_loss"] < 1.5
    assert model.score(Corpus(tmp_path / "song.txt")) > -1.5


def test_characters_can_be_the_tokens() -> None:
    model = make(tokenizer=TokenizerConfig(unit="character")).fit(TEXTS)
    assert len(model.tokenizer_) == 2 + len(set("".join(TEXTS)))
    assert model.encode(["ten"]) == [[0, *model.tokenizer_.encode_plain(["ten"])[0]]]
    assert len(model.encode(["ten"])[0]) == 4


def test_interrupted_and_resumed_is_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = make(run_dir=tmp_path / "one").fit(TEXTS)
    stopped = make(run_dir=tmp_path / "two")
    hidden, calls = DecoderModel.hidden, itertools.count(1)

    def interrupted(self: DecoderModel, *arguments: Any) -> torch.Tensor:
        if next(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return hidden(self, *arguments)

    monkeypatch.setattr(DecoderModel, "hidden", interrupted)
    with pytest.raises(TrainingInterrupted, match="after step 7; resume from"):
        stopped.fit(TEXTS)
    monkeypatch.undo()
    assert not hasattr(stopped, "model_")
    resumed = stopped.fit(TEXTS, resume=True)
    for one, other in zip(resumed.model_.parameters(), undisturbed.model_.parameters(), strict=True):
        assert torch.equal(one, other)


def test_clone_and_parameters() -> None:
    model = make()
    assert clone(model).get_params() == model.get_params()
    model.set_params(training__epochs=3, model__n_layers=1, context=16)
    assert (model.training.epochs, model.model.n_layers, model.context) == (3, 1, 16)
    assert make().fit(TEXTS[:8]).score(TEXTS[:2]) == make().fit(TEXTS[:8]).score(TEXTS[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 65}, "context=65 must be at least 2 and at most max_positions=64"),
        ({"search": SearchConfig(beams=4)}, "beams=4: a language model is sampled or greedy"),
        ({"training": TRAINING.replace(select_by="metric")}, "select_by='metric'"),
        ({"model": 3}, "model=3 must be a DecoderConfig"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 must be above 0 and below 1"),
        ({"device": "tpu"}, "device='tpu' must be cpu or cuda"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes).fit(TEXTS)


def test_prompts_that_cannot_be_continued_are_refused(fitted: LanguageModel) -> None:
    with pytest.raises(DataError, match=r"X\[1\]: the text is empty"):
        fitted.predict(["a", ""])
    with pytest.raises(DataError, match=r"X\[1\]: \d+ tokens; at least 1 is needed and the model has 64 positions"):
        fitted.predict(["ten", "%$ " * 70])
    with pytest.raises(ConfigError, match="beams=2"):
        fitted.predict_n_best(["a"], SearchConfig(beams=2))


def test_directories_that_do_not_fit_are_refused(fitted: LanguageModel, saved: Path, tmp_path: Path) -> None:
    from transfuse.data.tokenizer import Tokenizer

    with pytest.raises(ConfigError, match="dtype='int8' must be one of"):
        LanguageModel.load(saved, dtype="int8")
    with pytest.raises(ModelDirectoryError, match=r"no/such: no such directory, and the hub gave no model"):
        LanguageModel.load("no/such")
    with pytest.raises(ModelDirectoryError, match="expected an encoder"):
        transfuse.Seq2Seq.load(saved)
    words = [" ".join(dir(torch))] * 2
    larger = Tokenizer.train_language(words, 600, TokenizerConfig())
    fitted.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(larger.to_json())
    with pytest.raises(ModelDirectoryError, match=r"tokenizer\.json: \d+ tokens, but the model has"):
        LanguageModel.load(tmp_path)


def test_a_stream_is_one_continuation(fitted: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="n_best=3: a stream is one continuation"):
        next(fitted.stream("ten", SearchConfig(beams=1, sample=True, n_best=3)))


def test_a_stream_left_unfinished_leaves_the_model_trainable(fitted: LanguageModel) -> None:
    pieces = fitted.stream("ten green", GREEDY)
    next(pieces)
    fitted.model_(torch.tensor([[0, 5, 6]])).sum().backward()
    assert all(weight.grad is not None for weight in fitted.model_.parameters())
    fitted.model_.zero_grad()


def test_held_out_sizes_are_those_of_the_held_out_text() -> None:
    texts = ["ten green bottles. " * 30, "zehn grüne Flaschen 中文中文中文中文 " * 30]
    model = make(validation_fraction=0.4, training=TRAINING.replace(max_steps=2)).fit(texts)
    scores = {score["name"]: score["value"] for score in model.results_["held_out_metrics"]}
    nats = math.log(scores["perplexity"])
    tokens_a_byte = scores["bits a byte"] * math.log(2) / nats
    ids = [token for row in model.tokenizer_.encode(texts) for token in row]
    tail = ids[round(0.6 * len(ids)) :]
    (text,) = model.tokenizer_.decode_exactly([tail])
    assert tokens_a_byte == pytest.approx(len(tail) / len(text.encode()))


def test_another_validation_text_is_another_run(tmp_path: Path) -> None:
    short = TRAINING.replace(max_steps=4, validate_every=2)
    make(run_dir=tmp_path, training=short).fit(TEXTS, validation=["ten green bottles"])
    with pytest.raises(CheckpointError, match="of another run, with other validation"):
        make(run_dir=tmp_path, training=short).fit(TEXTS, validation=["green ten bottles"], resume=True)


def test_end_tokens_that_only_generation_config_names_end_texts_too(fitted: LanguageModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7, 100000]}')
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "as it was"}')
    model = LanguageModel.load(tmp_path)
    assert model.model_.config.end_ids == (0, 7)
    model.save(tmp_path / "again")
    assert "as it was" in (tmp_path / "again" / "tokenizer_config.json").read_text()


def test_half_a_character_is_never_streamed() -> None:
    model = make(model=TINY.replace(vocab_size=257)).fit(["春眠不觉晓，处处闻啼鸟。"] * 40)  # tokens are bytes
    pieces = list(model.stream("春"))
    assert len(pieces) > 3 and not any("\ufffd" in piece for piece in pieces[:-1])
    assert "".join(pieces) == model.predict(["春"])[0]


def test_a_run_is_not_resumed_with_other_validation_text(tmp_path: Path) -> None:
    short = make(training=TRAINING.replace(max_steps=4, validate_every=2), run_dir=tmp_path)
    short.fit(TEXTS, validation=TEXTS[:2])
    with pytest.raises(CheckpointError, match="with other validation"):
        short.fit(TEXTS, validation=TEXTS[1:3], resume=True)


def scores_of(model: LanguageModel) -> dict[str, float]:
    return {score["name"]: score["value"] for score in model.results_["held_out_metrics"]}


def test_what_fit_says_of_held_out_documents_is_what_evaluate_says() -> None:
    """Documents that end without white space, of words and of characters that were never seen."""
    texts = [f"{n} green bottles, {n} on the wall" for n in ("ten", "nine", "eight", "seven")] * 30
    model = make(training=TRAINING.replace(max_steps=8)).fit(texts)
    held, _ = model.held_out(texts)
    assert held[1:] == texts[-len(held) + 1 :] and len(held) > 3
    assert scores_of(model) == pytest.approx({one.name: one.value for one in model.evaluate(held)})
    rare = [*texts[:-3], "ein Ö", "ein Ü", "ein Ä"]
    settings = {"tokenizer": TokenizerConfig(unit="character"), "validation_fraction": 14.5 / sum(map(len, rare))}
    model = make(model=TINY.replace(vocab_size=24), training=TRAINING.replace(max_steps=8), **settings).fit(rare)
    judged = {one.name: one.value for one in model.evaluate(rare[-2:])}
    assert scores_of(model)["bits a byte"] == pytest.approx(judged["bits a byte"], rel=0.25)


def test_text_without_words_has_no_word_perplexity(tmp_path: Path, fitted: LanguageModel) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    assert [one.name for one in fitted.evaluate(Corpus(tmp_path / "blank.txt"))] == ["perplexity", "bits a byte"]


@pytest.mark.parametrize("context", [0, 1, -3, 65])
def test_a_context_that_cannot_be_is_refused_after_training_too(fitted: LanguageModel, context: int) -> None:
    other = copy.copy(fitted).set_params(context=context)
    with pytest.raises(ConfigError, match=f"context={context} must be at least 2 and at most max_positions=64"):
        other.evaluate(TEXTS[:2])


def test_a_copied_model_reads_text_as_text(fitted: LanguageModel) -> None:
    prompt = ["ten <|endoftext|> green"]
    for copied in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert copied.encode(prompt) == fitted.encode(prompt) and copied.predict(prompt) == fitted.predict(prompt)


def test_prompts_may_be_ids(fitted: LanguageModel) -> None:
    texts = ["ten green", "nine"]
    ids = fitted.encode(texts)
    assert fitted.encode(ids) == fitted.encode([np.array(row) for row in ids]) == ids
    assert fitted.predict(ids) == fitted.predict(texts)
    assert "".join(fitted.stream(ids[0])) == fitted.predict(texts)[0]
    for given, message in (
        ([[1, 400]], "whole numbers from 0 to"),
        ([[0.5]], r"X\[0\]: expected a text, or whole"),
        ([[1], [2, -1]], r"X\[1\]: expected"),
        ([[]], r"X\[0\]: 0 tokens"),
        ([[1], "two"], r"X\[0\]"),
        ([[1, [2]]], r"X\[0\]: expected"),
        (pd.DataFrame({"prompt": ["ten"]}), "X has 2 dimensions"),
        ({"ten", "nine"}, "X is of type set"),
        (5, "X is of type int"),
        (None, "X is of type NoneType"),
    ):
        with pytest.raises(DataError, match=message):
            fitted.encode(given)  # type: ignore[arg-type]


def test_a_foreign_model_keeps_its_template_and_says_what_text_cannot(fitted: LanguageModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "own")
    (tmp_path / "own" / "transfuse.json").unlink()  # as others' directories are
    for name, content in (
        ("chat_template.jinja", "{{ messages }}"),
        ("generation_config.json", '{"eos_token_id": [0, 7], "pad_token_id": 5, "temperature": 0.3}'),
    ):
        (tmp_path / "own" / name).write_text(content)
    config = json.loads((tmp_path / "own" / "config.json").read_text()) | {"pad_token_id": 5, "eos_token_id": None}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    model = LanguageModel.load(tmp_path / "own")
    model.save(tmp_path / "again")
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "{{ messages }}"
    told = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert (told["eos_token_id"], told["pad_token_id"], told["temperature"]) == ([0, 7], 5, 0.3)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["pad_token_id"] == 5
    assert LanguageModel.load(tmp_path / "again").model_.config == model.model_.config
    with pytest.warns(
        UserWarning, match=r"a prompt spells <\|endoftext\|>, which in text is not a special token; give"
    ):
        model.predict(["ten", "<|endoftext|>nine"])
    fitted.predict(["<|endoftext|>nine"])  # of our own it is known that text is text
    LanguageModel.load(tmp_path / "again").predict(["<|endoftext|>nine"])
    fitted.save(tmp_path / "again")  # another model, without a template
    assert not (tmp_path / "again" / "chat_template.jinja").exists()


def of_bytes() -> LanguageModel:
    """A model whose tokenizer spells what it does not know in bytes, as Llama's does."""
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "\u2581a": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    backend = tokenizers.Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model = make(model=TINY.replace(vocab_size=300), training=TRAINING.replace(max_steps=1)).fit(TEXTS)
    model.tokenizer_ = Tokenizer(backend)
    return model


@pytest.mark.parametrize("text", ["\u597d\U0001f600", "\n", "a\n\u597d", ""])
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_an_unfinished_character_takes_nothing_with_it(
    text: str, missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_bytes()
    content = (text + "\U0001f600").encode()
    ids = [4 + byte for byte in content[: len(content) - missing]]
    writing = [ids[: n + 1] for n in range(len(ids))]
    monkeypatch.setattr(language_model, "stream", lambda *given: iter(writing))
    expected = text + ("\ufffd" if missing else "\U0001f600")
    assert model.tokenizer_.decode_after([([3], ids)]) == [expected]
    assert "".join(model.stream([3])) == expected


@pytest.mark.parametrize("unit", ["bpe", "character"])
def test_words_and_bytes_from_any_token_on(unit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "AT_A_TIME", 7)
    texts = ["ten green bottles hanging on the wall", "nine Ö bottles", "eight Ü"]
    settings = {"tokenizer": TokenizerConfig(unit=unit), "training": TRAINING.replace(max_steps=1)}
    model = make(model=TINY.replace(vocab_size=24 if unit == "character" else 300), **settings).fit(TEXTS)
    file = TokenFile.write(tmp_path / "tokens", Texts(texts), model.tokenizer_, model._start_id)
    for cut in range(1, int(file.starts[1])):  # in the first document, where every character is known
        (text,) = model.tokenizer_.decode_exactly([file.tokens[cut : file.starts[1]].tolist()])
        rest = file.sizes[1:].sum(0)
        assert model._size_of(file, cut) == (len(text.split()) + rest[0], len(text.encode()) + rest[1])
    for number, start in enumerate(file.starts[:-1].tolist()):  # where a document begins, known or not
        assert model._size_of(file, start) == tuple(file.sizes[number:].sum(0))
