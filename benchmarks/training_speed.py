"""Training speed against `transformers`: real (non-padding) target tokens a second, same sizes, precision and data.

    python benchmarks/training_speed.py DATA [bfloat16|float32]

DATA holds {train}.{de,en}.gz of Multi30k. The peer is MarianMTModel in Seq2SeqTrainer as its translation example sets
it up (DataCollatorForSeq2Seq, padding to the longest, label smoothing), with as many sentences a batch as ours has on
average; once with batches drawn at random, as the example has it, and once grouped by length, each with the faster of
its eager and SDPA attention (the slower one leaves after the first round). Its grouping sorts 50 batches, or a quarter
of the data, at a time, longest first, so one such whole group is timed; ours draws as many batches from all lengths.
Everything is timed by the clock on the wall. Rounds alternate; medians are compared. Exits 1 below the bars.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from transfuse import Seq2SeqConfig, TokenizerConfig, TrainingConfig, read_pairs
from transfuse.data.batches import PairDataset
from transfuse.data.tokenizer import Tokenizer
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.pretrained.directory import save_model
from transfuse.training.loop import make_optimizer, train
from transfuse.training.seq2seq import seq2seq_loss

RANDOM_STEPS, ROUNDS = 15, 3
BARS = {"random batches": 2.0, "grouped by length": 1.2}
CONFIG = Seq2SeqConfig(
    d_model=256,
    encoder_layers=4,
    decoder_layers=4,
    encoder_hidden=512,
    decoder_hidden=512,
    dropout=0.3,
    norm_first=False,
    positions="sinusoidal",
    max_positions=256,
)


def encode(data: Path) -> tuple[PairDataset, Seq2SeqConfig]:
    pairs = read_pairs(data / "train.de.gz", data / "train.en.gz")
    tokenizer = Tokenizer.train([*pairs.sources, *pairs.targets], CONFIG.vocab_size, TokenizerConfig(lowercase=True))
    sources, targets = tokenizer.encode(pairs.sources), tokenizer.encode(pairs.targets)
    return PairDataset(sources, targets, start_id=0, pad_id=1), CONFIG.replace(vocab_size=len(tokenizer))


def group_of(data: PairDataset, batch: int) -> int:
    """Batches that `transformers` sorts at a time when it groups by length."""
    return min(len(data) // (4 * batch), 50)


def ours(data: PairDataset, config: Seq2SeqConfig, training: TrainingConfig, n_steps: int, seed: int) -> float:
    model = Seq2SeqModel(config).initialise(seed)
    began = time.perf_counter()
    steps = list(
        train(
            model, data, seq2seq_loss, make_optimizer(model, training), training.replace(max_steps=n_steps), seed=seed
        )
    )
    return sum(step.n_tokens for step in steps) / (time.perf_counter() - began)


def theirs(
    data: PairDataset, folder: Path, training: TrainingConfig, batch: int, n_steps: int, grouped: bool, attention: str
) -> float:
    from transformers import (
        AutoModelForSeq2SeqLM,
        DataCollatorForSeq2Seq,
        PreTrainedTokenizerFast,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.began, self.ends = 0.0, list[float]()

        def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            self.ends.append(time.perf_counter())

    class Counting(DataCollatorForSeq2Seq):
        counts: ClassVar[list[int]] = []

        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            self.counts.append(sum(len(one["labels"]) for one in features))
            return super().__call__(features, return_tensors)

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=attention)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")
    rows = [
        {"input_ids": list(source), "attention_mask": [1] * len(source), "labels": list(target)}
        for source, target in zip(data.sources, data.targets, strict=True)
    ]
    stopwatch, collator = Stopwatch(), Counting(tokenizer, model=model)
    collator.counts.clear()
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=n_steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="group_by_length" if grouped else "random",
        label_smoothing_factor=training.label_smoothing,
        learning_rate=1e-4,
        weight_decay=training.weight_decay,
        bf16=training.precision == "bfloat16",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[stopwatch]
    )
    trainer.train()
    return sum(collator.counts[:n_steps]) / (stopwatch.ends[-1] - stopwatch.began)


def main(data_folder: Path, precision: Any) -> int:
    data, config = encode(data_folder)
    training = TrainingConfig(precision=precision, batch_tokens=4096, learning_rate=1e-4)
    batches = data.epoch(training.batch_tokens, 0, 0)
    per_batch = round(len(data) / len(batches))
    group = group_of(data, per_batch)
    print(
        f"{torch.get_num_threads()} threads, {precision}, about {per_batch} sentences a batch, {group} batches a group"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = Tokenizer.train(["a"], 300).to_json()
        save_model(Seq2SeqModel(config).initialise(0), folder, {"tokenizer.json": empty})
        sides: dict[str, Callable[[], float]] = {"transfuse": lambda: ours(data, config, training, group, 0)}
        for kind in BARS:
            for attention in ("eager", "sdpa"):
                grouped = kind != "random batches"
                sides[f"transformers, {kind}, {attention}"] = partial(
                    theirs,
                    *(data, folder, training, per_batch),
                    n_steps=group if grouped else RANDOM_STEPS,
                    grouped=grouped,
                    attention=attention,
                )
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(ROUNDS):
            for side, measure in sides.items():
                speeds[side].append(measure())
                print(f"  {side}: {speeds[side][-1]:,.0f} target tokens/s", flush=True)
            if number == 0:
                for kind in BARS:
                    slower = min((side for side in sides if kind in side), key=lambda side: speeds[side][0])
                    del sides[slower]
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    missed = False
    for kind, bar in BARS.items():
        peer = max(value for side, value in medians.items() if kind in side)
        ratio = medians["transfuse"] / peer
        missed |= ratio < bar
        print(f"{kind}: {medians['transfuse']:,.0f} / {peer:,.0f} = {ratio:.2f} x (bar {bar} x)")
    return int(missed)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "bfloat16"))
