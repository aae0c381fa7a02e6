"""Beam-4 translation of test2016: sentences a second against `transformers` generate and CTranslate2, same weights.

    python benchmarks/beam_search.py MODEL DATA

MODEL is a directory that `transformers` opens (benchmarks/multi30k.py writes one), DATA holds test2016.{de,en}.gz. All
sides run float32 with sentences sorted by length; each peer takes the fastest of the batch sizes tried on a part of the
set. Rounds alternate; medians are compared. Exits 1 below the bar against `transformers`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transfuse import SearchConfig, Seq2Seq, read_pairs
from transfuse.generation.generate import generate
from transfuse.metrics.text_scores import score_texts

BAR, ROUNDS, BEAMS, MOST = 3.0, 3, 4, 60
Rows = list[list[int]]
Translate = Callable[[Rows], Rows]


def ours(model: Seq2Seq, batch_tokens: int) -> Translate:
    search = SearchConfig(beams=BEAMS, max_tokens=MOST, batch_tokens=batch_tokens)
    return lambda rows: [found[0].ids for found in generate(model.model_, rows, search)]


def transformers_side(folder: Path, batch: int, attention: str) -> Translate:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=attention).eval()
    end = model.config.eos_token_id

    def translate(rows: Rows) -> Rows:
        outputs: dict[int, list[int]] = {}
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            longest = max(len(rows[row]) for row in chosen)
            ids = torch.tensor([rows[row] + [model.config.pad_token_id] * (longest - len(rows[row])) for row in chosen])
            with torch.inference_mode():
                found = model.generate(
                    input_ids=ids,
                    attention_mask=(ids != model.config.pad_token_id).long(),
                    num_beams=BEAMS,
                    max_length=MOST + 1,
                    early_stopping=False,
                    length_penalty=1.0,
                )
            for row, written in zip(chosen, found.tolist(), strict=True):
                outputs[row] = written[1 : written.index(end, 1)] if end in written[1:] else written[1:]
        return [outputs[row] for row in range(len(rows))]

    return translate


def ctranslate2_side(folder: Path, work: Path, vocabulary: list[str], batch: int) -> Translate:
    import ctranslate2
    from ctranslate2.converters import transformers as converters
    from transformers import AutoModelForSeq2SeqLM

    target = work / "ctranslate2"
    if not target.exists():
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        loader = converters.MarianMTLoader() if model.config.model_type == "marian" else converters.M2M100Loader()
        model.config.normalize_before = model.config.model_type != "marian"
        model.config.normalize_embedding = False
        # the loader's own way to weights, without its family's tokenizer files
        spec = converters.BartLoader.get_model_spec(loader, model)
        spec.register_source_vocabulary(vocabulary)
        spec.register_target_vocabulary(vocabulary)
        spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<pad>"
        spec.config.decoder_start_token = "<s>"
        spec.validate()
        spec.optimize()
        target.mkdir()
        spec.save(str(target))
    translator = ctranslate2.Translator(
        str(target), device="cpu", compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
    )
    number = {token: i for i, token in enumerate(vocabulary)}

    def translate(rows: Rows) -> Rows:
        found = translator.translate_batch(
            [[vocabulary[i] for i in row] for row in rows],
            beam_size=BEAMS,
            max_batch_size=batch,
            max_decoding_length=MOST,
            length_penalty=1.0,
        )
        return [[number[token] for token in one.hypotheses[0]] for one in found]

    return translate


def timed(translate: Translate, rows: Rows) -> tuple[float, Rows]:
    began = time.perf_counter()
    found = translate(rows)
    return len(rows) / (time.perf_counter() - began), found


def fastest(name: str, candidates: dict[str, Translate], rows: Rows) -> Translate:
    speeds = {}
    for setting, translate in candidates.items():
        translate(rows[:32])
        speeds[setting] = timed(translate, rows)[0]
    best = max(speeds, key=lambda setting: speeds[setting])
    tried = ", ".join(f"{setting}: {speed:.0f}/s" for setting, speed in speeds.items())
    print(f"{name} tried {tried}; takes {best}", flush=True)
    return candidates[best]


def main(folder: Path, data: Path) -> int:
    pairs = read_pairs(data / "test2016.de.gz", data / "test2016.en.gz")
    model = Seq2Seq.load(folder)
    rows = model.tokenizer_.encode(pairs.sources)
    vocabulary: list[Any] = sorted(model.tokenizer_.backend.get_vocab().items(), key=lambda entry: entry[1])
    vocabulary = [token for token, _ in vocabulary]
    part = rows[::4]
    with tempfile.TemporaryDirectory() as work:
        sides = {
            "transfuse": fastest("transfuse", {f"{n} tokens": ours(model, n) for n in (1024, 2048, 4096)}, part),
            "transformers": fastest(
                "transformers",
                {
                    f"{kind} {n}": transformers_side(folder, n, kind)
                    for kind in ("sdpa", "eager")
                    for n in (16, 32, 64, 128)
                },
                part,
            ),
            "CTranslate2": fastest(
                "CTranslate2",
                {f"{n}": ctranslate2_side(folder, Path(work), vocabulary, n) for n in (16, 32, 64, 128)},
                part,
            ),
        }
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(ROUNDS):
            for side, translate in sides.items():
                speed, found = timed(translate, rows)
                speeds[side].append(speed)
                if number == 0:
                    texts = model.tokenizer_.decode(found)
                    score = score_texts(texts, [text.lower() for text in pairs.targets], "bleu-lc")[0]
                    print(f"{side}: {score}", flush=True)
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    for side, value in medians.items():
        print(f"{side}: {value:.1f} sentences/s; transfuse is {medians['transfuse'] / value:.2f} x")
    return int(medians["transfuse"] / medians["transformers"] < BAR)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
