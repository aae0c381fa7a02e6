"""A decoder-only model whose steps are one compiled function.

Decoding is bound by reading weights and caches, if nothing else takes time. A step of PyTorch's operations is some
forty calls a layer and products that do not read as fast as the memory gives (`docs/log.md` has the figures); here it
is one call, in which every number is read once. Prompts, which are bound by arithmetic, go through the modules.

Shapes: B rows, G key/value heads, S key positions, K head width, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfuse.generation.cores import SharesOut, n_threads_to_share
from transfuse.generation.panels import Norm, Product, Weights
from transfuse.kernels import step as kernel
from transfuse.kernels.vectors import LANES, UNROLLED
from transfuse.models.decoder import DecoderConfig, DecoderModel, LanguageState

MOST_THREADS = 16
"""Threads of one step; memory is not read faster by more."""

BYTES_A_THREAD = 1 << 22
"""Weights below which a further thread takes longer to meet than it saves."""


def fits(config: DecoderConfig) -> bool:
    """Whether rows and heads of these sizes are whole vectors."""
    return config.head_width % LANES == 0 and config.d_model % UNROLLED == 0 and config.d_hidden % UNROLLED == 0


class CompiledState:
    """What decoding keeps between steps, the memory that a step works in, and its program."""

    def __init__(self, state: LanguageState, decoder: CompiledDecoder) -> None:
        c, n_rows = decoder.config, len(state.rows.lengths)
        self.held = state
        self.n_rows = n_rows
        self.private: Tensor | None = None
        widest = max(c.kv_heads_by_layer)
        sizes = {
            "x": c.d_model,
            "qkv": (c.n_heads + 2 * widest) * c.head_width,
            "heads": c.n_heads * c.head_width,
            "hidden": c.d_hidden,
            "cosines": c.head_width // 2,
            "sines": c.head_width // 2,
        }
        self.places, first = {}, 0
        for name, size in sizes.items():
            self.places[name] = first
            first += size * n_rows
        self.work = torch.zeros(first)
        self.program = self._program(decoder)

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values held."""
        return self.held.n_bytes

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.held.select(rows)

    def part(self, name: str, n_rows: int, width: int) -> Tensor:
        """The numbers (B, width) of one place of `work`."""
        start = self.places[name]
        return self.work[start : start + n_rows * width].view(n_rows, width)

    def _program(self, decoder: CompiledDecoder) -> np.ndarray:
        c, at = decoder.config, self.places
        rotary = c.positions == "rotary"
        self.scratch = c.d_model * self.n_rows
        operations = []

        def product(one: Product, source: int, target: str, private: bool = False) -> None:
            operations.append(_operation(kernel.PRODUCT, one, source, at[target], self.scratch, from_private=private))

        for layer in decoder.weights.layers:
            operations.append(_operation(kernel.NORM, layer.attention_norm, at["x"], 0, 0, n_in=c.d_model))
            product(layer.qkv, 0, "qkv", private=True)
            operations.append(
                _operation(
                    kernel.ATTEND,
                    None,
                    at["qkv"],
                    at["heads"],
                    self.scratch,
                    n_heads=c.n_heads,
                    n_kv_heads=layer.n_kv_heads,
                    d_head=c.head_width,
                    cosines=at["cosines"] if rotary else -1,
                    sines=at["sines"] if rotary else -1,
                )
            )
            product(layer.out, at["heads"], "x")
            operations.append(_operation(kernel.NORM, layer.hidden_norm, at["x"], 0, 0, n_in=c.d_model))
            product(layer.up, 0, "hidden", private=True)
            product(layer.down, at["hidden"], "x")
        operations.append(_operation(kernel.NORM, decoder.weights.norm, at["x"], 0, 0, n_in=c.d_model))
        return np.concatenate(operations)


def _operation(
    kind: int, parts: Product | Norm | None, source: int, target: int, scratch: int, **fields: Any
) -> np.ndarray:
    one = np.zeros(1, kernel.OPERATION)
    given = {} if parts is None else vars(parts)
    for name, value in {
        "kind": kind,
        "source": source,
        "target": target,
        "scratch": scratch,
        **given,
        **fields,
    }.items():
        one[name] = value
    return one


