"""Models whose decoding steps are one compiled function.

Decoding is bound by reading weights and caches, if nothing else takes time. A step of PyTorch's operations is some
forty calls a layer and products that do not read as fast as the memory gives (`docs/log.md` has the figures); here it
is one call, in which every number is read once. Prompts, which are bound by arithmetic, go through the modules.

Shapes: B rows, G key/value heads, S key positions, K head width, D d_model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from transfuse.generation.cores import SharesOut, n_threads_to_share
from transfuse.generation.panels import Layer, Norm, Product, Weights
from transfuse.kernels import step as kernel
from transfuse.kernels.vectors import LANES, UNROLLED
from transfuse.models.decoder import DecoderModel, LanguageState
from transfuse.models.seq2seq import DecoderState, Seq2SeqModel, past_start
from transfuse.nn.ragged import GROWTH, keep_rows

MOST_THREADS = 16
"""Threads of one step; memory is not read faster by more."""

BYTES_A_THREAD = 1 << 22
"""Weights below which a further thread takes longer to meet than it saves."""


def fits(model: DecoderModel | Seq2SeqModel) -> bool:
    """Whether rows and heads of a model are whole vectors."""
    shape = Shape.of(model)
    return shape.d_head % LANES == 0 and shape.d_model % UNROLLED == 0 and shape.d_hidden % UNROLLED == 0


@dataclass(frozen=True)
class Shape:
    """The sizes that all blocks of a decoder share."""

    d_model: int
    n_heads: int
    d_head: int
    d_hidden: int
    rotary: bool
    norm_first: bool

    @classmethod
    def of(cls, model: DecoderModel | Seq2SeqModel) -> Shape:
        """That of a model."""
        block: Any = model.decoder.blocks[0]
        attention = block.attention
        return cls(
            model.config.d_model,
            attention.n_heads,
            attention.d_head,
            block.feed_forward.up.out_features,
            attention.rotary is not None,
            block.norm_first,
        )


class Sheet:
    """The program of a step for so many rows, and tokens a row, and the memory that it works in."""

    def __init__(self, weights: Weights, shape: Shape, n_rows: int, width: int) -> None:
        self.weights, self.shape, self.n_rows, self.width = weights, shape, n_rows, width
        self.private: Tensor | None = None
        widest = max(layer.n_kv_heads for layer in weights.layers)
        sizes = {
            "x": shape.d_model,
            "qkv": (shape.n_heads + 2 * widest) * shape.d_head,
            "heads": shape.n_heads * shape.d_head,
            "hidden": shape.d_hidden,
            "cosines": shape.d_head // 2,
            "sines": shape.d_head // 2,
        }
        self.places, first = {}, 0
        for name, size in sizes.items():
            self.places[name] = first
            first += size * n_rows * width
        self.work = torch.zeros(first, dtype=torch.float32, device="cpu")
        self.scratch = shape.d_model * n_rows * width
        self._operations: list[np.ndarray] = []
        for layer in weights.layers:
            self._write_layer(layer)
        if weights.norm is not None:
            self._norm(weights.norm, in_place=False)
        self.program = np.concatenate(self._operations)
        kinds = self.program["kind"] == kernel.ATTEND
        self.own, self.cross = ((kinds & (self.program["cross"] == cross)).nonzero()[0] for cross in (0, 1))

    def put(self, name: str, values_ND: Tensor) -> None:
        """Write the numbers of the first N tokens at one place of `work`."""
        start = self.places[name]
        self.work[start : start + values_ND.numel()] = values_ND.flatten()

    def hidden(self, n_tokens: int) -> Tensor:
        """The last vectors of a step, (N, D)."""
        assert self.private is not None
        held = self.work[self.places["x"] :] if self.weights.norm is None else self.private[0]
        return held[: n_tokens * self.shape.d_model].view(n_tokens, -1).clone()

    def point(self, operation: int, kv_2BGSK: Tensor) -> None:
        """Let an attention read, and add to, these keys and values."""
        assert kv_2BGSK.dtype == self.weights.panels.dtype, "a cache of another dtype than the weights"
        row = self.program[operation]
        row["keys"], row["values"] = kv_2BGSK.data_ptr(), kv_2BGSK.stride(0) * kv_2BGSK.element_size()
        row["row_step"], row["head_step"] = kv_2BGSK.stride(1), kv_2BGSK.stride(2)

    def make_room(self, n_keys: int, n_threads: int) -> Tensor:
        """What each thread works in, (threads, numbers), for at most `n_keys` keys a row."""
        if self.private is None or len(self.private) != n_threads or self.private.shape[1] < self._room(n_keys):
            size = self._room(n_keys + n_keys // 2)
            self.private = torch.zeros(n_threads, size, dtype=torch.float32, device="cpu")
        return self.private

    def _room(self, n_keys: int) -> int:
        heads = [layer.n_kv_heads for layer in self.weights.layers]
        heads += [layer.cross.n_kv_heads for layer in self.weights.layers if layer.cross is not None]
        s = self.shape
        return self.scratch + kernel.scratch_numbers(self.n_rows, self.width, s.n_heads, min(heads), s.d_head, n_keys)

    def _write_layer(self, layer: Layer) -> None:
        s = self.shape
        self._sublayer(layer.attention_norm, layer.qkv, "qkv")
        self._attend(layer.n_kv_heads, (s.n_heads + 2 * layer.n_kv_heads) * s.d_head, cross=False)
        self._product(layer.out, self.places["heads"], "x")
        if layer.cross is not None:
            self._leave(layer.attention_norm)
            self._sublayer(layer.cross.norm, layer.cross.query, "qkv")
            self._attend(layer.cross.n_kv_heads, s.n_heads * s.d_head, cross=True)
            self._product(layer.cross.out, self.places["heads"], "x")
            self._leave(layer.cross.norm)
        else:
            self._leave(layer.attention_norm)
        self._sublayer(layer.hidden_norm, layer.up, "hidden")
        self._product(layer.down, self.places["hidden"], "x")
        self._leave(layer.hidden_norm)

    def _sublayer(self, norm: Norm, product: Product, target: str) -> None:
        """The first product of a sub-layer, of the residual stream or what its norm makes of it."""
        if self.shape.norm_first:
            self._norm(norm, in_place=False)
            self._product(product, 0, target, from_private=True)
        else:
            self._product(product, self.places["x"], target)

    def _leave(self, norm: Norm) -> None:
        if not self.shape.norm_first:
            self._norm(norm, in_place=True)

    def _norm(self, norm: Norm, in_place: bool) -> None:
        x = self.places["x"]
        self._operations.append(
            operation(
                kernel.NORM, norm, source=x, target=x if in_place else 0, in_place=in_place, n_in=self.shape.d_model
            )
        )

    def _product(self, product: Product, source: int, target: str, from_private: bool = False) -> None:
        self._operations.append(
            operation(
                kernel.PRODUCT,
                product,
                source=source,
                target=self.places[target],
                from_private=from_private,
                scratch=self.scratch,
            )
        )

    def _attend(self, n_kv_heads: int, n_in: int, cross: bool) -> None:
        turned = self.shape.rotary and not cross
        self._operations.append(
            operation(
                kernel.ATTEND,
                None,
                source=self.places["qkv"],
                target=self.places["heads"],
                n_in=n_in,
                n_heads=self.shape.n_heads,
                n_kv_heads=n_kv_heads,
                d_head=self.shape.d_head,
                cosines=self.places["cosines"] if turned else -1,
                sines=self.places["sines"] if turned else -1,
                cross=cross,
                scratch=self.scratch,
            )
        )


def operation(kind: int, parts: Product | Norm | None, **fields: Any) -> np.ndarray:
    """One operation of a program."""
    one = np.zeros(1, kernel.OPERATION)
    for name, value in {"kind": kind, **({} if parts is None else vars(parts)), **fields}.items():
        one[name] = value
    return one


UNSEEN = np.zeros((0, 0, 0), np.bool_)
"""A mask that hides nothing."""


class Compiled(SharesOut):
    """A model to generate with, its steps compiled; everything else is the model's own."""

    def __init__(self, model: DecoderModel | Seq2SeqModel) -> None:
        self._model = model
        self.config: Any = model.config
        self.shape = Shape.of(model)
        self.weights = Weights(model.decoder, model.output)
        panels = self.weights.panels
        self._panels = (panels.view(torch.int16) if panels.dtype == torch.bfloat16 else panels).numpy()
        self._threads: ThreadPoolExecutor | None = None
        self._n_pooled = 0
        self._alone = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown()

    def output(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of vectors (..., D)."""
        n_rows, product = hidden.numel() // self.config.d_model, self.weights.output
        work = torch.empty(n_rows * (product.n_in + product.n_out), dtype=torch.float32, device="cpu")
        work[: hidden.numel()] = hidden.flatten()
        program = operation(kernel.PRODUCT, product, target=hidden.numel())
        private = torch.empty(self._n_threads(), 2 * n_rows * kernel.COLUMNS, dtype=torch.float32, device="cpu")
        self._run(program, work, private, np.zeros((2, n_rows), np.int64))
        return work[hidden.numel() :].view(*hidden.shape[:-1], product.n_out)

    def new_cache(self, n_rows: int, n_kv_heads: int, n_keys: int) -> Tensor:
        """Zeros for keys and values, (2, B, G, S, K), with room for whole vectors of keys."""
        room = -(-n_keys // GROWTH) * GROWTH
        return self.weights.panels.new_zeros(2, n_rows, n_kv_heads, room, self.shape.d_head)

    def _step(self, sheet: Sheet, lengths: np.ndarray, seen: np.ndarray = UNSEEN) -> Tensor:
        """Run a step of `lengths` (2, B); the last vectors, (N, D)."""
        private = sheet.make_room(int(lengths.max()), self._n_threads())
        self._run(sheet.program, sheet.work, private, lengths, seen)
        return sheet.hidden(lengths.shape[1] * max(seen.shape[1], 1))

    def _n_threads(self) -> int:
        most = max(1, self._panels.nbytes // BYTES_A_THREAD)
        return min(n_threads_to_share(), MOST_THREADS, most)

    def _run(
        self, program: np.ndarray, work: Tensor, private: Tensor, lengths: np.ndarray, seen: np.ndarray = UNSEEN
    ) -> None:
        """Run a program on as many threads as `private` has rows, of which this is one."""
        numbers, meetings = self.weights.numbers, np.zeros((len(program), 16), np.int64)
        stop = np.zeros(1, np.int64)

        def part(thread: int) -> None:
            kernel.run(
                program, numbers, self._panels, work.numpy(), private.numpy(), lengths, seen, meetings, stop, thread
            )

        n_others = len(private) - 1
        if not n_others:
            part(0)
            return
        with self._alone:  # all parts must run at once, so no other step may take threads from this one
            others = []
            try:
                threads = self._pool(n_others)
                others = [threads.submit(part, thread) for thread in range(1, n_others + 1)]
                part(0)
            except BaseException:  # an interrupt between two of these lines, or a thread that cannot be had
                stop[0] = 1
                raise
            finally:
                wait(others)
            for other in others:
                other.result()

    def _pool(self, n_threads: int) -> ThreadPoolExecutor:
        """At least so many threads."""
        if self._threads is None or self._n_pooled < n_threads:
            if self._threads is not None:
                self._threads.shutdown()
            self._threads, self._n_pooled = ThreadPoolExecutor(n_threads), n_threads
        return self._threads


class WritingState:
    """What decoding with a language model keeps between steps: the model's own state, and a sheet to work on."""

    def __init__(self, held: LanguageState, sheet: Sheet) -> None:
        self.held, self.sheet = held, sheet

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values held."""
        return self.held.n_bytes

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.held.select(rows)


class CompiledDecoder(Compiled):
    """A `DecoderModel` to generate with."""

    _model: DecoderModel

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[WritingState, Tensor]:
        """As of `DecoderModel`."""
        state, ids = self._model.begin(prompts)
        return self.state(state), ids

    def state(self, held: LanguageState) -> WritingState:
        """What steps need to go on from what the model's own steps have left."""
        return WritingState(held, Sheet(self.weights, self.shape, len(held.rows.lengths), 1))

    def hidden_step(self, ids_B1: Tensor, state: WritingState) -> Tensor:
        """As of `DecoderModel`."""
        rows, sheet = state.held.rows, state.sheet
        rows.extend_each()
        sheet.put("x", self._model.embedding(ids_B1.T, rows.positions)[0])
        if self._model.rotary is not None:
            for name, angles in zip(
                ("cosines", "sines"), self._model.rotary.angles(rows.positions, sheet.work), strict=True
            ):
                sheet.put(name, angles)
        for place, layer, cache in zip(sheet.own, self.weights.layers, state.held.caches, strict=True):
            like = self.weights.panels.new_empty(1, layer.n_kv_heads, 1, self.shape.d_head)
            sheet.point(place, cache.own.reserve(max(rows.lengths), like))
        lengths = np.array([rows.lengths, rows.lengths])
        return self._step(sheet, lengths)[:, None]


class TranslatingState:
    """What decoding of an encoder–decoder keeps between steps.

    The keys and values of the memory are made once; the beams of a source are tokens side by side in one row, and
    `seen_BWS` says which of the row's keys each descends from, as in the model's own `DecoderState`.
    """

    def __init__(self, held: DecoderState, translator: CompiledTranslator) -> None:
        self._translator, self.width, self.n_positions = translator, 1, 0
        self.lengths = held.memory_keep_BS.sum(1).numpy()
        n_rows, layers = len(self.lengths), translator.weights.layers
        self.sheet = Sheet(translator.weights, translator.shape, n_rows, 1)
        self.own = [translator.new_cache(n_rows, layer.n_kv_heads, 1) for layer in layers]
        self.cross = translator.memory_heads(held.memory_BSD)
        self.seen_BWS = torch.ones(n_rows, 1, 0, dtype=torch.bool)

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values held (what is reserved for growth is not counted, a memory's padding is)."""
        own, memory = self.n_positions * self.width, int(self.lengths.max())
        held = [(part, own) for part in self.own] + [(part, memory) for part in self.cross]
        return sum(2 * kv[0, :, :, 0].numel() * n_keys * kv.element_size() for kv, n_keys in held)

    def extend(self) -> None:
        """Make room for one key more a beam, which the beam itself sees."""
        self.n_positions += 1
        n_keys = self.n_positions * self.width
        itself = torch.eye(self.width, dtype=torch.bool).expand(len(self.seen_BWS), -1, -1)
        self.seen_BWS = torch.cat([self.seen_BWS, itself], dim=2)
        for i, held in enumerate(self.own):
            if held.shape[3] < n_keys:
                self.own[i] = self._translator.new_cache(held.shape[1], held.shape[2], n_keys)
                self.own[i][:, :, :, : held.shape[3]] = held

    def widen(self, width: int) -> None:
        """Let every source have `width` beams, all continuations of the one it has."""
        n_held, n_rows = self.n_positions, len(self.lengths)
        for i, held in enumerate(self.own):
            self.own[i] = self._translator.new_cache(n_rows, held.shape[2], n_held * width)
            self.own[i][:, :, :, : n_held * width] = held[:, :, :, :n_held].repeat_interleave(width, dim=3)
        self.seen_BWS = torch.eye(width, dtype=torch.bool).repeat(1, n_held).expand(n_rows, -1, -1)
        self.width, self.sheet = width, Sheet(self._translator.weights, self._translator.shape, n_rows, width)

    def reorder(self, parents_BW: Tensor) -> None:
        """Make beam w of each source a continuation of its beam `parents[:, w]`."""
        self.seen_BWS = self.seen_BWS.gather(1, parents_BW[:, :, None].expand(-1, -1, self.seen_BWS.shape[2]))

    def select(self, rows: Tensor) -> None:
        """Keep these sources."""
        self.lengths, self.seen_BWS = self.lengths[rows.numpy()], self.seen_BWS[rows]
        self.own, self.cross = ([keep_rows(kv, rows) for kv in part] for part in (self.own, self.cross))


class CompiledTranslator(Compiled):
    """A `Seq2SeqModel` to generate with."""

    _model: Seq2SeqModel

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[TranslatingState, Tensor]:
        """As of `Seq2SeqModel`."""
        held, start_B = self._model.opened(prompts)
        state = TranslatingState(held, self)
        return state, past_start(self, start_B, state)

    def memory_heads(self, memory_BSD: Tensor) -> list[Tensor]:
        """Keys and values of the memory for each layer, (2, B, G, S, K)."""
        found, (n_rows, n_keys, _) = [], memory_BSD.shape
        for block in self._model.decoder.blocks:
            attention: Any = block.cross_attention
            kv_2BGSK = self.new_cache(n_rows, attention.n_kv_heads, n_keys)
            for held, layer in zip(kv_2BGSK, (attention.key, attention.value), strict=True):
                heads_BSGK = layer(memory_BSD).unflatten(2, (attention.n_kv_heads, attention.d_head))
                held[:, :, :n_keys] = heads_BSGK.transpose(1, 2)
            found.append(kv_2BGSK)
        return found

    def hidden_step(self, ids_BW: Tensor, state: TranslatingState) -> Tensor:
        """As of `Seq2SeqModel`."""
        sheet, (n_rows, width) = state.sheet, ids_BW.shape
        positions = torch.full((width,), state.n_positions)
        sheet.put("x", self._model.target_embedding(ids_BW, positions))
        rotary = cast(Any, self._model.decoder.blocks[0]).attention.rotary
        if rotary is not None:
            for name, angles in zip(("cosines", "sines"), rotary.angles(positions[:1], sheet.work), strict=True):
                sheet.put(name, angles.expand(n_rows * width, -1))
        state.extend()
        for places, caches in ((sheet.own, state.own), (sheet.cross, state.cross)):
            for place, kv_2BGSK in zip(places, caches, strict=True):
                sheet.point(place, kv_2BGSK)
        lengths = np.array([np.full(n_rows, state.n_positions * width), state.lengths])
        seen = UNSEEN if width == 1 else state.seen_BWS.numpy()
        return self._step(sheet, lengths, seen).view(n_rows, width, -1)
