"""The pieces that compiled steps are made of, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from transfuse.kernels.vectors import LANES, UNROLLED, dot_tile, exp, fetch, fetch_add, product, store_half


@njit
def exponentials(x, out):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        out[i] = exp(x[i])


def test_exp_is_exact_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-87, 88, 100_003), [0.0, -0.0, 1e-30, -1e-7]]).astype(np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    expected = np.exp(x.astype(np.float64))
    assert np.max(np.abs(out - expected) / np.spacing(expected.astype(np.float32))) <= 2
    edges = np.array([-1000, -np.inf, 1000, np.inf, np.nan], np.float32)
    found = np.empty_like(edges)
    exponentials(edges, found)
    assert found[0] == found[1] < 2e-38 and found[2] == found[3] > 1e38 and np.isnan(found[4])


@njit
def to_half(x, out):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        store_half(out[i:].ctypes.data, x[i])


def test_store_half_rounds_as_pytorch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 50_000, dtype=np.uint32)
    halfway = (bits & 0xFFFF0000) | 0x8000
    x = np.concatenate([bits, halfway]).view(np.float32)
    x = np.concatenate([x, np.array([np.inf, -np.inf, 0.0, -0.0, 3.3e38], np.float32)])
    out = np.empty(len(x), np.uint16)
    to_half(x, out)
    expected = torch.from_numpy(x).bfloat16()
    found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("most_rows", "n_vectors"), [(1, 1), (4, 2), (8, 3)])
def test_a_product_is_a_product_for_any_number_of_rows(most_rows: int, n_vectors: int, half: bool) -> None:
    subject, n, x_step, w_step, out_step = product(most_rows, n_vectors, half), 7 * UNROLLED, 31, 61, 53

    @njit
    def run(x, w, out):  # type: ignore[no-untyped-def]
        subject(x.ctypes.data, x_step, len(x), w.ctypes.data, w_step, n, out.ctypes.data, out_step)

    generator = torch.Generator().manual_seed(0)
    w = torch.randn(n, w_step, generator=generator).bfloat16()
    width = n_vectors * LANES
    for n_rows in range(20):
        x = torch.randn(n_rows, x_step, generator=generator)
        out = torch.full((n_rows + 1, out_step), 7.0)
        run(x.numpy(), w.view(torch.int16).numpy() if half else w.float().numpy(), out[:n_rows].numpy())
        assert torch.allclose(out[:n_rows, :width], x[:, :n] @ w.float()[:, :width], atol=1e-4)
        assert (out[:, width:] == 7).all() and (out[n_rows] == 7).all()


@pytest.mark.parametrize("half", [False, True])
def test_a_dot_tile_is_a_product_with_each_row(half: bool) -> None:
    tile, n, step = dot_tile(half), 3 * LANES, 5 * LANES + 1

    @njit
    def run(x, rows, out):  # type: ignore[no-untyped-def]
        tile(x.ctypes.data, rows.ctypes.data, step, n, out.ctypes.data)

    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(n, generator=generator), torch.randn(LANES, step, generator=generator).bfloat16()
    out = torch.zeros(LANES)
    run(x.numpy(), rows.view(torch.int16).numpy() if half else rows.float().numpy(), out.numpy())
    assert torch.allclose(out, rows.float()[:, :n] @ x, atol=1e-4)


def test_counters_count() -> None:
    @njit
    def run(counter):  # type: ignore[no-untyped-def]
        return fetch_add(counter.ctypes.data), fetch_add(counter.ctypes.data), fetch(counter.ctypes.data)

    assert run(np.array([5], np.int64)) == (5, 6, 7)
