"""Vector instructions, emitted as LLVM code, for functions compiled by numba.

Numba vectorises loops but keeps no block of accumulators in registers, which a product of a few rows with weights that
come from memory needs. Addresses are integers in bytes, steps count elements; vectors hold `LANES` float32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _lanes() -> int:
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # a processor that LLVM does not know
        return 4
    return 16 if features.get("avx512f") else 8 if features.get("avx2") and features.get("fma") else 4


LANES = _lanes()
"""Numbers in a vector register of this machine."""

UNROLLED = 4
"""Steps of a tile's loop made at a time; its length is a multiple."""

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR, _INTEGERS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_ADDRESS = types.intp


def product(most_rows: int, n_vectors: int, half: bool) -> Any:
    """A function `(x, x_step, n_rows, w, w_step, n, out, out_step)` that writes x · w for `n_rows` rows of x, `n` long,
    and `n_vectors` vectors of columns of w, whose rows are bfloat16 where `half`.

    Rows go in tiles of at most `most_rows`, a power of two, all sums of a tile staying in registers. `n` is a multiple
    of `UNROLLED`.
    """

    @intrinsic
    def rows_product(typingctx, x, x_step, n_rows, w, w_step, n, out, out_step):  # type: ignore[no-untyped-def]
        def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
            x, x_step, n_rows, w, w_step, n, out, out_step = arguments
            place = cgutils.alloca_once_value(b, _I64(0))
            size = most_rows
            while size:
                test, tile, after = (b.append_basic_block(name) for name in ("rows", "tile", "fewer"))
                b.branch(test)
                b.position_at_end(test)
                row = b.load(place)
                b.cbranch(b.icmp_signed(">=", b.sub(n_rows, row), _I64(size)), tile, after)
                b.position_at_end(tile)
                x_row, out_row = (
                    b.add(at, b.mul(b.mul(row, step), _I64(4))) for at, step in ((x, x_step), (out, out_step))
                )
                _emit_tile(b, (size, n_vectors, half), x_row, x_step, w, w_step, n, out_row, out_step)
                b.store(b.add(row, _I64(size)), place)
                b.branch(test)
                b.position_at_end(after)
                size //= 2
            return context.get_dummy_value()

        return types.void(*[_ADDRESS] * 8), emit

    return rows_product


