"""Pieces of words, as BERT's own tokenizer makes them, and the places they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfuse.data.wordpiece import WordPiece, WordPieceConfig
from transfuse.errors import DataError, ModelDirectoryError

TEXTS = [
    "The café naïvely served crème brûlée.",
    "你好世界，猫！",
    "full ｗｉｄｔｈ 🙂 emoji",
    "It's [MASK] time",
    "a\tb\u200b c",
]


@pytest.fixture(scope="module", params=[True, False])
def pieces(request: pytest.FixtureRequest) -> WordPiece:
    return WordPiece.train(TEXTS * 5, 150, WordPieceConfig(lowercase=request.param))


def test_as_bert_cuts(pieces: WordPiece, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    vocabulary = sorted(pieces.backend.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary), encoding="utf-8")
    lowercase = "lowercase=True" in str(pieces.backend.normalizer)
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    for text in TEXTS:
        if "[MASK]" not in text:  # which is text here, and a special token there
            assert pieces.encode([text])[0].ids == theirs(text)["input_ids"], text


def test_offsets_are_of_the_text_as_given(pieces: WordPiece) -> None:
    for text, one in zip(TEXTS, pieces.encode(TEXTS), strict=True):
        covered = [
            text[first:last] for (first, last), word in zip(one.offsets, one.words, strict=True) if word is not None
        ]
        assert "".join(covered) == "".join(c for c in text if not c.isspace() and c != "\u200b")
    (chinese,) = pieces.encode(["你好世界"])
    assert chinese.offsets[1:-1] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert chinese.words == [None, 0, 1, 2, 3, None]


def test_pairs_have_two_segments(pieces: WordPiece) -> None:
    (pair,) = pieces.encode(["café"], ["crème"])
    last = pair.ids.index(pieces.id_of("[SEP]"))
    assert set(pair.segments[: last + 1]) == {0} and set(pair.segments[last + 1 :]) == {1}
    assert pair.ids[-1] == pieces.id_of("[SEP]")


def test_special_tokens_in_a_text_are_text(pieces: WordPiece) -> None:
    (one,) = pieces.encode(["[SEP] [MASK]"])
    assert one.ids.count(pieces.id_of("[SEP]")) == 1 and pieces.id_of("[MASK]") not in one.ids


def test_a_file_there_and_back(pieces: WordPiece, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(pieces.to_json(), encoding="utf-8")
    assert [one.ids for one in WordPiece.load(tmp_path / "tokenizer.json").encode(TEXTS)] == [
        one.ids for one in pieces.encode(TEXTS)
    ]
    with pytest.raises(ModelDirectoryError, match="no such file"):
        WordPiece.load(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ModelDirectoryError, match="not a tokenizer"):
        WordPiece.load(tmp_path / "broken.json")


def test_a_vocabulary_of_another_kind_is_refused(tmp_path: Path) -> None:
    from transfuse.data.tokenizer import Tokenizer

    (tmp_path / "tokenizer.json").write_text(Tokenizer.train(TEXTS, 300).to_json(), encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=r"has no \[PAD\], \[CLS\], \[SEP\]"):
        WordPiece.load(tmp_path / "tokenizer.json")


def test_a_vocabulary_needs_more_than_special_tokens() -> None:
    with pytest.raises(DataError, match="vocab_size=5 must be above 5"):
        WordPiece.train(TEXTS, 5, WordPieceConfig())


def test_the_same_text_gives_the_same_vocabulary() -> None:
    several = [WordPiece.train(TEXTS * 5, 150, WordPieceConfig()).to_json() for _ in range(4)]
    assert len(set(several)) == 1


def test_a_vocabulary_has_at_most_its_size() -> None:
    hangul = [chr(0xAC00 + i) + chr(0xAC00 + (7 * i) % 900) + "." for i in range(900)]
    for texts, size in ((hangul, 300), (TEXTS, 40), (TEXTS, 6)):
        found = WordPiece.train([*texts, *["쐉쐉"] * 5], size, WordPieceConfig())
        assert size - 1 <= len(found) <= size
        assert found.to_json() == WordPiece.train([*texts, *["쐉쐉"] * 5], size, WordPieceConfig()).to_json()
    assert len(WordPiece.train(hangul, 5000, WordPieceConfig())) > 1800


@pytest.mark.parametrize("says", [{}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
def test_older_directories_have_a_list_of_pieces(pieces: WordPiece, says: dict, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    vocabulary = sorted(pieces.backend.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
    if says:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(says))
    found = WordPiece.load(tmp_path / "tokenizer.json")
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), **says)
    for text in TEXTS:
        if "[MASK]" not in text:
            assert found.encode([text])[0].ids == theirs(text)["input_ids"], text
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ModelDirectoryError, match=r"vocab\.txt: no \[PAD\], \[UNK\]"):
        WordPiece.load(tmp_path / "tokenizer.json")
