"""A multi-head model becomes a grouped-query or multi-query one (arXiv 2305.13245), layer after layer.

Every decoder self-attention and cross-attention is converted; an encoder is left alone, as is a layer that has the
number of key/value heads asked for. Query heads are reordered so that those that share are neighbours; queries, keys,
values, the columns of the output projection and all biases move together.

With `refit`, each converted attention's output projection and bias are then fitted by ridge regression: of what the
converted model's heads find, given the converted model's own states, on what brings its residual stream to the
original's.

Shapes: B rows, T positions, D d_model, H query heads, G key/value heads before, K head width.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from transfuse.errors import ConfigError, DataError
from transfuse.models.decoder import DecoderModel
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.nn.attention import Attention
from transfuse.nn.blocks import Block
from transfuse.regrouping.grouping import Groups, best_groups, neighbours
from transfuse.regrouping.sharing import Method, Problem, Shared, agreed, lost, own_problem, pooled, rotary_problem
from transfuse.regrouping.statistics import HeadStatistics

METHODS: tuple[Method, ...] = ("aligned", "procrustes", "mean", "first", "random")
AGREEING: tuple[Method, ...] = ("aligned", "procrustes")
"""Methods that look at data for what heads can agree on."""

STATISTICS_PER_NUMBER, LEAST_STATISTICS = 4, 2000
"""Calibration tokens that heads are aligned on, for each number of a position's keys, and at least; outputs are
refitted on all."""

RIDGE = 0.01
"""Of the mean diagonal of what is regressed on."""

M = TypeVar("M", DecoderModel, Seq2SeqModel)
Counts = int | tuple[int, ...]
"""Key/value heads: one number, or one a layer."""


@dataclass
class Stream:
    """A batch on its way through the decoder: the original's residual stream and the converted model's, both written
    to in place; what both models attend to, and which positions are no padding."""

    x_BTD: Tensor
    converted_BTD: Tensor
    real_BT: Tensor
    keep: Tensor | None = None
    memory_BSD: Tensor | None = None
    memory_keep_BS: Tensor | None = None


@torch.no_grad()
def convert(
    model: M,
    n_kv_heads: Counts,
    method: Method = "aligned",
    calibration: Sequence[Any] = (),
    *,
    refit: bool = True,
    seed: int = 0,
) -> M:
    """A new model with `n_kv_heads` key/value heads in every decoder attention; `model` is unchanged.

    `calibration` holds batches as the model's training has them; only "mean", "first" and "random" without `refit` do
    without. `seed` is for "random" alone. Raises ConfigError for heads that do not divide or a method unknown,
    DataError for too little calibration data.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} must be one of {', '.join(METHODS)}")
    converted = _with_heads(model, n_kv_heads)
    needs_data = refit or method in AGREEING
    n_positions = sum(batch.n_tokens for batch in calibration)
    if needs_data and n_positions < model.config.d_model:
        raise DataError(
            f"{n_positions} calibration tokens; at least d_model={model.config.d_model} are needed to fit a layer"
        )
    original, dtype = model, model.output.weight.dtype
    if dtype.itemsize < 4:  # sums of squares in half precision would be noise
        original, converted = copy.deepcopy(model).float(), converted.float()
    generator = torch.Generator().manual_seed(seed)
    with _evaluating(original):
        converted.eval()
        streams = _streams(original, calibration if needs_data else ())
        for block, changed, name in _up_to_the_last_changed(original.decoder.blocks, converted.decoder.blocks):
            _sublayer(block, changed, name, streams, method, refit, generator)
    del streams
    converted = converted.to(dtype)
    own = {weight.data_ptr() for weight in model.parameters()}
    for weight in converted.parameters():
        if weight.data_ptr() in own:
            weight.data = weight.data.clone()
    return converted


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode inside, and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _with_heads(model: M, n_kv_heads: Counts) -> M:
    """A model of the new config. Its weights are those of `model`, not copies, for a conversion does not write to them;
    but an attention that changes has its own, which are yet to be made."""
    if not isinstance(model, DecoderModel | Seq2SeqModel):
        raise ConfigError(f"a {type(model).__name__} has no decoder; its attention keeps no keys and values to save")
    config: Any = model.config.with_kv_heads(n_kv_heads)
    for there, here in zip(model.config.cached_heads, config.cached_heads, strict=True):
        if there % here:
            raise ConfigError(f"{there} key/value heads cannot become n_kv_heads={here}: it must divide them")
    with torch.device("meta"):  # nothing is allocated but what is taken from it
        new = type(model)(config)
    shared = {id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in model.parameters()}
    converted = copy.deepcopy(model, shared)
    converted.config = config
    for block, changed, name in _up_to_the_last_changed(converted.decoder.blocks, new.decoder.blocks):
        own, fresh = getattr(block, name), getattr(changed, name)
        if _changes(own, fresh):
            fresh.to_empty(device=own.out.weight.device).to(own.out.weight.dtype)
            fresh.rotary = own.rotary
            setattr(block, name, fresh)
    return converted


