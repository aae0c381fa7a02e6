"""Byte-level BPE, or characters, learned from the user's own text, any script, over the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from transfuse.config import Config
from transfuse.errors import DataError, ModelDirectoryError

START, PAD, END = "<s>", "<pad>", "</s>"
"""The special tokens, with ids 0, 1 and 2 in every vocabulary trained here."""

SPECIAL_IDS = {"start_id": 0, "pad_id": 1, "end_id": 2}
"""Their ids, by the names a model's config has for them."""

BOUNDARY, UNKNOWN = "<|endoftext|>", "<unk>"
"""The special tokens of a language model: what stands before and after a text (id 0), and, where tokens are
characters, what stands for one that was never seen (id 1)."""

REPLACEMENT, UNFINISHED = "\ufffd", 3
"""What stands for bytes that are no character, and the most bytes that an unfinished one has."""

LONGEST_WORD = 256
"""Characters without white space between them that a vocabulary is learned from together."""

MIN_VOCABULARY = 3 + 256
"""Special tokens and bytes: below this a byte-level vocabulary cannot spell every text."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Config):
    """How text becomes tokens. `unit` is byte-level "bpe", or "character" (language models only). `split_digits` gives
    every digit a token of its own, so numbers never seen whole can still be read and written."""

    lowercase: bool = False
    split_digits: bool = True
    unit: Literal["bpe", "character"] = "bpe"

    def __post_init__(self) -> None:
        self.check_types()


class Tokenizer:
    """Text to token ids and back. Every byte has a token, so no text is unreadable and every output is text."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # an "<s>" in a user's text is text, not the start of a sequence
        backend.encode_special_tokens = True
        backend.no_truncation()  # a loaded file may ask for either
        backend.no_padding()
        self.backend = backend

    def __reduce__(self) -> tuple[Any, ...]:
        # what is set above is not among what the library pickles
        return type(self).from_json, (self.backend.to_str(),)

    @classmethod
    def from_json(cls, content: str) -> Tokenizer:
        """From the content of a `tokenizer.json`."""
        return cls(tokenizers.Tokenizer.from_str(content))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, config: TokenizerConfig | None = None) -> Tokenizer:
        """Learn at most `vocab_size` tokens (fewer if the text has fewer distinct pairs) from `texts`."""
        config = config or TokenizerConfig()
        if config.unit != "bpe":
            raise DataError(f"unit={config.unit!r} is for language models; pairs need 'bpe'")
        backend = _train_bpe(texts, vocab_size, config, [START, PAD, END])
        end = backend.token_to_id(END)
        backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
        return cls(backend)

    @classmethod
    def train_language(cls, texts: Iterable[str], vocab_size: int, config: TokenizerConfig) -> Tokenizer:
        """Learn at most `vocab_size` tokens for a language model: `BOUNDARY` stands before every text."""
        if config.unit == "bpe":
            backend = _train_bpe(texts, vocab_size, config, [BOUNDARY])
        else:
            backend = _train_characters(texts, vocab_size, config)
        boundary = backend.token_to_id(BOUNDARY)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, boundary)]
        )
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`. Raises ModelDirectoryError if it is missing or damaged."""
        if not path.is_file():
            raise ModelDirectoryError(f"{path}: no such file; a model directory needs its tokenizer.json")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ModelDirectoryError(f"{path}: not a tokenizer ({error})") from error

    def to_json(self) -> str:
        """The content of `tokenizer.json`, readable by `transformers`."""
        return self.backend.to_str(pretty=True)

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int:
        """The id of a token that the vocabulary has."""
        found = self.backend.token_to_id(token)
        assert found is not None, f"{token} is not in the vocabulary"
        return int(found)

    def normalize(self, text: str) -> str:
        """The text as the vocabulary sees it: NFC, lower-case where so learned."""
        normalizer = self.backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, closed by the end token."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts))]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone, without what the vocabulary puts before or after."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of the ids, special tokens left out."""
        return [text.strip() for text in self.decode_exactly(ids)]

    def decode_after(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str]:
        """The text that ids add to those (one at least) that they follow, for (earlier, ids) rows; a character that its
        last ids leave unfinished is one replacement character."""
        # some vocabularies drop the space of a text's first token, so each text is decoded from the token before it
        earlier = self.decode_exactly([before[-1:] for before, _ in rows])
        whole = [self._decode_unfinished([before[-1], *ids]) for before, ids in rows]
        return [text[len(start) :] for start, text in zip(earlier, whole, strict=True)]

    def _decode_unfinished(self, ids: Sequence[int]) -> str:
        """Where bytes are tokens, the library gives up on all bytes in a row if the last of them are no character."""
        (text,) = self.decode_exactly([ids])
        for n in range(1, min(UNFINISHED, len(ids) - 1) + 1):
            if not text.endswith(REPLACEMENT):
                break
            (shorter,) = self.decode_exactly([ids[:-n]])
            if not shorter.endswith(REPLACEMENT):
                return shorter + REPLACEMENT
        return text

    def decode_exactly(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """`decode` with the spaces at both ends left on."""
        return self.backend.decode_batch([list(row) for row in ids])

    @property
    def special(self) -> list[str]:
        """Tokens that mark something, and that no text is read as."""
        return [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself, for display."""
        return [self.backend.decode([i], skip_special_tokens=False) for i in ids]


def _train_bpe(
    texts: Iterable[str], vocab_size: int, config: TokenizerConfig, special: list[str]
) -> tokenizers.Tokenizer:
    smallest = MIN_VOCABULARY - 3 + len(special)
    if vocab_size < smallest:
        raise DataError(
            f"vocab_size={vocab_size} must be at least {smallest} (256 bytes, {len(special)} special tokens)"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = _normalizer(config)
    digits = [pre_tokenizers.Digits(individual_digits=True)] * config.split_digits
    backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # pairs are counted again and again in whole words, however long: only training sees long ones in parts
    plain = backend.pre_tokenizer
    short = pre_tokenizers.Split(Regex(rf"\S{{{LONGEST_WORD}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([short, *digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.train_from_iterator(texts, trainer)
    backend.pre_tokenizer = plain
    return backend


def _train_characters(texts: Iterable[str], vocab_size: int, config: TokenizerConfig) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.normalizer = _normalizer(config)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=[BOUNDARY, UNKNOWN], show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def _normalizer(config: TokenizerConfig) -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), *[normalizers.Lowercase()] * config.lowercase])
