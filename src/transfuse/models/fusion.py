"""Fusion: several modalities, each a tower's `(tokens, keep)`, to one prediction.

Fusion-type models let tokens of different modalities read each other before a prediction is made: "early" puts them one
after another in one stack (as ViLT, arXiv 2102.03334), "middle" gives each modality a stack that also attends to the
others' tokens (as MulT, arXiv 1906.00295), "bottleneck" lets them meet in a few shared tokens alone (MBT, arXiv
2107.00135). Parallel-type models make one vector of each tower and "concatenate" them, weigh them by a "gate", or
"average" the predictions made of each. Scores made elsewhere, as by trees, are a prediction already: the first two add
to it, the last takes it for that modality's, and all begin with changing nothing of it.

Where one sequence is much shorter than another, `align` says what happens before a fusion-type stack reads them:
"pad" leaves each at its length (what fills up a batch is masked, so it has no part in anything), "trim", "interpolate"
and "resample" are those of `alignment.py`, and "attend" lets the longest attend to each other one and keeps it alone.

A modality that is missing in a row contributes nothing there: the prediction is that of the same model on the others.

Shapes: B rows, T tokens, D d_model, K outputs, Q queries, Z bottleneck tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfuse.config import Config
from transfuse.errors import ConfigError, DataError
from transfuse.models.alignment import CrossAttention, Resampler, Tokens, align, interpolate, safe
from transfuse.models.towers import ScoreTower, ScoreTowerConfig, TextTower, TowerConfig, pre_norm_block, tower_of
from transfuse.nn.attention import check_heads
from transfuse.nn.blocks import Block, Stack
from transfuse.nn.dropout import Dropout
from transfuse.nn.linear import Linear

PARALLEL = ("concatenate", "gate", "average")
ONE_SEQUENCE = ("interpolate", "attend")
"""Alignments of which one sequence comes out."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Config):
    """How modalities are combined; the sizes are those of what is trained on top of the towers.

    `longest` is the modality that attends to the others with align="attend", by its number; None is the one whose
    sequences are longest in training. `outputs` are "class" (logits) or "number".
    """

    fusion: Literal["early", "middle", "bottleneck", "concatenate", "gate", "average"] = "early"
    align: Literal["pad", "trim", "interpolate", "attend", "resample"] = "pad"
    d_model: int = 128
    n_layers: int = 2
    n_heads: int = 4
    d_hidden: int | None = None
    n_bottleneck: int = 4
    n_queries: int = 16
    dropout: float = 0.1
    longest: int | None = None
    outputs: Literal["class", "number"] = "class"
    n_outputs: int = 2

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("d_model", "n_layers", "d_hidden", "n_bottleneck", "n_queries", "n_outputs")
        self.check_fraction("dropout")
        check_heads(self.d_model, self.n_heads, self.n_heads)
        if self.fusion in PARALLEL and self.align != "pad":
            raise ConfigError(
                f"align={self.align!r} is for fusion early, middle and bottleneck; "
                f"with fusion={self.fusion!r} every tower is alone, so nothing is aligned"
            )
        if self.align in ONE_SEQUENCE and self.fusion != "early":
            raise ConfigError(
                f"align={self.align!r} makes one sequence of all modalities, which only fusion='early' takes"
                f", not {self.fusion!r}"
            )


@dataclass(frozen=True, kw_only=True)
class MultimodalConfig(Config):
    """A fusion and the towers under it, `names` being those of the modalities, in the towers' order."""

    fusion: FusionConfig
    towers: tuple[TowerConfig, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.towers) != len(self.names) or not self.towers:
            raise ConfigError(f"{len(self.towers)} towers for {len(self.names)} modalities; one each is needed")
        if self.fusion.longest is not None and not 0 <= self.fusion.longest < len(self.names):
            raise ConfigError(f"longest={self.fusion.longest} must be one of {len(self.names)} modalities")
        for tower in self.towers:
            if not isinstance(tower, ScoreTowerConfig):
                continue
            if self.fusion.fusion not in PARALLEL:
                raise ConfigError(
                    f"scores are no tokens, so fusion={self.fusion.fusion!r} must be one of {', '.join(PARALLEL)}"
                )
            if tower.n_scores != self.fusion.n_outputs:
                raise ConfigError(f"n_scores={tower.n_scores} must be n_outputs={self.fusion.n_outputs}")


