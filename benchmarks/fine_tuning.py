"""Fine-tuning BERT for a task beside `transformers.Trainer`: real tokens a second, and the quality of several seeds.

    python benchmarks/fine_tuning.py MODEL DATA TASK [--rows N] [--epochs N] [--rate R] [--seeds N …] [--sides …]
                                     [--speed]

MODEL is the directory of a BERT, DATA a folder with the task's files, TASK one of sst2, chnsenticorp (`label` and
`sentence` or `text`), conll2003, weibo (CoNLL) and cmrc2018 (SQuAD). Without --speed both sides train on the same rows
with the same epochs, seeds, learning rate and sentences a step, are judged by the same function on the same test rows,
and the difference of the means is held against 0.3. With --speed one epoch on --rows is timed: Trainer with its
defaults, Trainer grouped by length and ours, both in bfloat16 where that is faster and at the best of several batch
sizes, medians of three rounds; bars 3 and 1.3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transfuse import (
    AnsweringConfig,
    QuestionAnswerer,
    TextClassifier,
    TextEncoder,
    TokenTagger,
    TrainingConfig,
    read_columns,
    read_questions,
    read_tags,
)
from transfuse.data.sequences import alike
from transfuse.estimators.question_answerer import _Questions
from transfuse.metrics.answers import answer_scores
from transfuse.metrics.entities import entity_scores

ROUNDS = 3
RATE, SENTENCES, QUALITY, DEFAULT_BAR, BEST_BAR = 5e-5, 32, 0.3, 3.0, 1.3
ANSWERING = AnsweringConfig(window=256, overlap=64, longest_question=64, longest_answer=60)
FILES = {
    "sst2": ("train.tsv", "test.tsv", "sentence"),
    "chnsenticorp": ("train.tsv.gz", "test.tsv.gz", "text"),
    "conll2003": ("train.txt.gz", "test.txt.gz", ""),
    "weibo": ("train.txt.gz", "test.txt.gz", ""),
    "cmrc2018": ("cmrc2018_train.json.gz", "cmrc2018_dev.json.gz", ""),
}

Rows = tuple[list[Any], list[Any]]


def read(path: Path, column: str) -> Rows:
    if column:
        columns, _ = read_columns(path, [column, "label"])
        return columns[0], columns[1]
    found = read_questions(path, mismatched="drop") if ".json" in path.suffixes else read_tags(path)
    return found.X, found.y


def some(rows: Rows, n: int) -> Rows:
    kept = np.sort(np.random.default_rng(0).permutation(len(rows[0]))[:n]) if n else range(len(rows[0]))
    return [rows[0][i] for i in kept], [rows[1][i] for i in kept]


class Ours:
    """One of our estimators, trained on windows that both sides use."""

    def __init__(
        self, task: str, folder: Path, train: Rows, epochs: int, seed: int, sentences: int, rate: float = RATE
    ) -> None:
        self.rate = rate
        self.task, self.folder = task, folder
        self.estimator: Any = {"weibo": TokenTagger, "conll2003": TokenTagger, "cmrc2018": QuestionAnswerer}.get(
            task, TextClassifier
        )(encoder=folder, random_state=seed)
        if task == "cmrc2018":
            self.estimator.set_params(answering=ANSWERING)
        self.train, self.epochs, self.sentences = train, epochs, sentences

    def fit(self) -> float:
        """Train; the seconds of its steps."""
        encoder = TextEncoder.load(self.folder)
        lengths = [len(one) for one in encoder.encode(plain(self.task, self.train[0]))]
        steps = len(lengths) * self.epochs // self.sentences
        tokens = round(self.sentences * statistics.mean(lengths))
        if isinstance(self.estimator, TextClassifier):  # whose batches are not all full
            while len(alike(lengths, tokens, np.random.default_rng(0))) * self.epochs > steps + self.epochs:
                tokens += 1
        training = TrainingConfig(
            epochs=self.epochs, batch_tokens=tokens, learning_rate=self.rate, schedule="cosine",
            warmup_steps=steps // 10, weight_decay=0.0, label_smoothing=0.0, average=1, validate_every=10**6,
            precision=precision(),
        )  # fmt: skip
        X, y = self.train
        self.estimator.set_params(training=training).fit(X, y, validation=(X[:8], y[:8]))
        return float(self.estimator.results_["seconds"])

    def score(self, test: Rows) -> float:
        return judge(self.task, test[1], self.estimator.predict(test[0]))


class Theirs:
    """`transformers` with Trainer."""

    def __init__(self, task: str, folder: Path, train: Rows, epochs: int, seed: int, **settings: Any) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.task, self.epochs, self.seed, self.settings = task, epochs, seed, settings
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        transformers.set_seed(seed)
        self.labels: list[Any] = []
        if task == "cmrc2018":
            self.model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
            self.collate: Any = transformers.DataCollatorWithPadding(self.tokenizer)
        else:
            tags = task in ("conll2003", "weibo")
            self.labels = sorted({tag for row in train[1] for tag in row} if tags else set(train[1]))
            kind = "TokenClassification" if tags else "SequenceClassification"
            self.model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
                folder, num_labels=len(self.labels), ignore_mismatched_sizes=True
            )
            collator = "DataCollatorForTokenClassification" if tags else "DataCollatorWithPadding"
            self.collate = getattr(transformers, collator)(self.tokenizer)
        self.rows = self.encoded(*train)

    def encoded(self, X: list[Any], y: list[Any]) -> list[dict[str, Any]]:
        if self.task == "cmrc2018":
            # the windows are ours: what is compared is the training, not how answers are mapped to pieces
            estimator = QuestionAnswerer(answering=ANSWERING)
            estimator.tokenizer_ = TextEncoder.load(self.model.config.name_or_path).tokenizer_
            data = estimator._dataset(_Questions.some(X, y, "y", range(len(X))))
            return [
                {"input_ids": list(one.ids), "token_type_ids": list(one.segments), "attention_mask": [1] * len(one),
                 "start_positions": int(a), "end_positions": int(b)}
                for one, (a, b) in zip(data.pieces, data.targets, strict=True)
            ]  # fmt: skip
        number = {label: i for i, label in enumerate(self.labels)}
        if self.task in ("conll2003", "weibo"):
            found = self.tokenizer(X, is_split_into_words=True, truncation=True, max_length=512)
            rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in found["input_ids"]]
            for i, row in enumerate(rows):
                words = found.word_ids(i)
                firsts = [w is not None and w != (words[k - 1] if k else None) for k, w in enumerate(words)]
                row["labels"] = [number[y[i][w]] if first else -100 for w, first in zip(words, firsts, strict=True)]
            return rows
        found = self.tokenizer(X, truncation=True, max_length=512)
        return [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "label": number[label]}
            for ids, label in zip(found["input_ids"], y, strict=True)
        ]

    def fit(self) -> float:
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder, num_train_epochs=self.epochs, seed=self.seed, save_strategy="no", report_to=[],
                logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False, **self.settings,
            )  # fmt: skip
            trainer = transformers.Trainer(
                self.model,
                arguments,
                train_dataset=self.rows,
                data_collator=self.collate,  # type: ignore[arg-type]
            )
            began = time.perf_counter()
            trainer.train()
            return time.perf_counter() - began

    def score(self, test: Rows) -> float:
        """Judged through our own estimators, around the weights that Trainer made."""
        with tempfile.TemporaryDirectory() as folder:
            if self.labels:
                self.model.config.id2label = dict(enumerate(self.labels))
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            kind: Any = {"conll2003": TokenTagger, "weibo": TokenTagger, "cmrc2018": QuestionAnswerer}.get(
                self.task, TextClassifier
            )
            estimator = kind.load(folder)
            if self.task == "cmrc2018":
                estimator.set_params(answering=ANSWERING)
            return judge(self.task, test[1], estimator.predict(test[0]))


def plain(task: str, X: list[Any]) -> list[str]:
    if task == "cmrc2018":
        return [" ".join(row) for row in X]
    return [" ".join(row) for row in X] if task in ("conll2003", "weibo") else X


def judge(task: str, wanted: list[Any], found: Any) -> float:
    if task == "cmrc2018":
        return answer_scores([[text for text, _ in row] for row in wanted], list(found))[1].value
    if task in ("conll2003", "weibo"):
        return entity_scores(wanted, found)[0].value
    return 100 * float(np.mean([str(a) == str(b) for a, b in zip(wanted, found, strict=True)]))


def precision() -> Any:
    return "bfloat16" if fast_bfloat16() else "float32"


def fast_bfloat16() -> bool:
    """Whether products are faster in bfloat16 here."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        rounds = []
        for _ in range(5):
            began = time.perf_counter()
            a @ a
            rounds.append(time.perf_counter() - began)
        seconds[dtype] = min(rounds)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def matmul_rate() -> float:
    """Operations a second of large float32 products."""
    a = torch.randn(2048, 2048)
    rounds = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        rounds.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(rounds)


