"""Clips as log-mel energies, against a textbook computation; every rate, depth and length; what is refused."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from transfuse.data.sounds import FULL_SCALE, Sound, SoundConfig, read_sound
from transfuse.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
QUIET = float(np.log(np.finfo(np.float32).eps))
"""The logarithm of no energy."""


def written(path: Path, samples: np.ndarray, rate: int = 16_000, **options: Any) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def read(path: Path, **settings: Any) -> Sound:
    return read_sound(path, SoundConfig(**settings))


def complaint(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_sound(path, SoundConfig(**settings))
    return str(caught.value)


def sine(hertz: float, rate: int, seconds: float = 1.0, height: float = 0.5) -> np.ndarray:
    return height * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def mel(hertz: Any) -> Any:
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def triangles(n_mels: int, n_bins: int, rate: int) -> np.ndarray:
    """Weights (n_mels, n_bins) of triangles that overlap by half, evenly spaced in mels from 20 Hz to half the rate."""
    corners = np.linspace(mel(20), mel(rate / 2), n_mels + 2)[:, None]
    bins = mel(np.arange(n_bins) * rate / (2 * n_bins))
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    return np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))


def textbook(samples: np.ndarray, rate: int, n_mels: int, frame_ms: float, hop_ms: float) -> np.ndarray:
    """Log-mel energies as Kaldi defines them, one frame at a time; reflected at both ends of the clip."""
    frame, hop = int(rate * frame_ms / 1000), int(rate * hop_ms / 1000)
    padded = np.pad(samples * 32_768.0, frame, mode="symmetric")
    width = 1 << (frame - 1).bit_length()
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / (frame - 1))) ** 0.85
    rows = []
    for number in range((len(samples) + hop // 2) // hop):
        begin = frame + number * hop + hop // 2 - frame // 2
        part = padded[begin : begin + frame]
        part = part - part.mean()
        part = part - 0.97 * np.concatenate([part[:1], part[:-1]])
        power = np.abs(np.fft.rfft(part * window, width)) ** 2
        energies = triangles(n_mels, width // 2, rate) @ power[:-1]
        rows.append(np.log(np.maximum(energies, np.finfo(np.float32).eps)))
    return np.array(rows)


# what a frame holds


@pytest.mark.parametrize(
    ("rate", "n_mels", "frame_ms", "hop_ms"),
    [(16_000, 80, 25.0, 10.0), (8_000, 23, 25.0, 10.0), (11_025, 31, 32.0, 7.0)],
)
def test_frames_are_those_of_the_textbook(
    tmp_path: Path, rate: int, n_mels: int, frame_ms: float, hop_ms: float
) -> None:
    noise = 0.1 * RNG.normal(size=rate // 3)
    path = written(tmp_path / "a.wav", noise, rate, subtype="FLOAT")
    sound = read(path, rate=rate, n_mels=n_mels, frame_ms=frame_ms, hop_ms=hop_ms)
    expected = textbook(noise, rate, n_mels, frame_ms, hop_ms)
    assert sound.frames_TM.dtype == np.float32 and sound.frames_TM.shape == expected.shape
    assert np.abs(sound.frames_TM - expected).max() < 0.01


@pytest.mark.parametrize("hertz", [300, 1000, 3100])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
def test_a_tone_peaks_in_its_channel(tmp_path: Path, hertz: float, rate: int) -> None:
    centres = np.linspace(mel(20), mel(8000), 82)[1:-1]
    frames_TM = read(written(tmp_path / "a.wav", sine(hertz, rate), rate)).frames_TM
    peaks = frames_TM[5:-5].argmax(1)
    # to the nearest centre, or beside it where the transform's own steps are wider than a channel
    assert (np.abs(peaks - np.abs(centres - mel(hertz)).argmin()) <= 1).all()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_a_clip_sounds_the_same_at_every_rate(tmp_path: Path, rate: int) -> None:
    def tones(rate: int) -> np.ndarray:
        return sine(440, rate) + sine(1000, rate, height=0.25) + sine(2700, rate, height=0.125)

    expected_TM = read(written(tmp_path / "expected.wav", tones(16_000), subtype="FLOAT")).frames_TM[5:-5]
    found_TM = read(written(tmp_path / "found.wav", tones(rate), rate, subtype="FLOAT")).frames_TM[5:-5]
    loud = expected_TM > expected_TM.max() - 8
    assert loud.sum() > 500
    assert np.abs(found_TM - expected_TM)[loud].max() < 0.02


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    both = RNG.normal(size=(9_000, 2)).clip(-1, 1) / 2
    stereo = read(written(tmp_path / "stereo.wav", both, subtype="FLOAT"))
    mono = read(written(tmp_path / "mono.wav", both.mean(1), subtype="FLOAT"))
    np.testing.assert_allclose(stereo.frames_TM, mono.frames_TM, atol=1e-3)
    silent = read(written(tmp_path / "opposite.wav", np.stack([both[:, 0], -both[:, 0]], 1), subtype="FLOAT"))
    assert silent.frames_TM.max() == pytest.approx(QUIET)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_the_depth_of_a_file_does_not_change_its_loudness(tmp_path: Path, subtype: str) -> None:
    noise = RNG.integers(-9999, 9999, 5_000) / FULL_SCALE
    frames_TM = read(written(tmp_path / "a.wav", noise, subtype=subtype)).frames_TM
    np.testing.assert_allclose(
        frames_TM, read(written(tmp_path / "b.wav", noise, subtype="FLOAT")).frames_TM, atol=1e-4
    )


def test_half_as_loud_is_two_logarithms_of_two_less(tmp_path: Path) -> None:
    noise = 0.1 * RNG.normal(size=5_000)
    loud, soft = (read(written(tmp_path / "a.wav", part, subtype="FLOAT")).frames_TM for part in [noise, noise / 2])
    np.testing.assert_allclose(loud - soft, 2 * np.log(2), atol=1e-3)


@pytest.mark.parametrize(
    ("ending", "options"),
    [("flac", {}), ("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"}), ("mp3", {}), ("aiff", {}), ("au", {})],
)
def test_formats(tmp_path: Path, ending: str, options: dict[str, Any]) -> None:
    sound = read(written(tmp_path / f"a.{ending}", sine(1000, 48_000, 1.5), 48_000, **options))
    expected = read(written(tmp_path / "a.wav", sine(1000, 48_000, 1.5), 48_000))
    assert (sound.seconds, sound.seconds_used) == (1.5, 1.5)
    assert sound.frames_TM.shape == expected.frames_TM.shape == (150, 80)
    peak = expected.frames_TM[70].argmax()
    np.testing.assert_allclose(sound.frames_TM[20:-20, peak], expected.frames_TM[20:-20, peak], atol=0.1)


# lengths


@pytest.mark.parametrize(("n_samples", "n_frames"), [(79, 1), (80, 1), (239, 1), (240, 2), (1600, 10), (16_001, 100)])
def test_a_frame_for_every_hop_begun_by_half(tmp_path: Path, n_samples: int, n_frames: int) -> None:
    sound = read(written(tmp_path / "a.wav", sine(500, 16_000, n_samples / 16_000)))
    assert sound.frames_TM.shape == (n_frames, 80)
    assert sound.seconds == sound.seconds_used == n_samples / 16_000


@pytest.mark.parametrize("rate", [8_000, 16_000, 96_000])
def test_one_sample_is_one_frame(tmp_path: Path, rate: int) -> None:
    sound = read(written(tmp_path / "a.wav", np.array([0.5]), rate))
    assert sound.frames_TM.shape == (1, 80) and np.isfinite(sound.frames_TM).all()
    assert sound.seconds == sound.seconds_used == 1 / rate


def test_silence_is_finite(tmp_path: Path) -> None:
    np.testing.assert_allclose(read(written(tmp_path / "a.wav", np.zeros(5_000))).frames_TM, QUIET, rtol=1e-6)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_only_the_beginning_of_a_long_clip_is_used(tmp_path: Path, ending: str) -> None:
    noise = 0.1 * RNG.normal(size=88_200)
    long = read(written(tmp_path / f"long.{ending}", noise, 44_100), max_seconds=0.5)
    assert (long.seconds, long.seconds_used) == (2.0, 0.5)
    assert long.frames_TM.shape == (50, 80)
    whole = read(tmp_path / f"long.{ending}")
    assert (whole.seconds, whole.seconds_used) == (2.0, 2.0)
    np.testing.assert_allclose(long.frames_TM[:45], whole.frames_TM[:45], atol=1e-3)


def test_of_an_hour_only_the_beginning_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "hour.wav", np.zeros(1), 8_000, subtype="PCM_U8")
    header = bytearray(path.read_bytes()[:44])
    header[4:8], header[40:44] = ((36 + 28_800_000).to_bytes(4, "little"), (28_800_000).to_bytes(4, "little"))
    path.write_bytes(header)
    os.truncate(path, 44 + 28_800_000)
    tracemalloc.start()
    sound = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sound.seconds, sound.seconds_used, len(sound.frames_TM)) == (3600.0, 30.0, 3000)
    assert peak < 20e6  # the hour at 16 kHz takes 230 MB


def test_a_stream_that_does_not_say_its_length(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac", sine(1000, 16_000, 2.0))
    expected = read(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    sound = read(path)
    assert (sound.seconds, sound.seconds_used) == (2.0, 2.0)
    np.testing.assert_array_equal(sound.frames_TM, expected.frames_TM)
    assert read(path, max_seconds=0.5).seconds == 0.5


# what is refused


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers(tmp_path: Path, subtype: str, value: float) -> None:
    samples = np.zeros((4_000, 2))
    samples[3_500, 1] = value
    path = written(tmp_path / "a.wav", samples, subtype=subtype)
    assert complaint(path) == f"{path}: some of its samples are infinite or not a number"


def test_samples_of_another_scale_altogether(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", np.full(4_000, 1e30) * (-1) ** np.arange(4_000), subtype="FLOAT")
    assert complaint(path) == f"{path}: samples up to 1e+30, expected -1 to 1"


def test_files_that_are_no_sounds(tmp_path: Path) -> None:
    nothing, text, raw, empty, folder, pipe = (
        tmp_path / name for name in ["none.wav", "text.wav", "a.raw", "empty.wav", "folder.wav", "pipe.wav"]
    )
    nothing.touch()
    text.write_text("once upon a time")
    raw.write_bytes(bytes(1000))
    written(empty, np.zeros(0))
    folder.mkdir()
    os.mkfifo(pipe)
    missing = tmp_path / "nowhere.wav"
    assert complaint(nothing) == f"{nothing}: zero bytes"
    assert complaint(text) == f"{text}: not a sound libsndfile can read (Format not recognised)"
    assert complaint(raw) == f"{raw}: samples without a header; convert them to WAV first"
    assert complaint(empty) == f"{empty}: no samples in it"
    assert complaint(folder) == f"{folder}: a directory, expected a file"
    assert complaint(pipe) == f"{pipe}: a pipe, socket or device, expected a file"
    assert complaint(missing) == f"{missing}: No such file or directory"


def test_a_broken_header(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", sine(500, 16_000))
    path.write_bytes(path.read_bytes()[:30])
    assert complaint(path).startswith(f"{path}: ")


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("ending", ["flac", "mp3"])
def test_a_file_cut_short(tmp_path: Path, ending: str, part: float) -> None:
    path = written(tmp_path / f"a.{ending}", 0.1 * RNG.normal(size=48_000))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    reason = {"flac": "not a sound libsndfile can read (", "mp3": "truncated: 3.00 s by its header, but it ends after "}
    assert complaint(path).startswith(f"{path}: {reason[ending]}")


@pytest.mark.parametrize("rate", [0, 999, 2_000_000_000])
def test_rates_that_no_sound_has(tmp_path: Path, rate: int) -> None:
    path = written(tmp_path / "a.wav", np.zeros(100))
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    assert complaint(path).startswith(f"{path}: ")
    if rate:
        assert complaint(path) == f"{path}: {rate} samples a second, expected 1000 to 768000"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"rate": 0}, "rate=0 must be greater than 0"),
        ({"max_seconds": float("inf")}, "max_seconds=inf must be a finite number"),
        ({"hop_ms": 30.0}, "hop_ms=30.0 must not exceed frame_ms=25.0"),
        ({"hop_ms": 0.01}, "hop_ms=0.01 must be at least one sample at rate=16000"),
        ({"n_mels": 500}, "n_mels=500, frame_ms=25.0, rate=16000: no such mel channels"),
        ({"n_mels": 2}, "n_mels=2, frame_ms=25.0, rate=16000: no such mel channels"),
        ({"n_mels": 80.5}, "n_mels=80.5 must be int"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SoundConfig(**settings)
    assert str(caught.value).startswith(rule)


def test_settings_survive_json() -> None:
    config = SoundConfig(rate=8_000, n_mels=23, frame_ms=20, hop_ms=5.5, max_seconds=7)
    assert SoundConfig.from_json(config.to_json()) == config