class FusionModel(nn.Module):
    """Towers, a vector for each kind of token, and the fusion of them."""

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__()
        self.config = config
        c, n = config.fusion, len(config.towers)
        with torch.random.fork_rng(devices=[]):  # layers draw default weights from a generator that is not ours
            self.towers = nn.ModuleList(tower_of(tower) for tower in config.towers)
            self.entries = nn.ModuleList(Linear(tower.d_model, c.d_model) for tower in config.towers)
            self.entry_norms = nn.ModuleList(nn.LayerNorm(c.d_model) for _ in range(n))
            self.modality = nn.Parameter(torch.empty(n, c.d_model))
            self.fusion = FUSIONS[c.fusion](c, n)

    def initialise(self, seed: int) -> FusionModel:
        """Draw all weights anew from `seed`: matrices N(0, 1 / fan-in), tables N(0, 0.02² · 128 / D), biases 0, norms
        1; a BERT's as `BertModel.initialise` does."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if "norm" in name:
                nn.init.constant_(weight, float(name.endswith("weight")))
            elif name.endswith("bias") and not name.endswith("features.bias"):
                nn.init.zeros_(weight)
            elif name.endswith("positions.weight"):
                nn.init.normal_(weight, std=0.5, generator=generator)  # to be seen beside what is at the positions
            elif weight.dim() > 1 and name.rpartition(".")[0].endswith(_TABLES):
                nn.init.normal_(weight, std=0.02 * (128 / weight.shape[-1]) ** 0.5, generator=generator)
            elif weight.dim() > 1 and name.endswith(".weight"):
                inner = weight.shape[1] if name.endswith("features.weight") else weight[0].numel()
                nn.init.normal_(weight, std=inner**-0.5, generator=generator)
            else:  # single vectors: first tokens, queries, kinds
                nn.init.normal_(weight, std=0.02, generator=generator)
        for number, tower in enumerate(self.towers):
            if isinstance(tower, TextTower):
                tower.bert.initialise(seed + number)
            elif isinstance(tower, ScoreTower):
                assert isinstance(self.fusion, Parallel)
                self.fusion.add_nothing(number)
        return self

    def train(self, mode: bool = True) -> FusionModel:
        """As `nn.Module.train`; towers of which nothing is trained drop nothing out either."""
        super().train(mode)
        for tower in self.towers:
            if not any(weight.requires_grad for weight in tower.parameters()):
                tower.eval()
        return self

    def forward(self, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """What is predicted of each row, (B, K); `parts` are each tower's tensors, the last of which says what is
        there. Raises DataError for a row of which nothing is."""
        tokens = self.tokens(parts)
        return self.fusion(tokens, self._told(parts)) if isinstance(self.fusion, Parallel) else self.fusion(tokens)

    def _told(self, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """Scores that come with the rows, (M, B, K); 0 for modalities and rows without."""
        nothing_BK = self.modality.new_zeros(len(parts[0][-1]), self.config.fusion.n_outputs)
        return torch.stack(
            [
                torch.where(part[1][:, None], part[0], nothing_BK) if isinstance(tower, ScoreTower) else nothing_BK
                for tower, part in zip(self.towers, parts, strict=True)
            ]
        )

    def n_read(self, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """How many real tokens of each row are read after alignment, (B,)."""
        tokens = self.tokens(parts)
        read = [self.fusion.aligned(tokens)] if isinstance(self.fusion, Early) else tokens
        if isinstance(self.fusion, Middle | Bottleneck):
            read = align(tokens, self.fusion.align, self.fusion.resamplers)
        return torch.stack([keep.sum(1) for _, keep in read]).sum(0)

    def tokens(self, parts: Sequence[tuple[Tensor, ...]]) -> list[Tokens]:
        """Each modality's tokens at the fusion's width."""
        present_MB = torch.stack([part[-1].flatten(1).any(1) if part[-1].dim() > 1 else part[-1] for part in parts])
        if not bool(present_MB.any(0).all()):
            row = int((~present_MB.any(0)).nonzero()[0])
            raise DataError(f"row {row}: every modality is missing, so there is nothing to predict from")
        return [self._entered(i, part, present_MB[i]) for i, part in enumerate(parts)]

    def _entered(self, i: int, part: tuple[Tensor, ...], present_B: Tensor) -> Tokens:
        """Rows that lack the modality are left out of its tower, and are masked."""
        everywhere = bool(present_B.all())
        rows = present_B.nonzero()[:, 0]
        if not len(rows):
            nothing = self.modality.new_zeros(len(present_B), 1, self.config.fusion.d_model)
            return nothing, nothing.new_zeros(nothing.shape[:2], dtype=torch.bool)
        x_BTD, keep_BT = self.towers[i](*(part if everywhere else (one[rows] for one in part)))
        x_BTD = self.entry_norms[i](self.entries[i](x_BTD)) + self.modality[i]
        if everywhere:
            return x_BTD, keep_BT
        whole = x_BTD.new_zeros(len(present_B), *x_BTD.shape[1:]).index_copy(0, rows, x_BTD)
        return whole, keep_BT.new_zeros(whole.shape[:2]).index_copy(0, rows, keep_BT)


_TABLES = ("token", "segments", "level")


class Early(nn.Module):
    """A first token, then all tokens one after another, in one stack; the prediction is made of the first."""

    def __init__(self, c: FusionConfig, n: int) -> None:
        super().__init__()
        self.align, self.longest = c.align, c.longest or 0
        self.first = nn.Parameter(torch.empty(c.d_model))
        self.others = nn.ModuleList(_cross(c) for _ in range(n if c.align == "attend" else 0))
        self.resamplers = nn.ModuleList(_resampler(c) for _ in range(n if c.align == "resample" else 0))
        self.stack = Stack([_block(c) for _ in range(c.n_layers)], nn.LayerNorm(c.d_model))
        self.dropout, self.output = Dropout(c.dropout), Linear(c.d_model, c.n_outputs)

    def forward(self, tokens: list[Tokens]) -> Tensor:
        """Predictions (B, K)."""
        x_BTD, keep_BT = self.aligned(tokens)
        return self.output(self.dropout(self.stack(x_BTD, keep=keep_BT)[:, 0]))

    def aligned(self, tokens: list[Tokens]) -> Tokens:
        """The sequence that the stack reads."""
        if self.align == "interpolate":
            tokens = [interpolate(tokens)]
        elif self.align == "attend":
            x_BTD, keep_BT = with_first(self.first, tokens[self.longest])
            for i, other in enumerate(tokens):
                if i != self.longest:
                    x_BTD = self.others[i](x_BTD, other)
            return x_BTD, keep_BT
        else:
            tokens = align(tokens, self.align, self.resamplers)
        return with_first(
            self.first, (torch.cat([x for x, _ in tokens], 1), torch.cat([keep for _, keep in tokens], 1))
        )


class Middle(nn.Module):
    """A stack for each modality, every layer of which attends to the tokens of the others before its own."""

    def __init__(self, c: FusionConfig, n: int) -> None:
        super().__init__()
        self.align = c.align
        self.first = nn.Parameter(torch.empty(n, c.d_model))
        self.resamplers = nn.ModuleList(_resampler(c) for _ in range(n if c.align == "resample" else 0))
        self.cross = nn.ModuleList(_each(n, _cross, c) for _ in range(c.n_layers))
        self.blocks = nn.ModuleList(_each(n, _block, c) for _ in range(c.n_layers))
        self.norm = nn.LayerNorm(c.d_model)
        self.dropout, self.output = Dropout(c.dropout), Linear(c.d_model, c.n_outputs)

    def forward(self, tokens: list[Tokens]) -> Tensor:
        """Predictions (B, K)."""
        tokens = [with_own(self.first[i], one) for i, one in enumerate(align(tokens, self.align, self.resamplers))]
        for cross, blocks in zip(_lists(self.cross), _lists(self.blocks), strict=True):
            read = []
            for i, (x_BTD, keep_BT) in enumerate(tokens):
                others = [one for j, one in enumerate(tokens) if j != i]
                if others:
                    x_BTD = cross[i](
                        x_BTD, (torch.cat([x for x, _ in others], 1), torch.cat([k for _, k in others], 1))
                    )
                read.append((blocks[i](x_BTD, keep=safe(keep_BT)), keep_BT))
            tokens = read
        return self.output(self.dropout(self.norm(mean_of_first(tokens))))


class Bottleneck(nn.Module):
    """A stack for each modality, whose layers share a few tokens: each modality reads and writes its own copy of them,
    and the copies of those that are there are averaged after every layer."""

    def __init__(self, c: FusionConfig, n: int) -> None:
        super().__init__()
        self.align = c.align
        self.first = nn.Parameter(torch.empty(n, c.d_model))
        self.shared = nn.Parameter(torch.empty(c.n_bottleneck, c.d_model))
        self.resamplers = nn.ModuleList(_resampler(c) for _ in range(n if c.align == "resample" else 0))
        self.blocks = nn.ModuleList(_each(n, _block, c) for _ in range(c.n_layers))
        self.norm = nn.LayerNorm(c.d_model)
        self.dropout, self.output = Dropout(c.dropout), Linear(c.d_model, c.n_outputs)

    def forward(self, tokens: list[Tokens]) -> Tensor:
        """Predictions (B, K)."""
        tokens = [with_own(self.first[i], one) for i, one in enumerate(align(tokens, self.align, self.resamplers))]
        Z = len(self.shared)
        shared_BZD = self.shared.expand(len(tokens[0][0]), -1, -1)
        for blocks in _lists(self.blocks):
            read, written = [], []
            for i, (x_BTD, keep_BT) in enumerate(tokens):
                keep = torch.cat([keep_BT.new_ones(len(keep_BT), Z), keep_BT], 1)
                both = blocks[i](torch.cat([shared_BZD.to(x_BTD.dtype), x_BTD], 1), keep=keep)
                written.append((both[:, :Z], keep_BT[:, 0]))
                read.append((both[:, Z:], keep_BT))
            tokens, shared_BZD = read, _mean(written)
        return self.output(self.dropout(self.norm(mean_of_first(tokens))))


class Parallel(nn.Module):
    """One vector a modality, the mean of its tower's real tokens, through a layer of its own; what becomes of them, the
    kinds of parallel fusion say."""

    def __init__(self, c: FusionConfig, n: int, n_predictions: int = 1) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(Linear(c.d_model, c.d_hidden or c.d_model) for _ in range(n))
        self.dropout = Dropout(c.dropout)
        self.output = nn.ModuleList(Linear(c.d_hidden or c.d_model, c.n_outputs) for _ in range(n_predictions))

    def add_nothing(self, modality: int) -> None:
        """Let what is added to the scores of `modality` be 0, so that training begins with them as they are."""
        head = self.output[modality if len(self.output) > 1 else 0]
        assert isinstance(head, Linear)
        nn.init.zeros_(head.weight)

    def vectors(self, tokens: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Vectors before their layers (M, B, D), and which are there (M, B)."""
        means = torch.stack([mean_of_real(*one) for one in tokens])
        return means, torch.stack([keep_BT.any(1) for _, keep_BT in tokens])

    def layers(self, vectors_MBD: Tensor) -> Tensor:
        """Each modality's vector through its layer, (M, B, D)."""
        return torch.stack([layer(x_BD) for layer, x_BD in zip(self.hidden, vectors_MBD, strict=True)])


