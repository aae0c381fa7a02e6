"""Pre-training on WikiText-2, and what it is worth for SST-2: the same encoder fine-tuned and trained from nothing.

    python benchmarks/pretraining.py TEXT SST2 OUT [--steps N] [--seeds N] [--sides …] [--width N] [--precision …]
                                     [--own N] [--reviews DATA] [--words-only] [--rate R] [--labels N …]

TEXT is WikiText-2's train.txt.xz, SST2 a folder with {train,dev,test}.tsv. A BERT of 4 layers × 256 (or --width)
learns hidden words and next sentences of the articles (OUT/run, taken up where it stopped; OUT/encoder is the result),
whose held-out losses and accuracies are printed as they went and drawn to OUT/pretraining.png; with --own it also reads
SST-2's training sentences, N times over, without their labels, and with --reviews what customers wrote of hotels, food,
films, books and clothes (DATA/qa/subjqa_*.json.gz and DATA/multimodal/clothing_reviews.csv.gz). --words-only leaves out
next sentences. Then SST-2's training sentences, all or as many labelled
ones as --labels says: from that encoder and from nothing with the same sizes, each side at the learning rate whose dev
accuracy with seed 0 is best; test accuracy of every seed, and the gain. Exits 1 where there is none.
"""

from __future__ import annotations

import argparse
import lzma
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from transfuse import (
    BertConfig,
    MaskingConfig,
    TextClassifier,
    TextEncoder,
    TrainingConfig,
    read_columns,
    read_questions,
    read_table,
)
from transfuse.training.metrics_log import read_metrics

MODEL = BertConfig(vocab_size=8000, d_model=256, n_layers=4, n_heads=4, max_positions=128)
CONTEXT, SHARE = 64, 0.3
"""Tokens of a row, and the share of its words that is hidden: twice BERT's, for so few steps."""

EPOCHS, LEAST_TEXTS = 3, 10_000
"""Times that all texts are learned from, or more often where that makes fewer texts than this."""

RATES = (1e-4, 3e-4, 1e-3)
SIDES = ("pre-trained", "from nothing")
ARTICLE = re.compile(r"\n(?= = [^=\n]+ = \n)")


def articles_of(text: Path) -> list[str]:
    found = ARTICLE.split(lzma.decompress(text.read_bytes()).decode())
    return [article for article in found if article.strip()]


def reviews_of(data: Path) -> list[str]:
    """Distinct reviews, in the order of their files."""
    files = (data / "qa" / f"subjqa_{part}.json.gz" for part in ("train", "dev", "test"))
    contexts = [context for file in files for _, context in read_questions(file, mismatched="drop").X]
    clothes = read_table(data / "multimodal" / "clothing_reviews.csv.gz")["Review Text"].dropna().tolist()
    return list(dict.fromkeys([*contexts, *clothes]))


