"""Byte-level BPE trained on the user's own text, any script, over the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from transfuse.config import Config
from transfuse.errors import DataError, ModelDirectoryError

START, PAD, END = "<s>", "<pad>", "</s>"
"""The special tokens, with ids 0, 1 and 2 in every vocabulary trained here."""

SPECIAL_IDS = {"start_id": 0, "pad_id": 1, "end_id": 2}
"""Their ids, by the names a model's config has for them."""

MIN_VOCABULARY = 3 + 256
"""Special tokens and bytes: below this a byte-level vocabulary cannot spell every text."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Config):
    """How text is prepared before BPE. `split_digits` gives every digit a token of its own, so numbers never seen whole
    can still be read and written."""

    lowercase: bool = False
    split_digits: bool = True

    def __post_init__(self) -> None:
        self.check_types()


class Tokenizer:
    """Text to token ids and back. Every byte has a token, so no text is unreadable and every output is text."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # an "<s>" in a user's text is text, not the start of a sequence
        backend.encode_special_tokens = True
        self.backend = backend

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, config: TokenizerConfig | None = None) -> Tokenizer:
        """Learn at most `vocab_size` tokens (fewer if the text has fewer distinct pairs) from `texts`."""
        config = config or TokenizerConfig()
        if vocab_size < MIN_VOCABULARY:
            raise DataError(f"vocab_size={vocab_size} must be at least {MIN_VOCABULARY} (256 bytes, 3 special tokens)")
        backend = tokenizers.Tokenizer(models.BPE())
        steps: list[normalizers.Normalizer] = [normalizers.NFC()]
        backend.normalizer = normalizers.Sequence(steps + [normalizers.Lowercase()] * config.lowercase)
        digits = [pre_tokenizers.Digits(individual_digits=True)] * config.split_digits
        backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[START, PAD, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        end = backend.token_to_id(END)
        backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
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

    def normalize(self, text: str) -> str:
        """The text as the vocabulary sees it: NFC, lower-case where so learned."""
        normalizer = self.backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, closed by the end token."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of the ids, special tokens left out."""
        return [text.strip() for text in self.backend.decode_batch([list(row) for row in ids])]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself, for display."""
        return [self.backend.decode([i], skip_special_tokens=False) for i in ids]
