"""Rows of several modalities as batches: order, masks, changes in training, and what is told of a row."""

from __future__ import annotations

import math
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from media import table
from transfuse.data import augmentation
from transfuse.data.augmentation import AugmentationConfig, _turned, change_image, change_sound, drop_modalities
from transfuse.data.columns import find_kinds
from transfuse.data.features import MISSING, UNKNOWN, FeatureForm
from transfuse.data.images import ImageConfig
from transfuse.data.modalities import Images, MultimodalDataset
from transfuse.data.rows import Media, RowForm, band_statistics, columns_of, read_media
from transfuse.data.sounds import SoundConfig
from transfuse.data.wordpiece import WordPiece, WordPieceConfig
from transfuse.errors import CheckpointError, ConfigError

IMAGES, SOUNDS = ImageConfig(size=8, channels=1), SoundConfig(rate=4000, n_mels=10, max_seconds=1.0)
STILL = AugmentationConfig(shift=0, stretch=0, warp=0, time_mask=0, band_mask=0, modality_dropout=0, cell_dropout=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Media, RowForm, Path]:
    folder = tmp_path_factory.mktemp("rows")
    frame, _ = table(folder, 17)
    frame.loc[2, ["photo", "story"]] = None
    frame.loc[3, ["size", "letter"]] = None
    frame.loc[4, "clip"] = None
    kinds = find_kinds(frame, {"story": "text", "letter": "category"})
    media = read_media(frame, kinds, folder, IMAGES, SOUNDS)
    tokenizer = WordPiece.train(frame["story"].dropna().tolist(), 80, WordPieceConfig())
    features = FeatureForm.learn(frame, kinds, n_bins=4)
    return frame, media, RowForm(kinds, features, band_statistics(media, np.arange(17)), tokenizer, longest=12), folder


def dataset(
    rows: tuple[pd.DataFrame, Media, RowForm, Path], augmentation: AugmentationConfig = STILL
) -> MultimodalDataset:
    frame, media, form, _ = rows
    modalities = {name: form.modality(name, frame, media) for name in form.names}
    return MultimodalDataset(modalities, np.arange(17), np.ones(17, np.float32), augmentation, seed=5)


