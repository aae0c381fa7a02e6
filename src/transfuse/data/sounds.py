"""Sounds as log-mel energies, as Kaldi computes them: a row of channels for every ten milliseconds.

Axes: N samples, T frames, M mel channels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import soundfile
import soxr

from transfuse.config import Config
from transfuse.data.regular_file import opened
from transfuse.errors import ConfigError, DataError

FULL_SCALE = 32_768
"""What a sample of 1.0 is to Kaldi: one of 16 bits. The floor under its logarithm then lies below any recording."""

RATES = (1_000, 768_000)
"""Sampling rates, in Hz, that a file may have."""

_BLOCK = 16_384
"""Samples of each channel that are decoded at a time."""

_UNKNOWN = 2**63 - 1
"""The length libsndfile gives a stream that does not say its own."""

_COMPLETE = 0.9
"""Part of the samples a file says it has that must be there; what an MP3 says is an estimate."""


@dataclass(frozen=True, kw_only=True)
class SoundConfig(Config):
    """How a clip becomes frames.

    `rate` in Hz is what clips are resampled to, `n_mels` the channels of a frame, `frame_ms` its length and `hop_ms`
    the time from one to the next. Of a clip longer than `max_seconds` only the beginning is read. With `level` each
    channel's mean over the clip is taken out, and with it how loud the clip is and what room and voice add throughout.
    """

    rate: int = 16_000
    n_mels: int = 80
    frame_ms: float = 25.0
    hop_ms: float = 10.0
    max_seconds: float = 30.0
    level: bool = True

    def __post_init__(self) -> None:
        self.check_types()
        self.check_finite("frame_ms", "hop_ms", "max_seconds")
        self.check_positive("rate", "n_mels", "frame_ms", "hop_ms", "max_seconds")
        if self.hop_ms > self.frame_ms:
            raise ConfigError(
                f"hop_ms={self.hop_ms} must not exceed frame_ms={self.frame_ms}; samples would be left out"
            )
        if self.hop_samples < 1:
            raise ConfigError(f"hop_ms={self.hop_ms} must be at least one sample at rate={self.rate}")
        try:
            _extractor(self)
        except (ValueError, RuntimeError) as error:
            asked = f"n_mels={self.n_mels}, frame_ms={self.frame_ms}, rate={self.rate}"
            raise ConfigError(f"{asked}: no such mel channels ({error})") from error

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return int(self.rate * 0.001 * self.hop_ms)


@dataclass(frozen=True, eq=False)
class Sound:
    """A clip: float32 (T, M) natural logarithms of mel energies, the seconds it lasts and those that were read."""

    frames_TM: np.ndarray
    seconds: float
    seconds_used: float


def read_sound(path: Path, config: SoundConfig) -> Sound:
    """The beginning of a sound file: channels averaged, resampled to `rate`, a frame centred every `hop_ms`.

    Any clip has at least one frame; less than a hop is filled up with silence. Samples are scaled so that 1.0 is
    `FULL_SCALE` whatever the file's own rate and depth. A WAV or Ogg file that was cut short is the clip still in it.

    Raises DataError for a file that is missing, empty, no sound, damaged, or holds samples that are not finite.
    """
    opened(path).close()
    try:
        return _read(path, config)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: not a sound libsndfile can read ({error.error_string.rstrip('.')})") from error
    except TypeError as error:  # what soundfile says to names that end in .raw
        raise DataError(f"{path}: samples without a header; convert them to WAV first") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A file read from beginning to end.

    After each read soundfile seeks to where it already is, which fails in a stream that does not say its length.
    """

    def seekable(self) -> bool:
        return False


def _read(path: Path, config: SoundConfig) -> Sound:
    with _Forward(os.fsencode(path)) as file:
        rate = file.samplerate
        if not RATES[0] <= rate <= RATES[1]:
            raise DataError(f"{rate} samples a second, expected {RATES[0]} to {RATES[1]}")
        limit = math.ceil(config.max_seconds * rate)
        samples_N = _mono(file, limit)
        n_stated = 0 if file.frames == _UNKNOWN else file.frames
    n_used = len(samples_N)
    if n_used < _COMPLETE * min(n_stated, limit):
        raise DataError(f"truncated: {n_stated / rate:.2f} s by its header, but it ends after {n_used / rate:.2f} s")
    if n_used == 0:
        raise DataError("no samples in it")
    if not np.isfinite(samples_N).all():
        raise DataError("some of its samples are infinite or not a number")
    n_whole = max(n_stated, n_used) if n_used == limit else n_used
    frames_TM = _log_mel(soxr.resample(samples_N, rate, config.rate), config)
    if not np.isfinite(frames_TM).all():
        raise DataError(f"samples up to {np.abs(samples_N).max():.3g}, expected -1 to 1")
    return Sound(frames_TM, n_whole / rate, n_used / rate)


def _mono(file: soundfile.SoundFile, limit: int) -> np.ndarray:
    """At most `limit` samples, the mean of the channels."""
    blocks = [np.empty(0, np.float32)]
    n_read = 0
    while n_read < limit:
        block = file.read(min(_BLOCK, limit - n_read), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        blocks.append(block.mean(axis=1))
        n_read += len(block)
    return np.concatenate(blocks)


def _log_mel(samples_N: np.ndarray, config: SoundConfig) -> np.ndarray:
    missing = max(0, config.hop_samples - len(samples_N))
    extractor = _extractor(config)
    extractor.accept_waveform(config.rate, np.pad(samples_N * np.float32(FULL_SCALE), (0, missing)))
    extractor.input_finished()
    return np.stack([extractor.get_frame(frame) for frame in range(extractor.num_frames_ready)])


def _extractor(config: SoundConfig) -> kaldi_native_fbank.OnlineFbank:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = config.rate
    options.frame_opts.frame_length_ms = config.frame_ms
    options.frame_opts.frame_shift_ms = config.hop_ms
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = config.n_mels
    return kaldi_native_fbank.OnlineFbank(options)