def speed(task: str, folder: Path, train: Rows) -> int:
    lengths = [len(one) for one in TextEncoder.load(folder).encode(plain(task, train[0]))]
    tokens, rate = sum(lengths), matmul_rate()
    print(f"{len(lengths)} rows, {tokens} real tokens, {rate / 1e9:.1f} GFLOP/s in large products")
    best = {"train_sampling_strategy": "group_by_length", "bf16": fast_bfloat16(), "learning_rate": RATE}
    sides: dict[str, Any] = {}
    for n in (16, 32, 64):
        sides[f"Trainer, grouped, {n} a step"] = lambda n=n: Theirs(
            task, folder, train, 1, 0, per_device_train_batch_size=n, **best
        )
        sides[f"ours, {n} a step"] = lambda n=n: Ours(task, folder, train, 1, 0, n)
    sides["Trainer, defaults"] = lambda: Theirs(task, folder, train, 1, 0)
    found: dict[str, float] = {}
    for name, make in sides.items():
        rounds = 1 if name == "Trainer, defaults" else ROUNDS
        found[name] = tokens / statistics.median([make().fit() for _ in range(rounds)])
        encoder = TextEncoder.load(folder).model_.encoder
        share = 6 * sum(w.numel() for w in encoder.parameters()) * found[name] / rate
        print(f"{name}: {found[name]:,.0f} real tokens/s, {share:.0%} of the product rate", flush=True)
    default = found["Trainer, defaults"]
    ours, theirs = (max(v for name, v in found.items() if name.startswith(side)) for side in ("ours", "Trainer"))
    print(
        f"ours is {ours / default:.2f} x the defaults (bar {DEFAULT_BAR}), {ours / theirs:.2f} x its best ({BEST_BAR})"
    )
    return int(ours < DEFAULT_BAR * default or ours < BEST_BAR * theirs)


