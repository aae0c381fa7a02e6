"""WikiText-2 (raw): word-level perplexity of a language model over sub-words, at most 20 M parameters, with its curve.

    python benchmarks/wikitext.py DATA OUT [EPOCHS]

DATA holds {train,valid,test}.txt.xz. Trains a multi-head Llama-shaped model on this machine and prints held-out
perplexity a token against minutes, then perplexity a word of the test text: by words alone, and with each line end
counted as a word, as is usual for this corpus (the published figures are of its other version, with rare words cut out,
and do not compare). OUT/model is the model, for benchmarks/regroup.py.
"""

from __future__ import annotations

import lzma
import math
import sys
from pathlib import Path

from transfuse import DecoderConfig, LanguageModel, TrainingConfig
from transfuse.data.corpus import Corpus
from transfuse.training.metrics_log import read_metrics

MOST_PARAMETERS = 20_000_000
EPOCHS = 3


def main(data: Path, out: Path, epochs: int) -> int:
    model = LanguageModel(
        model=DecoderConfig(
            vocab_size=6000,
            d_model=192,
            n_layers=4,
            n_heads=8,
            d_hidden=512,
            max_positions=512,
            dropout=0.1,
        ),
        training=TrainingConfig(
            epochs=epochs,
            batch_tokens=2048,
            learning_rate=3e-3,
            schedule="cosine",
            warmup_steps=100,
            weight_decay=0.1,
            label_smoothing=0.0,
            validate_every=200,
            average=1,
        ),
        run_dir=out / "run",
        verbose=True,
    )
    started = (out / "run" / "checkpoints").exists()
    model.fit(Corpus(data / "train.txt.xz"), validation=Corpus(data / "valid.txt.xz"), resume=started)
    model.save(out / "model")
    parameters = sum(weight.numel() for weight in model.model_.parameters())
    print(f"{parameters:,} parameters")
    for record in read_metrics(out / "run" / "metrics.jsonl"):
        if record["kind"] == "validation":
            print(f"step {record['step']:>6}  {record['elapsed'] / 60:6.1f} min  {math.exp(-record['score']):8.2f}")
    test = data / "test.txt.xz"
    scores = model.evaluate(Corpus(test))
    for score in scores:
        print(f"test {score.name} {score.value:.3f}  [{score.signature}]")
    text = lzma.decompress(test.read_bytes()).decode()
    n_words, n_lines = len(text.split()), text.count("\n")
    nats = math.log(scores[1].value) * n_words
    print(f"test perplexity a word, line ends counted: {math.exp(nats / (n_words + n_lines)):.2f}")
    return int(parameters > MOST_PARAMETERS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else EPOCHS))
