"""The demonstration: dates written in twenty languages, by Babel's CLDR formats, to ISO 8601."""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transfuse import (
    ConfigError,
    SearchConfig,
    Seq2Seq,
    Seq2SeqConfig,
    TokenizerConfig,
    TrainingConfig,
    compare,
    inspect,
    regroup,
    uptrain,
)

LANGUAGES = [
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "fi",
    "fr",
    "hu",
    "id",
    "it",
    "ja",
    "nl",
    "pl",
    "pt",
    "ro",
    "ru",
    "sv",
    "tr",
    "zh",
]
STYLES = ("medium", "long", "full")
FIRST_YEAR, LAST_YEAR = 1900, 2099
N_TRAINING, N_HELD_OUT = 30_000, 1_000
SHOWN = 8
SHARED = {"grouped-query": 2, "multi-query": 1}
REGROUP_TOKENS = 20_000
CONTEXTS = (16, 48)


@dataclass(frozen=True)
class DateTask:
    """Pairs of (date as written, ISO date): to learn from, of held-out dates in known years, of held-out years."""

    training: list[tuple[str, str]]
    new_dates: list[tuple[str, str]]
    new_years: list[tuple[str, str]]


def make_dates(seed: int) -> DateTask:
    """Draw the task. No date of `new_dates` and no year of `new_years` occurs in `training`, in any language."""
    draw = random.Random(seed)
    years = list(range(FIRST_YEAR, LAST_YEAR + 1))
    new_years = set(draw.sample(years, len(years) // 10))
    first = datetime.date(FIRST_YEAR, 1, 1)
    days = [first + datetime.timedelta(i) for i in range((datetime.date(LAST_YEAR, 12, 31) - first).days + 1)]
    known = [day for day in days if day.year not in new_years]
    new_days = set(draw.sample(known, len(known) // 10))
    return DateTask(
        _written(draw, [day for day in known if day not in new_days], N_TRAINING),
        _written(draw, sorted(new_days), N_HELD_OUT),
        _written(draw, [day for day in days if day.year in new_years], N_HELD_OUT),
    )


def folders_of(out: Path) -> list[Path]:
    """Where the demonstration writes a model: `out`, and beside it one for each number of key/value heads."""
    return [out, *(out.with_name(f"{out.name}-{name}") for name in SHARED)]


def run_demo(out: Path, seed: int, say: Callable[[str], None], show: Callable[[str], None]) -> None:
    """Train, score, save and explain. `say` gets messages, `show` gets results."""
    began = time.monotonic()
    task = make_dates(seed)
    example, iso = task.training[0]
    say(f"{len(task.training):,} dates in {len(LANGUAGES)} languages to learn from, such as {example!r} -> {iso!r}")
    model = Seq2Seq(
        model=Seq2SeqConfig(
            vocab_size=1000,
            d_model=96,
            encoder_layers=2,
            decoder_layers=2,
            encoder_hidden=192,
            decoder_hidden=192,
            max_positions=64,
        ),
        tokenizer=TokenizerConfig(lowercase=True, split_digits=True),
        training=TrainingConfig(
            epochs=5,
            batch_tokens=2048,
            learning_rate=4e-3,
            schedule="cosine",
            warmup_steps=200,
            label_smoothing=0.0,
            average=1,
        ),
        search=SearchConfig(beams=1),
        metric="exact",
        random_state=seed,
        verbose=True,
    )
    sources, targets = zip(*task.training, strict=True)
    model.fit(sources, targets)
    say(f"trained in {time.monotonic() - began:.0f} s")
    for title, pairs in (("dates never seen", task.new_dates), ("years never seen", task.new_years)):
        _report(model, title, pairs, show)
    model.save(out)
    picture = inspect(model, *_longest_latin(task.new_years)).save_picture(out / "cross_attention.png")
    _share_heads(model, task, out, say, show)
    show(f"\nmodel    {out}\npicture  {picture} (which letters each digit of the answer was read from)")
    show(
        "\nNow with your own pairs, a file of source<TAB>target lines:\n"
        "  transfuse fit seq2seq pairs.tsv --out runs/mine\n"
        "  transfuse predict runs/mine texts.txt\n"
        "  transfuse regroup runs/mine --data pairs.tsv --kv-heads 1 --tokens 50000 --out runs/cheaper"
    )


def _share_heads(
    model: Seq2Seq, task: DateTask, out: Path, say: Callable[[str], None], show: Callable[[str], None]
) -> None:
    """Give the model fewer key/value heads, train what comes of it for a moment, and compare."""
    texts, wanted = map(list, zip(*task.training, strict=True))
    models = {"multi-head": model}
    for (name, n_kv_heads), folder in zip(SHARED.items(), folders_of(out)[1:], strict=True):
        began = time.monotonic()
        converted = regroup(model, n_kv_heads, texts, wanted)
        models[name] = uptrain(converted, model, texts, wanted, tokens=REGROUP_TOKENS)
        models[name].save(folder)
        say(f"{name}: converted and trained on {REGROUP_TOKENS:,} tokens in {time.monotonic() - began:.0f} s")
    found = compare(models, *map(list, zip(*task.new_dates, strict=True)), contexts=CONTEXTS)
    show(f"\nthe same model with fewer key/value heads, on the dates never seen:\n{found.to_text()}")
    show(f"report   {found.save(out / 'comparison.html')}")


def _written(draw: random.Random, days: list[datetime.date], count: int) -> list[tuple[str, str]]:
    """`count` of these days, each in a random language and style."""
    try:
        from babel.dates import format_date
    except ImportError as error:
        raise ConfigError("the demo needs Babel for its date formats: pip install 'transfuse[demo]'") from error
    pairs = []
    for day in draw.choices(days, k=count):
        text = format_date(day, format=draw.choice(STYLES), locale=draw.choice(LANGUAGES))
        pairs.append((text, day.isoformat()))
    return pairs


def _report(model: Seq2Seq, title: str, pairs: list[tuple[str, str]], show: Callable[[str], None]) -> None:
    texts, wanted = map(list, zip(*pairs, strict=True))
    outputs = model.predict(texts)
    right = sum(output == iso for output, iso in zip(outputs, wanted, strict=True))
    show(f"\n{title}: {right:,} of {len(pairs):,} exactly right ({100 * right / len(pairs):.2f} %)")
    wrong = [row for row in range(len(pairs)) if outputs[row] != wanted[row]]
    for row in [*range(SHOWN), *wrong[:3]]:
        mark = "" if outputs[row] == wanted[row] else f"   wrong: {wanted[row]}"
        show(f"  {texts[row]:38} {outputs[row]}{mark}")


def _longest_latin(pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """A long example whose letters every font has."""
    return max((pair for pair in pairs if pair[0].isascii()), key=lambda pair: len(pair[0]))