def test_modalities_are_columns_by_kind(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    form = rows[2]
    assert form.columns_of == {"text": ["story"], "table": ["letter", "size"], "photo": ["photo"], "clip": ["clip"]}
    assert columns_of({"table": "image", "text": "audio"}) == {"table (image)": ["table"], "text (audio)": ["text"]}
    assert RowForm.from_dict(form.to_dict(), form.tokenizer) == form


def test_lengths_are_zero_where_a_modality_is_missing(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    lengths = dataset(rows).lengths_NM
    assert (lengths[2] == 0).tolist() == [True, False, True, False]
    assert (lengths[3] == 0).tolist() == [False, True, False, False]
    assert (lengths[4] == 0).tolist() == [False, False, False, True]
    assert (lengths[[0, 1, 5]] > 0).all()


def test_every_row_is_in_an_epoch_once_and_within_the_budget(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    data = dataset(rows)
    for epoch in (0, 3):
        batches = data.epoch(70, seed=1, epoch=epoch)
        assert batches == data.epoch(70, seed=1, epoch=epoch)
        assert sorted(row for batch in batches for row in batch) == [(epoch + 1) * 17 + row for row in range(17)]
        for batch in batches:
            padded = data.lengths_NM[[row % 17 for row in batch]].max(0).sum() * len(batch)
            assert padded <= 70 or len(batch) == 1
    assert data.epoch(70, 1, 0) != [[row - 17 for row in batch] for batch in data.epoch(70, 1, 1)]
    assert sorted(row for batch in data.in_order(70) for row in batch) == list(range(17))


def test_masks_say_what_is_there(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    data = dataset(rows)
    text, cells, photo, clip = data.batch([2, 3, 4]).parts
    assert text[2].sum(1).tolist() == data.lengths_NM[[2, 3, 4], 0].tolist()
    assert cells[3].tolist() == [True, False, True]
    assert photo[1].tolist() == [False, True, True]
    assert clip[1].any(1).tolist() == [True, True, False]
    assert data.batch([2, 3, 4]).targets.tolist() == [2, 3, 4]


def test_pictures_and_frames_are_those_of_the_row(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    _, media, form, _ = rows
    data = dataset(rows)
    batch = data.batch([7, 0, 16])
    np.testing.assert_array_equal(batch.parts[2][0].numpy(), media.images["photo"][0][[7, 0, 16]])
    frames, starts = media.sounds["clip"]
    mean, scale = (np.array(one) for one in form.bands["clip"])
    own = (frames[starts[7] : starts[8]] - mean) / scale
    np.testing.assert_allclose(batch.parts[3][0][0, : len(own)].numpy(), own, atol=1e-4)


def test_text_columns_are_joined_and_the_longest_is_cut_first(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    form = rows[2]
    two = pd.DataFrame({"story": ["apple boat tree sea red blue round long", None], "about": ["apple", "boat"]})
    kinds = {**form.kinds, "about": "text"}
    joined = RowForm(kinds, form.features, form.bands, form.tokenizer, longest=8).modality("text", two, Media())  # type: ignore[arg-type]
    assert form.tokenizer is not None
    tokens = [[form.tokenizer.token(int(i)) for i in one] for one in joined.ids]  # type: ignore[attr-defined]
    assert tokens[0][0] == "[CLS]" and tokens[0].count("[SEP]") == 2 and len(tokens[0]) == 8
    whole = [form.tokenizer.token(i) for i in form.tokenizer.encode_plain(["apple"])[0]]
    assert tokens[0][1 : 1 + len(whole)] == whole  # columns by name: about, then story, which is the one that is cut
    assert joined.segments[0].tolist() == [0] * (2 + len(whole)) + [1] * (6 - len(whole))  # type: ignore[attr-defined]
    assert tokens[1].count("[SEP]") == 1


def test_changes_are_a_function_of_seed_epoch_and_row(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    data = dataset(rows, AugmentationConfig(shift=0.3, flip=True, time_mask=0.6, band_mask=0.6, modality_dropout=0.4))

    def flat(numbers: list[int]) -> list[torch.Tensor]:
        return [one.float() for part in data.batch(numbers).parts for one in part]

    first, again = flat([17, 18, 22]), flat([17, 18, 22])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    alone = data.batch([18]).parts
    assert torch.equal(alone[2][0][0], data.batch([17, 18, 22]).parts[2][0][1])  # whoever else is in the batch
    other = flat([34, 35, 39])  # the next epoch
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    still = [one.float() for part in data.batch([0, 1, 5]).parts for one in part]
    plain = [one.float() for part in dataset(rows).batch([0, 1, 5]).parts for one in part]
    assert all(torch.equal(a, b) for a, b in zip(still, plain, strict=True))  # rows to judge by are as they are


def test_dropping_leaves_one_and_keeps_the_rate() -> None:
    draw = np.random.default_rng(0)
    kept = np.array([drop_modalities(np.array([True, True, False]), 0.3, draw) for _ in range(4000)])
    assert kept.any(1).all() and not kept[:, 2].any()
    # P(first kept) = 0.7 + P(both dropped) / 2 = 0.7 + 0.09 / 2
    assert abs(kept[:, 0].mean() - 0.745) < 4 * (0.745 * 0.255 / 4000) ** 0.5


def test_a_moved_image_repeats_its_edge() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    seen = set()
    for seed in range(60):
        moved = change_image(pixels, AugmentationConfig(shift=0.25), np.random.default_rng(seed))
        down, right = (np.clip(np.arange(4) - by, 0, 3) for by in _by(moved[0], pixels[0]))
        np.testing.assert_array_equal(moved[0], pixels[0][down[:, None], right])
        seen.add(moved.tobytes())
    assert len(seen) == 9


def test_a_turned_image_is_the_image_seen_at_an_angle() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    still = np.zeros(2, int)
    for quarters in range(4):
        turned = _turned(pixels, quarters * math.pi / 2, 1.0, still)
        np.testing.assert_array_equal(turned, np.rot90(pixels, quarters, (1, 2)))
    down_right = _turned(pixels, 0.0, 1.0, np.array([2, 1]))
    np.testing.assert_array_equal(down_right[:, 2:, 1:], pixels[:, :-2, :-1])
    np.testing.assert_array_equal(down_right[:, 0, 1:], pixels[:, 0, :-1])  # the edge is repeated
    ramp = np.tile(np.arange(9.0), (1, 9, 1))
    np.testing.assert_allclose(_turned(ramp, 0.0, 2.0, still)[0], np.tile(np.arange(2, 6.5, 0.5), (9, 1)))  # its middle
    np.testing.assert_allclose(_turned(ramp, 0.0, 0.5, still)[0, :, 2:7], np.tile(np.arange(0, 9.0, 2), (9, 1)))


def test_images_are_turned_and_zoomed_within_what_is_allowed_and_else_left() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    still = AugmentationConfig(shift=0)
    assert all((change_image(pixels, still, np.random.default_rng(seed)) == pixels).all() for seed in range(5))
    seen: list[tuple[float, float]] = []

    def turned(image: np.ndarray, angle: float, factor: float, by: np.ndarray) -> np.ndarray:
        seen.append((angle, factor))
        return image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "_turned", turned)
        for seed in range(200):
            change_image(pixels, still.replace(turn=15.0, zoom=0.2), np.random.default_rng(seed))
    angles, factors = np.array(seen).T
    assert np.abs(angles).max() <= math.radians(15) and np.ptp(angles) > math.radians(27)
    assert np.abs(factors - 1).max() <= 0.2 and np.ptp(factors) > 0.36


@pytest.mark.parametrize("turn", [0.0, 1e-9])
def test_half_of_the_images_are_mirrored_where_that_is_allowed(turn: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    config = AugmentationConfig(shift=0, flip=True, turn=turn)
    ways = {"plain": 0, "mirrored": 0}
    for seed in range(200):
        found = change_image(pixels, config, np.random.default_rng(seed))
        ways["plain" if np.abs(found - pixels.astype(int)).max() <= 1 else "mirrored"] += 1
        assert min(np.abs(found - one.astype(int)).max() for one in (pixels, pixels[..., ::-1])) <= 1
    assert min(ways.values()) > 70


def test_images_of_training_rows_are_changed_where_they_are_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    images = Images(pixels, np.array([True, True, True, False]), 4)
    config, present = AugmentationConfig(turn=90.0), np.array([True, True, False, True])
    draws = [np.random.default_rng(i) for i in range(4)]
    found, keep = images.part([0, 1, 2, 3], present, draws, config)
    same = (found.numpy() == pixels).all((1, 2, 3)).tolist()
    assert same == [False, False, True, True] and keep.tolist() == [True, True, False, False]


@pytest.mark.parametrize(("changes", "message"), [({"turn": -1.0}, "turn=-1.0"), ({"zoom": 1.0}, "zoom=1.0")])
def test_changes_of_images_have_limits(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentationConfig(**changes)  # type: ignore[arg-type]


def _by(moved: np.ndarray, pixels: np.ndarray) -> tuple[int, int]:
    return next(
        (down, right)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if np.array_equal(
            moved, pixels[np.clip(np.arange(4) - down, 0, 3)[:, None], np.clip(np.arange(4) - right, 0, 3)]
        )
    )


def test_masks_of_sounds_are_stretches_at_the_mean() -> None:
    frames = np.ones((20, 10), np.float32)
    config, sizes = AugmentationConfig(stretch=0, warp=0, time_mask=0.5, band_mask=0.5), []
    for seed in range(30):
        changed = change_sound(frames, config, np.random.default_rng(seed))
        times, bands = (changed == 0).all(1), (changed == 0).all(0)
        assert (changed == ~(times[:, None] | bands)).all() and (frames == 1).all()
        assert np.diff(np.flatnonzero(times)).max(initial=1) == 1
        sizes.append((times.sum(), bands.sum()))
    assert np.max(sizes, axis=0).tolist() == [10, 5] and np.min(sizes, axis=0).tolist() == [0, 0]


def test_sounds_are_stretched_and_warped_linearly() -> None:
    """A ramp stays a ramp: from first to last in time, at another slope over the bands."""
    ramp = (np.arange(20.0)[:, None] + 100 * np.arange(10.0)).astype(np.float32)
    config = AugmentationConfig(stretch=0.5, warp=0.3, time_mask=0, band_mask=0)
    for seed in range(20):
        changed = change_sound(ramp, config, np.random.default_rng(seed))
        assert 10 <= len(changed) <= 30 and changed[0, 0] == 0 and changed[-1, 0] == 19
        np.testing.assert_allclose(np.diff(changed[:, 0]), 19 / (len(changed) - 1), atol=1e-3)
        scale = (changed[0, 1] - changed[0, 0]) / 100
        assert 0.7 <= scale <= 1.3
        np.testing.assert_allclose(changed[0], 100 * np.minimum(np.arange(10) * scale, 9), atol=1e-2)
    lengths = {len(change_sound(ramp, config, np.random.default_rng(seed))) for seed in range(20)}
    assert len(lengths) > 5
    one = change_sound(ramp[:1], config, np.random.default_rng(0))
    assert one.shape == (1, 10) and np.isfinite(one).all()


def test_failures_name_row_and_column(tmp_path: Path) -> None:
    frame, _ = table(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"")
    frame.loc[2, "clip"] = "../secret.wav"
    kinds = find_kinds(frame, {"story": "ignored", "letter": "category"})
    media = read_media(frame, kinds, tmp_path, IMAGES, SOUNDS)
    assert [(failure.row, failure.column) for failure in media.failures] == [(1, "photo"), (2, "clip")]
    assert media.failures[0].reason == "1.png: zero bytes" and "outside" in media.failures[1].reason
    assert not media.images["photo"][1][1] and media.images["photo"][1][0]


def test_fingerprints_tell_rows_apart(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    frame, media, form, _ = rows
    changed = frame.copy()
    changed.loc[5, "size"] = 99.0
    other = {name: form.modality(name, changed, media) for name in form.names}
    data = dataset(rows)
    assert data.fingerprint() == dataset(rows).fingerprint()
    assert data.fingerprint() != MultimodalDataset(other, data.targets, data.weights, STILL, 5).fingerprint()


def test_frames_kept_in_a_file_are_those_kept_in_memory(tmp_path: Path) -> None:
    frame, _ = table(tmp_path, 7)
    (tmp_path / "3.wav").write_bytes(b"")
    frame.loc[5, "clip"] = None
    kinds = find_kinds(frame, {"story": "ignored", "letter": "category"})
    (tmp_path / "scratch").mkdir()
    kept, held = (read_media(frame, kinds, tmp_path, IMAGES, SOUNDS, where) for where in (tmp_path / "scratch", None))
    assert list((tmp_path / "scratch").iterdir()) == [] and isinstance(kept.sounds["clip"][0], np.memmap)
    for one, other in zip(kept.sounds["clip"], held.sounds["clip"], strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.diff(kept.sounds["clip"][1])[[3, 5]].tolist() == [0, 0] and len(kept.sounds["clip"][0]) > 0
    silent = read_media(frame.assign(clip=None), kinds, tmp_path, IMAGES, SOUNDS, tmp_path / "scratch")
    assert silent.sounds["clip"][0].shape == (0, SOUNDS.n_mels)


def test_cells_are_hidden_in_training_alone(rows: tuple[pd.DataFrame, Media, RowForm, Path]) -> None:
    data = dataset(rows)
    often = replace(data, augmentation=STILL.replace(cell_dropout=0.75))
    place = list(data.modalities).index("table")
    n = len(data)
    _, known, codes, keep = data.batch(range(n)).parts[place]
    for one in (data.batch(range(n, 2 * n)), often.batch(range(n))):  # nothing to hide, and not in training
        assert torch.equal(one.parts[place][1], known) and torch.equal(one.parts[place][2], codes)
    batches = [often.batch(range(epoch * n, (epoch + 1) * n)).parts[place] for epoch in range(1, 21)]
    hidden = torch.stack([known & ~part[1] for part in batches])[..., 0]
    given = torch.stack([part[2] for part in batches])[..., 0]
    changed = given != codes[:, 0]
    assert not (hidden & changed).any()  # of one number and one category, one of them
    assert 0.3 < hidden[:, known[:, 0]].float().mean() < 0.45
    present = codes[:, 0] != MISSING
    shares = [(changed & (given == code))[:, present].float().mean().item() for code in (MISSING, UNKNOWN)]
    assert all(0.13 < share < 0.25 for share in shares) and all(torch.equal(part[3], keep) for part in batches)
    assert torch.equal(batches[3][2], often.batch(range(4 * n, 5 * n)).parts[place][2])
    assert torch.equal(data.batch(range(n)).parts[place][2], codes)  # and the rows themselves are as they were


def test_a_full_disk_is_named_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    frame, _ = table(tmp_path, 5)
    kinds = find_kinds(frame[["clip"]], {})
    (tmp_path / "scratch").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(CheckpointError, match=f"cannot keep sounds in {tmp_path / 'scratch'}: File too large"):
            read_media(frame, kinds, tmp_path, IMAGES, SOUNDS, tmp_path / "scratch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "scratch").iterdir()) == []
