"""The README.md of a saved model: what it is and what was measured."""

from __future__ import annotations

from typing import Any

from torch import nn

import transfuse


def model_card(title: str, model: nn.Module, results: dict[str, Any], example: list[str]) -> str:
    """Markdown that says what the model is, how it scored on its held-out rows, and, by lines of Python, its use."""
    n_parameters = sum(weight.numel() for weight in model.parameters())
    lines = [
        "---",
        "library_name: transfuse",
        "---",
        f"# {title}",
        "",
        f"{n_parameters:,} parameters, {'trained' if results else 'saved'} with transfuse {transfuse.__version__}.",
        "",
        *_results(results),
        "## Use",
        "",
        "```python",
        *example,
        "```",
        "",
    ]
    return "\n".join(lines)


def _results(results: dict[str, Any]) -> list[str]:
    if not results:
        return []
    rows = [(score["name"], f"{score['value']:.2f}", score["signature"]) for score in results["held_out_metrics"]]
    rows.append(("cross-entropy, nats a token", f"{results['held_out_loss']:.4f}", ""))
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