class Concatenate(Parallel):
    """Vectors side by side into one layer: the sum of a matrix for each."""

    def forward(self, tokens: list[Tokens], told_MBK: Tensor) -> Tensor:
        """Predictions (B, K), added to what is told."""
        vectors_MBD, there_MB = self.vectors(tokens)
        summed_BD = (self.layers(vectors_MBD) * there_MB[..., None]).sum(0)
        return self.output[0](self.dropout(F.gelu(summed_BD))) + told_MBK.sum(0)


class Gate(Parallel):
    """A prediction of a mean of the vectors, each weighed by what a gate makes of it."""

    def __init__(self, c: FusionConfig, n: int) -> None:
        super().__init__(c, n)
        self.gates = nn.ModuleList(Linear(c.d_model, 1) for _ in range(n))

    def forward(self, tokens: list[Tokens], told_MBK: Tensor) -> Tensor:
        """Predictions (B, K), added to what is told."""
        vectors_MBD, there_MB = self.vectors(tokens)
        scores_MB = torch.stack([gate(x_BD)[:, 0] for gate, x_BD in zip(self.gates, vectors_MBD, strict=True)])
        weights_MB1 = scores_MB.masked_fill(~there_MB, -torch.inf).softmax(0)[..., None]
        weighed_BD = (F.gelu(self.layers(vectors_MBD)) * weights_MB1).sum(0)
        return self.output[0](self.dropout(weighed_BD)) + told_MBK.sum(0)


