"""Multi30k German to English: at least 38.0 sacreBLEU (lower-cased, 13a) on test2016 with at most 12 M parameters.

    python benchmarks/multi30k.py DATA OUT

DATA holds {train,val,test2016}.{de,en}.gz. Trains on this machine, prints the learning curve against minutes
(validation BLEU of the averaged weights, greedy) and the test score with beam 4; the length penalty is chosen on the
validation set. Exits 1 below the bar.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transfuse import SearchConfig, Seq2Seq, Seq2SeqConfig, TokenizerConfig, TrainingConfig, read_pairs
from transfuse.metrics.text_scores import score_texts
from transfuse.training.checkpoint import Checkpoints, own_weights, set_weights
from transfuse.training.metrics_log import read_metrics

BAR, MOST_PARAMETERS = 38.0, 12_000_000
AVERAGE = 5
GREEDY = SearchConfig(beams=1)


def split(data: Path, name: str) -> tuple[list[str], list[str]]:
    pairs = read_pairs(data / f"{name}.de.gz", data / f"{name}.en.gz")
    return [text.lower() for text in pairs.sources], [text.lower() for text in pairs.targets]


def estimator(run_dir: Path) -> Seq2Seq:
    return Seq2Seq(
        model=Seq2SeqConfig(
            vocab_size=8000,
            d_model=256,
            encoder_layers=4,
            decoder_layers=4,
            encoder_hidden=512,
            decoder_hidden=512,
            dropout=0.3,
            max_positions=256,
        ),
        tokenizer=TokenizerConfig(lowercase=True),
        training=TrainingConfig(
            epochs=24,
            learning_rate=2e-3,
            warmup_steps=1000,
            precision="bfloat16",
            average=AVERAGE,
            keep=100,
        ),
        metric="bleu-lc",
        run_dir=run_dir,
        verbose=True,
    )


def print_curve(model: Seq2Seq, validation: tuple[list[str], list[str]], folder: Path) -> None:
    checkpoints = Checkpoints(folder / "checkpoints")
    final = {name: weight.clone() for name, weight in own_weights(model.model_).items()}
    validations = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "validation"]
    steps = [record["step"] for record in validations]
    print("| minutes | step | held-out loss | validation BLEU, greedy |\n|---|---|---|---|")
    for i, record in enumerate(validations):
        set_weights(model.model_, checkpoints.mean_weights(steps[max(0, i + 1 - AVERAGE) : i + 1]))
        outputs = [row[0].text for row in model.predict_n_best(validation[0], GREEDY)]
        bleu = score_texts(outputs, validation[1], "bleu-lc")[0].value
        print(f"| {record['elapsed'] / 60:.1f} | {record['step']} | {-record['score']:.3f} | {bleu:.1f} |", flush=True)
    set_weights(model.model_, final)


def best_length_penalty(model: Seq2Seq, validation: tuple[list[str], list[str]]) -> float:
    scores = {}
    for penalty in (0.6, 1.0, 1.4):
        model.set_params(search__length_penalty=penalty)
        scores[penalty] = model.score(*validation)
        print(f"length penalty {penalty}: validation BLEU {scores[penalty]:.2f}", flush=True)
    return max(scores, key=lambda penalty: scores[penalty])


def main(data: Path, out: Path) -> int:
    training, validation, test = (split(data, name) for name in ("train", "val", "test2016"))
    run_dir = out / "training"
    model = estimator(run_dir).fit(*training, validation=validation, resume=True)
    n_parameters = sum(weight.numel() for weight in model.model_.parameters())
    print(f"{n_parameters:,} parameters, {model.results_['seconds'] / 60:.1f} minutes of training")
    print_curve(model, validation, run_dir)
    model.set_params(search__length_penalty=best_length_penalty(model, validation))
    model.save(out)
    score = model.evaluate(*test)[0]
    print(f"test2016: {score}, length penalty {model.search.length_penalty}; bar {BAR}")
    return int(score.value < BAR or n_parameters > MOST_PARAMETERS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
