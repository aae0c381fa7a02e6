"""WordPiece as BERT has it: words cut into the longest pieces a vocabulary holds, and where each stood in the text.

Text is cleaned, lower-cased and stripped of accents where `lowercase`, and every Chinese character is a word of its
own; offsets are of the text as it was given.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from transfuse.config import Config
from transfuse.errors import DataError, ModelDirectoryError

PAD, UNKNOWN, FIRST, LAST, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
"""The special tokens, with ids 0 to 4 in every vocabulary trained here."""

VOCABULARY = "vocab.txt"
"""What older directories have in place of a tokenizer.json."""


@dataclass(frozen=True, kw_only=True)
class WordPieceConfig(Config):
    """How text becomes pieces of words. `lowercase` also strips accents, as BERT's uncased vocabularies do."""

    lowercase: bool = True

    def __post_init__(self) -> None:
        self.check_types()


@dataclass(frozen=True)
class Pieces:
    """A text, or a pair of texts, as pieces: ids, which text each belongs to (0 or 1), its characters there
    (first, last + 1; (0, 0) for special tokens), and which word (None for special tokens)."""

    ids: Sequence[int]
    segments: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    words: Sequence[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, last: int) -> Pieces:
        """The pieces from place `first` to before `last`."""
        inside = slice(first, last)
        return Pieces(self.ids[inside], self.segments[inside], self.offsets[inside], self.words[inside])

    def bare(self) -> Pieces:
        """Ids and segments alone, in five bytes a piece: what a model reads."""
        return Pieces(array("i", self.ids), array("b", self.segments), (), ())


