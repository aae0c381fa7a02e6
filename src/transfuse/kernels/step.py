"""A decoding step as one compiled function: norms, products and attention of all layers, run by several threads.

A model becomes a *program*, an array of `OPERATION`s over four flat arrays: `work` (what goes from one operation to
the next), `private` (the same, a row for each thread), `numbers` (norms and biases) and `panels` (weights). Offsets
count elements. Threads run the same program, share out an operation's items among them as they become free and wait
for each other after each operation that the next one reads from all of.

A row may hold W tokens side by side, the beams of a search, which share its keys and values.

Shapes: B rows, W tokens of a row, H query heads, G key/value heads, Q = W · H / G, K head width, S keys.
"""

from __future__ import annotations

import math
import sys
from functools import partial

import numpy as np
from numba import njit, types

from transfuse.kernels.kept import kept
from transfuse.kernels.vectors import (
    LANES,
    UNROLLED,
    dot_tile,
    exp,
    fetch,
    fetch_add,
    product,
    store_half,
    store_number,
)

NORM, PRODUCT, ATTEND = 0, 1, 2
"""Kinds of operation."""

STORE, ADD, GATE = 0, 1, 2
"""What becomes of a product: it replaces the target, is added to it, or is `activation(gate) · up`, where the panels of
the two alternate."""

IDENTITY, RELU, GELU, GELU_TANH, SILU = 0, 1, 2, 3, 4
"""Activations."""

OPERATION = np.dtype(
    [
        ("kind", "i8"),
        ("source", "i8"),  # in `work`, or in `private` where `from_private`
        ("from_private", "i8"),
        ("scratch", "i8"),  # in `private`
        ("target", "i8"),
        ("n_in", "i8"),  # numbers a token has at `source`
        ("n_out", "i8"),
        ("weights", "i8"),  # of a product in `panels`, of a norm in `numbers`
        ("bias", "i8"),  # in `numbers`; -1: none
        ("epilogue", "i8"),
        ("activation", "i8"),
        ("centred", "i8"),  # a norm subtracts the mean
        ("in_place", "i8"),  # a norm changes `work`, instead of what each thread has to itself
        ("epsilon", "f8"),
        ("n_heads", "i8"),
        ("n_kv_heads", "i8"),
        ("d_head", "i8"),
        ("cosines", "i8"),  # of rotary angles, (B, K / 2) in `work`; -1: none
        ("sines", "i8"),
        ("keys", "i8"),  # address of keys (B, G, S, K); values lie `values` bytes further
        ("values", "i8"),
        ("row_step", "i8"),
        ("head_step", "i8"),
        ("cross", "i8"),  # attention to a memory: no new keys, lengths of its own
    ]
)

COLUMNS = (4 if LANES == 4 else 3) * LANES
"""Columns of a panel of weights: as many as leave registers for the sums of a tile's rows."""

FAST = {"reassoc", "nsz", "arcp", "contract"}
"""What the compiler may assume of arithmetic: that it may be reordered, not that all numbers are finite."""

_compiled = partial(njit, nogil=True, fastmath=FAST, error_model="numpy")

ACROSS = 4 if LANES == 16 else 2
"""Vectors of values that are summed side by side."""

