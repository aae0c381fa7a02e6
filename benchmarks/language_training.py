"""Training a language model: tokens a second against the same Llama in `transformers`, same batches, same losses.

    python benchmarks/language_training.py TEXT... [bfloat16|float32]

TEXT are files or folders, WikiText-2's train.txt.xz for instance. A Llama of 6 layers × 384 with 8,000 tokens, rows of
256 packed tokens, 8 a batch. The peer is LlamaForCausalLM with SDPA and fused AdamW in a plain loop over the very same
batches, from the same weights, with the same clipping and learning rates. Rounds alternate; of each the median step
counts, the first two left out, and the medians of these are compared. Exits 1 below the bar, or if the losses of the
last step differ by more than 1 %.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from transfuse import Corpus, DecoderConfig, TokenizerConfig, TrainingConfig
from transfuse.data.packing import PackedDataset
from transfuse.data.token_file import TokenFile
from transfuse.data.tokenizer import BOUNDARY, Tokenizer
from transfuse.models.decoder import DecoderModel
from transfuse.pretrained.directory import save_model
from transfuse.training.language import language_loss
from transfuse.training.loop import autocast, make_optimizer, train
from transfuse.training.schedule import learning_rate

BAR, LOSS_BAR, ROUNDS, STEPS, WARMUP = 1.3, 0.01, 5, 10, 2
CONFIG = DecoderConfig(d_model=384, n_layers=6, n_heads=6, d_hidden=1024, max_positions=256)
TRAINING = TrainingConfig(
    batch_tokens=2048, label_smoothing=0.0, learning_rate=1e-3, warmup_steps=STEPS, schedule="cosine", max_steps=STEPS
)


def ours(data: PackedDataset, config: DecoderConfig, training: TrainingConfig) -> tuple[float, float]:
    """Tokens a second, by the median step, and the last step's loss."""
    model = DecoderModel(config).initialise(0)
    speeds, began, loss = [], time.perf_counter(), 0.0
    for step in train(model, data, language_loss, make_optimizer(model, training), training, seed=0):
        speeds.append(step.n_tokens / (time.perf_counter() - began))
        began, loss = time.perf_counter(), step.loss
    return statistics.median(speeds[WARMUP:]), loss


def theirs(data: PackedDataset, folder: Path, training: TrainingConfig) -> tuple[float, float]:
    """The same of `transformers`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
    optimizer = make_optimizer(model, training)
    speeds, began, loss = [], time.perf_counter(), torch.zeros(())
    for number, rows in enumerate(data.epoch(training.batch_tokens, 0, 0)[:STEPS], start=1):
        batch = data.batch(rows)
        assert batch.keep_BTT is None, "the peer has no mask for several documents in a row"
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, training, STEPS)
        with autocast(torch.device("cpu"), training):
            logits = model(batch.ids_BT, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels_BT.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        speeds.append(batch.n_tokens / (time.perf_counter() - began))
        began = time.perf_counter()
    return statistics.median(speeds[WARMUP:]), loss.item()


def main(texts: list[str], precision: Any) -> int:
    corpus, training = Corpus(texts), TRAINING.replace(precision=precision)
    tokenizer = Tokenizer.train_language(
        itertools.chain.from_iterable(corpus), CONFIG.vocab_size, TokenizerConfig(split_digits=False)
    )
    boundary = tokenizer.id_of(BOUNDARY)
    config = CONFIG.replace(vocab_size=len(tokenizer), start_id=boundary, end_ids=(boundary,))
    with tempfile.TemporaryDirectory() as name:
        file = TokenFile.write(Path(name) / "tokens", corpus, tokenizer, boundary)
        data = PackedDataset(file.tokens, file.starts, context=256, end_id=boundary, fingerprint="")
        save_model(DecoderModel(config).initialise(0), Path(name) / "model")
        speeds: dict[str, list[float]] = {"transfuse": [], "transformers": []}
        losses = {}
        for _ in range(ROUNDS):
            for side in speeds:
                speed, losses[side] = (
                    ours(data, config, training)
                    if side == "transfuse"
                    else theirs(data, Path(name) / "model", training)
                )
                speeds[side].append(speed)
                print(f"  {side}: {speed:,.0f} tokens/s, loss {losses[side]:.4f} at step {STEPS}", flush=True)
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    ratio = medians["transfuse"] / medians["transformers"]
    apart = abs(losses["transfuse"] / losses["transformers"] - 1)
    both = " / ".join(f"{value:,.0f}" for value in medians.values())
    print(f"{precision}: {both} tokens/s = {ratio:.2f} x (bar {BAR})")
    print(f"losses differ by {100 * apart:.3f} % (bar 1 %)")
    return int(ratio < BAR or apart > LOSS_BAR)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    words = sys.argv[1:]
    kind = words.pop() if words[-1] in ("bfloat16", "float32") else "float32"
    sys.exit(main(words, kind))
