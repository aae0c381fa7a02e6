"""Documents from files of every kind, and the file of tokens they become."""

from __future__ import annotations

import copy
import gzip
import json
import lzma
import pickle
import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from transfuse.data import corpus as subject
from transfuse.data.corpus import Corpus, Texts, as_corpus
from transfuse.data.token_file import ABOUT, TokenFile
from transfuse.data.tokenizer import BOUNDARY, Tokenizer, TokenizerConfig
from transfuse.errors import CheckpointError, DataError

TEXT = "Ein Hund läuft.\n\nEr läuft weit.\n  Und weiter: 中文 🙂\n"


def documents(corpus: Corpus | Texts) -> list[str]:
    return ["".join(pieces) for pieces in corpus]


def test_files_and_folders_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(TEXT)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "n": 3}\n')
    (tmp_path / "a" / "d.md.gz").write_bytes(gzip.compress(b"three\n"))
    (tmp_path / "e.txt.xz").write_bytes(lzma.compress(b"four"))
    (tmp_path / "ignored.png").write_bytes(b"\x89PNG")
    whole = Corpus(tmp_path)
    assert documents(whole) == ["one", "two", "three\n", TEXT, "four\n"]
    assert documents(whole) == documents(whole)  # as often as one likes
    assert documents(Corpus([tmp_path / "b.txt", tmp_path / "a" / "c.jsonl"])) == [TEXT, "one", "two"]


def test_another_key(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"body": "one"}\n')
    assert documents(Corpus(tmp_path / "c.jsonl", key="body")) == ["one"]


def test_long_documents_come_in_pieces_cut_before_a_line_that_begins_with_a_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "PIECE", 10)
    (tmp_path / "a.txt").write_text(TEXT)
    pieces = [list(document) for document in Corpus(tmp_path / "a.txt")]
    assert pieces == [["Ein Hund läuft.\n\n", "Er läuft weit.\n  Und weiter: 中文 🙂\n"]]