def pretrained(
    texts: list[str],
    start: BertConfig | TextEncoder,
    out: Path,
    *,
    steps: int,
    precision: Any,
    rate: float = 1e-3,
    context: int = CONTEXT,
    held: float = 0.02,
    pairs: bool = True,
) -> TextEncoder:
    """The encoder in OUT, trained first where there is none; nothing is dropped out of one that starts from nothing,
    for in few epochs nothing is learned by heart."""
    if (out / "encoder").exists():
        return TextEncoder.load(out / "encoder")
    if isinstance(start, BertConfig):
        start = start.replace(dropout=0.0, attention_dropout=0.0)
    training = TrainingConfig(
        max_steps=steps, epochs=100, batch_tokens=2048, learning_rate=rate, schedule="cosine", warmup_steps=100,
        label_smoothing=0.0, average=1, keep=1, validate_every=max(1, steps // 20), precision=precision,
    )  # fmt: skip
    encoder = TextEncoder(
        model=start,
        masking=MaskingConfig(context=context, share=SHARE, next_sentence=pairs),
        training=training,
        validation_fraction=held,
        run_dir=out / "run",
        verbose=True,
    )
    encoder.fit(texts, resume=(out / "run" / "checkpoints").exists())
    encoder.save(out / "encoder")
    return encoder


def with_dropout_of(encoder: TextEncoder, model: BertConfig) -> TextEncoder:
    """The encoder, what is fine-tuned from which drops out as `model` says."""
    rates = {name: getattr(model, name) for name in ("dropout", "attention_dropout")}
    encoder.model_.config = encoder.model_.config.replace(**rates)
    return encoder


def show(records: list[dict[str, Any]], path: Path) -> None:
    """Held-out figures of a run as a table and a picture."""
    from matplotlib.figure import Figure

    held = [record for record in records if record["kind"] == "validation"]
    kinds = {"word": "hidden words", "pair": "next sentence"}
    names = [f"{kind}_{ending}" for kind in kinds for ending in ("loss", "accuracy") if f"{kind}_loss" in held[0]]
    print("| step | minutes | " + " | ".join(name.replace("_", " ") for name in names) + " |")
    print("|---" * (2 + len(names)) + "|")
    for one in held:
        cells = [f"{one['step']:,}", f"{one['elapsed'] / 60:.1f}", *(f"{one[name]:.3f}" for name in names)]
        print("| " + " | ".join(cells) + " |")
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    steps = [one["step"] for one in held]
    for panel, ending in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for kind, label in ((kind, label) for kind, label in kinds.items() if f"{kind}_loss" in names):
            panel.plot(steps, [one[f"{kind}_{ending}"] for one in held], "o-", markersize=3, label=label)
        panel.set(xlabel="step", ylabel=f"held-out {ending}" + ", nats" * (ending == "loss"), ylim=(0, None))
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def accuracy(model: TextClassifier, rows: tuple[list[str], list[str]]) -> float:
    return 100 * float(np.mean(model.predict(rows[0]) == np.asarray(rows[1])))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("sst2", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--width", type=int, default=MODEL.d_model)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--own", type=int, default=0)
    parser.add_argument("--reviews", type=Path)
    parser.add_argument("--words-only", action="store_true")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--labels", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    model = MODEL.replace(d_model=asked.width)
    starts: dict[str, TextEncoder | None] = {"from nothing": None} if "from nothing" in asked.sides else {}
    parts = {}
    for name in ("train", "dev", "test"):
        columns, _ = read_columns(asked.sst2 / f"{name}.tsv", ["sentence", "label"])
        parts[name] = (columns[0], columns[1])
    if "pre-trained" in asked.sides:
        own = parts["train"][0] * asked.own
        if asked.own:
            asked.out /= f"own-{asked.own}"
        reviews = reviews_of(asked.reviews) if asked.reviews else []
        texts = [*own, *reviews, *articles_of(asked.text)]
        print(
            f"{len(texts):,} texts, {sum(map(len, texts)):,} characters, {len(reviews):,} of them reviews", flush=True
        )
        encoder = pretrained(
            texts,
            model,
            asked.out,
            steps=asked.steps,
            precision=asked.precision,
            rate=asked.rate,
            pairs=not asked.words_only,
        )
        with_dropout_of(encoder, model)
        print(f"{sum(weight.numel() for weight in encoder.model_.parameters()):,} parameters")
        show(read_metrics(asked.out / "run" / "metrics.jsonl"), asked.out / "pretraining.png")
        starts["pre-trained"] = encoder
    gains = [gain(asked, model, starts, parts, n_labels) for n_labels in asked.labels]
    return int(len(starts) == len(SIDES) and min(gains) <= 0)


def gain(
    asked: argparse.Namespace,
    model: BertConfig,
    starts: dict[str, TextEncoder | None],
    parts: dict[str, tuple[list[str], list[str]]],
    n_labels: int,
) -> float:
    """Points of accuracy that the encoder is worth with `n_labels` labelled sentences (0 = all)."""
    sentences, labels = parts["train"]
    n_labels = n_labels or len(sentences)
    kept = np.sort(np.random.default_rng(0).permutation(len(sentences))[:n_labels]).tolist()
    learned = [sentences[row] for row in kept], [labels[row] for row in kept]
    epochs = max(EPOCHS, round(LEAST_TEXTS / n_labels))
    print(f"{n_labels:,} labelled sentences, {epochs} epochs")

    def trained(start: TextEncoder | None, rate: float, seed: int) -> TextClassifier:
        training = TrainingConfig(
            epochs=epochs, batch_tokens=1024, learning_rate=rate, schedule="cosine", warmup_steps=50,
            label_smoothing=0.0, average=1, validate_every=170, precision=asked.precision,
        )  # fmt: skip
        classifier = TextClassifier(encoder=start, model=model, training=training, random_state=seed)
        return classifier.fit(*learned, validation=parts["dev"])

    found: dict[str, list[float]] = {}
    for name in (side for side in SIDES if side in starts):
        start = starts[name]
        tried = {rate: trained(start, rate, 0) for rate in RATES}
        on_dev = {rate: accuracy(model, parts["dev"]) for rate, model in tried.items()}
        best = max(on_dev, key=lambda rate: on_dev[rate])
        print(f"{name}: dev accuracy by learning rate {on_dev}", flush=True)
        found[name] = [accuracy(tried[best], parts["test"])]
        for seed in range(1, asked.seeds):
            found[name].append(accuracy(trained(start, best, seed), parts["test"]))
        spread = statistics.stdev(found[name]) if asked.seeds > 1 else float("nan")
        print(f"{name}: test {found[name]}, {statistics.mean(found[name]):.2f} ± {spread:.2f}", flush=True)
    if len(found) < len(SIDES):
        return float("nan")
    gained = statistics.mean(found["pre-trained"]) - statistics.mean(found["from nothing"])
    print(f"pre-training gains {gained:+.2f} points", flush=True)
    return gained


if __name__ == "__main__":
    sys.exit(main())
