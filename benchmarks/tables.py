"""Tables and reviews: the table Transformer and its variant with trees beside gradient boosting; text with a table.

    python benchmarks/tables.py DATA adult|housing|reviews [--seeds 3] [--epochs N]

DATA is the folder with tabular/ and multimodal/. Adult: its own train and test rows. California housing: a random fifth
is the test, drawn by the seed. Reviews (`Recommended IND`, without `Rating`): train and dev rows to learn from, test
rows to judge by; the peers are TF-IDF with logistic regression, gradient boosting on the table, and the mean of their
probabilities. Every model sees the same rows; ours hold a tenth of the training rows out to choose a checkpoint. Prints
a row a model and seed, and means.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from transfuse import (
    FusionConfig,
    MultimodalClassifier,
    MultimodalRegressor,
    TowersConfig,
    TrainingConfig,
    read_table,
)

Split = tuple[pd.DataFrame, np.ndarray, pd.DataFrame, np.ndarray]
Scores = Iterator[tuple[str, dict[str, float]]]

TRAINING = TrainingConfig(
    batch_tokens=4096,
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=100,
    weight_decay=0.02,
    label_smoothing=0.0,
    validate_every=200,
    average=1,
)
TOWERS = TowersConfig(d_model=64, n_layers=2, n_heads=4, dropout=0.1)
FUSION = FusionConfig(d_model=64, n_layers=1, n_heads=4)


def with_categories(X: pd.DataFrame, held: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with columns of strings as the training rows' categories."""
    X, held = X.copy(), held.copy()
    for name in X.columns:
        if not pd.api.types.is_numeric_dtype(X[name]):
            levels = sorted(X[name].dropna().unique())
            X[name], held[name] = (pd.Categorical(part[name], levels) for part in (X, held))
    return X, held


def adult(data: Path, seed: int) -> Split:
    train, test = (read_table(data / f"tabular/adult_{part}.csv.gz") for part in ("train", "test"))
    X, held = (part.drop(columns="income") for part in (train, test))
    return X, (train["income"] == ">50K").to_numpy(int), held, (test["income"] == ">50K").to_numpy(int)


def housing(data: Path, seed: int) -> Split:
    table = read_table(data / "tabular/california_housing.csv.gz")
    train, test = train_test_split(table, test_size=0.2, random_state=seed)
    target = "median_house_value"
    parts = [(part.drop(columns=target), part[target].to_numpy(float)) for part in (train, test)]
    return (*parts[0], *parts[1])


def reviews(data: Path, seed: int) -> Split:
    table = read_table(data / "multimodal/clothing_reviews.csv.gz")
    left_out = ["split", "Recommended IND", "Rating", "id", "Clothing ID"]
    train, test = table[table["split"] != "test"], table[table["split"] == "test"]
    parts = [(part.drop(columns=left_out), part["Recommended IND"].to_numpy(int)) for part in (train, test)]
    return (*parts[0], *parts[1])


def of_classes(wanted: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    return {"accuracy": 100 * accuracy_score(wanted, shares > 0.5), "AUC": 100 * roc_auc_score(wanted, shares)}


def ours(
    split: Split, seed: int, epochs: int, fusion: FusionConfig, towers: TowersConfig, number: bool
) -> dict[str, float]:
    X, y, held, wanted = split
    training = TRAINING.replace(epochs=epochs)
    if towers.text_from is not None:
        training = training.replace(learning_rate=1e-4, precision="bfloat16", validate_every=50, batch_tokens=2048)
    kind = MultimodalRegressor if number else MultimodalClassifier
    model = kind(fusion=fusion, towers=towers, training=training, random_state=seed)
    model.fit(X, y)
    if number:
        return {"RMSE": root_mean_squared_error(wanted, model.predict(held))}
    return of_classes(wanted, model.predict_proba(held)[:, 1])


def of_table(split: Split, seed: int, epochs: int, number: bool) -> Scores:
    X, y, held, wanted = split
    typed, typed_held = with_categories(X, held)
    if number:
        regressor = HistGradientBoostingRegressor(random_state=seed).fit(typed, y)
        yield "HistGradientBoosting", {"RMSE": root_mean_squared_error(wanted, regressor.predict(typed_held))}
    else:
        classifier = HistGradientBoostingClassifier(random_state=seed).fit(typed, y)
        yield "HistGradientBoosting", of_classes(wanted, classifier.predict_proba(typed_held)[:, 1])
    yield "table Transformer", ours(split, seed, epochs, FUSION, TOWERS, number)
    gate = FUSION.replace(fusion="gate")
    yield "trees as the table tower", ours(split, seed, 3, gate, TOWERS.replace(table="trees"), number)


def of_reviews(split: Split, seed: int, epochs: int, text_from: str | None) -> Scores:
    X, y, held, wanted = split
    words = [(part["Title"].fillna("") + " " + part["Review Text"].fillna("")).str.strip() for part in (X, held)]
    text = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=10))
    of_text = text.fit(words[0], y).predict_proba(words[1])[:, 1]
    yield "TF-IDF, logistic regression", of_classes(wanted, of_text)
    typed, typed_held = with_categories(*(part.drop(columns=["Title", "Review Text"]) for part in (X, held)))
    of_trees = HistGradientBoostingClassifier(random_state=seed).fit(typed, y).predict_proba(typed_held)[:, 1]
    yield "HistGradientBoosting, table", of_classes(wanted, of_trees)
    yield "mean of both", of_classes(wanted, (of_text + of_trees) / 2)
    for fusion in ("early", "average"):
        towers = TOWERS.replace(text_from=text_from, table="trees" if fusion == "average" else "transformer")
        chosen = FUSION.replace(fusion=fusion)
        yield f"ours, {fusion}", ours(split, seed, epochs, chosen, towers, False)


def main() -> int:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("task", choices=["adult", "housing", "reviews"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--text-from", help="a BERT for the text tower")
    asked = parser.parse_args()
    load: Callable[[Path, int], Split] = {"adult": adult, "housing": housing, "reviews": reviews}[asked.task]
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(asked.seeds):
        split = load(asked.data, seed)
        if asked.task == "reviews":
            scores = of_reviews(split, seed, asked.epochs, asked.text_from)
        else:
            scores = of_table(split, seed, asked.epochs, asked.task == "housing")
        began = time.perf_counter()
        for name, one in scores:
            found[name].append(one)
            print(f"seed {seed}  {name:28s} {one}  {time.perf_counter() - began:.0f} s", flush=True)
            began = time.perf_counter()
    measures = list(next(iter(found.values()))[0])
    print("\n| model | " + " | ".join(measures) + " |\n|---|" + "---|" * len(measures))
    for name, rows in found.items():
        cells = []
        for measure in measures:
            values = [row[measure] for row in rows]
            cells.append(
                f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
            )
        print(f"| {name} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