def _up_to_the_last_changed(own: nn.ModuleList, new: nn.ModuleList) -> list[tuple[Block, Block, str]]:
    """The sub-layers of both stacks in order, to the last whose heads change: nothing is learned from what follows."""
    found: list[tuple[Block, Block, str]] = []
    last = 0
    for block, changed in zip(own, new, strict=True):
        assert isinstance(block, Block) and isinstance(changed, Block)
        for name in ("attention", "cross_attention", "feed_forward"):
            if getattr(block, name) is not None:
                found.append((block, changed, name))
                last = len(found) if _changes(getattr(block, name), getattr(changed, name)) else last
    return found[:last]


def _changes(own: nn.Module, new: nn.Module) -> bool:
    return isinstance(own, Attention) and own.n_kv_heads != new.n_kv_heads


def _streams(model: DecoderModel | Seq2SeqModel, batches: Sequence[Any]) -> list[Stream]:
    """One a batch, at the beginning of the decoder, with what an encoder says of its source."""
    weight = model.output.weight
    batches = [batch.to(weight.device) for batch in batches]
    own, converted = (_pieces([batch.real_BT.shape for batch in batches], weight[:1]) for _ in range(2))
    streams = [
        Stream(x, x_converted, batch.real_BT) for x, x_converted, batch in zip(own, converted, batches, strict=True)
    ]
    if isinstance(model, DecoderModel):
        for stream, batch in zip(streams, batches, strict=True):
            stream.x_BTD.copy_(model.embedding(batch.ids_BT, batch.positions_BT))
            stream.keep = batch.keep_BTT
    else:
        memories = _pieces([batch.source_BS.shape for batch in batches], weight[:1])
        for stream, memory_BSD, batch in zip(streams, memories, batches, strict=True):
            stream.x_BTD.copy_(model.target_embedding(batch.target_BT))
            stream.memory_BSD, stream.memory_keep_BS = memory_BSD, batch.source_keep_BS
            memory_BSD.copy_(model.encode(batch.source_BS, batch.source_keep_BS))
    for stream in streams:
        stream.converted_BTD.copy_(stream.x_BTD)
    return streams


def _pieces(shapes: Sequence[Sequence[int]], like_1N: Tensor) -> list[Tensor]:
    """Tensors (B, T, N) to be filled, cut from one: separate ones that outlive others would leave holes in memory."""
    sizes = [math.prod(shape) for shape in shapes]
    pieces = torch.split(like_1N.new_empty(sum(sizes), like_1N.shape[1]), sizes)
    return [piece.view(*shape, -1) for piece, shape in zip(pieces, shapes, strict=True)]


def _sublayer(
    block: Block,
    changed: Block,
    name: str,
    streams: Sequence[Stream],
    method: Method,
    refit: bool,
    generator: torch.Generator,
) -> None:
    """Convert one sub-layer if it is an attention that changes, and send all streams through it."""
    own, new = getattr(block, name), getattr(changed, name)
    converts = _changes(own, new)
    norms = getattr(block, f"{name}_norm"), getattr(changed, f"{name}_norm")
    memory = name == "cross_attention"
    if converts:
        statistics = _statistics(block, own, norms[0], streams if method in AGREEING else (), memory)
        _fold(own, new, statistics, method, generator)
        del statistics
    for stream in streams:
        stream.x_BTD += _apply(own, block.entering(norms[0], stream.x_BTD), stream, memory)
    found = _heads(new, changed, norms[1], streams, memory) if converts and refit else []
    if found:
        _refit(new, found, streams)
    for place, stream in enumerate(streams):
        if found:
            stream.converted_BTD += new.out(found[place])
        else:
            stream.converted_BTD += _apply(new, changed.entering(norms[1], stream.converted_BTD), stream, memory)
        stream.x_BTD.copy_(block.leaving(norms[0], stream.x_BTD))
        stream.converted_BTD.copy_(changed.leaving(norms[1], stream.converted_BTD))


def _heads(
    attention: Attention, block: Block, norm: nn.Module, streams: Sequence[Stream], memory: bool
) -> list[Tensor]:
    """What the converted attention's heads find, which its output projection does not change."""
    found = _pieces([stream.real_BT.shape for stream in streams], attention.out.weight[:1])
    for heads_BTN, stream in zip(found, streams, strict=True):
        memory_BSD, keep = _attended(stream, memory)
        heads_BTN.copy_(attention.heads(block.entering(norm, stream.converted_BTD), memory_BSD, keep=keep))
    return found