class CompiledDecoder(SharesOut):
    """A `DecoderModel` to generate with, its steps compiled."""

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        self.config = model.config
        self.weights = Weights(model)
        panels = self.weights.panels
        self._panels = (panels.view(torch.int16) if panels.dtype == torch.bfloat16 else panels).numpy()
        self._threads: ThreadPoolExecutor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __enter__(self) -> CompiledDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown()

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[CompiledState, Tensor]:
        """As of `DecoderModel`."""
        state, ids = self._model.begin(prompts)
        return self.state(state), ids

    def state(self, held: LanguageState) -> CompiledState:
        """What steps need to go on from what the model's own steps have left."""
        return CompiledState(held, self)

    def hidden_step(self, ids_B1: Tensor, state: CompiledState) -> Tensor:
        """As of `DecoderModel`."""
        rows, c, B = state.held.rows, self.config, len(ids_B1)
        rows.extend_each()
        positions = rows.positions
        state.part("x", B, c.d_model)[:] = self._model.embedding(ids_B1.T, positions)[0]
        if self._model.rotary is not None:
            cosines, sines = self._model.rotary.angles(positions, state.work)
            state.part("cosines", B, c.head_width // 2)[:] = cosines
            state.part("sines", B, c.head_width // 2)[:] = sines
        lengths = np.array(rows.lengths)
        self._point_to_caches(state)
        private = self._private(state, int(lengths.max()))
        self._run(state.program, state.work, private, lengths)
        return private[0, : B * c.d_model].view(B, 1, c.d_model).clone()

    def output(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of vectors (..., D)."""
        n_rows, product = hidden.numel() // self.config.d_model, self.weights.output
        work = torch.empty(n_rows * (product.n_in + product.n_out))
        work[: hidden.numel()] = hidden.flatten()
        program = _operation(kernel.PRODUCT, product, 0, hidden.numel(), 0)
        private = torch.empty(self._n_threads(), 2 * n_rows * kernel.COLUMNS)
        self._run(program, work, private, np.zeros(n_rows, np.int64))
        return work[hidden.numel() :].view(*hidden.shape[:-1], product.n_out)

    def _n_threads(self) -> int:
        most = max(1, self._panels.nbytes // BYTES_A_THREAD)
        return min(n_threads_to_share(), MOST_THREADS, most)

    def _private(self, state: CompiledState, n_keys: int) -> Tensor:
        """What each thread works in, (threads, numbers)."""
        c, n_threads = self.config, self._n_threads()
        fewest = min(c.kv_heads_by_layer)
        size = state.scratch + kernel.scratch_numbers(state.n_rows, c.n_heads, fewest, c.head_width, n_keys)
        held = state.private
        if held is None or held.shape[0] != n_threads or held.shape[1] < size:
            more = kernel.scratch_numbers(state.n_rows, c.n_heads, fewest, c.head_width, n_keys + n_keys // 2)
            held = state.private = torch.zeros(n_threads, state.scratch + more)
        return held

    def _point_to_caches(self, state: CompiledState) -> None:
        attends = state.program[state.program["kind"] == kernel.ATTEND]
        for i, cache in enumerate(state.held.caches):
            heads = int(attends["n_kv_heads"][i])
            like = self.weights.panels.new_empty(1, heads, 1, self.config.head_width)
            kv = cache.own.reserve(max(state.held.rows.lengths), like)
            attends["keys"][i] = kv.data_ptr()
            attends["values"][i] = kv.stride(0) * kv.element_size()
            attends["row_step"][i], attends["head_step"][i] = kv.stride(1), kv.stride(2)
        state.program[state.program["kind"] == kernel.ATTEND] = attends

    def _run(self, program: np.ndarray, work: Tensor, private: Tensor, lengths: np.ndarray) -> None:
        """Run a program on as many threads as `private` has rows, of which this is one."""
        numbers, meetings = self.weights.numbers, np.zeros((len(program), 16), np.int64)

        def part(thread: int) -> None:
            kernel.run(program, numbers, self._panels, work.numpy(), private.numpy(), lengths, meetings, thread)

        if len(private) == 1:
            part(0)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(private) - 1)
        others = [self._threads.submit(part, thread) for thread in range(1, len(private))]
        part(0)
        for other in others:
            other.result()