def quality(
    task: str, folder: Path, train: Rows, test: Rows, epochs: int, rate: float, seeds: list[int], names: list[str]
) -> int:
    scores: dict[str, list[float]] = {name: [] for name in names}
    for seed in seeds:
        sides = {
            "ours": lambda seed=seed: Ours(task, folder, train, epochs, seed, SENTENCES, rate),
            "transformers": lambda seed=seed: Theirs(
                task, folder, train, epochs, seed, per_device_train_batch_size=SENTENCES, learning_rate=rate,
                lr_scheduler_type="cosine", warmup_steps=0.1, weight_decay=0.0,
                train_sampling_strategy="group_by_length", bf16=fast_bfloat16(),
            ),
        }  # fmt: skip
        for name in names:
            side = sides[name]()
            seconds = side.fit()
            scores[name].append(side.score(test))
            print(f"seed {seed}, {name}: {scores[name][-1]:.2f} after {seconds:.0f} s", flush=True)
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(seeds) > 1 else float("nan")
        print(f"{task}, {name}: {statistics.mean(values):.2f} ± {spread:.2f} on {len(test[0])} rows, {epochs} epochs")
    if len(names) < 2:
        return 0
    behind = statistics.mean(scores["transformers"]) - statistics.mean(scores["ours"])
    print(f"ours is {-behind:+.2f} (bar: at most {QUALITY} behind)")
    return int(behind > QUALITY)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("task", choices=FILES)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="*", choices=["ours", "transformers"], default=["ours", "transformers"])
    parser.add_argument("--speed", action="store_true")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    train_file, test_file, column = FILES[asked.task]
    train = some(read(asked.data / train_file, column), asked.rows)
    if asked.speed:
        return speed(asked.task, asked.model, train)
    test = read(asked.data / test_file, column)
    return quality(asked.task, asked.model, train, test, asked.epochs, asked.rate, asked.seeds, asked.sides)


if __name__ == "__main__":
    sys.exit(main())
