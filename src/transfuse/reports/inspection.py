"""What goes into a model and what comes out: shapes, sizes, cache bytes and attention maps for one text.

Shapes: B rows (always 1 here), S source positions, T target positions, H heads.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from transfuse.errors import ConfigError
from transfuse.estimators.seq2seq import Seq2Seq
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.nn.attention import Attention
from transfuse.nn.blocks import Stack
from transfuse.nn.embeddings import TokenEmbedding
from transfuse.nn.feed_forward import FeedForward

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["encoder", "decoder", "cross"]

_STAGES = (TokenEmbedding, Attention, FeedForward, Stack, nn.Linear)


LARGEST_PANEL = 20.0
"""Inches of one attention map's side at most: about 70 tokens with a label each."""


@dataclass(frozen=True)
class Stage:
    """One stage of the model for one text: its name, what it is, and the shapes of what went in and came out."""

    name: str
    kind: str
    inputs: list[tuple[int, ...]]
    output: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """Everything `inspect` found.

    `parameters` counts the weights of each part (tied ones once, where they first appear); `cache_bytes` is what
    decoding this text held at its end, `cache_bytes_per_token` what every further target token adds. `attention` maps
    "encoder", "decoder" and "cross" to one (H, rows, columns) tensor a layer, each row summing to 1.
    """

    source: str
    target: str
    source_tokens: list[str]
    target_tokens: list[str]
    stages: list[Stage]
    parameters: dict[str, int]
    cache_bytes: int
    cache_bytes_per_token: int
    attention: dict[Kind, list[Tensor]]

    def to_dict(self) -> dict[str, Any]:
        """All but the attention maps, as JSON values."""
        values = {name: value for name, value in vars(self).items() if name != "attention"}
        return values | {"stages": [vars(stage) for stage in self.stages]}

    def to_text(self) -> str:
        """Tables for a terminal."""
        width = max(len(stage.name) for stage in self.stages)
        lines = [
            f"source  {self.source}",
            f"        {len(self.source_tokens)} tokens: {' '.join(map(repr, self.source_tokens))}",
            f"target  {self.target}",
            f"        {len(self.target_tokens)} tokens: {' '.join(map(repr, self.target_tokens))}",
            "",
            f"{'stage':{width}}  {'in':30}  out",
            *(
                f"{stage.name:{width}}  {' '.join(map(_shape, stage.inputs)):30}  {_shape(stage.output)}"
                for stage in self.stages
            ),
            "",
            *(f"{count:>12,} parameters  {part}" for part, count in self.parameters.items()),
            f"{sum(self.parameters.values()):>12,} parameters  in all",
            "",
            f"{self.cache_bytes:>12,} bytes of keys and values at the last token",
            f"{self.cache_bytes_per_token:>12,} bytes more for every target token",
        ]
        return "\n".join(lines)

    def save_picture(self, path: str | Path, kind: Kind = "cross") -> Path:
        """Draw the attention maps of `kind`, a panel a layer, heads averaged, as an image file.

        Raises ConfigError if the ending of `path` is not that of a picture format.
        """
        path, figure = Path(path), self._figure(kind)
        formats = figure.canvas.get_supported_filetypes()
        if path.suffix.lower().removeprefix(".") not in formats:
            raise ConfigError(f"{path}: the name of a picture must end in one of .{', .'.join(sorted(formats))}")
        figure.savefig(path, dpi=150)
        return path

    def _figure(self, kind: Kind) -> Figure:
        from matplotlib.figure import Figure

        rows = self.source_tokens if kind == "encoder" else self.target_tokens
        columns = self.target_tokens if kind == "decoder" else self.source_tokens
        maps = self.attention[kind]
        width, height = (min(max(1.5 + 0.28 * len(tokens), 3), LARGEST_PANEL) for tokens in (columns, rows))
        figure = Figure(figsize=(width * len(maps), height), layout="constrained")
        for layer, (weights_HTS, axes) in enumerate(
            zip(maps, figure.subplots(1, len(maps), squeeze=False)[0], strict=True)
        ):
            axes.imshow(weights_HTS.mean(0).numpy(), cmap="Blues", vmin=0, aspect="auto")
            every = _readable(columns), _readable(rows)
            axes.set_xticks(
                every[0], [_visible(columns[i]) for i in every[0]], rotation=90, fontsize=8, parse_math=False
            )
            axes.set_yticks(every[1], [_visible(rows[i]) for i in every[1]], fontsize=8, parse_math=False)
            axes.set_title(f"{kind} attention, layer {layer + 1}, mean of {len(weights_HTS)} heads", fontsize=9)
        return figure


