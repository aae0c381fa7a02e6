"""The README.md of a saved model: what it is and what was measured."""

from __future__ import annotations

from typing import Any

from torch import nn

import transfuse


def model_card(
    title: str,
    model: nn.Module,
    results: dict[str, Any],
    example: list[str],
    loss: str = "cross-entropy, nats a token",
) -> str:
    """Markdown that says what the model is, how it scored on its held-out rows, and, by lines of Python, its use;
    `loss` is what its held-out loss is, with the unit."""
    n_parameters = sum(weight.numel() for weight in model.parameters())
    lines = [
        "---",
        "library_name: transfuse",
        "---",
        f"# {title}",
        "",
        f"{n_parameters:,} parameters, {'trained' if results else 'saved'} with transfuse {transfuse.__version__}.",
        "",
        *_results(results, loss),
        *_comparison(results),
        "## Use",
        "",
        "```python",
        *example,
        "```",
        "",
    ]
    return "\n".join(lines)


def _results(results: dict[str, Any], loss: str) -> list[str]:
    if "held_out_loss" not in results:
        return []
    rows = [(one["name"], f"{one['value']:.2f}", one["signature"]) for one in results.get("held_out_metrics", [])]
    rows.append((loss, f"{results['held_out_loss']:.4f}", ""))
    return [
        f"## Measured on {results['held_out_rows']:,} held-out rows",
        "",
        "| what | value | signature |",
        "|---|---|---|",
        *(f"| {name} | {value} | {signature} |" for name, value, signature in rows),
        "",
        f"{results['steps']:,} steps in {results['seconds'] / 60:.1f} minutes; the weights are the mean of the "
        f"checkpoints at steps {', '.join(map(str, results['averaged_steps']))}.",
        "",
    ]


def _comparison(results: dict[str, Any]) -> list[str]:
    """How a model with regrouped heads stands beside its original."""
    if "regrouped" not in results:
        return []
    made = results["regrouped"]
    spent = results.get("uptraining", {}).get("tokens", 0)
    lines = [
        "## Fewer key/value heads",
        "",
        f"Made from a model with more by method {made['method']!r}{' and a refit of the outputs' * made['refit']}, "
        f"then trained on {spent:,} tokens.",
        "",
    ]
    return [*lines, results["comparison"], ""] if "comparison" in results else lines
