"""Rows of a table, whatever its columns hold, as modalities: what is learned of training rows, and its use on any.

All text columns together are one modality, their pieces one after another between [CLS] and [SEP]s; all numbers,
categories and dates are another; every column of images, and every one of sounds, is one by itself.

Shapes: N rows, M bands, C channels, S pixels a side.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transfuse.data.columns import Kind, as_paths, as_strings, names_of
from transfuse.data.decoding import Unreadable, decode
from transfuse.data.features import FeatureForm
from transfuse.data.images import ImageConfig
from transfuse.data.modalities import Images, Modality, Sounds, Table, Texts
from transfuse.data.sounds import SoundConfig
from transfuse.data.wordpiece import FIRST, LAST, PAD, WordPiece
from transfuse.errors import CheckpointError

TEXT, TABLE = "text", "table"
"""Names of the modalities that columns share; a column of images or sounds gives its own."""


@dataclass(frozen=True)
class Failure:
    """A file that could not be read: where its name stands (rows from 0), and why."""

    row: int
    column: str
    reason: str


@dataclass(frozen=True)
class Media:
    """Files of all rows as they were read: of image columns pixels (N, C, S, S) and which rows have them, of sound
    columns all frames (frames, M) and where each row's begin (N + 1). `cut` is how many sounds were longer than is read
    of them."""

    images: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    sounds: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    cut: int = 0


def read_media(
    frame: pd.DataFrame,
    kinds: Mapping[str, Kind],
    files: Path,
    images: ImageConfig,
    sounds: SoundConfig,
    scratch: Path | None = None,
) -> Media:
    """Read every file that `frame` names, relative to `files`, in other processes. Pixels and frames are kept in files
    under `scratch` where it is given (without a name, which end with their use), else in memory."""
    media = Media()
    cut = 0
    for number, name in enumerate(names_of(kinds, "image")):
        shape = (len(frame), images.channels, images.size, images.size)
        if scratch is None:
            pixels = np.zeros(shape, np.uint8)
        else:
            path = scratch / f"images-{number}.npy"
            pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            path.unlink()
        present = np.zeros(len(frame), bool)
        for row, found in _decoded(frame, name, files, images, media.failures):
            pixels[row], present[row] = found, True
        media.images[name] = pixels, present
    for name in names_of(kinds, "audio"):
        lengths = np.zeros(len(frame), np.int64)
        with _Frames(sounds.n_mels, scratch) as kept:
            for row, found in _decoded(frame, name, files, sounds, media.failures):
                kept.add(found.frames_TM - found.frames_TM.mean(0) if sounds.level else found.frames_TM)
                lengths[row] = len(found.frames_TM)
                cut += found.seconds_used < found.seconds
            media.sounds[name] = kept.all(), np.concatenate([[0], np.cumsum(lengths)])
    media.failures.sort(key=lambda failure: (failure.row, failure.column))
    return Media(media.images, media.sounds, media.failures, cut)


class _Frames:
    """Frames of one sound after another, in memory or in a file without a name, which ends with its use.

    Raises CheckpointError naming the folder if the disk refuses.
    """

    def __init__(self, n_bands: int, scratch: Path | None) -> None:
        self.n_bands, self._scratch = n_bands, scratch
        self._n, self._parts = 0, [np.zeros((0, n_bands), np.float32)]

    def __enter__(self) -> _Frames:
        self._file = None
        if self._scratch is not None:
            self._file = self._tried(lambda: tempfile.TemporaryFile(dir=self._scratch))  # noqa: SIM115, closed on leaving
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of what is left to write after an error, or of nothing
                self._file.close()

    def add(self, frames_TM: np.ndarray) -> None:
        """One sound more."""
        self._n += len(frames_TM)
        if self._file is None:
            self._parts.append(frames_TM)
            return
        file, content = self._file, np.ascontiguousarray(frames_TM, np.float32).data
        self._tried(lambda: file.write(content))

    def all(self) -> np.ndarray:
        """All of them, (frames, M)."""
        if self._file is None or not self._n:
            return np.concatenate(self._parts)
        self._tried(self._file.flush)
        return np.memmap(self._file, np.float32, "r", shape=(self._n, self.n_bands))

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OSError as error:
            raise CheckpointError(f"cannot keep sounds in {self._scratch}: {error.strerror or error}") from error


@dataclass(frozen=True)
class RowForm:
    """What was learned of training rows, which makes modalities of any rows.

    `bands` has mean and deviation of every sound column's bands. `longest` bounds a row's pieces, `n_segments` is how
    many kinds of pieces the text tower tells apart. `image_tokens` and `frames_a_token` are what towers make of inputs.
    """

    kinds: dict[str, Kind]
    features: FeatureForm
    bands: dict[str, tuple[list[float], list[float]]]
    tokenizer: WordPiece | None
    longest: int = 256
    n_segments: int = 2
    image_tokens: int = 1
    frames_a_token: int = 4

    @property
    def names(self) -> list[str]:
        """Modalities, in the order that models have them."""
        return modality_names(self.kinds)

    @property
    def columns_of(self) -> dict[str, list[str]]:
        """The columns of each modality."""
        return columns_of(self.kinds)

    def modality(self, name: str, frame: pd.DataFrame, media: Media) -> Modality:
        """One modality of rows. Raises DataError for a cell that is not of its column's kind."""
        columns = self.columns_of[name]
        kind = self.kinds[columns[0]]
        if kind == "text":
            return self._texts(frame, columns)
        if kind == "image":
            return Images(*media.images[columns[0]], self.image_tokens)
        return self._sounds(columns[0], media) if kind == "audio" else Table(self.features.encode(frame))

    def _texts(self, frame: pd.DataFrame, columns: Sequence[str]) -> Texts:
        assert self.tokenizer is not None
        texts = [as_strings(frame[name]) for name in columns]
        encoded = [self.tokenizer.encode_plain([text or "" for text in column]) for column in texts]
        ids, segments, cut = [], [], 0
        for parts in zip(*encoded, strict=True):
            kept = _shortened([len(part) for part in parts], self.longest - 1)
            cut += sum(kept) < sum(map(len, parts))
            one, kinds = [self.tokenizer.id_of(FIRST)], [0]
            for number, (part, length) in enumerate(zip(parts, kept, strict=True)):
                if length:
                    one += [*part[:length], self.tokenizer.id_of(LAST)]
                    kinds += [min(number, self.n_segments - 1)] * (length + 1)
            there = len(one) > 1
            ids.append(np.array(one if there else [], np.int32))
            segments.append(np.array(kinds if there else [], np.int32))
        return Texts(ids, segments, self.tokenizer.id_of(PAD), cut)

    def _sounds(self, name: str, media: Media) -> Sounds:
        frames, starts = media.sounds[name]
        mean, scale = (np.array(one, np.float32) for one in self.bands[name])
        return Sounds(frames, starts, self.frames_a_token, mean, scale)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, but for the tokenizer."""
        values = vars(self) | {"features": self.features.to_dict()}
        return {name: value for name, value in values.items() if name != "tokenizer"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], tokenizer: WordPiece | None) -> RowForm:
        """The form that `to_dict` wrote."""
        features = FeatureForm.from_dict(values["features"])
        return cls(**{**values, "features": features}, tokenizer=tokenizer)


def columns_of(kinds: Mapping[str, Kind]) -> dict[str, list[str]]:
    """The columns of each modality, in the order that models have them."""
    found = {}
    if texts := names_of(kinds, "text"):
        found[TEXT] = texts
    if cells := names_of(kinds, "number", "category", "date"):
        found[TABLE] = cells
    for kind in ("image", "audio"):
        for name in names_of(kinds, kind):
            found[f"{name} ({kind})" if name in (TEXT, TABLE) else name] = [name]
    return found


def modality_names(kinds: Mapping[str, Kind]) -> list[str]:
    """Names of the modalities that columns of these kinds make."""
    return list(columns_of(kinds))


def band_statistics(media: Media, rows: np.ndarray) -> dict[str, tuple[list[float], list[float]]]:
    """Mean and deviation of each sound column's bands in these rows; deviations of at least 0.001."""
    found = {}
    for name, (frames, starts) in media.sounds.items():
        n, total, squares = 0, np.zeros(frames.shape[1]), np.zeros(frames.shape[1])
        for row in rows:
            own = frames[starts[row] : starts[row + 1]].astype(np.float64)
            n, total, squares = n + len(own), total + own.sum(0), squares + (own**2).sum(0)
        mean = total / max(n, 1)
        scale = np.sqrt(np.maximum(squares / max(n, 1) - mean**2, 1e-6))
        found[name] = mean.tolist(), scale.tolist()
    return found


def _decoded(
    frame: pd.DataFrame, name: str, files: Path, config: ImageConfig | SoundConfig, failures: list[Failure]
) -> Any:
    """(row, what was read) of every file of a column that could be; the others go to `failures`."""
    paths, refused = as_paths(frame[name], files)
    failures.extend(Failure(row, name, reason) for row, reason in refused.items())
    for row, found in enumerate(decode(paths, config)):
        if isinstance(found, Unreadable):
            failures.append(Failure(row, name, f"{frame[name].iloc[row]}: {found.reason}"))
        elif found is not None:
            yield row, found


def _shortened(lengths: list[int], room: int) -> list[int]:
    """Lengths cut until they fit into `room` with one more each where there is any: the longest first."""
    lengths = list(lengths)
    while (over := sum(lengths) + sum(length > 0 for length in lengths) - room) > 0:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        second = max((length for i, length in enumerate(lengths) if i != longest), default=0)
        lengths[longest] -= min(over, max(1, lengths[longest] - second))
    return lengths
