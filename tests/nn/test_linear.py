"""The oneDNN path of the float32 linear layer, which float64 tests never reach."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import transfuse.nn.linear as linear_module
from transfuse.nn.linear import Linear, linear, packed, together

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
SHAPES = [(7, 11), (3, 7, 11), (2, 3, 5, 11), (0, 11), (1, 11)]


def results(x: Tensor, layer: nn.Linear, function: object) -> list[Tensor]:
    y = function(x, layer.weight, layer.bias)  # type: ignore[operator]
    draw = torch.Generator().manual_seed(1)
    wanted = [part for part in (x, layer.weight, layer.bias) if part is not None]
    return [y, *torch.autograd.grad((y * torch.randn(y.shape, generator=draw)).sum(), wanted)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_pytorch_s(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool
) -> None:
    calls: list[int] = []
    product = linear_module._product
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: True)
    monkeypatch.setattr(linear_module, "_product", lambda *parts: calls.append(1) or product(*parts))
    layer = nn.Linear(11, 13, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    for ours, theirs in zip(results(x, layer, linear), results(x, layer, nn.functional.linear), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(calls) == 3 * bool(x.numel())


@pytest.mark.parametrize("chosen", [True, False])
def test_the_layer_goes_where_the_machine_is_fast(monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    calls: list[int] = []
    product = linear_module._product
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: chosen)
    monkeypatch.setattr(linear_module, "_product", lambda *parts: calls.append(1) or product(*parts))
    Linear(3, 5)(torch.randn(2, 3))
    assert bool(calls) is chosen


def test_other_precisions_are_pytorch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: True)
    monkeypatch.setattr(linear_module, "_product", None)
    assert Linear(3, 5).double()(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(3, 5)(torch.randn(2, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize(("vendor", "expected"), [("GenuineIntel", False), ("AuthenticAMD", True)])
def test_only_intel_s_processors_stay_with_mkl(monkeypatch: pytest.MonkeyPatch, vendor: str, expected: bool) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(linear_module.Path, "read_text", lambda self: f"vendor_id : {vendor}\n")
    assert linear_module.prefers_onednn.__wrapped__() is expected


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same_values(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool
) -> None:
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: True)
    layer, x = Linear(11, 13, bias=bias), torch.randn(shape)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    with packed([layer]):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        assert (layer._own is not None) == bool(x.numel())
    assert layer._own is None


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_together_are_the_layers_one_by_one(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool
) -> None:
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: True)
    layers, x = [Linear(11, n, bias=bias) for n in (13, 5, 2)], torch.randn(shape)
    apart = [layer(x) for layer in layers]
    with packed(layers):
        for found, expected in zip(together(layers, x), apart, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert (layers[0]._group is not None) == bool(x.numel())
        assert layers[0]._own is None  # a group's weights are not kept twice
    assert layers[0]._group is None
    assert all(torch.equal(found, expected) for found, expected in zip(together(layers, x), apart, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_weights_in_bfloat16_are_as_near_as_others(shape: tuple[int, ...]) -> None:
    layers, x = [Linear(11, n).bfloat16() for n in (13, 5)], torch.randn(shape).bfloat16()
    exact = [layer.double()(x.double()) for layer in (copy.deepcopy(layer) for layer in layers)]
    with packed(layers):
        assert layers[0].packs(x) == (torch.ops.mkldnn._is_mkldnn_bf16_supported() and bool(x.numel()))
        for found in ([layer(x) for layer in layers], together(layers, x)):
            for one, expected in zip(found, exact, strict=True):
                assert one.dtype == torch.bfloat16
                torch.testing.assert_close(one.double(), expected, rtol=2**-8, atol=2**-8)


def test_nothing_is_packed_in_bfloat16_without_onednn_or_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Linear(11, 13).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), packed([half]):
        assert not half._n_packed
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    with packed([half]):
        assert not half._n_packed


def test_packing_ends_with_an_error_and_leaves_other_precisions_and_weights_packed_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: True)
    layer, wide = Linear(11, 13), Linear(11, 13).double()

    def fail_inside() -> None:
        with packed([layer, wide, nn.ReLU()]), packed([layer]):
            assert not wide._n_packed
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not layer._n_packed


def test_packed_weights_are_not_used_where_gradients_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: True)
    layer, x = Linear(11, 13), torch.randn(3, 11)
    with packed([layer]):
        layer(x).sum().backward()
        together([layer], x)[0].sum().backward()
    assert layer.weight.grad is not None


def test_threads_may_pack_the_same_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: True)
    layers, x = [Linear(11, 13), Linear(11, 5)], torch.randn(3, 11)

    @torch.inference_mode()
    def work(_: int) -> None:
        with packed(layers):
            layers[0](x)
            together(layers, x)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(400)))
    assert all(layer._n_packed == 0 for layer in layers)
    with packed(layers):  # what a late thread may have left behind is not used
        assert layers[0]._own is None
