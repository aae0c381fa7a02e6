"""The figures of models side by side, as tables and as one page with pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import transfuse
from transfuse.metrics.text_scores import Score
from transfuse.reports.page import (
    html_table,
    markdown_table,
    new_figure,
    page,
    paragraph,
    picture,
    text_table,
    write_page,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Timing:
    """A decoding step of `batch` rows with `context` positions behind it, and the keys and values then held."""

    batch: int
    context: int
    milliseconds: float
    cache_bytes: int
    computed_cache_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return 1000 * self.batch / self.milliseconds


@dataclass(frozen=True)
class Compared:
    """One model's figures. `loss` is cross-entropy a token; `divergence` KL(first ‖ this) a token and `agreement` the
    share of tokens whose most likely successor is the first's; `same_outputs` the share of what is generated that is as
    the first model generates it; `wins_from` the context from which its step of the largest batch is faster than the
    first's, None if it never was."""

    name: str
    kv_heads: list[int]
    parameters: int
    loss: float
    divergence: float
    agreement: float
    scores: list[Score]
    same_outputs: float
    timings: list[Timing]
    wins_from: int | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, the first model first."""

    models: list[Compared]
    held_out_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def header(self) -> list[str]:
        """Column names of `rows`."""
        largest = self.models[0].timings[-1]
        at = f"{largest.batch} x {largest.context}"
        return [
            *("model", "K/V heads", "parameters", "loss", "KL", "agreement", *self._signed(), "same output"),
            *(f"ms/step {at}", "tokens/s", "speed", "cache bytes", "wins from"),
        ]

    def rows(self) -> list[list[str]]:
        """A row of text a model."""
        first = self.models[0].timings[-1].milliseconds
        found = []
        for one in self.models:
            last = one.timings[-1]
            heads = sorted(set(one.kv_heads))
            scores = {score.name: f"{score.value:.2f}" for score in one.scores}
            found.append(
                [
                    one.name,
                    str(heads[0]) if len(heads) == 1 else ",".join(map(str, one.kv_heads)),
                    f"{one.parameters:,}",
                    f"{one.loss:.4f}",
                    f"{one.divergence:.4f}",
                    f"{100 * one.agreement:.1f} %",
                    *(scores.get(name, "") for name in self._signed()),
                    f"{100 * one.same_outputs:.1f} %",
                    f"{last.milliseconds:.2f}",
                    f"{last.tokens_per_second:,.0f}",
                    f"{first / last.milliseconds:.2f} x",
                    f"{last.cache_bytes:,}",
                    "" if one is self.models[0] else str(one.wins_from or "never here"),
                ]
            )
        return found

    def to_text(self) -> str:
        """A table for a terminal."""
        return "\n".join([*text_table(self.header(), self.rows()), *self._signatures()])

    def to_markdown(self) -> str:
        """The same table as Markdown."""
        return "\n".join([*markdown_table(self.header(), self.rows()), "", *self._signatures()])

    def to_html(self) -> str:
        """One page with tables and pictures that needs nothing beside it."""
        timings = [
            [
                *(one.name, str(t.batch), str(t.context), f"{t.milliseconds:.3f}", f"{t.tokens_per_second:,.0f}"),
                *(f"{t.cache_bytes:,}", f"{t.computed_cache_bytes:,}"),
            ]
            for one in self.models
            for t in one.timings
        ]
        columns = ["model", "rows", "context", "ms a step", "tokens/s", "cache bytes, measured", "computed"]
        return page(
            "transfuse compare",
            " · ".join(one.name for one in self.models),
            [
                paragraph(
                    f"{self.held_out_tokens:,} held-out tokens; transfuse {transfuse.__version__}, "
                    f"torch {torch.__version__}, {torch.get_num_threads()} threads."
                ),
                html_table(self.header(), self.rows()),
                *map(paragraph, self._signatures()),
                picture(self._quality_picture()),
                picture(self._speed_picture()),
                "<h2>Decoding steps</h2>",
                html_table(columns, timings),
            ],
        )

    def save(self, path: str | Path) -> Path:
        """Write `to_html`. Raises TransfuseError if the disk refuses."""
        return write_page(path, self.to_html())

    def _signed(self) -> dict[str, str]:
        """The signatures of all scores, by name; a model may lack one, as a word perplexity beyond all numbers."""
        return {score.name: score.signature for one in self.models for score in one.scores}

    def _signatures(self) -> list[str]:
        return [f"{name}: {signature}" for name, signature in self._signed().items()]

    def _quality_picture(self) -> Figure:
        figure, axes = new_figure()
        name = next(iter(self._signed()))
        for one in self.models:
            for score in (score for score in one.scores if score.name == name):
                axes.plot(one.timings[-1].cache_bytes / 2**20, score.value, "o", label=one.name)
        axes.set(xlabel="keys and values, MiB", ylabel=name, xlim=(0, None))
        axes.legend()
        return figure

    def _speed_picture(self) -> Figure:
        figure, axes = new_figure()
        for one in self.models:
            largest = max(timing.batch for timing in one.timings)
            points = [(t.context, t.milliseconds) for t in one.timings if t.batch == largest]
            axes.plot(*zip(*points, strict=True), "o-", label=one.name)
        axes.set(xlabel="context", ylabel=f"ms a step of {largest} rows", ylim=(0, None))
        axes.legend()
        return figure
