"""Small tables whose rows name pictures and sounds that are made for the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from PIL import Image

RATE = 4000
WORDS = {"a": "red round apple on a plate", "b": "blue long boat at the sea", "c": "green tall tree in a wood"}


def table(folder: Path, n: int = 36, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """Rows of three classes; pictures, sounds, texts, numbers and letters each tell the class, not always."""
    draw = np.random.default_rng(seed)
    labels = [str(label) for label in draw.choice(list("abc"), n)]
    rows = []
    for i, label in enumerate(labels):
        place = "abc".index(label)
        pixels = draw.integers(0, 90, (8, 8)).astype(np.uint8)
        pixels[:, place * 3 : place * 3 + 2] += 120
        Image.fromarray(pixels).save(folder / f"{i}.png")
        seconds = 0.05 + 0.05 * draw.random()
        wave = np.sin(2 * np.pi * (200 + 500 * place) * np.arange(int(RATE * seconds)) / RATE)
        soundfile.write(folder / f"{i}.wav", 0.3 * wave + 0.05 * draw.standard_normal(len(wave)), RATE)
        words = WORDS[label].split()
        rows.append(
            {
                "photo": f"{i}.png",
                "clip": f"{i}.wav",
                "story": " ".join(draw.permutation(words)[:4]) + f" number {i}",
                "size": place + 0.4 * draw.standard_normal(),
                "letter": "xyz"[place] if draw.random() < 0.8 else "w",
            }
        )
    return pd.DataFrame(rows), labels
