"""The encoder–decoder Transformer of "Attention Is All You Need" (arXiv 1706.03762).

Shapes: B rows, S source positions, T target positions, D d_model, V target vocabulary. Ids are integers, masks boolean
with True = may attend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfuse.config import Config
from transfuse.errors import ConfigError, DataError
from transfuse.nn.attention import Attention, check_heads, heads_by_layer
from transfuse.nn.blocks import Block, BlockCache, Stack
from transfuse.nn.cache import KeyValueCache
from transfuse.nn.embeddings import TokenEmbedding
from transfuse.nn.feed_forward import FeedForward
from transfuse.nn.linear import Linear
from transfuse.nn.norms import RMSNorm
from transfuse.nn.positions import Learned, Rotary, Sinusoidal

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": partial(nn.LayerNorm, eps=1e-5),
    "rms": partial(RMSNorm, eps=1e-6),
}


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(Config):
    """Every size and choice of an encoder–decoder.

    `None` stands for "as many as": K/V heads as query heads, target vocabulary as source vocabulary; the decoder's K/V
    heads may be a list, one number a layer. `positions` is
    "sinusoidal" (the paper's wavelengths as Marian lays them out, sines before cosines, counted from 0),
    "closed-sinusoidal" (fairseq's and M2M100's, counted from `pad_id` + 1), "learned" or "rotary". `share_embeddings`
    uses one table for source and target, `tie_output` makes the target table the output projection. Outputs begin with
    `first_id`, which is no part of what is written, where it is given (M2M100's language), and hold no `banned_ids`.
    """

    vocab_size: int = 8000
    target_vocab_size: int | None = None
    d_model: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    encoder_heads: int = 4
    decoder_heads: int = 4
    encoder_kv_heads: int | None = None
    decoder_kv_heads: int | tuple[int, ...] | None = None
    cross_kv_heads: int | tuple[int, ...] | None = None
    encoder_hidden: int = 1024
    decoder_hidden: int = 1024
    activation: Literal["relu", "gelu", "silu"] = "relu"
    gated: bool = False
    bias: bool = True
    output_bias: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_first: bool = True
    positions: Literal["sinusoidal", "closed-sinusoidal", "learned", "rotary"] = "closed-sinusoidal"
    max_positions: int = 1024
    scale_embeddings: bool = True
    share_embeddings: bool = True
    tie_output: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    start_id: int = 0
    pad_id: int = 1
    end_id: int = 2
    first_id: int | None = None
    banned_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.check_types()
        self.check_positive("vocab_size", "target_vocab_size", "d_model", "encoder_layers", "decoder_layers")
        self.check_positive("encoder_hidden", "decoder_hidden", "max_positions")
        self.check_fraction("dropout", "attention_dropout", "hidden_dropout")
        for heads, kv_heads in (
            (self.encoder_heads, (self.encoder_heads if self.encoder_kv_heads is None else self.encoder_kv_heads,)),
            (self.decoder_heads, self.decoder_kv_heads_by_layer),
            (self.decoder_heads, self.cross_kv_heads_by_layer),
        ):
            for n_kv_heads in kv_heads:
                check_heads(self.d_model, heads, n_kv_heads)
            if self.positions == "rotary" and self.d_model // heads % 2:
                raise ConfigError(f"d_head={self.d_model // heads} must be even for rotary positions")
        if "sinusoidal" in self.positions and self.d_model % 2:
            raise ConfigError(f"d_model={self.d_model} must be even for sinusoidal positions")
        for name in ("start_id", "pad_id", "end_id"):
            if not 0 <= getattr(self, name) < min(self.vocab_size, self.n_target_tokens):
                smaller = "vocab_size" if self.vocab_size <= self.n_target_tokens else "target_vocab_size"
                raise ConfigError(f"{name}={getattr(self, name)} must be a token of {smaller}={getattr(self, smaller)}")
        for name, ids in (("first_id", (self.first_id,)), ("banned_ids", self.banned_ids)):
            if any(one is not None and not 0 <= one < self.n_target_tokens for one in ids):
                raise ConfigError(f"{name}={getattr(self, name)} must be of {self.n_target_tokens} target tokens")
        if self.share_embeddings and self.n_target_tokens != self.vocab_size:
            raise ConfigError(
                f"share_embeddings needs one vocabulary: vocab_size={self.vocab_size}, "
                f"target_vocab_size={self.target_vocab_size}"
            )

    @property
    def decoder_kv_heads_by_layer(self) -> tuple[int, ...]:
        """Key/value heads of each decoder layer's self-attention."""
        return heads_by_layer(self.decoder_kv_heads, self.decoder_heads, self.decoder_layers)

    @property
    def cross_kv_heads_by_layer(self) -> tuple[int, ...]:
        """Key/value heads of each decoder layer's cross-attention."""
        return heads_by_layer(self.cross_kv_heads, self.decoder_heads, self.decoder_layers)

    @property
    def cached_heads(self) -> tuple[int, ...]:
        """Key/value heads of every attention that decoding keeps a cache for, those of self-attention first."""
        return (*self.decoder_kv_heads_by_layer, *self.cross_kv_heads_by_layer)

    def with_kv_heads(self, n_kv_heads: int | tuple[int, ...] | None) -> Seq2SeqConfig:
        """The same with other key/value heads in every attention that decoding keeps a cache for."""
        return self.replace(decoder_kv_heads=n_kv_heads, cross_kv_heads=n_kv_heads)

    @property
    def n_target_tokens(self) -> int:
        """Size of the target vocabulary."""
        return self.target_vocab_size or self.vocab_size

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a sequence."""
        return (self.end_id,)

    @property
    def never_written(self) -> list[int]:
        """Ids no output may hold: padding and start token, unless one of them also ends sequences, and banned ones."""
        return sorted({self.pad_id, self.start_id, *self.banned_ids} - {self.end_id})


class DecoderState:
    """What decoding keeps between steps: the memory with its mask and every block's cache.

    A row is a source. It begins with one beam; after `widen` its `width` beams are written side by side as tokens of
    one row, so that they share the memory's keys and values, and so that choosing among them moves no cache: `seen_BWS`
    says which of the row's S keys each beam descends from, and is all that `reorder` changes.
    """

    def __init__(self, memory_BSD: Tensor, memory_keep_BS: Tensor, n_blocks: int) -> None:
        self.memory_BSD, self.memory_keep_BS, self.width = memory_BSD, memory_keep_BS, 1
        self.caches = [BlockCache(KeyValueCache()) for _ in range(n_blocks)]
        self.seen_BWS = torch.empty(len(memory_BSD), 1, 0, dtype=torch.bool, device=memory_BSD.device)

    @property
    def n_positions(self) -> int:
        """Tokens of each beam written so far."""
        return self.caches[0].own.n_positions

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(cache.n_bytes for cache in self.caches)

    def widen(self, width: int) -> None:
        """Let every source have `width` beams, all continuations of the one it has."""
        n_positions, self.width = len(self.caches[0].own), width
        itself = torch.eye(width, dtype=torch.bool, device=self.seen_BWS.device)
        self.seen_BWS = itself.repeat(1, n_positions).expand(len(self.seen_BWS), -1, -1)
        for cache in self.caches:
            cache.own.widen(width)

    def select(self, rows: Tensor) -> None:
        """Keep these sources."""
        self.memory_BSD, self.memory_keep_BS = self.memory_BSD[rows], self.memory_keep_BS[rows]
        self.seen_BWS = self.seen_BWS[rows]
        for cache in self.caches:
            cache.select(rows)

    def reorder(self, parents_BW: Tensor) -> None:
        """Make beam w of each source a continuation of its beam `parents[:, w]`."""
        self.seen_BWS = self.seen_BWS.gather(1, parents_BW[:, :, None].expand(-1, -1, self.seen_BWS.shape[2]))

    def add_position(self) -> Tensor | None:
        """Let every beam see the key it is about to add; return the mask, or None where one beam sees all."""
        if self.width == 1:
            return None
        itself = torch.eye(self.width, dtype=torch.bool, device=self.seen_BWS.device)
        self.seen_BWS = torch.cat([self.seen_BWS, itself.expand(len(self.seen_BWS), -1, -1)], dim=2)
        return self.seen_BWS


class Seq2SeqModel(nn.Module):
    """Source ids in, logits over the target vocabulary out, one vector of logits a target position."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # layers draw default weights from a generator that is not ours
            self._assemble(config)

    def _assemble(self, c: Seq2SeqConfig) -> None:
        source = nn.Embedding(c.vocab_size, c.d_model)
        target = source if c.share_embeddings else nn.Embedding(c.n_target_tokens, c.d_model)
        self.source_embedding = TokenEmbedding(source, _positions(c), scale=c.scale_embeddings, dropout=c.dropout)
        self.target_embedding = TokenEmbedding(target, _positions(c), scale=c.scale_embeddings, dropout=c.dropout)
        closing = NORMS[c.norm] if c.norm_first else None
        self.encoder = Stack([_encoder_block(c) for _ in range(c.encoder_layers)], closing and closing(c.d_model))
        self.decoder = Stack(
            [_decoder_block(c, *n) for n in zip(c.decoder_kv_heads_by_layer, c.cross_kv_heads_by_layer, strict=True)],
            closing and closing(c.d_model),
        )
        self.output = Linear(c.d_model, c.n_target_tokens, bias=c.output_bias)
        if c.tie_output:
            self.output.weight = target.weight

    def initialise(self, seed: int) -> Seq2SeqModel:
        """Draw all weights anew from `seed`: embeddings N(0, 1/d_model), matrices Glorot-uniform, biases 0, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if "norm" in name:
                nn.init.constant_(weight, float(name.endswith("weight")))
            elif weight.dim() == 1:
                nn.init.zeros_(weight)
            elif "embedding" in name:
                nn.init.normal_(weight, std=self.config.d_model**-0.5, generator=generator)
            else:
                nn.init.xavier_uniform_(weight, generator=generator)
        return self

    def forward(self, source_BS: Tensor, source_keep_BS: Tensor, target_BT: Tensor) -> Tensor:
        """Logits (B, T, V): position t scores the token that follows `target[:, : t + 1]`."""
        return self.output(self.hidden(source_BS, source_keep_BS, target_BT))

    def hidden(self, source_BS: Tensor, source_keep_BS: Tensor, target_BT: Tensor) -> Tensor:
        """The decoder's last vectors (B, T, D), before the output projection."""
        return self.decode(target_BT, self.encode(source_BS, source_keep_BS), source_keep_BS)

    def encode(self, source_BS: Tensor, keep_BS: Tensor) -> Tensor:
        """The encoder's vectors (B, S, D)."""
        return self.encoder(self.source_embedding(source_BS), keep=keep_BS)

    def decode(self, target_BT: Tensor, memory_BSD: Tensor, memory_keep_BS: Tensor) -> Tensor:
        """The decoder's vectors (B, T, D) for a whole target."""
        return self.decoder(self.target_embedding(target_BT), memory_BSD, memory_keep=memory_keep_BS)

    def start(self, source_BS: Tensor, keep_BS: Tensor) -> DecoderState:
        """Encode the sources and return the state from which `step` writes one beam for each."""
        return DecoderState(self.encode(source_BS, keep_BS), keep_BS, len(self.decoder.blocks))

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[DecoderState, Tensor]:
        """Encode source ids; return the state and the token that comes first in each, (B,). Raises DataError for an
        empty row."""
        state, start_B = self.opened(prompts)
        return state, past_start(self, start_B, state)

    def opened(self, prompts: Sequence[Sequence[int]]) -> tuple[DecoderState, Tensor]:
        """As `begin`, with the start token of each."""
        lengths = torch.tensor([len(row) for row in prompts])
        if not lengths.all():
            raise DataError("a source has no tokens; every row needs at least one to attend to")
        keep_BS = torch.arange(int(lengths.max())) < lengths[:, None]
        source_BS = torch.full(keep_BS.shape, self.config.pad_id)
        source_BS[keep_BS] = torch.tensor([i for row in prompts for i in row])
        device = self.output.weight.device
        first_B = torch.full((len(prompts),), self.config.start_id, device=device)
        return self.start(source_BS.to(device), keep_BS.to(device)), first_B

    def n_tokens_allowed(self, prompt: Sequence[int], asked: int | None) -> int:
        """Tokens a translation may have: those asked for, or twice its source's and 32 more, within the positions."""
        longest = self.config.max_positions - (self.config.first_id is not None)
        return min(2 * len(prompt) + 32 if asked is None else asked, longest)

    def n_positions(self, prompt: Sequence[int], n_tokens: int) -> int:
        """Positions that a source takes in a batch."""
        return len(prompt)

    def cache_bytes(self, prompt: Sequence[int], n_tokens: int, beams: int) -> int:
        """Bytes of keys and values for a source and `beams` translations of `n_tokens`."""
        c = self.config
        own, cross = sum(c.decoder_kv_heads_by_layer), sum(c.cross_kv_heads_by_layer)
        numbers = 2 * c.d_model // c.decoder_heads * (own * n_tokens * beams + cross * len(prompt))
        return numbers * self.output.weight.element_size()

    def step(self, ids_BW: Tensor, state: DecoderState) -> Tensor:
        """Feed one token a beam; logits (B, W, V) of the next."""
        return self.output(self.hidden_step(ids_BW, state))

    def hidden_step(self, ids_BW: Tensor, state: DecoderState) -> Tensor:
        """Feed one token a beam; the decoder's vectors (B, W, D), before the output projection."""
        x_BWD = self.target_embedding(ids_BW, torch.full(ids_BW.shape[1:], state.n_positions))
        return self.decoder(
            x_BWD,
            state.memory_BSD,
            keep=state.add_position(),
            memory_keep=state.memory_keep_BS,
            cache=state.caches,
        )


def _positions(c: Seq2SeqConfig) -> nn.Module | None:
    if c.positions == "sinusoidal":
        return Sinusoidal(c.d_model)
    if c.positions == "closed-sinusoidal":
        return Sinusoidal(c.d_model, offset=c.pad_id + 1, closed=True)
    return Learned(c.max_positions, c.d_model) if c.positions == "learned" else None


def _attention(c: Seq2SeqConfig, n_heads: int, n_kv_heads: int | None, *, causal: bool, rotary: bool) -> Attention:
    turn = Rotary(c.d_model // n_heads) if rotary and c.positions == "rotary" else None
    return Attention(
        c.d_model, n_heads, n_kv_heads, bias=c.bias, causal=causal, dropout=c.attention_dropout, rotary=turn
    )


def _feed_forward(c: Seq2SeqConfig, d_hidden: int) -> FeedForward:
    return FeedForward(
        c.d_model, d_hidden, activation=c.activation, gated=c.gated, bias=c.bias, dropout=c.hidden_dropout
    )


def _encoder_block(c: Seq2SeqConfig) -> Block:
    return Block(
        c.d_model,
        _attention(c, c.encoder_heads, c.encoder_kv_heads, causal=False, rotary=True),
        _feed_forward(c, c.encoder_hidden),
        norm=NORMS[c.norm],
        norm_first=c.norm_first,
        dropout=c.dropout,
    )


def _decoder_block(c: Seq2SeqConfig, own_kv_heads: int, cross_kv_heads: int) -> Block:
    return Block(
        c.d_model,
        _attention(c, c.decoder_heads, own_kv_heads, causal=True, rotary=True),
        _feed_forward(c, c.decoder_hidden),
        _attention(c, c.decoder_heads, cross_kv_heads, causal=False, rotary=False),
        norm=NORMS[c.norm],
        norm_first=c.norm_first,
        dropout=c.dropout,
    )


def past_start(model: Any, start_B: Tensor, state: Any) -> Tensor:
    """The token that comes first in each row, (B,): where every output begins with the same one, the start token is
    read before it."""
    if model.config.first_id is None:
        return start_B
    model.hidden_step(start_B[:, None], state)
    return torch.full_like(start_B, model.config.first_id)