class Average(Parallel):
    """A prediction of each vector, and their average: of classes, that of the probabilities."""

    def __init__(self, c: FusionConfig, n: int) -> None:
        super().__init__(c, n, n_predictions=n)
        self.outputs = c.outputs

    def forward(self, tokens: list[Tokens], told_MBK: Tensor) -> Tensor:
        """Predictions (B, K)."""
        vectors_MBD, there_MB = self.vectors(tokens)
        hidden_MBD = self.dropout(F.gelu(self.layers(vectors_MBD)))
        added_MBK = torch.stack([output(x) for output, x in zip(self.output, hidden_MBD, strict=True)]).float()
        found_MBK = told_MBK + added_MBK
        if self.outputs == "number":
            return _mean(list(zip(found_MBK, there_MB, strict=True)))
        logs_MBK = found_MBK.log_softmax(-1).masked_fill(~there_MB[..., None], -torch.inf)
        return logs_MBK.logsumexp(0) - there_MB.sum(0)[:, None].log()


def with_first(first_D: Tensor, tokens: Tokens) -> Tokens:
    """Tokens behind a first one, which is real in every row."""
    x_BTD, keep_BT = tokens
    first = first_D.to(x_BTD.dtype).expand(len(x_BTD), 1, -1)
    return torch.cat([first, x_BTD], 1), torch.cat([keep_BT.new_ones(len(x_BTD), 1), keep_BT], 1)


