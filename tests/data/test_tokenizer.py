"""Byte-level BPE: any text comes back, special tokens are never text, and `transformers` reads the same tokens."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.data.tokenizer import MIN_VOCABULARY, Tokenizer, TokenizerConfig
from transfuse.errors import DataError, ModelDirectoryError
from transfuse.estimators.about import tokenizer_values

TRAINING_TEXT = [
    "the dogs run in the park , 12 dogs in 1234 parks",
    "die Hunde laufen im Park , 12 Hunde in 1234 Parks",
    "我喜欢狗 。 狗喜欢我 。",
    "الكلاب تجري في الحديقة",
] * 10
TEXTS = [
    "the dogs run",
    "The DOGS  run\t!",
    "12345 parks",
    "我喜欢猫",
    "الكلاب تنام",
    "🦊👩‍👩‍👧 🏳️‍🌈",
    "e\u0301 and \u00e9",
    "\x00\x01\x7f control",
    "line\nends\r\nand\u2028more",
    "<unk> <| >",
    "",
]

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]))


def trained(**settings: bool) -> Tokenizer:
    return Tokenizer.train(TRAINING_TEXT, 300, TokenizerConfig(**settings))


CASED, LOWER, WHOLE_NUMBERS = trained(), trained(lowercase=True), trained(split_digits=False)


def as_decoded(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


@given(TEXT)
def test_any_text_comes_back_composed_and_stripped(text: str) -> None:
    assert CASED.decode(CASED.encode([text])) == [as_decoded(text)]
    assert WHOLE_NUMBERS.decode(WHOLE_NUMBERS.encode([text])) == [as_decoded(text)]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_many_scripts_come_back(text: str) -> None:
    assert CASED.decode(CASED.encode([text])) == [as_decoded(text)]


def test_a_tokenizer_read_again_gives_the_same_tokens_and_texts(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(CASED.to_json(), encoding="utf-8")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert len(again) == len(CASED)
    assert again.encode(TEXTS) == CASED.encode(TEXTS)
    assert again.decode(again.encode(TEXTS)) == list(map(as_decoded, TEXTS))


def test_special_tokens_have_ids_0_1_2_and_the_vocabulary_is_as_large_as_asked() -> None:
    vocabulary = CASED.backend.get_vocab(with_added_tokens=True)
    assert [vocabulary[token] for token in ("<s>", "<pad>", "</s>")] == [0, 1, 2]
    assert len(CASED) == len(vocabulary) == 300
    assert sorted(vocabulary.values()) == list(range(300))


def test_small_data_gives_fewer_tokens_than_asked() -> None:
    assert MIN_VOCABULARY <= len(Tokenizer.train(["ab"], 5000)) < 270


def test_every_row_is_closed_by_one_end_token() -> None:
    for ids in CASED.encode(TEXTS):
        assert ids[-1] == 2
        assert not {0, 1, 2} & set(ids[:-1])


def test_special_tokens_written_in_a_text_stay_text() -> None:
    texts = ["a <s> b </s> c <pad>", "<s>", "</s></s>"]
    learned = Tokenizer.train(texts * 50, 1000)
    for tokenizer in (CASED, learned):
        rows = tokenizer.encode(texts)
        assert all(not {0, 1, 2} & set(ids[:-1]) for ids in rows)
        assert tokenizer.decode(rows) == texts


def test_special_ids_are_left_out_of_decoded_text_but_shown_as_tokens() -> None:
    ids = CASED.encode(["12 !"])[0]
    assert CASED.decode([[0, *ids, 1, 1]]) == ["12 !"]
    assert CASED.tokens([0, *ids, 1]) == ["<s>", "1", "2", " ", "!", "</s>", "<pad>"]


def test_digits_are_split_where_asked() -> None:
    numbers = ["a 1234 12"] * 50
    split, whole = (Tokenizer.train(numbers, 300, TokenizerConfig(split_digits=choice)) for choice in (True, False))
    assert split.tokens(split.encode(["1234 12"])[0]) == ["1", "2", "3", "4", " ", "1", "2", "</s>"]
    assert whole.tokens(whole.encode(["a 1234 12"])[0]) == ["a", " 1234", " 12", "</s>"]


@given(st.text(st.characters(codec="ascii")))
def test_lowercase_makes_case_invisible(text: str) -> None:
    assert LOWER.encode([text.upper()]) == LOWER.encode([text.lower()])


def test_lowercase_applies_to_every_script() -> None:
    texts = ["The DOGS", "ÜBUNG", "ПРИВЕТ", "我"]
    assert LOWER.decode(LOWER.encode(texts)) == ["the dogs", "übung", "привет", "我"]
    assert CASED.decode(CASED.encode(texts)) == texts


def test_composed_and_decomposed_letters_are_the_same_tokens() -> None:
    assert CASED.encode(["é"]) == CASED.encode(["e\u0301"])


def test_training_twice_gives_the_same_vocabulary() -> None:
    assert trained().to_json() == CASED.to_json()


def read_by_transformers(ours: Tokenizer, folder: Path) -> Any:
    from transformers import AutoTokenizer

    values = tokenizer_values(ours, 77, bos_token=0, eos_token=2, pad_token=1)
    (folder / "tokenizer.json").write_text(ours.to_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("ours", [CASED, LOWER, WHOLE_NUMBERS], ids=["cased", "lower", "whole numbers"])
def test_transformers_reads_the_same_tokens(tmp_path: Path, ours: Tokenizer) -> None:
    theirs = read_by_transformers(ours, tmp_path)
    rows = ours.encode(TEXTS)
    assert theirs(TEXTS)["input_ids"] == rows
    assert [theirs.decode(ids, skip_special_tokens=True).strip() for ids in rows] == ours.decode(rows)
    assert (theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id) == (0, 1, 2)
    assert theirs.model_max_length == 77


def test_special_tokens_written_in_a_text_stay_text_in_transformers(tmp_path: Path) -> None:
    theirs = read_by_transformers(CASED, tmp_path)
    texts = ["a <s> b </s> c <pad>", "<s>", "</s></s>"]
    assert theirs(texts)["input_ids"] == CASED.encode(texts)


@pytest.mark.parametrize("vocab_size", [1, MIN_VOCABULARY - 1])
def test_a_vocabulary_that_cannot_spell_every_byte_is_refused(vocab_size: int) -> None:
    with pytest.raises(DataError, match=rf"^vocab_size={vocab_size} must be at least 259 \(256 bytes, 3 special"):
        Tokenizer.train(["ab"], vocab_size)


def test_the_smallest_vocabulary_still_spells_everything() -> None:
    smallest = Tokenizer.train(["ab"], MIN_VOCABULARY)
    assert len(smallest) == MIN_VOCABULARY
    assert smallest.decode(smallest.encode(["你好"])) == ["你好"]


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelDirectoryError, match=r": no such file; a model directory needs its") as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "not json", CASED.to_json()[:-200]], ids=["empty", "{}", "[]", "text", "truncated"]
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ModelDirectoryError, match=r": not a tokenizer \(") as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(str(path))