def _emit_tile(
    b: Any, kind: tuple[int, int, bool], x: Any, x_step: Any, w: Any, w_step: Any, n: Any, out: Any, out_step: Any
) -> None:
    """The product of a fixed number of rows and of vectors of columns."""
    n_rows, n_vectors, half = kind
    size = 2 if half else 4
    before, loop, after = b.block, b.append_basic_block("sums"), b.append_basic_block("summed")
    starts = [_moved(b, x, x_step, row, 4) for row in range(n_rows)]
    b.branch(loop)
    b.position_at_end(loop)
    k = b.phi(_I64)
    k.add_incoming(_I64(0), before)
    sums = [b.phi(_VECTOR) for _ in range(n_rows * n_vectors)]
    for one in sums:
        one.add_incoming(_VECTOR([_F32(0.0)] * LANES), before)
    found = list(sums)
    for step in range(UNROLLED):
        here = b.add(k, _I64(step))
        row_of_w = b.add(w, b.mul(b.mul(here, w_step), _I64(size)))
        columns = [_load(b, b.add(row_of_w, _I64(v * LANES * size)), half) for v in range(n_vectors)]
        for row, start in enumerate(starts):
            number = b.load(b.inttoptr(b.add(start, b.mul(here, _I64(4))), _F32.as_pointer()), align=4)
            spread = _spread(b, number)
            for v, column in enumerate(columns):
                i = row * n_vectors + v
                found[i] = _call(b, f"llvm.fma.v{LANES}f32", _VECTOR, [spread, column, found[i]])
    k_next = b.add(k, _I64(UNROLLED))
    k.add_incoming(k_next, loop)
    for one, new in zip(sums, found, strict=True):
        one.add_incoming(new, loop)
    b.cbranch(b.icmp_signed("<", k_next, n), loop, after)
    b.position_at_end(after)
    for i, one in enumerate(found):
        row = _moved(b, out, out_step, i // n_vectors, 4)
        _store(b, one, b.add(row, _I64(i % n_vectors * LANES * 4)))


def dot_tile(half: bool) -> Any:
    """A function `(x, rows, step, n, out)` that writes the products of x, `n` numbers, with each of `LANES` rows, which
    are bfloat16 where `half`. `n` is a multiple of `LANES`."""
    size = 2 if half else 4

    @intrinsic
    def dots(typingctx, x, rows, step, n, out):  # type: ignore[no-untyped-def]
        def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
            x, rows, step, n, out = arguments
            before, loop, after = b.block, b.append_basic_block("dots"), b.append_basic_block("added")
            starts = [_moved(b, rows, step, i, size) for i in range(LANES)]
            b.branch(loop)
            b.position_at_end(loop)
            k = b.phi(_I64)
            k.add_incoming(_I64(0), before)
            sums = [b.phi(_VECTOR) for _ in range(LANES)]
            factor = _load(b, b.add(x, b.mul(k, _I64(4))), False)
            k_next = b.add(k, _I64(LANES))
            k.add_incoming(k_next, loop)
            found = []
            for start, one in zip(starts, sums, strict=True):
                row = _load(b, b.add(start, b.mul(k, _I64(size))), half)
                new = _call(b, f"llvm.fma.v{LANES}f32", _VECTOR, [row, factor, one])
                one.add_incoming(_VECTOR([_F32(0.0)] * LANES), before)
                one.add_incoming(new, loop)
                found.append(new)
            b.cbranch(b.icmp_signed("<", k_next, n), loop, after)
            b.position_at_end(after)
            apart = 1
            while len(found) > 1:  # halves of two vectors are added crosswise until each place holds one vector's sum
                found = [_crossed(b, *pair, apart) for pair in zip(found[::2], found[1::2], strict=True)]
                apart *= 2
            _store(b, found[0], out)
            return context.get_dummy_value()

        return types.void(*[_ADDRESS] * 5), emit

    return dots


@intrinsic
def exp(typingctx, x):  # type: ignore[no-untyped-def]
    """The exponential of a float32, to 2 units in the last place; below -87 it is that of -87, above 88 that of 88.
    In a loop it becomes vector instructions, as a call of the mathematical library would not."""

    def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
        x = arguments[0]
        for bound, name in ((88.0, ">"), (-87.0, "<")):
            x = b.select(b.fcmp_ordered(name, x, _F32(bound)), _F32(bound), x)
        n = _call(b, "llvm.rint.f32", _F32, [b.fmul(x, _F32(1.4426950408889634))])
        n = b.select(b.fcmp_ordered("ord", n, n), n, _F32(0.0))  # what is no number has no integer; the rest keeps it
        rest = _fma(b, n, _F32(-0.693145751953125), x)
        rest = _fma(b, n, _F32(-1.428606765330187e-06), rest)
        value = _F32(1 / 5040)
        for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
            value = _fma(b, value, rest, _F32(coefficient))
        power = b.shl(b.add(b.fptosi(n, _I32), _I32(127)), _I32(23))
        return b.fmul(value, b.bitcast(power, _F32))

    return types.float32(types.float32), emit


@intrinsic
def load_number(typingctx, address):  # type: ignore[no-untyped-def]
    """The float32 at an address."""

    def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
        return b.load(b.inttoptr(arguments[0], _F32.as_pointer()), align=4)

    return types.float32(_ADDRESS), emit


@intrinsic
def store_number(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Write a float32 to an address."""

    def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
        b.store(arguments[1], b.inttoptr(arguments[0], _F32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.float32), emit


@intrinsic
def store_half(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Write a float32 to an address as the nearest bfloat16, to even where two are as near."""

    def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
        bits = b.bitcast(arguments[1], _I32)
        odd = b.and_(b.lshr(bits, _I32(16)), _I32(1))
        rounded = b.lshr(b.add(b.add(bits, odd), _I32(0x7FFF)), _I32(16))
        number = b.fcmp_ordered("ord", arguments[1], arguments[1])
        kept = b.select(number, b.trunc(rounded, _I16), _I16(0x7FC0))
        b.store(kept, b.inttoptr(arguments[0], _I16.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.float32), emit


@intrinsic
def fetch_add(typingctx, address):  # type: ignore[no-untyped-def]
    """Add 1 to the integer at an address, seen by all threads at once; what it was before."""

    def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
        return b.atomic_rmw("add", b.inttoptr(arguments[0], _I64.as_pointer()), _I64(1), "seq_cst")

    return types.int64(_ADDRESS), emit


@intrinsic
def fetch(typingctx, address):  # type: ignore[no-untyped-def]
    """The integer at an address, as other threads left it."""

    def emit(context, b, signature, arguments):  # type: ignore[no-untyped-def]
        return b.load_atomic(b.inttoptr(arguments[0], _I64.as_pointer()), "seq_cst", 8)

    return types.int64(_ADDRESS), emit


def _call(b: Any, name: str, result: ir.Type, arguments: Sequence[Any]) -> Any:
    kind = ir.FunctionType(result, [one.type for one in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return _call(b, "llvm.fma.f32", _F32, [x, y, z])


def _moved(b: Any, address: Any, step: Any, times: int, size: int) -> Any:
    return b.add(address, b.mul(step, _I64(times * size)))


def _load(b: Any, address: Any, half: bool) -> Any:
    if not half:
        return b.load(b.inttoptr(address, _VECTOR.as_pointer()), align=4)
    bits = b.load(b.inttoptr(address, ir.VectorType(_I16, LANES).as_pointer()), align=2)
    return b.bitcast(b.shl(b.zext(bits, _INTEGERS), _INTEGERS([_I32(16)] * LANES)), _VECTOR)


def _store(b: Any, vector: Any, address: Any) -> None:
    b.store(vector, b.inttoptr(address, _VECTOR.as_pointer()), align=4)


def _spread(b: Any, number: Any) -> Any:
    one = b.insert_element(_VECTOR(ir.Undefined), number, _I32(0))
    return b.shuffle_vector(one, _VECTOR(ir.Undefined), _INTEGERS([_I32(0)] * LANES))


def _crossed(b: Any, first: Any, second: Any, apart: int) -> Any:
    """Neighbouring blocks of `apart` numbers added: those of `first` in the even places, of `second` in the odd."""
    # where the blocks stand already is a blend, which costs less than a shuffle

    def chosen(place: Callable[[int], int]) -> Any:
        return b.shuffle_vector(first, second, _INTEGERS([_I32(place(j)) for j in range(LANES)]))

    standing = chosen(lambda j: LANES + j if j & apart else j)
    crossing = chosen(lambda j: LANES + j - apart if j & apart else j + apart)
    return b.fadd(standing, crossing)
