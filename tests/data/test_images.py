"""Pictures of every kind as arrays of one size, against closed forms; and files that are no pictures, refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfuse.data.images import FORMATS, ImageConfig, read_image
from transfuse.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def read(path: Path, **settings: Any) -> np.ndarray:
    """The picture as (S, S, C) integers, so that differences do not wrap."""
    return read_image(path, ImageConfig(**settings)).transpose(1, 2, 0).astype(int)


def complaint(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, ImageConfig(**settings))
    return str(caught.value)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A piece of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


# what stays as it is


def test_a_square_of_the_right_size_is_left_alone(tmp_path: Path) -> None:
    pixels_SSC = noise(11, 11)
    array = read_image(saved(tmp_path / "a.png", pixels_SSC), ImageConfig(size=11))
    assert array.dtype == np.uint8 and array.flags.c_contiguous
    np.testing.assert_array_equal(array, pixels_SSC.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(31, 31), (5, 3), (97, 41), (1, 1), (2, 503)])
@pytest.mark.parametrize("level", [0, 1, 77, 128, 254, 255])
def test_one_colour_stays_that_colour_at_every_size(tmp_path: Path, height: int, width: int, level: int) -> None:
    colour = (level, 255 - level, 13)
    found = read(saved(tmp_path / "a.png", Image.new("RGB", (width, height), colour)), size=17)
    assert (found == colour).all()


# where it is cropped and how it is scaled


@pytest.mark.parametrize("tall", [False, True])
def test_the_longer_side_is_cropped_at_the_centre(tmp_path: Path, tall: bool) -> None:
    pixels = np.zeros((11, 33, 3), np.uint8)
    pixels[:, :11, 0] = pixels[:, 22:, 0] = 255
    pixels[:, 11:22, 2] = 255
    found = read(saved(tmp_path / "a.png", pixels.transpose(1, 0, 2) if tall else pixels), size=11)
    assert (found == (0, 0, 255)).all()


def test_a_crop_without_scaling_is_a_slice(tmp_path: Path) -> None:
    pixels = noise(11, 31)
    np.testing.assert_array_equal(read(saved(tmp_path / "a.png", pixels), size=11), pixels[:, 10:21])


def test_halving_a_ramp_gives_the_middle_of_every_two_pixels(tmp_path: Path) -> None:
    ramp = np.repeat(4 * np.arange(62, dtype=np.uint8)[None], 26, 0)
    found = read(saved(tmp_path / "a.png", ramp), size=13, channels=1)[:, :, 0]
    expected = 4 * (18 + 2 * np.arange(13) + 0.5)
    assert np.abs(found[:, 2:-2] - expected[2:-2]).max() <= 1


def test_shrinking_averages_instead_of_skipping(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = read(saved(tmp_path / "a.png", board), size=8, channels=1)
    assert np.abs(found[1:-1, 1:-1] - 127.5).max() < 3


def test_a_large_jpeg_looks_as_if_it_were_decoded_whole(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:768, 0:1024] / 60
    waves = 128 + 100 * np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], -1)
    image = Image.fromarray(waves.astype(np.uint8))
    whole = saved(tmp_path / "a.png", image)
    photo = saved(tmp_path / "a.jpg", image, quality=95)
    assert np.abs(read(photo, size=32) - read(whole, size=32)).max() <= 4


# orientation

UPRIGHT = np.kron(RNG.integers(0, 2, (4, 7, 3), np.uint8) * 200 + 27, np.ones((8, 8, 1), np.uint8))
STORED = {  # by what the standard says the first row and the first column of the file are
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_picture_is_set_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    options = {"jpg": {"quality": 100, "subsampling": 0}, "png": {}, "webp": {"lossless": True}}[ending]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    found = read(saved(tmp_path / f"turned.{ending}", turned, exif=exif, **options), size=16)
    assert np.abs(found - read(saved(tmp_path / "upright.png", UPRIGHT), size=16)).max() <= 4


@pytest.mark.parametrize("content", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_notes_of_a_camera_do_not_cost_its_picture(tmp_path: Path, content: bytes) -> None:
    pixels = noise(11, 11)
    path = saved(tmp_path / "a.png", pixels, exif=content)
    np.testing.assert_array_equal(read(path, size=11), pixels)


# kinds of pixels


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.pgm", {}), ("a.tif", {}), ("lzw.tif", {"compression": "tiff_lzw"}), ("a.jp2", {})],
)
def test_greys_of_16_bits_are_scaled_not_cut_off(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    found = read(saved(tmp_path / name, ramp, **options), size=256)
    np.testing.assert_array_equal(found, np.repeat(np.rint(ramp / 257)[..., None], 3, -1))


def test_greys_of_16_bits_with_the_high_byte_first(tmp_path: Path) -> None:
    ramp = (np.arange(49) * 1337).astype(">u2").reshape(7, 7)
    # width, height, bits, uncompressed, black is zero, offset, one sample, rows a strip, bytes
    tags = {256: 7, 257: 7, 258: 16, 259: 1, 262: 1, 273: 122, 277: 1, 278: 7, 279: 98}
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    path = tmp_path / "a.tif"
    path.write_bytes(b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + struct.pack(">I", 0) + ramp.tobytes())
    np.testing.assert_array_equal(read(path, size=7, channels=1)[:, :, 0], np.rint(ramp / 257))


@pytest.mark.parametrize(("top", "dtype"), [(1, np.float32), (255, np.float32)])
def test_floating_point_greys(tmp_path: Path, top: int, dtype: type) -> None:
    ramp = np.linspace(0, top, 49).reshape(7, 7).astype(dtype)
    found = read(saved(tmp_path / "a.tif", ramp), size=7, channels=1)[:, :, 0]
    np.testing.assert_array_equal(found, np.rint(np.linspace(0, 255, 49)).reshape(7, 7))


@pytest.mark.parametrize(
    ("value", "dtype", "rule"),
    [
        (255.5, np.float32, "numbers from 0 to 1 or from 0 to 255"),
        (-0.5, np.float32, "numbers from 0 to 1 or from 0 to 255"),
        (np.nan, np.float32, "numbers from 0 to 1 or from 0 to 255"),
        (70_000, np.int32, "integers from 0 to 65535"),
        (-1, np.int32, "integers from 0 to 65535"),
    ],
)
def test_greys_of_an_unknown_scale_are_refused(tmp_path: Path, value: float, dtype: type, rule: str) -> None:
    pixels = np.zeros((5, 7), dtype)
    pixels[3, 2] = value
    path = saved(tmp_path / "a.tif", pixels)
    assert complaint(path).startswith(f"{path}: greys from ") and complaint(path).endswith(f", expected {rule}")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str) -> None:
    pixels = noise(13, 13, len(mode))
    alpha = pixels[..., -1:] / 255
    expected = np.broadcast_to(pixels[..., :-1] * alpha + 255 * (1 - alpha), (13, 13, 3))
    found = read(saved(tmp_path / "a.png", pixels), size=13)
    assert np.abs(found - expected).max() <= 1


def test_a_transparent_entry_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2))
    image.putdata([0, 1, 2, 1])
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    found = read(saved(tmp_path / "a.png", image, transparency=1), size=2)
    assert found.tolist() == [[[10, 20, 30], [255] * 3], [[70, 80, 90], [255] * 3]]


@pytest.mark.parametrize(
    ("depth", "colour", "key", "rows", "expected"),
    [
        (1, 0, [0, 0], [[0b01000000]], [255, 255]),
        (8, 0, [0, 77], [[77, 5]], [255, 5]),
        (8, 2, [0, 9, 0, 8, 0, 7], [[9, 8, 7, 9, 8, 6]], [255, 8]),
        (16, 0, [1, 1], [[1, 1, 2, 2]], [255, 2]),
    ],
)
def test_a_transparent_key_colour_is_white(
    tmp_path: Path, depth: int, colour: int, key: list[int], rows: list[list[int]], expected: list[int]
) -> None:
    lines = b"".join(b"\0" + bytes(row) for row in rows * 2)
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 2, depth, colour, chunk(b"tRNS", bytes(key)), chunk(b"IDAT", zlib.compress(lines))))
    assert read(path, size=2)[:, :, 1].tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("1", 1, "a.png", (255, 255, 255)),
        ("L", 90, "a.png", (90, 90, 90)),
        ("CMYK", (0, 255, 255, 0), "a.jpg", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        ("YCbCr", (76, 85, 255), "a.tif", (254, 0, 0)),
        ("LAB", (255, 128, 128), "a.tif", (255, 255, 255)),
        ("RGBX", (1, 2, 3, 0), "a.tif", (1, 2, 3)),
    ],
)
def test_colours_of_every_kind(tmp_path: Path, mode: str, colour: Any, name: str, expected: tuple[int, ...]) -> None:
    found = read(saved(tmp_path / name, Image.new(mode, (9, 9), colour)), size=9)
    assert np.abs(found - expected).max() <= 2


def test_one_channel_is_the_luma_of_three(tmp_path: Path) -> None:
    pixels = noise(13, 13)
    path = saved(tmp_path / "a.png", pixels)
    assert read_image(path, ImageConfig(size=13, channels=1)).shape == (1, 13, 13)
    assert np.abs(read(path, size=13, channels=1)[..., 0] - pixels @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame(tmp_path: Path, ending: str) -> None:
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    path = saved(tmp_path / f"a.{ending}", first, save_all=True, append_images=[second])
    assert np.abs(read(path, size=16) - (255, 0, 0)).max() <= 2


# what is refused


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    whole = saved(tmp_path / f"whole.{ENDINGS.get(name, name.lower())}", noise(61, 53), format=name).read_bytes()
    cut = tmp_path / "cut"
    for length in [1, 20, *range(40, len(whole) * 19 // 20, len(whole) // 23)]:
        cut.write_bytes(whole[:length])
        assert complaint(cut).startswith(f"{cut}: "), length
    assert "damaged or truncated (" in complaint(cut) or "not a picture" in complaint(cut)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_jpeg_cut_short_is_refused(tmp_path: Path, part: float, progressive: bool) -> None:
    path = saved(tmp_path / "a.jpg", noise(400, 600), progressive=progressive)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert complaint(path, size=16).startswith(f"{path}: damaged or truncated (image file is truncated")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    nothing, text, drawing, folder = (tmp_path / name for name in ["none.png", "text.png", "a.eps", "folder.png"])
    nothing.touch()
    text.write_text("once upon a time")
    saved(drawing, noise(5, 5))
    folder.mkdir()
    missing = tmp_path / "nowhere.png"
    assert complaint(nothing) == f"{nothing}: zero bytes"
    assert complaint(text).startswith(f"{text}: not a picture in a format that is read (JPEG, PNG, ")
    assert complaint(drawing).startswith(f"{drawing}: not a picture in a format that is read (JPEG, PNG, ")
    assert complaint(folder) == f"{folder}: a directory, expected a file"
    assert complaint(missing) == f"{missing}: No such file or directory"
    assert complaint(tmp_path / "a\0b").endswith("no name of a file holds a zero byte")
    assert complaint(tmp_path / ("a" * 5000)).endswith(": File name too long")


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert complaint(pipe) == f"{pipe}: a pipe, socket or device, expected a file"
    assert complaint(Path("/dev/zero")) == "/dev/zero: a pipe, socket or device, expected a file"


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(60_000, 60_000, 8, 2, chunk(b"IDAT", zlib.compress(b"\0" * 1000))))
    assert complaint(bomb) == f"{bomb}: 60000 × 60000 pixels, at most 200,000,000 are decoded"


def test_the_limit_is_on_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", noise(5, 7))
    assert read(path, max_pixels=35).shape == (64, 64, 3)
    assert complaint(path, max_pixels=34) == f"{path}: 7 × 5 pixels, at most 34 are decoded"


@pytest.mark.parametrize("pillows", [100, 300])
def test_pillows_own_limit_neither_warns_nor_refuses_nor_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pillows: int
) -> None:
    path = saved(tmp_path / "a.png", noise(23, 23))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    assert read(path).shape == (64, 64, 3)
    complaint(path, max_pixels=1)
    assert pillows == Image.MAX_IMAGE_PIXELS


def test_a_photo_of_many_megapixels_takes_little_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("L", (10_000, 8_000), 99), quality=10)
    program = (
        "import re, sys; from pathlib import Path; from transfuse.data.images import ImageConfig, read_image\n"
        "def most(): return int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before = most(); read_image(Path(sys.argv[1]), ImageConfig()); print(most() - before)"
    )
    megabytes = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert float(megabytes.stdout) < 30  # decoded whole it is 80 in grey and 320 in colours


def test_settings_are_checked_and_survive_json() -> None:
    config = ImageConfig(size=31, channels=1, max_pixels=77)
    assert ImageConfig.from_json(config.to_json()) == config
    for wrong in [{"size": 0}, {"channels": 4}, {"max_pixels": -1}, {"size": 2.5}]:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ImageConfig(**wrong)  # type: ignore[arg-type]