def test_pieces_are_short_whatever_the_lines_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PIECE", 100)
    monkeypatch.setattr(subject, "LONGEST", 400)
    path, word = tmp_path / "a.txt", "wort und  mehr\t"
    tokenizer = Tokenizer.train_language([("wort" + " " * 37) * 9, TEXT], 300, TokenizerConfig())  # spaces are tokens
    for text in (
        "".join(f" = Zeile {i} =\n \n" for i in range(300)),  # as WikiText has it: no line begins with a letter
        word * 400 + "\n",
        ("wort" + " " * 37) * 200 + "\n",
        " " + word * 400 + "ende\nneu\n" + word * 90 + "\n",
        "x" * 5000 + "\n",
        "\n" * 3000,
    ):
        path.write_text(text)
        (pieces,) = (list(document) for document in Corpus(path))
        assert "".join(pieces) == text and max(map(len, pieces)) <= 500 and len(pieces) >= 5
        words = TokenFile.write(tmp_path / "tokens", Corpus(path), tokenizer, 0).sizes[0, 0] if text.strip() else 0
        assert words == len(text.split())
        if "xxx" not in text:  # where there are spaces nothing is cut that is one token
            whole = tokenizer.encode_plain([text])[0]
            assert [one for row in tokenizer.encode_plain(pieces) for one in row] == whole
            assert sum(len(piece.split()) for piece in pieces) == len(text.split())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "a.jsonl:2: expected an object with a string under 'text'"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: expected an object"),
        ("a.jsonl", b"nothing\n", "a.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1: text holds half a surrogate pair"),
        ("a.txt", b"fine\n\xff\n", "a.txt:2: byte 1 of the line is 0xff, which is not UTF-8"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "damaged or truncated"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        documents(Corpus(tmp_path / name))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: No such file"):
        documents(Corpus(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"no text in it; expected files that end in \.jsonl, \.md, \.text, \.txt"):
        Corpus(tmp_path)


def test_texts_in_memory() -> None:
    assert documents(as_corpus(["a", "b"])) == ["a", "b"]
    with pytest.raises(DataError, match=r"X\[1\]: the text is empty"):
        as_corpus(["a", " "])
    with pytest.raises(DataError, match="X is one string"):
        as_corpus("a")


@pytest.fixture(params=["bpe", "character"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train_language([TEXT], 300, TokenizerConfig(unit=request.param))


def test_a_language_tokenizer_spells_every_text_it_learned(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode([TEXT])
    assert ids[0] == tokenizer.id_of(BOUNDARY) == 0
    assert tokenizer.decode_exactly([ids]) == [TEXT]
    assert tokenizer.encode_plain([TEXT]) == [ids[1:]]
    assert 0 not in tokenizer.encode_plain([f"a {BOUNDARY} in a text"])[0]


def test_a_copied_tokenizer_reads_no_special_tokens_in_text(tokenizer: Tokenizer) -> None:
    text = f"ein {BOUNDARY} Hund"
    for copied in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer), copy.copy(tokenizer)):
        assert copied.encode([text]) == tokenizer.encode([text]) and copied.to_json() == tokenizer.to_json()


def test_a_token_file_holds_every_document_with_its_start(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["ein Hund", TEXT, "weit"]
    file = TokenFile.write(tmp_path / "tokens", Texts(texts), tokenizer, 0)
    rows = [file.tokens[a:b].tolist() for a, b in zip(file.starts, file.starts[1:], strict=False)]
    assert rows == tokenizer.encode(texts)
    assert isinstance(file.tokens, np.memmap)
    about = file.about
    assert (about.n_documents, about.n_tokens) == (3, sum(map(len, rows)))
    assert about.n_words == sum(len(text.split()) for text in texts)
    assert about.n_bytes == sum(len(text.encode()) for text in texts)
    assert file.sizes.tolist() == [[len(text.split()), len(text.encode())] for text in texts]
    again = TokenFile.write(tmp_path / "again", Texts(texts), tokenizer, 0)
    assert again.about == about
    other = TokenFile.write(tmp_path / "other", Texts(["ein Hund", TEXT + "weit"]), tokenizer, 0)
    assert other.about.fingerprint != about.fingerprint


def test_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT * 20)
    tokenizer = Tokenizer.train_language([TEXT], 300, TokenizerConfig())
    whole = TokenFile.write(tmp_path / "whole", Corpus(path), tokenizer, 0)
    monkeypatch.setattr(subject, "PIECE", 10)
    assert TokenFile.write(tmp_path / "pieces", Corpus(path), tokenizer, 0).about == whole.about


def test_empty_documents_are_left_out_and_an_empty_corpus_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_language([TEXT], 300, TokenizerConfig())
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "a"}\n')
    assert TokenFile.write(tmp_path / "tokens", Corpus(tmp_path / "a.jsonl"), tokenizer, 0).about.n_documents == 1
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(DataError, match="the corpus holds no text"):
        TokenFile.write(tmp_path / "tokens", Corpus(tmp_path / "b.txt"), tokenizer, 0)
    # what was there is still there
    assert json.loads((tmp_path / "tokens" / ABOUT).read_text())["n_documents"] == 1


def test_large_vocabularies_take_more_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train_language([TEXT], 300, TokenizerConfig())
    monkeypatch.setattr(Tokenizer, "__len__", lambda self: 70_000)
    file = TokenFile.write(tmp_path / "tokens", Texts([TEXT]), tokenizer, 0)
    assert file.tokens.dtype == np.uint32
    assert file.tokens.tolist() == tokenizer.encode([TEXT])[0]


def test_a_loaded_tokenizer_neither_cuts_nor_pads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.backend.enable_truncation(4)
    tokenizer.backend.enable_padding(length=50)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.decode_exactly(again.encode_plain([TEXT])) == [TEXT]
    assert len(again.encode_plain(["a"])[0]) <= 5


def test_what_follows_keeps_the_space_that_a_first_token_would_lose() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.WordLevel({"▁It": 0, "▁was": 1, "▁dark": 2}, unk_token="▁It"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode_exactly([[1, 2]]) == ["was dark"]
    assert tokenizer.decode_after([([0], [1, 2]), ([2, 0], [])]) == [" was dark", ""]


def test_paths_and_standard_input_are_no_documents() -> None:
    with pytest.raises(DataError, match=r"X is the path books; the documents of files are Corpus\('books'\)"):
        as_corpus(Path("books"))
    with pytest.raises(DataError, match="standard input cannot be; write it to a file"):
        Corpus("-")
    assert documents(as_corpus(["a" * 200_000])) == ["a" * 200_000]


def test_a_full_disk_is_named_and_leaves_what_was_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    before = TokenFile.write(tmp_path / "tokens", Texts([TEXT]), tokenizer, 0).about
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(CheckpointError, match=f"cannot write {tmp_path / 'tokens'}: File too large"):
            TokenFile.write(tmp_path / "tokens", Texts([TEXT * 100]), tokenizer, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert TokenFile(tmp_path / "tokens").about == before
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_long_words_do_not_cost_the_square_of_their_length() -> None:
    draw = random.Random(0)
    letters = [chr(0x4E00 + i) for i in range(500)]
    text = "".join(draw.choices(letters, k=40_000))
    began = time.perf_counter()
    short = Tokenizer.train([text[i : i + 100] for i in range(0, len(text), 100)], 900)
    middle = time.perf_counter()
    long = Tokenizer.train([text], 900)
    assert time.perf_counter() - middle < 4 * (middle - began) + 0.5  # it was thirty times
    (ids,) = long.encode([text])
    assert long.decode([ids]) == [text] and len(ids) < 1.1 * len(short.encode([text])[0])
    assert "Split" not in long.to_json()  # what is long is read as it is