class WordPiece:
    """Text to pieces and back."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.encode_special_tokens = True  # a "[SEP]" in a user's text is text
        backend.no_truncation()  # a loaded file may ask for either
        backend.no_padding()
        self.backend = backend
        missing = [token for token in (PAD, FIRST, LAST) if backend.token_to_id(token) is None]
        if missing:
            raise ModelDirectoryError(f"the vocabulary has no {', '.join(missing)}; it is not one of BERT")

    def __reduce__(self) -> tuple[Any, ...]:
        # what is set above is not among what the library pickles
        return type(self).from_json, (self.backend.to_str(),)

    @classmethod
    def from_json(cls, content: str) -> WordPiece:
        """From the content of a `tokenizer.json`."""
        return cls(tokenizers.Tokenizer.from_str(content))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, config: WordPieceConfig) -> WordPiece:
        """Learn at most `vocab_size` pieces from `texts`; of more characters than fit, the most frequent."""
        special = [PAD, UNKNOWN, FIRST, LAST, MASK]
        if vocab_size <= len(special):
            raise DataError(f"vocab_size={vocab_size} must be above {len(special)}, the number of special tokens")
        learner = _backend(models.WordPiece(unk_token=UNKNOWN), config)
        known = list(texts)
        counts: Counter[str] = Counter()
        inside: set[str] = set()
        for text in known:
            for word in _words(learner, text):
                counts.update(word)
                inside.update(word[1:])
        alphabet, room = [], vocab_size - len(special)
        for character in sorted(counts, key=lambda one: (-counts[one], one)):
            room -= 1 + (character in inside)  # by itself, and as a piece inside a word
            if room < 0:
                break
            alphabet.append(character)
        # the trainer numbers pieces inside words as it meets them, in another order every time; so they come first
        inner = sorted(f"##{character}" for character in alphabet if character in inside)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=special + inner,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        learner.train_from_iterator(known, trainer)
        backend = _backend(models.WordPiece(learner.get_vocab(), unk_token=UNKNOWN), config)
        backend.add_special_tokens(special)
        first, last = ((token, special.index(token)) for token in (FIRST, LAST))
        backend.post_processor = processors.BertProcessing(last, first)
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> WordPiece:
        """Read a `tokenizer.json`, or where there is none the `vocab.txt` beside it, which older directories have.

        Raises ModelDirectoryError if it is missing, damaged or not BERT's.
        """
        old = path.with_name(VOCABULARY)
        if not path.is_file() and not old.is_file():
            raise ModelDirectoryError(f"{path}: no such file; a model directory needs its tokenizer.json or vocab.txt")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path)) if path.is_file() else _from_vocabulary(old)
        except ModelDirectoryError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise ModelDirectoryError(f"{path if path.is_file() else old}: not a tokenizer ({error})") from error
        try:
            return cls(backend)
        except ModelDirectoryError as error:
            raise ModelDirectoryError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """The content of `tokenizer.json`, readable by `transformers`."""
        return str(self.backend.to_str(pretty=True))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def unknown_id(self) -> int:
        """The id of what the vocabulary has no pieces for; -1 where it has none."""
        found = self.backend.token_to_id(UNKNOWN)
        return -1 if found is None else int(found)

    def id_of(self, token: str) -> int:
        """The id of a token. Raises ModelDirectoryError if the vocabulary does not have it."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise ModelDirectoryError(f"the vocabulary has no {token}")
        return int(found)

    def encode(self, texts: Sequence[str], seconds: Sequence[str] | None = None) -> list[Pieces]:
        """Pieces of each text, or of each with its second, between [CLS] and [SEP]."""
        rows = list(texts) if seconds is None else list(zip(texts, seconds, strict=True))
        return _pieces(self.backend.encode_batch(rows))

    def encode_words(self, rows: Sequence[Sequence[str]]) -> list[Pieces]:
        """Pieces of texts that are words already, without [CLS] and [SEP]; offsets are those inside each word."""
        return _pieces(self.backend.encode_batch(rows, is_pretokenized=True, add_special_tokens=False))

    def encode_bare(self, texts: Sequence[str]) -> list[Pieces]:
        """Pieces of each text without [CLS] and [SEP]."""
        return _pieces(self.backend.encode_batch(list(texts), add_special_tokens=False))

    def join(self, *parts: Pieces) -> Pieces:
        """One or two bare texts between [CLS] and [SEP], as `encode` gives them."""
        ids, segments = [self.id_of(FIRST)], [0]
        offsets: list[tuple[int, int]] = [(0, 0)]
        words: list[int | None] = [None]
        for number, part in enumerate(parts):
            ids += [*part.ids, self.id_of(LAST)]
            segments += [number] * (len(part) + 1)
            offsets += [*part.offsets, (0, 0)]
            words += [*part.words, None]
        return Pieces(ids, segments, offsets, words)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone."""
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def token(self, piece: int) -> str:
        """The piece with this id."""
        return str(self.backend.id_to_token(piece))


def _backend(model: models.WordPiece, config: WordPieceConfig) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _from_vocabulary(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer of a vocab.txt, a piece a line, as tokenizer_config.json beside it wants it."""
    says = (
        json.loads(beside.read_text("utf-8")) if (beside := path.with_name("tokenizer_config.json")).is_file() else {}
    )
    pieces = path.read_text("utf-8").removesuffix("\n").split("\n")  # other line ends may be a piece
    missing = [token for token in (PAD, UNKNOWN, FIRST, LAST, MASK) if token not in pieces]
    if missing:
        raise ModelDirectoryError(f"{path}: no {', '.join(missing)} in it; it is not a vocabulary of BERT")
    numbers = {piece: number for number, piece in enumerate(pieces)}
    backend = _backend(models.WordPiece(numbers, unk_token=UNKNOWN), WordPieceConfig())
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=says.get("do_lower_case", True),
        strip_accents=says.get("strip_accents"),
        handle_chinese_chars=says.get("tokenize_chinese_chars", True),
    )
    backend.add_special_tokens([PAD, UNKNOWN, FIRST, LAST, MASK])
    backend.post_processor = processors.BertProcessing((LAST, numbers[LAST]), (FIRST, numbers[FIRST]))
    return backend


def word_places(text: str) -> list[tuple[int, int]]:
    """Where each word of a text stands: what lies between spaces, punctuation marks and Chinese characters each by
    themselves."""
    return list(_SPLITTER.encode(text).offsets)


def _pieces(encoded: Iterable[tokenizers.Encoding]) -> list[Pieces]:
    return [Pieces(found.ids, found.type_ids, found.offsets, found.word_ids) for found in encoded]


def _words(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    normal = backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


_SPLITTER = _backend(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN), WordPieceConfig(lowercase=False))
"""Knows no word, so that each is one piece."""
