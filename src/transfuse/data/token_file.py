"""A corpus as token ids in one file, read through a memory map, so that its size is the disk's affair."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfuse.data.tokenizer import Tokenizer
from transfuse.durable import flush_folder
from transfuse.errors import CheckpointError, DataError

TOKENS, STARTS, SIZES, ABOUT = "tokens.bin", "starts.npy", "sizes.npy", "about.json"
AT_A_TIME = 64
"""Pieces of text that are encoded together."""


@dataclass(frozen=True)
class TokenStatistics:
    """What a token file holds. `n_words` counts stretches without white space, `n_bytes` UTF-8."""

    n_documents: int
    n_tokens: int
    n_words: int
    n_bytes: int
    dtype: str
    fingerprint: str


class TextSize:
    """Words (stretches without white space) and UTF-8 bytes of a text that comes in pieces."""

    def __init__(self) -> None:
        self.n_words = self.n_bytes = 0
        self._inside = False  # a word that goes on in the next piece

    def add(self, text: str) -> None:
        """The next piece."""
        self.n_words += len(text.split()) - (self._inside and not text[:1].isspace())
        self.n_bytes += len(text.encode())
        self._inside = bool(text[-1:].strip())


class TokenFile:
    """Token ids of documents one after another, each document begun by its start token.

    `tokens` is a read-only memory map, `starts` the place of each document's first token and, last, the end, `sizes`
    (documents, 2) words and bytes of each.
    """

    def __init__(self, folder: Path) -> None:
        self.about = TokenStatistics(**json.loads((folder / ABOUT).read_text()))
        self.tokens: np.ndarray = np.memmap(folder / TOKENS, dtype=self.about.dtype, mode="r")
        self.starts: np.ndarray = np.load(folder / STARTS)
        self.sizes: np.ndarray = np.load(folder / SIZES)

    @classmethod
    def write(cls, folder: Path, documents: Iterable[Iterator[str]], tokenizer: Tokenizer, start_id: int) -> TokenFile:
        """Encode `documents` into `folder`, whole or not at all. Empty documents are left out; raises DataError if
        nothing is left, CheckpointError if the disk refuses."""
        try:
            return cls._write(folder, documents, tokenizer, start_id)
        except OSError as error:
            shutil.rmtree(_stage(folder), ignore_errors=True)
            raise CheckpointError(f"cannot write {folder}: {error.strerror or error}") from error

    @classmethod
    def _write(cls, folder: Path, documents: Iterable[Iterator[str]], tokenizer: Tokenizer, start_id: int) -> TokenFile:
        stage = _stage(folder)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        starts, sizes, n_tokens = [0], [], 0
        digest = hashlib.sha256()
        with (stage / TOKENS).open("wb") as stream:
            for pieces in documents:
                first, size = True, TextSize()
                for batch in _batches(pieces):
                    for text in batch:
                        size.add(text)
                    rows = tokenizer.encode_plain(batch)
                    content = np.concatenate([np.asarray(row, dtype) for row in ([start_id] * first, *rows)]).tobytes()
                    first = False
                    stream.write(content)
                    digest.update(content)
                    n_tokens += len(content) // dtype.itemsize
                if not first:
                    starts.append(n_tokens)
                    sizes.append((size.n_words, size.n_bytes))
        if not n_tokens:
            raise DataError("the corpus holds no text")
        np.save(stage / STARTS, np.array(starts, dtype=np.int64))
        np.save(stage / SIZES, np.array(sizes, dtype=np.int64))
        n_words, n_bytes = np.sum(sizes, axis=0).tolist()
        fingerprint = hashlib.sha256(digest.digest() + np.array(starts).tobytes()).hexdigest()
        about = TokenStatistics(len(starts) - 1, n_tokens, n_words, n_bytes, dtype.name, fingerprint)
        (stage / ABOUT).write_text(json.dumps(asdict(about), indent=2))
        flush_folder(stage)
        shutil.rmtree(folder, ignore_errors=True)
        stage.rename(folder)
        return cls(folder)


def _stage(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}")


def _batches(pieces: Iterator[str]) -> Iterator[list[Any]]:
    """Pieces that are not empty, some at a time."""
    real = (piece for piece in pieces if piece)
    while batch := list(itertools.islice(real, AT_A_TIME)):
        yield batch
