"""E-mail subject lines and film replies, from the command line alone: train, interrupt, resume, evaluate.

    python benchmarks/command_line_tasks.py aeslc DATA OUT      (DATA holds aeslc_{train,dev,test}.jsonl.gz)
    python benchmarks/command_line_tasks.py cornell DATA OUT    (DATA holds cornell_pairs_30k.tsv.gz)

Every step is the `transfuse` command. Training is interrupted once with SIGINT, which must exit 130 and leave a
checkpoint, and then resumed. Exits 1 if a step fails or if subject lines are no better than the body's first 8 words.
Cornell has no split: its last 1,000 pairs are held out as the test.
"""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from transfuse import read_pairs
from transfuse.metrics.text_scores import score_texts

COMMAND = str(Path(sys.executable).with_name("transfuse"))
COMMON = {
    "model.dropout": 0.2,
    "model.encoder_hidden": 512,
    "model.decoder_hidden": 512,
    "training.precision": "bfloat16",
    "training.patience": 4,
    "training.warmup_steps": 1000,
}
INTERRUPT_AFTER = 60.0


def settings(**more: object) -> list[str]:
    return [word for name, value in (COMMON | more).items() for word in ("--set", f"{name}={json.dumps(value)}")]


def transfuse(*words: object) -> str:
    print("$ transfuse", *words, flush=True)
    done = subprocess.run([COMMAND, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return done.stdout


def fit_interrupted_and_resumed(*words: object) -> None:
    """`transfuse fit seq2seq`, interrupted once and resumed."""
    out = Path(words[words.index("--out") + 1])  # type: ignore[arg-type]
    first = subprocess.Popen([COMMAND, "fit", "seq2seq", *map(str, words)])
    time.sleep(INTERRUPT_AFTER)
    first.send_signal(signal.SIGINT)
    code, steps = first.wait(), sorted(path.name for path in (out / "training" / "checkpoints").glob("step-*"))
    print(f"interrupted after {INTERRUPT_AFTER:.0f} s: exit code {code}, checkpoints {', '.join(steps)}", flush=True)
    if code != 130 or not steps:
        sys.exit(f"expected exit code 130 and a checkpoint, not {code} and {steps}")
    transfuse("fit", "seq2seq", *words, "--resume")


def aeslc(data: Path, out: Path) -> int:
    columns = ["--source", "body", "--target", "subject"]
    train, dev, test = (data / f"aeslc_{name}.jsonl.gz" for name in ("train", "dev", "test"))
    # the mail's first hundred tokens say what it is about; the loss is best long before the words are
    more = settings(
        **{
            "model.max_positions": 100,
            "model.dropout": 0.1,
            "tokenizer.lowercase": True,
            "training.epochs": 8,
            "training.patience": None,
            "training.schedule": "cosine",
            "training.validate_every": 500,
            "training.select_by": "metric",
            "search.max_tokens": 24,
        }
    )
    fit_interrupted_and_resumed(train, "--validation", dev, *columns, "--metric", "rouge", "--out", out, *more)
    result = transfuse("evaluate", out, test, *columns, "--metric", "rouge", "--metric", "chrf", "--json")
    rouge_l = {score["name"]: score["value"] for score in json.loads(result)["scores"]}["ROUGE-L"]
    pairs = read_pairs(test, source="body", target="subject")
    first_words = [" ".join(body.split()[:8]) for body in pairs.sources]
    trivial = score_texts(first_words, pairs.targets, "rouge")[-1].value
    print(f"ROUGE-L {rouge_l:.2f}; the body's first 8 words have {trivial:.2f}")
    return int(rouge_l <= trivial)


def cornell(data: Path, out: Path) -> int:
    with gzip.open(data / "cornell_pairs_30k.tsv.gz", "rt", encoding="utf-8", newline="\n") as stream:
        lines = stream.readlines()
    out.mkdir(parents=True, exist_ok=True)
    train, test = out / "train.tsv", out / "test.tsv"
    train.write_text("".join(lines[:-1000]), encoding="utf-8")
    test.write_text("".join(lines[-1000:]), encoding="utf-8")
    more = settings(**{"training.epochs": 10})
    fit_interrupted_and_resumed(train, "--metric", "chrf", "--out", out, *more)
    transfuse("evaluate", out, test, "--metric", "bleu", "--metric", "chrf", "--metric", "rouge")
    transfuse("predict", out, test, "--source", "1", "--beams", "4", "--json")
    return 0


if __name__ == "__main__":
    sys.exit({"aeslc": aeslc, "cornell": cornell}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3])))