def with_own(first_D: Tensor, tokens: Tokens) -> Tokens:
    """Tokens behind a first one, which is real where any of them is."""
    x_BTD, keep_BT = with_first(first_D, tokens)
    return x_BTD, torch.cat([tokens[1].any(1)[:, None], keep_BT[:, 1:]], 1)


def mean_of_first(tokens: list[Tokens]) -> Tensor:
    """The mean over the modalities that are there of their first tokens, (B, D)."""
    return _mean([(x_BTD[:, 0], keep_BT[:, 0]) for x_BTD, keep_BT in tokens])


def mean_of_real(x_BTD: Tensor, keep_BT: Tensor) -> Tensor:
    """The mean of the real tokens, (B, D); zero where none is."""
    weight = keep_BT[..., None].to(x_BTD.dtype)
    return (x_BTD * weight).sum(1) / weight.sum(1).clamp(min=1)


def _mean(values: list[Tokens]) -> Tensor:
    """The mean of tensors (B, …) over those that are there in each row, (B,); at least one must be."""
    total = sum(x * there.view(-1, *[1] * (x.dim() - 1)) for x, there in values)
    count = sum(there.to(values[0][0].dtype) for _, there in values)
    assert isinstance(total, Tensor) and isinstance(count, Tensor)
    return total / count.view(-1, *[1] * (total.dim() - 1))


def _each(n: int, make: Callable[[FusionConfig], nn.Module], c: FusionConfig) -> nn.ModuleList:
    return nn.ModuleList(make(c) for _ in range(n))


def _lists(layers: nn.ModuleList) -> list[nn.ModuleList]:
    return [layer for layer in layers if isinstance(layer, nn.ModuleList)]


def _cross(c: FusionConfig) -> CrossAttention:
    return CrossAttention(c.d_model, c.n_heads, c.dropout)


def _resampler(c: FusionConfig) -> Resampler:
    return Resampler(c.n_queries, c.d_model, c.n_heads, c.d_hidden, c.dropout)


def _block(c: FusionConfig) -> Block:
    return pre_norm_block(c.d_model, c.n_heads, c.d_hidden, c.dropout)


FUSIONS: dict[str, Callable[[FusionConfig, int], nn.Module]] = {
    "early": Early,
    "middle": Middle,
    "bottleneck": Bottleneck,
    "concatenate": Concatenate,
    "gate": Gate,
    "average": Average,
}
"""What a config may name."""
