"""Converting models of 80 million parameters: less than two minutes, and less than three times their memory.

    python benchmarks/conversion.py TEXT SOURCES TARGETS [MODEL …]

A Llama of 10 layers × 768 with 12 heads, trained for one step on TEXT (WikiText-2's valid.txt.xz for instance), and an
encoder–decoder of 10 + 10 layers × 512 with 8 heads, trained for one step on parallel files; what trained them
calibrates as well. MODEL, "Llama" or "encoder-decoder", is one of them alone. Heads aligned and outputs refitted. Each
conversion has a process of its own, whose largest resident size, less that before the conversion, is the memory it
takes besides the model. Exits 1 above a bar.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from transfuse import (
    Corpus,
    DecoderConfig,
    LanguageModel,
    Seq2Seq,
    Seq2SeqConfig,
    TrainingConfig,
    load,
    read_pairs,
    regroup,
)

SECONDS, TIMES = 120.0, 3.0
LLAMA = DecoderConfig(vocab_size=12_000, d_model=768, n_layers=10, n_heads=12, d_hidden=2048, max_positions=512)
PAIRS = Seq2SeqConfig(
    vocab_size=16_000, d_model=512, encoder_layers=10, decoder_layers=10, encoder_heads=8, decoder_heads=8,
    encoder_hidden=2048, decoder_hidden=2048,
)  # fmt: skip
TRAINING = TrainingConfig(max_steps=1, batch_tokens=512)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Watch(threading.Thread):
    """The largest resident size while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, resident())


def converted(folder: Path, n_kv_heads: int, data: list[Path]) -> tuple[float, float]:
    """Seconds, and times the model's memory that the conversion takes besides it."""
    model = load(folder)
    X, y = columns(data)
    n = sum(weight.numel() * weight.element_size() for weight in model.model_.parameters())
    watch, before = Watch(), resident()
    watch.start()
    began = time.perf_counter()
    regroup(model, n_kv_heads, X, y)
    seconds = time.perf_counter() - began
    watch.done.set()
    return seconds, (watch.most - before) / n


def columns(data: list[Path]) -> tuple[Any, Any]:
    if len(data) == 1:
        return Corpus(data), None
    pairs = read_pairs(*data)
    return pairs.sources, pairs.targets


def main(text: Path, sources: Path, targets: Path, names: list[str]) -> int:
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        plain = TRAINING.replace(label_smoothing=0.0)
        models: dict[str, tuple[Any, list[Path], tuple[int, ...]]] = {
            "encoder-decoder": (
                Seq2Seq(model=PAIRS, training=TRAINING),
                [sources, targets],
                (4, 2, 1),
            ),
            "Llama": (LanguageModel(model=LLAMA, training=plain), [text], (6, 3, 1)),
        }
        for name in names or list(models):
            model, data, heads = models[name]
            X, y = columns(data)
            model.fit(X) if y is None else model.fit(X, y, validation=(X[:2], y[:2]))
            n = sum(weight.numel() for weight in model.model_.parameters())
            model.save(Path(folder, name))
            for n_kv_heads in heads:
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    seconds, times = process.apply(converted, (Path(folder, name), n_kv_heads, data))
                print(
                    f"{name}, {n:,} parameters to {n_kv_heads} heads: {seconds:.1f} s (bar {SECONDS:.0f}), "
                    f"{times:.2f} times the model's memory besides the model (bar {TIMES:.0f} with it)",
                    flush=True,
                )
                missed |= seconds > SECONDS or times + 1 > TIMES
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4]), sys.argv[4:]))