_ROWS = 8 if LANES == 16 else 4
_PANEL, _HALF_PANEL = (product(_ROWS, COLUMNS // LANES, half) for half in (False, True))
_VALUES, _HALF_VALUES = (product(4, ACROSS, half) for half in (False, True))
_NARROW_VALUES, _HALF_NARROW_VALUES = (product(4, 1, half) for half in (False, True))
_SCORES, _HALF_SCORES = dot_tile(False), dot_tile(True)

_yield = types.ExternalFunction("sched_yield", types.int32())
_CAN_YIELD = sys.platform != "win32"


def scratch_numbers(n_rows: int, width: int, n_heads: int, n_kv_heads: int, d_head: int, n_keys: int) -> int:
    """Numbers that a thread needs to itself for one operation."""
    queries = width * n_heads // n_kv_heads
    attention = (2 * queries + 1) * d_head + queries * (n_keys + LANES)
    return max(attention, 2 * n_rows * width * COLUMNS)


@kept(_compiled)
def run(program, numbers, panels, work, private, lengths, seen, meetings, stop, thread):  # type: ignore[no-untyped-def]
    """A thread's part of `program`, for rows of `lengths` (2, B): keys with those of the new tokens, and keys of the
    memory. `seen` (B, W, S) says which of a row's own keys each token sees; of no size, it sees all.

    `panels` are float32 or, as 16-bit integers, bfloat16. `private` is a row a thread, of which the last
    `scratch_numbers` are for use within an operation; `meetings` is (operations, 16) zeros. Where `stop`, (1,), is no
    longer 0, threads give up at their next meeting instead of waiting for one that will not come."""
    mine, n_threads = private[thread], len(private)
    width = max(seen.shape[1], 1)
    n_tokens = lengths.shape[1] * width
    for i in range(len(program)):
        operation = program[i]
        counter = meetings[i].ctypes.data
        scratch = mine[operation.scratch :]
        if operation.kind == NORM and not operation.in_place:
            # every thread makes the whole of it for itself, which costs less than waiting for each other
            for token in range(n_tokens):
                _norm(operation, numbers, work, mine, token)
            continue
        if operation.kind == NORM:
            token = fetch_add(counter)
            while token < n_tokens:
                _norm(operation, numbers, work, work, token)
                token = fetch_add(counter)
        elif operation.kind == PRODUCT:
            source = mine if operation.from_private else work
            _product(operation, numbers, panels, source[operation.source :], work, scratch, n_tokens, counter)
        else:
            _attend(operation, panels.itemsize == 2, work, scratch, lengths[operation.cross], seen, width, counter)
        if not _meet(counter + 64, n_threads, stop.ctypes.data):
            return


@_compiled()
def _meet(counter, n_threads, stop):  # type: ignore[no-untyped-def]
    """Wait until all threads have come here; whether they have."""
    fetch_add(counter)
    spins = 0
    while fetch(counter) < n_threads:
        if fetch(stop):
            return False
        spins += 1
        if _CAN_YIELD and spins % 1024 == 0:
            _yield()
    return True


@_compiled()
def _norm(operation, numbers, work, out, token):  # type: ignore[no-untyped-def]
    D = operation.n_in
    x = work[operation.source + token * D : operation.source + (token + 1) * D]
    y = out[operation.target + token * D : operation.target + (token + 1) * D]
    mean = np.float32(0)
    if operation.centred:
        for i in range(D):
            mean += x[i]
        mean /= np.float32(D)
    square = np.float32(0)
    for i in range(D):
        square += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1 / math.sqrt(square / D + operation.epsilon))
    weight = numbers[operation.weights : operation.weights + D]
    for i in range(D):
        y[i] = (x[i] - mean) * scale * weight[i]
    if operation.bias >= 0:
        bias = numbers[operation.bias : operation.bias + D]
        for i in range(D):
            y[i] += bias[i]


@_compiled()
def _product(operation, numbers, panels, source, work, scratch, n_rows, counter):  # type: ignore[no-untyped-def]
    x = source.ctypes.data
    n_in = -(-operation.n_in // UNROLLED) * UNROLLED
    size = n_in * COLUMNS
    gated = operation.epilogue == GATE
    n_panels = -(-operation.n_out // COLUMNS)
    while True:
        panel = fetch_add(counter)
        if panel >= n_panels:
            break
        first = operation.weights + (2 * panel if gated else panel) * size
        _panel(x, operation.n_in, n_rows, panels[first : first + size], n_in, scratch)
        if gated:
            _panel(
                x, operation.n_in, n_rows, panels[first + size : first + 2 * size], n_in, scratch[n_rows * COLUMNS :]
            )
        _finish(operation, numbers, work, scratch, n_rows, panel * COLUMNS)


@_compiled()
def _panel(x, x_step, n_rows, panel, n_in, out):  # type: ignore[no-untyped-def]
    """`n_rows` rows of x times one panel, into `out` (B, COLUMNS)."""
    if panel.itemsize == 2:
        _HALF_PANEL(x, x_step, n_rows, panel.ctypes.data, COLUMNS, n_in, out.ctypes.data, COLUMNS)
    else:
        _PANEL(x, x_step, n_rows, panel.ctypes.data, COLUMNS, n_in, out.ctypes.data, COLUMNS)


@_compiled()
def _finish(operation, numbers, work, scratch, n_rows, first):  # type: ignore[no-untyped-def]
    """Bias, activation and where it goes, for the columns from `first` of a panel's product."""
    width = min(COLUMNS, operation.n_out - first)
    gated = operation.epilogue == GATE
    for row in range(n_rows):
        value = scratch[row * COLUMNS : row * COLUMNS + width]
        start = operation.target + row * operation.n_out + first
        target = work[start : start + width]
        if operation.bias >= 0:
            bias = numbers[operation.bias + first : operation.bias + first + width]
            for i in range(width):
                value[i] += bias[i]
        if operation.activation != IDENTITY:
            _activate(value, operation.activation)
        if gated:
            up = scratch[(n_rows + row) * COLUMNS : (n_rows + row) * COLUMNS + width]
            if operation.bias >= 0:
                bias = numbers[operation.bias + operation.n_out + first :]
                for i in range(width):
                    up[i] += bias[i]
            for i in range(width):
                value[i] *= up[i]
        if operation.epilogue == ADD:
            for i in range(width):
                target[i] += value[i]
        else:
            for i in range(width):
                target[i] = value[i]


@_compiled()
def _activate(x, activation):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    if activation == RELU:
        for i in range(len(x)):
            x[i] = max(x[i], np.float32(0))
    elif activation == SILU:
        for i in range(len(x)):
            x[i] = x[i] / (one + exp(-x[i]))
    elif activation == GELU_TANH:
        for i in range(len(x)):
            y = np.float32(2 * 0.7978845608028654) * (x[i] + np.float32(0.044715) * x[i] * x[i] * x[i])
            x[i] = x[i] / (one + exp(-y))  # 1 + tanh(y / 2) is 2 / (1 + exp(-y))
    else:
        for i in range(len(x)):
            x[i] = np.float32(0.5 * x[i] * (1 + math.erf(x[i] * 0.7071067811865476)))


@_compiled()
def _attend(operation, half, work, scratch, lengths, seen, width, counter):  # type: ignore[no-untyped-def]
    """Queries, and but for a memory keys and values, (B, W, (H + 2 G) · K), to heads (B, W, H · K); the new keys and
    values go to the cache."""
    G = operation.n_kv_heads
    while True:
        item = fetch_add(counter)
        if item >= len(lengths) * G:
            break
        _attend_one(operation, half, work, scratch, lengths[item // G], seen, item // G, item % G, width)


@_compiled()
def _attend_one(operation, half, work, scratch, n, seen, row, group, width):  # type: ignore[no-untyped-def]
    """One key/value head of one row, whose keys are `n` with the new ones."""
    H, G, K, N = operation.n_heads, operation.n_kv_heads, operation.d_head, operation.n_in
    R, room, size = H // G, -(-n // LANES) * LANES, 2 if half else 4
    Q = width * R
    q_QK, heads_QK, k_K = scratch[: Q * K], scratch[Q * K : 2 * Q * K], scratch[2 * Q * K : (2 * Q + 1) * K]
    scores_QS = scratch[(2 * Q + 1) * K :]
    keys = operation.keys + size * (row * operation.row_step + group * operation.head_step)
    values = keys + operation.values
    scale = np.float32(1 / math.sqrt(K))
    for w in range(width):
        token = row * width + w
        inputs = work[operation.source + token * N : operation.source + (token + 1) * N]
        cosines = sines = work[:0]
        if operation.cosines >= 0:
            cosines = work[operation.cosines + token * (K // 2) : operation.cosines + (token + 1) * (K // 2)]
            sines = work[operation.sines + token * (K // 2) : operation.sines + (token + 1) * (K // 2)]
        for r in range(R):
            first, q = (group * R + r) * K, (w * R + r) * K
            _turn(inputs[first : first + K], cosines, sines, scale, q_QK[q : q + K])
        if not operation.cross:
            _turn(inputs[(H + group) * K : (H + group + 1) * K], cosines, sines, np.float32(1), k_K)
            place = size * (n - width + w) * K
            _append(k_K, keys + place, half)
            _append(inputs[(H + G + group) * K : (H + G + group + 1) * K], values + place, half)

    for first in range(0, n, LANES):
        for q in range(Q):
            x, out = q_QK[q * K :].ctypes.data, scores_QS[q * room + first :].ctypes.data
            if half:
                _HALF_SCORES(x, keys + 2 * first * K, K, K, out)
            else:
                _SCORES(x, keys + 4 * first * K, K, K, out)
    if seen.shape[1] > 1 and not operation.cross:
        for w in range(width):
            for r in range(R):
                _hide(scores_QS[(w * R + r) * room :], seen[row, w], n)
    for q in range(Q):
        _softmax(scores_QS[q * room : (q + 1) * room], n)
    _weigh(scores_QS, room, Q, values, K, -(-n // UNROLLED) * UNROLLED, heads_QK, half)
    for w in range(width):
        start = operation.target + ((row * width + w) * H + group * R) * K
        target, own = work[start : start + R * K], heads_QK[w * R * K : (w + 1) * R * K]
        for i in range(R * K):
            target[i] = own[i]


@_compiled()
def _hide(scores, seen, n):  # type: ignore[no-untyped-def]
    for s in range(n):
        if not seen[s]:
            scores[s] = -np.inf


@_compiled()
def _turn(x, cosines, sines, scale, out):  # type: ignore[no-untyped-def]
    """A head turned by its position, where there are angles, and scaled."""
    half = len(cosines)
    if half == 0:
        for i in range(len(x)):
            out[i] = x[i] * scale
    for i in range(half):
        out[i] = (x[i] * cosines[i] - x[i + half] * sines[i]) * scale
        out[i + half] = (x[i + half] * cosines[i] + x[i] * sines[i]) * scale


@_compiled()
def _append(x, place, half):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        if half:
            store_half(place + 2 * i, x[i])
        else:
            store_number(place + 4 * i, x[i])


@_compiled()
def _softmax(scores, n):  # type: ignore[no-untyped-def]
    """Of the first `n`; those after them become 0."""
    largest = scores[0]
    for i in range(n):
        largest = max(largest, scores[i])
    total = np.float32(0)
    for i in range(n):
        scores[i] = exp(scores[i] - largest)
        total += scores[i]
    scale = np.float32(1) / total
    for i in range(n):
        scores[i] *= scale
    for i in range(n, len(scores)):
        scores[i] = 0


@_compiled()
def _weigh(scores_QS, room, Q, values, K, n, heads_QK, half):  # type: ignore[no-untyped-def]
    """Values (S, K) summed with the weights of each of Q queries, into heads (Q, K)."""
    p, k = scores_QS.ctypes.data, 0
    while k < K:
        out = heads_QK[k:].ctypes.data
        across = K - k >= ACROSS * LANES
        if half and across:
            _HALF_VALUES(p, room, Q, values + 2 * k, K, n, out, K)
        elif half:
            _HALF_NARROW_VALUES(p, room, Q, values + 2 * k, K, n, out, K)
        elif across:
            _VALUES(p, room, Q, values + 4 * k, K, n, out, K)
        else:
            _NARROW_VALUES(p, room, Q, values + 4 * k, K, n, out, K)
        k += (ACROSS if across else 1) * LANES
