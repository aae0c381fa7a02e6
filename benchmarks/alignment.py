"""A picture of few tokens beside a text of many: padding, trimming, interpolation, attention and resampling, measured.

    python benchmarks/alignment.py DIGITS TEXT [--rows 1500] [--epochs 6]

DIGITS holds digits.csv and the folder images; TEXT is plain text (.xz too). Each row is a picture of a digit in 4
patches, with noise, and 170 words of TEXT in which the digit's word stands once, anywhere: both tell the class. Every
alignment trains the same model from the same seed. Then the time, forward and backward, of aligning 4 tokens with
2,048 to 16,384, and, with the stack behind it, with 256 to 4,096, each with the exponent of a line fitted to the
logarithms. Exits 1 if that of "attend" or "resample" alone is not 1 within 0.15.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from transfuse import (
    AugmentationConfig,
    Corpus,
    FusionConfig,
    ImageConfig,
    MultimodalClassifier,
    TowersConfig,
    TrainingConfig,
    compare_alignments,
)
from transfuse.models.fusion import Early

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LENGTHS = {False: (2048, 4096, 8192, 16384), True: (256, 512, 1024, 2048, 4096)}
"""Of the long sequence, without the stack and with it; without, what does not grow is a part of the time below."""


def made(digits: Path, text: Path, n: int, folder: Path) -> tuple[pd.DataFrame, list[int]]:
    """Rows of a noisy picture and a text that hides the digit's word."""
    draw = np.random.default_rng(0)
    source = pd.read_csv(digits / "digits.csv").sample(n, random_state=0)
    known = [word for document in Corpus([text]) for word in "".join(document).split() if word not in WORDS]
    rows = []
    for i, (image, label) in enumerate(zip(source["image"], source["label"], strict=True)):
        pixels = np.asarray(Image.open(digits / image), np.float64)
        noisy = np.clip(pixels + 90 * draw.standard_normal(pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i}.png")
        first = int(draw.integers(0, len(known) - 200))
        words = known[first : first + 170]
        words.insert(int(draw.integers(0, 170)), WORDS[label])
        rows.append({"picture": f"{i}.png", "story": " ".join(words)})
    return pd.DataFrame(rows), source["label"].tolist()


def seconds_of(fusion: Early, n_long: int, whole: bool) -> float:
    """Median time of aligning 4 tokens with `n_long`, with the stack or without, forward and backward."""
    draw = torch.Generator().manual_seed(0)
    tokens = [
        (torch.randn(2, n, 64, generator=draw).requires_grad_(), torch.ones(2, n, dtype=torch.bool))
        for n in (n_long, 4)
    ]
    found = []
    for _ in range(9):
        began = time.perf_counter()
        (fusion(tokens) if whole else fusion.aligned(tokens)[0]).sum().backward()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("digits", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=6)
    asked = parser.parse_args()
    training = TrainingConfig(
        epochs=asked.epochs,
        batch_tokens=4096,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=50,
        label_smoothing=0.0,
        validate_every=100,
        average=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        X, y = made(asked.digits, asked.text, asked.rows, Path(folder))
        model = MultimodalClassifier(
            kinds={"story": "text"},
            files=folder,
            images=ImageConfig(size=28, channels=1),
            towers=TowersConfig(d_model=64, n_layers=1, n_heads=4, patch=14, stem="patches", max_pieces=256),
            fusion=FusionConfig(d_model=64, n_layers=1, n_heads=4),
            augmentation=AugmentationConfig(modality_dropout=0.1),
            training=training,
            validation_fraction=0.2,
        )
        print(compare_alignments(model, X, y).to_text(), flush=True)
    linear = True
    for whole, lengths in LENGTHS.items():
        heading = "aligned, and read by the stack" if whole else "aligned"
        print(f"\n| {heading} | " + " | ".join(f"{n} tokens, ms" for n in lengths) + " | exponent |")
        print("|---|" + "---|" * (len(lengths) + 1))
        for way in ("pad", "trim", "interpolate", "attend", "resample"):
            config = FusionConfig(align=way, d_model=64, n_layers=1, n_heads=4)  # type: ignore[arg-type]
            fusion = Early(config, 2)
            for weight in fusion.parameters():
                torch.nn.init.normal_(weight, std=0.05)
            times = [seconds_of(fusion, n, whole) for n in lengths]
            slope = float(np.polyfit(np.log(lengths), np.log(times), 1)[0])
            print(f"| {way} | " + " | ".join(f"{1000 * one:.2f}" for one in times) + f" | {slope:.2f} |", flush=True)
            if way in ("attend", "resample") and not whole:
                linear &= abs(slope - 1) <= 0.15
    return int(not linear)


if __name__ == "__main__":
    sys.exit(main())
