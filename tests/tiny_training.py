"""A run small enough to be killed and repeated many times: digits of a number, written backwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from transfuse.data.batches import PairDataset
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.training.checkpoint import own_weights
from transfuse.training.config import TrainingConfig
from transfuse.training.loop import mean_loss
from transfuse.training.run import Run
from transfuse.training.seq2seq import seq2seq_loss

CONFIG = Seq2SeqConfig(
    vocab_size=13,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_heads=2,
    decoder_heads=2,
    encoder_hidden=16,
    decoder_hidden=16,
    dropout=0.1,
)
TRAINING = TrainingConfig(
    epochs=6, batch_tokens=128, accumulate=2, warmup_steps=10, validate_every=5, average=3, learning_rate=1e-2
)


def backwards(n: int, seed: int) -> PairDataset:
    """Rows of 3 to 7 digits (ids 3 to 12) and the same digits backwards, each closed by the end token."""
    draw = np.random.default_rng(seed)
    rows = [draw.integers(3, 13, draw.integers(3, 8)).tolist() for _ in range(n)]
    return PairDataset([[*row, 2] for row in rows], [[*row[::-1], 2] for row in rows], start_id=0, pad_id=1)


def tiny_run(folder: Path, config: TrainingConfig = TRAINING, seed: int = 7, **changes: Any) -> Run:
    """A run over `backwards` in `folder`."""
    model = Seq2SeqModel(CONFIG).initialise(seed)
    held = backwards(20, seed=1)
    return Run(
        model,
        changes.pop("data", None) or backwards(300, seed=0),
        changes.pop("loss", seq2seq_loss),
        config,
        folder=folder,
        seed=seed,
        score=changes.pop("score", None) or (lambda: -mean_loss(model, held, seq2seq_loss, config)),
        **changes,
    )


def train_to_the_end(folder: str) -> None:
    """Resume, or start, the run in `folder`; leave its final weights in final.safetensors."""
    torch.set_num_threads(1)
    run = tiny_run(Path(folder))
    run.resume()
    for _ in run.steps():
        pass
    run.finish()
    save_file(own_weights(run.model), Path(folder) / "final.safetensors")