@torch.inference_mode()
def inspect(model: Seq2Seq, source: str, target: str | None = None) -> Inspection:
    """Run `model` on `source` and on `target` (by default its own output) and report every stage."""
    check_is_fitted(model, "model_")
    target = model.predict([source])[0] if target is None else target
    module, tokenizer = model.model_, model.tokenizer_
    device = next(module.parameters()).device
    source_ids = model.encode([source])[0]
    # a model may say nothing at all
    *target_ids, end_id = model.encode([target])[0] if target.strip() else [module.config.end_id]
    source_BS = torch.tensor([source_ids], device=device)
    keep_BS = torch.ones_like(source_BS, dtype=torch.bool)
    if module.config.first_id is not None:
        target_ids = [module.config.first_id, *target_ids]
    target_BT = torch.tensor([[module.config.start_id, *target_ids]], device=device)
    module.eval()
    with _watching(module) as (stages, maps):
        module(source_BS, keep_BS, target_BT)
    held, per_token = _cache_bytes(module, source_BS, keep_BS, target_BT)
    return Inspection(
        source=source,
        target=target,
        source_tokens=tokenizer.tokens(source_ids),
        target_tokens=tokenizer.tokens([*target_ids, end_id]),  # a row of attention belongs to the token it predicts
        stages=stages,
        parameters=_count_parameters(module),
        cache_bytes=held,
        cache_bytes_per_token=per_token,
        attention=maps,
    )


@contextmanager
def _watching(module: Seq2SeqModel) -> Iterator[tuple[list[Stage], dict[Kind, list[Tensor]]]]:
    """Collect the stages and attention maps of what `module` computes inside."""
    stages: list[Stage] = []
    maps: dict[Kind, list[Tensor]] = defaultdict(list)
    handles = []

    def watch(name: str, part: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> None:
        inputs = [tuple(one.shape) for one in arguments if isinstance(one, Tensor)]
        stages.append(Stage(name, type(part).__name__, inputs, tuple(output.shape)))
        if isinstance(part, Attention):
            kind: Kind = "cross" if "cross" in name else "encoder" if name.startswith("encoder") else "decoder"
            maps[kind].append(part.weights(*arguments, keep=keywords.get("keep"))[0].float().cpu())

    for name, part in module.named_modules():
        inner_linear = isinstance(part, nn.Linear) and "." in name
        if isinstance(part, _STAGES) and not inner_linear:

            def hook(part: nn.Module, arguments: Any, keywords: Any, output: Tensor, name: str = name) -> None:
                watch(name, part, arguments, keywords, output)

            handles.append(part.register_forward_hook(hook, with_kwargs=True))
    try:
        yield stages, maps
    finally:
        for handle in handles:
            handle.remove()


def _cache_bytes(module: Seq2SeqModel, source_BS: Tensor, keep_BS: Tensor, target_BT: Tensor) -> tuple[int, int]:
    """Bytes held after decoding the target token by token, and the bytes the last of them added."""
    state = module.start(source_BS, keep_BS)
    held = [0]
    for i in range(target_BT.shape[1]):
        module.step(target_BT[:, i : i + 1], state)
        held.append(sum(cache.own.n_bytes for cache in state.caches))
    return state.n_bytes, held[-1] - held[-2]


def _count_parameters(module: Seq2SeqModel) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name, weight in module.named_parameters():
        counts[name.split(".")[0].replace("_", " ")] += weight.numel()
    return dict(counts)


def _readable(tokens: list[str]) -> range:
    """Places of the tokens that get a label: all, or every second, third, … where they would run into each other."""
    return range(0, len(tokens), max(1, math.ceil(len(tokens) / (LARGEST_PANEL / 0.28))))


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _visible(token: str) -> str:
    """A token as a label: no font has control characters."""
    return token if token.isprintable() else repr(token)[1:-1]
