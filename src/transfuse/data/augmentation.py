"""Changes of training rows that leave their targets true, each a function of (seed, epoch, row)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from transfuse.config import Config
from transfuse.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Config):
    """What is changed in training, anew every epoch.

    Images are moved by at most `shift` of their side each way, turned by at most `turn` degrees, made larger or smaller
    by at most `zoom` of their size and, half of them, mirrored where `flip` says that this leaves them what they are.
    Sounds are made longer or shorter by at most `stretch` of their length and, as in another voice, their bands moved
    up or down by at most `warp` of their number, both by linear interpolation; then a stretch of at most `time_mask` of
    the frames and one of at most `band_mask` of the bands become silence (SpecAugment, arXiv 1904.08779). Each modality
    is missing in a share `modality_dropout` of the rows, but never all in one, so that the model learns to do without;
    and in a share `cell_dropout` of the rows one cell of a table is missing, or of a level never seen, so that these
    mean something although no row of the training may have them.
    """

    shift: float = 0.06
    turn: float = 0.0
    zoom: float = 0.0
    flip: bool = False
    stretch: float = 0.1
    warp: float = 0.05
    time_mask: float = 0.1
    band_mask: float = 0.1
    modality_dropout: float = 0.1
    cell_dropout: float = 0.1

    def __post_init__(self) -> None:
        self.check_types()
        self.check_fraction("shift", "zoom", "stretch", "warp", "time_mask", "band_mask")
        self.check_fraction("modality_dropout", "cell_dropout")
        if not 0 <= self.turn <= 180:
            raise ConfigError(f"turn={self.turn} must be at least 0 and at most 180 degrees")


def change_image(pixels_CSS: np.ndarray, config: AugmentationConfig, draw: np.random.Generator) -> np.ndarray:
    """The image turned, zoomed and moved, its edge repeated where that leaves room, and perhaps mirrored."""
    side = pixels_CSS.shape[-1]
    most = round(config.shift * side)
    by = draw.integers(-most, most + 1, 2)
    mirrored = config.flip and draw.random() < 0.5
    if config.turn or config.zoom:
        angle, factor = draw.uniform(-config.turn, config.turn), 1 + draw.uniform(-config.zoom, config.zoom)
        moved = _turned(pixels_CSS, math.radians(angle), factor, by)
    else:
        rows, columns = (np.clip(np.arange(side) - one, 0, side - 1) for one in by)
        moved = pixels_CSS.take(rows, 1).take(columns, 2)
    return moved[..., ::-1] if mirrored else moved


def _turned(pixels_CSS: np.ndarray, angle: float, factor: float, by: np.ndarray) -> np.ndarray:
    """The image turned about its middle, made `factor` times as large and moved down and right `by` so many pixels, by
    linear interpolation."""
    middle = (pixels_CSS.shape[-1] - 1) / 2
    sine, cosine = math.sin(angle) / factor, math.cos(angle) / factor
    matrix = np.array([[cosine, sine], [-sine, cosine]])  # from places in the new image to those in the old
    offset = middle - matrix @ (middle + by)
    return np.stack([ndimage.affine_transform(one, matrix, offset, order=1, mode="nearest") for one in pixels_CSS])


def change_sound(frames_TM: np.ndarray, config: AugmentationConfig, draw: np.random.Generator) -> np.ndarray:
    """The frames, of mean 0 in every band, stretched and warped, with some of them and some bands at that mean."""
    length, scale = draw.uniform(-config.stretch, config.stretch), draw.uniform(-config.warp, config.warp)
    frames_TM = _stretched(frames_TM, max(1, round(len(frames_TM) * (1 + length))), 1 + scale)
    for axis, most in ((0, config.time_mask), (1, config.band_mask)):
        length = int(draw.integers(0, int(most * frames_TM.shape[axis]) + 1))
        first = int(draw.integers(0, frames_TM.shape[axis] - length + 1))
        frames_TM[
            (slice(first, first + length), slice(None)) if axis == 0 else (slice(None), slice(first, first + length))
        ] = 0
    return frames_TM


def _stretched(frames_TM: np.ndarray, n_frames: int, scale: float) -> np.ndarray:
    """`n_frames` frames from first to last, and at band b what was at band b · `scale`, the last one beyond the end."""
    T, M = frames_TM.shape
    places = np.arange(n_frames) * ((T - 1) / max(n_frames - 1, 1))
    low = places.astype(np.intp)
    found = frames_TM[low]
    found += (places - low).astype(np.float32)[:, None] * (frames_TM[np.minimum(low + 1, T - 1)] - found)
    if scale == 1:
        return found
    places = np.minimum(np.arange(M) * scale, M - 1)
    low = places.astype(np.intp)
    mixed_MM = np.zeros((M, M), np.float32)  # of which bands each band is made
    mixed_MM[low, np.arange(M)] = 1 - (places - low)
    mixed_MM[np.minimum(low + 1, M - 1), np.arange(M)] += places - low
    return found @ mixed_MM


def drop_modalities(present_M: np.ndarray, rate: float, draw: np.random.Generator) -> np.ndarray:
    """Which of the modalities that are there remain: each is dropped by itself, but at least one stays."""
    kept: np.ndarray = present_M & (draw.random(len(present_M)) >= rate)
    if not kept.any() and present_M.any():
        kept[draw.choice(np.flatnonzero(present_M))] = True
    return kept