def _statistics(
    block: Block, attention: Attention, norm: nn.Module, streams: Sequence[Stream], memory: bool
) -> HeadStatistics:
    """What the heads do on as many of the streams as it takes to know."""
    found = HeadStatistics(attention)
    enough = max(STATISTICS_PER_NUMBER * attention.key.out_features, LEAST_STATISTICS)
    for stream in streams:
        if found.n_queries >= enough:
            break
        memory_BSD, keep = _attended(stream, memory)
        found.add(attention, block.entering(norm, stream.x_BTD), memory_BSD, keep=keep, real_BT=stream.real_BT)
    return found


def _attended(stream: Stream, memory: bool) -> Any:
    return (stream.memory_BSD, stream.memory_keep_BS) if memory else (None, stream.keep)


def _apply(sublayer: nn.Module, x_BTD: Tensor, stream: Stream, memory: bool) -> Tensor:
    if not isinstance(sublayer, Attention):
        return sublayer(x_BTD)
    memory_BSD, keep = _attended(stream, memory)
    return sublayer(x_BTD, memory_BSD, keep=keep)


def _fold(
    own: Attention, new: Attention, statistics: HeadStatistics, method: Method, generator: torch.Generator
) -> None:
    """Give `new` the weights that share the heads of `own`."""
    H, G, K = own.n_heads, own.n_kv_heads, own.d_head
    groups, keys, values = _shares(own, new.n_kv_heads, statistics, method)
    owners = [h // (H // G) for h in range(H)]
    order = _query_order(groups, owners)
    wide = _Wide(own)
    queries, out = wide.query[order], wide.out[order]
    new_keys, new_values, new_queries, new_out = [], [], [], []
    shift = torch.zeros(out.shape[2], dtype=torch.float64)
    first = 0
    for group, key, value in zip(groups, keys, values, strict=True):
        members = slice(first, first + len(key.back_HKK))
        first = members.stop
        stacked_keys, stacked_values = wide.key[list(group)].flatten(0, 1), wide.value[list(group)].flatten(0, 1)
        if method == "aligned":  # as long as they were, which steadies the training that follows
            key = _as_long(key, stacked_keys, pairs=own.rotary is not None)
            value = _as_long(value, stacked_values)
        new_keys.append(key.take_KN @ stacked_keys)
        new_values.append(value.take_KN @ stacked_values)
        new_queries.append(key.back_HKK.mT @ queries[members])
        new_out.append(value.back_HKK.mT @ out[members])
        if own.out.bias is not None and method == "aligned":
            columns = torch.cat([torch.arange(head * K, (head + 1) * K) for head in group])
            for h, back_KK, out_KD in zip(order[members], value.back_HKK, out[members], strict=True):
                mean_N = statistics.value_means_HN[h]
                own_mean_K = mean_N[owners[h] * K : (owners[h] + 1) * K]
                shift += (own_mean_K - back_KK @ value.take_KN @ mean_N[columns]) @ out_KD
    wide.write(new, torch.cat(new_queries), torch.cat(new_keys), torch.cat(new_values), torch.cat(new_out), shift)
    if method == "random":
        for layer, like in ((new.key, own.key), (new.value, own.value)):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * like.weight.std())


def _query_order(groups: Groups, owners: Sequence[int]) -> list[int]:
    """Query heads, those that share side by side: head h of the result reads group h // (H // number of groups)."""
    return [h for group in groups for head in group for h, owner in enumerate(owners) if owner == head]


