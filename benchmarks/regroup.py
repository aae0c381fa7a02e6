"""Every method of sharing key/value heads at equal tokens, several seeds: KL, loss and generated quality.

    python benchmarks/regroup.py MODEL --train FILE [FILE] --test FILE [FILE] [--budgets 0 75000] [--alpha 0 0.01 …]

MODEL is a multi-head directory of `fit seq2seq` or `fit generate`; --train and --test are its data (two parallel
files, or text). For each seed (which draws calibration data and order of training), number of heads, method, refit
and budget one row; then means with their spread, a control (the original trained on the same tokens by cross-entropy)
where --control is given, and a picture of divergence against tokens (means, and bands from the least seed to the
most). Rows are kept in the file `--rows`, and those that it has are not computed again: one model, one set of data
and one state of the code a file. `--lower` lower-cases pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from transfuse import Corpus, DistillationConfig, LanguageModel, SearchConfig, load, read_pairs, regroup, uptrain
from transfuse.estimators.trained import scratch_folder
from transfuse.training.distillation import Distillation
from transfuse.training.language import language_loss
from transfuse.training.loop import mean_loss
from transfuse.training.seq2seq import seq2seq_loss


def columns(model: Any, files: list[Path], lower: bool) -> tuple[Any, Any]:
    if isinstance(model, LanguageModel):
        return Corpus(files), None
    pairs = read_pairs(*files)
    change = str.lower if lower else str
    return [change(text) for text in pairs.sources], [change(text) for text in pairs.targets]


class Judge:
    """Divergence, loss and quality of conversions on the test data."""

    def __init__(self, teacher: Any, test: tuple[Any, Any], folder: Path) -> None:
        self.teacher, self.test = teacher, test
        X, y = test
        self.held = teacher.prepare(folder, X, y, X if y is None else test, 0).held
        self.language = isinstance(teacher, LanguageModel)

    def __call__(self, model: Any, quality: bool) -> tuple[float, float, float]:
        divergence = mean_loss(model.model_, self.held, Distillation(self.teacher.model_), model.training)
        loss = mean_loss(model.model_, self.held, language_loss if self.language else seq2seq_loss, model.training)
        if self.language:
            return divergence, loss, float(torch.tensor(loss).exp())
        score = model.evaluate(*self.test)[0].value if quality else float("nan")
        return divergence, loss, score


Row = tuple[int, str, bool, int, int]
"""Heads, method, refit, tokens, seed."""


class Rows:
    """Figures of each row, printed and kept in a file as they come."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[Row, tuple[float, ...]] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            values = json.loads(line)
            self.found[tuple(values[:5])] = tuple(values[5:])

    def add(self, row: Row, figures: tuple[float, ...]) -> None:
        self.found[row] = figures
        n, method, refit, budget, seed = row
        cells = [n, method, "yes" if refit else "no", budget, seed, *(f"{figure:.4f}" for figure in figures)]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        if self.path is not None:
            with self.path.open("a") as stream:
                stream.write(json.dumps([*row, *figures]) + "\n")

    def by_seed(self) -> dict[tuple[int, str, bool, int], list[tuple[float, ...]]]:
        """The figures of all seeds, by what is the same in them."""
        together = defaultdict(list)
        for (n, method, refit, budget, _), figures in self.found.items():
            together[n, method, refit, budget].append(figures)
        return dict(together)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--budgets", type=int, nargs="*", default=[0])
    parser.add_argument("--alpha", type=float, nargs="*", default=[])
    parser.add_argument("--heads", type=int, nargs="*")
    parser.add_argument("--methods", nargs="*", default=["mean", "first", "random", "procrustes", "aligned"])
    parser.add_argument("--refit", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--cross-entropy", type=float, default=0.0)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--quality", action="store_true", help="translate the test set for every row")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--lower", action="store_true")
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    teacher = load(asked.model)
    if not isinstance(teacher, LanguageModel):
        teacher.set_params(search=SearchConfig(beams=asked.beams))
    train, test = (columns(teacher, files, asked.lower) for files in (asked.train, asked.test))
    n_heads = teacher.model_.decoder.blocks[0].attention.n_heads
    budgets = [*asked.budgets, *(round(alpha * teacher.results_["tokens"]) for alpha in asked.alpha)]
    loss = DistillationConfig(cross_entropy=asked.cross_entropy)
    rows = Rows(asked.rows)
    with scratch_folder() as folder:
        judge = Judge(teacher, test, Path(folder))
        print(f"original, {n_heads} heads: KL, loss, quality {judge(teacher, True)}", flush=True)
        if asked.control:
            alone = DistillationConfig(divergence=0.0, cross_entropy=1.0)
            for budget in sorted({budget for budget in budgets if budget}):
                control = uptrain(teacher, teacher, *train, tokens=budget, distillation=alone)
                print(f"control trained on {budget} tokens: {judge(control, True)}", flush=True)
        print(
            "| heads | method | refit | tokens | seed | KL | loss | quality |\n|---|---|---|---|---|---|---|---|",
            flush=True,
        )
        heads = asked.heads or [n for n in (n_heads // 2, n_heads // 4, 1) if n >= 1]
        for seed, n, method, refit in itertools.product(asked.seeds, heads, asked.methods, map(bool, asked.refit)):
            if seed and not refit and method in ("mean", "first"):
                continue  # nothing in them is drawn
            missing = [budget for budget in sorted(set(budgets)) if (n, method, refit, budget, seed) not in rows.found]
            if missing:
                converted = regroup(teacher, n, *train, method=method, refit=refit, random_state=seed)
            for budget in missing:
                model = converted
                if budget:
                    model = uptrain(converted, teacher, *train, tokens=budget, distillation=loss, random_state=seed)
                rows.add((n, method, refit, budget, seed), judge(model, asked.quality))
    found = rows.by_seed()
    print("\n| heads | method | refit | tokens | seeds | KL | loss | quality |\n|---|---|---|---|---|---|---|---|")
    for (n, method, refit, budget), figures in found.items():
        cells = [n, method, "yes" if refit else "no", budget, len(figures), *map(spread, zip(*figures, strict=True))]
        print("| " + " | ".join(map(str, cells)) + " |")
    if asked.picture:
        draw(found, asked.picture)
    return 0


def spread(values: tuple[float, ...]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.4f}" if len(values) == 1 else f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def draw(found: dict[tuple[int, str, bool, int], list[tuple[float, ...]]], path: Path) -> None:
    from matplotlib.figure import Figure

    heads = sorted({key[0] for key in found}, reverse=True)
    figure = Figure(figsize=(4 * len(heads), 4), layout="constrained")
    panels = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    for panel, n in zip(panels, heads, strict=True):
        lines = dict.fromkeys((method, refit) for other, method, refit, _ in found if other == n)
        for method, refit in lines:
            points = {key[3]: [row[0] for row in rows] for key, rows in found.items() if key[:3] == (n, method, refit)}
            tokens = sorted(points)
            label = method + " + refit" * refit
            (line,) = panel.plot(
                tokens, [statistics.mean(points[t]) for t in tokens], "o-" if refit else "o--", label=label
            )
            least, most = ([of(points[t]) for t in tokens] for of in (min, max))
            panel.fill_between(tokens, least, most, color=line.get_color(), alpha=0.25, linewidth=0)
        panel.set(title=f"{n} key/value head" + "s" * (n > 1), xlabel="tokens of training", yscale="log")
        panel.locator_params(axis="x", nbins=4)
    panels[0].set_ylabel("KL to the original, nats a token")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
