"""Pictures as arrays of one size: files of any usual format, upright, on white, cropped at the centre.

Axes: C channels, S rows and columns of the square that comes out, H and W those of the file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from transfuse.config import Config
from transfuse.data.regular_file import opened
from transfuse.errors import DataError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
"""What is read: formats of pixels that a file names in its first bytes. Others are guesses, or programs (EPS)."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture of each EXIF orientation upright."""

_PILLOWS_LIMIT = threading.Lock()
"""Held while Pillow's own limit on pixels, which is one for the whole process, is lifted."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """How a picture becomes an array.

    `size` is pixels a side, `channels` 3 (red, green, blue) or 1 (grey), and a file that says it holds more than
    `max_pixels` is refused before any of them takes memory.
    """

    size: int = 64
    channels: Literal[1, 3] = 3
    max_pixels: int = 200_000_000

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("size", "max_pixels")


def read_image(path: Path, config: ImageConfig) -> np.ndarray:
    """The picture of a file as uint8 (C, S, S), 0 black to 255 white.

    It is set upright by its EXIF orientation, what is transparent lies on white, of an animation it is the first frame.
    The shorter side is scaled to `size`, averaging where it shrinks, and the longer one cropped to the middle: shapes
    keep their proportions, and no pixel is spent on a border that says nothing. Greys of 16 bits are scaled to 8;
    floating-point ones are taken as 0 to 1 or, if any is above 1, as 0 to 255.

    Raises DataError for a file that is missing, empty, no picture, too large, damaged or cut short.
    """
    with opened(path) as stream:
        try:
            return _decoded(stream, config)
        except UnidentifiedImageError as error:
            raise DataError(f"{path}: not a picture in a format that is read ({', '.join(FORMATS)})") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # the readers of a format raise whatever a damaged file makes them trip over
            raise DataError(f"{path}: damaged or truncated ({error or type(error).__name__})") from error


def _decoded(stream: BinaryIO, config: ImageConfig) -> np.ndarray:
    with _pillows_limit_lifted():
        image: Image.Image = Image.open(stream, formats=FORMATS)
    width, height = image.size
    if width * height > config.max_pixels:
        raise DataError(f"{width} × {height} pixels, at most {config.max_pixels:,} are decoded")
    image.draft(None, (2 * config.size, 2 * config.size))  # a JPEG is then decoded at an eighth to a half of its size
    image.load()
    turn = _turn(image)
    image = _centre(_on_white(image), config.size)
    if turn is not None:
        image = image.transpose(turn)
    image = image.convert("L" if config.channels == 1 else "RGB")
    pixels_SSC = np.asarray(image).reshape(config.size, config.size, config.channels)
    return np.ascontiguousarray(pixels_SSC.transpose(2, 0, 1))


@contextmanager
def _pillows_limit_lifted() -> Iterator[None]:
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a camera's broken notes are no reason to refuse its picture
        return None


def _on_white(image: Image.Image) -> Image.Image:
    """The same in grey or in colours, of 8 bits and opaque."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits as 8; Pillow's own conversion would cut all above 255 off."""
    values_HW = np.asarray(image)
    least, most = values_HW.min(), values_HW.max()
    if image.mode == "F":
        top, rule = (1 if most <= 1 else 255), "numbers from 0 to 1 or from 0 to 255"
    else:
        top, rule = 65_535, "integers from 0 to 65535"
    if not 0 <= least <= most <= top:
        raise DataError(f"greys from {least} to {most}, expected {rule}")
    greys_HW = np.rint(values_HW.astype(np.float32) * np.float32(255 / top)).astype(np.uint8)
    if "transparency" in image.info:
        greys_HW[values_HW == image.info["transparency"]] = 255
    return Image.fromarray(greys_HW)


def _centre(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
