"""Plays, character by character, in three minutes on a CPU: the settings nanoGPT has for it, and ours.

    python benchmarks/characters.py TEXT

TEXT is one plain text; tiny Shakespeare, where nanoGPT's README reports a validation loss of 1.88 nats a character. Of
it the last tenth is held out. Both sides train for three minutes here, one after the other: nanoGPT's model and
settings (GPT-2 way, 4 layers × 128, rows of 64 characters, 12 a batch, 1e-3 falling to 1e-4 along a cosine, here to 0)
and the Llama way. Exits 1 above that loss.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from transfuse import Corpus, DecoderConfig, LanguageModel, TokenizerConfig, TrainingConfig

BAR, SECONDS = 1.88, 180.0
NANOGPT = DecoderConfig(
    d_model=128,
    n_layers=4,
    n_heads=4,
    d_hidden=512,
    activation="gelu",
    gated=False,
    qkv_bias=False,
    norm="layer",
    positions="learned",
    max_positions=64,
)
OURS = DecoderConfig(d_model=128, n_layers=4, n_heads=4, d_hidden=352, max_positions=128)
TRAINING = TrainingConfig(
    epochs=1000, label_smoothing=0.0, schedule="cosine", warmup_steps=100, weight_decay=0.1, average=1, patience=None
)
SIDES = {
    "nanoGPT's settings": (NANOGPT, 64, TRAINING.replace(batch_tokens=12 * 64, learning_rate=1e-3, clip_norm=1.0)),
    "ours": (OURS, 128, TRAINING.replace(batch_tokens=1024, learning_rate=4e-3)),
}


def train(text: Path, model: DecoderConfig, context: int, training: TrainingConfig) -> tuple[float, float, int]:
    """Loss, seconds and steps of a run that takes three minutes by the speed of its first steps."""
    steps = 200
    while True:
        estimator = LanguageModel(
            model=model,
            tokenizer=TokenizerConfig(unit="character"),
            training=training.replace(max_steps=steps, validate_every=steps),
            context=context,
            validation_fraction=0.1,
        )
        began = time.perf_counter()
        estimator.fit(Corpus(text))
        seconds = time.perf_counter() - began
        if steps > 200:
            return estimator.results_["held_out_loss"], seconds, steps
        # the cosine must know its end: the steps that will fit, with a margin for reading and validating
        steps = int(0.85 * steps * SECONDS / estimator.results_["seconds"])


def main(text: Path) -> int:
    losses = {}
    for side, (model, context, training) in SIDES.items():
        losses[side], seconds, steps = train(text, model, context, training)
        print(f"{side}: {losses[side]:.3f} nats a character after {steps:,} steps, {seconds:.0f} s", flush=True)
    print(f"bar {BAR} on tiny Shakespeare")
    return int(losses["ours"] > BAR)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
