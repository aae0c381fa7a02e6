"""Converting a model of 80 million parameters: less than two minutes, and less than three times its memory.

    python benchmarks/conversion.py TEXT

A Llama of 12 layers × 768 with 12 heads, trained for one step on TEXT (WikiText-2's valid.txt.xz for instance), which
is also what calibrates; heads aligned and outputs refitted. Memory is the largest resident size of the process during
the conversion, less that before it, and the model. Exits 1 above a bar.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from pathlib import Path

from transfuse import Corpus, DecoderConfig, LanguageModel, TrainingConfig, regroup

SECONDS, TIMES = 120.0, 3.0
MODEL = DecoderConfig(vocab_size=8000, d_model=768, n_layers=12, n_heads=12, d_hidden=2048, max_positions=512)


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


def main(text: str) -> int:
    training = TrainingConfig(max_steps=1, batch_tokens=512, label_smoothing=0.0)
    model = LanguageModel(model=MODEL, training=training).fit(Corpus([text]))
    n = sum(weight.numel() for weight in model.model_.parameters())
    missed = False
    for n_kv_heads in (6, 3, 1):
        watch, before = Watch(), resident()
        watch.start()
        began = time.perf_counter()
        regroup(model, n_kv_heads, Corpus([text]))
        seconds = time.perf_counter() - began
        watch.done.set()
        times = (watch.most - before) / (4 * n)
        print(
            f"{n:,} parameters to {n_kv_heads} heads: {seconds:.1f} s (bar {SECONDS:.0f}), {times:.2f} times the "
            f"model's memory besides the model (bar {TIMES:.0f} with it)",
            flush=True,
        )
        missed |= seconds > SECONDS or times + 1 > TIMES
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