def _shares(
    own: Attention, n_groups: int, statistics: HeadStatistics, method: Method
) -> tuple[Groups, list[Shared], list[Shared]]:
    """The groups, and what each shares of keys and of values."""
    H, G, K = own.n_heads, own.n_kv_heads, own.d_head
    groups = neighbours(G, n_groups)
    if method != "aligned" and method != "procrustes":
        shared = pooled("mean" if method == "mean" else "first", K, G // n_groups, H // n_groups)
        return groups, [shared] * n_groups, [shared] * n_groups
    owners = [h // (H // G) for h in range(H)]
    out_HKD = _Wide(own).out
    # both errors are of the residual stream: a head's output moves with its logits, to first order, by no more than
    # their deviation times that of the values they choose between
    queries_HKK = statistics.queries_HKK * (statistics.spreads_H / K)[:, None, None]
    if own.rotary is None:
        of_keys = own_problem(queries_HKK, statistics.keys_HPMM[:, 0], owners)
    else:
        of_keys = rotary_problem(queries_HKK, statistics.keys_HPMM, owners)
    values_HNN = statistics.values_HNN if own.out.bias is None else statistics.value_covariances_HNN()
    of_values = own_problem(out_HKD @ out_HKD.mT, values_HNN, owners)
    if method == "aligned":
        # in an order that the data decides, so that it does not matter in which order the heads came
        of_energy = sorted(range(G), key=lambda head: -of_keys.within([head]).energy())
        losses = _pair_losses((of_keys, of_values))
        ordered = [[losses[a][b] for b in of_energy] for a in of_energy]
        groups = tuple(tuple(of_energy[i] for i in group) for group in best_groups(ordered, n_groups))
    keys, values = ([agreed(problem.within(group), method) for group in groups] for problem in (of_keys, of_values))
    return groups, keys, values


def _pair_losses(problems: Sequence[Problem]) -> list[list[float]]:
    """What each pair of heads loses if they share, summed over problems."""
    n = problems[0].n_heads
    losses = [[0.0] * n for _ in range(n)]
    for problem, (a, b) in itertools.product(problems, itertools.combinations(range(n), 2)):
        losses[a][b] += lost(problem.within([a, b]))
        losses[b][a] = losses[a][b]
    return losses


def _as_long(shared: Shared, stacked: Tensor, *, pairs: bool = False) -> Shared:
    """Scaled so that the shared rows are as long as the heads' own are on average; rows of a rotary pair alike."""
    squares_K = (shared.take_KN @ stacked)[:, :-1].square().sum(1)
    if pairs:
        squares_K = (squares_K.view(2, -1).sum(0) / 2).repeat(2)
    goal = stacked[:, :-1].norm(dim=1).mean()
    return shared.scaled(torch.where(squares_K > 0, goal / squares_K.sqrt().clamp(min=1e-300), 1.0))


class _Wide:
    """The weights of an attention by head, in float64: (H, K, D + 1) with the bias as a last column, and (H, K, D) of
    the output projection, transposed."""

    def __init__(self, attention: Attention) -> None:
        K = attention.d_head
        self.query, self.key, self.value = (
            _with_bias(layer).view(-1, K, attention.query.in_features + 1)
            for layer in (attention.query, attention.key, attention.value)
        )
        self.out = attention.out.weight.detach().double().cpu().T.reshape(-1, K, attention.out.out_features)
        bias = attention.out.bias
        self.bias = None if bias is None else bias.detach().double().cpu()

    def write(
        self, attention: Attention, query: Tensor, key: Tensor, value: Tensor, out: Tensor, shift_D: Tensor
    ) -> None:
        """Put weights of this form into an attention, `shift` added to the output's bias."""
        for layer, heads in ((attention.query, query), (attention.key, key), (attention.value, value)):
            rows = heads if heads.dim() == 2 else heads.flatten(0, 1)
            layer.weight.copy_(rows[:, :-1])
            if layer.bias is not None:
                layer.bias.copy_(rows[:, -1])
        attention.out.weight.copy_(out.flatten(0, 1).T)
        if self.bias is not None:
            attention.out.bias.copy_(self.bias + shift_D)


def _with_bias(layer: nn.Linear) -> Tensor:
    weight = layer.weight.detach().double().cpu()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    return torch.cat([weight, bias.double().cpu()[:, None]], dim=1)


def _refit(attention: Attention, found: Sequence[Tensor], streams: Sequence[Stream]) -> None:
    """Change the output projection, and its bias, by what ridge regression of the residual stream's difference on what
    the heads `found` says is missing."""
    biased = attention.out.bias is not None
    N = attention.out.in_features + biased
    moment_NN = torch.zeros(N, N, dtype=torch.float64)
    missing_ND = torch.zeros(N, attention.out.out_features, dtype=torch.float64)
    for heads_BTN, stream in zip(found, streams, strict=True):
        heads, gap = heads_BTN[stream.real_BT], (stream.x_BTD - stream.converted_BTD)[stream.real_BT]
        gap = gap - attention.out(heads)
        if biased:
            heads = torch.cat([heads, torch.ones_like(heads[:, :1])], dim=1)
        moment_NN += (heads.T @ heads).double().cpu()
        missing_ND += (heads.T @ gap).double().cpu()
    ridge_N = torch.full((N,), RIDGE * float(moment_NN.diagonal()[: N - biased].mean()), dtype=torch.float64)
    if biased:
        ridge_N[-1] = 0.0
    found_ND = torch.linalg.lstsq(moment_NN + ridge_N.diag(), missing_ND).solution
    attention.out.weight.add_(found_ND[: N - biased].T.to(attention.out.weight))
    if biased:
        attention.out.bias.add_(found_ND[-1].to(attention.out.bias))
