"""`linear_cross_entropy` against PyTorch's and the textbook's cross-entropy of the whole logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import reference
from transfuse.training import losses
from transfuse.training.losses import linear_cross_entropy

N, D, V = 11, 7, 13
TOLERANCE = 1e-10


def parts(dtype: torch.dtype = torch.float64, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Hidden, weight, bias and labels, in which one label comes twice and some never."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight, shift = (torch.randn(shape, generator=generator) for shape in ((N, D), (V, D), (V,)))
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[1] = labels[0]
    floats = [part.to(dtype).requires_grad_() for part in (hidden, weight, shift)]
    return floats[0], floats[1], floats[2] if bias else None, labels


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_like_pytorch(smoothing: float, bias: bool) -> None:
    hidden, weight, shift, labels = parts(bias=bias)
    wanted = [part for part in (hidden, weight, shift) if part is not None]
    ours = linear_cross_entropy(hidden, weight, shift, labels, smoothing)
    logits = F.linear(hidden, weight, shift)
    theirs = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    assert_same(ours, theirs)
    # a scale that is not 1 comes in from outside
    gradients = torch.autograd.grad(ours / 3, wanted), torch.autograd.grad(theirs / 3, wanted)
    for mine, other in zip(*gradients, strict=True):
        assert_same(mine, other)


def in_groups_of(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep gradients of logits for so many positions, in any precision; None for not at all."""
    monkeypatch.setattr(losses, "_in_groups", lambda w, wide: rows is not None)
    monkeypatch.setattr(losses, "GROUP_NUMBERS", (rows or 0) * V + 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows_a_chunk", [1, 4, N, 1000])
@pytest.mark.parametrize("rows_a_group", [None, 0, 1, 5, 8, 1000])
def test_value_and_gradients_are_pytorchs(
    smoothing: float, bias: bool, rows_a_chunk: int, rows_a_group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", rows_a_chunk * V + 1)
    in_groups_of(rows_a_group, monkeypatch)
    assert_like_pytorch(smoothing, bias)


def test_a_chunk_smaller_than_a_row_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", V - 1)
    assert_like_pytorch(0.1, True)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_value_is_the_textbooks(smoothing: float) -> None:
    hidden, weight, shift, labels = parts()
    logits = F.linear(hidden, weight, shift)
    expected = reference.cross_entropy(logits, labels.tolist(), smoothing)
    assert_same(linear_cross_entropy(hidden, weight, shift, labels, smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_finite_differences(smoothing: float, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", 4 * V)
    hidden, weight, shift, labels = parts(bias=bias)
    assert torch.autograd.gradcheck(linear_cross_entropy, (hidden, weight, shift, labels, smoothing))


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("rows_a_group", [None, 5])
def test_gradients_of_the_others_where_one_is_not_wanted(
    frozen: int, rows_a_group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", 4 * V)
    in_groups_of(rows_a_group, monkeypatch)
    inputs = parts()
    floats = [part for part in inputs[:3] if part is not None]
    floats[frozen].requires_grad_(False)
    wanted = [part for part in floats if part.requires_grad]
    ours = torch.autograd.grad(linear_cross_entropy(*inputs, 0.1), wanted)
    logits = F.linear(*floats)
    theirs = torch.autograd.grad(F.cross_entropy(logits, inputs[3], reduction="sum", label_smoothing=0.1), wanted)
    for mine, other in zip(ours, theirs, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_gradient_wanted(smoothing: float) -> None:
    hidden, weight, shift, labels = parts()
    with_gradient = linear_cross_entropy(hidden, weight, shift, labels, smoothing)
    with torch.no_grad():
        without = linear_cross_entropy(hidden, weight, shift, labels, smoothing)
    assert torch.equal(without, with_gradient)
    assert not without.requires_grad


def test_where_no_gradient_is_wanted_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses._Gradients, "add", None)
    with torch.no_grad():
        linear_cross_entropy(*parts())
    with pytest.raises(TypeError):
        linear_cross_entropy(*parts())


def test_in_bfloat16_groups_are_as_near_as_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", 2 * V)
    inputs = parts(torch.float32)
    wanted = [part for part in inputs[:3] if part is not None]
    exact = torch.autograd.grad(F.cross_entropy(F.linear(*wanted), inputs[3], reduction="sum"), wanted)
    calls = []
    multiply = losses._Gradients._multiply
    monkeypatch.setattr(losses._Gradients, "_multiply", lambda self, g: calls.append(len(g)) or multiply(self, g))
    for rows, products in ((0, [2, 2, 2, 2, 2, 1]), (5, [4, 4, 3]), (1000, [N])):
        monkeypatch.setattr(losses, "GROUP_NUMBERS", rows * V)
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(*inputs)
        for found, expected in zip(torch.autograd.grad(loss, wanted), exact, strict=True):
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.03)
        assert calls == products


def test_inputs_are_left_as_they_were() -> None:
    inputs = parts()
    before = [part.clone() for part in inputs if part is not None]
    linear_cross_entropy(*inputs, 0.1).backward()
    for part, copy in zip(inputs, before, strict=True):
        assert part is not None
        assert torch.equal(part, copy)


def test_equal_logits_give_the_logarithm_of_the_vocabulary() -> None:
    labels = torch.arange(N) % V
    for smoothing in (0.0, 0.1):
        loss = linear_cross_entropy(torch.zeros(N, D).double(), torch.zeros(V, D).double(), None, labels, smoothing)
        assert_same(loss, N * torch.tensor(float(V), dtype=torch.float64).log())


def test_huge_logits_stay_finite() -> None:
    hidden = torch.full((1, 1), 1e4, dtype=torch.float32, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([1]))
    assert loss.item() == pytest.approx(2e4)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert_same(gradients[0], torch.tensor([[2.0]]))
    assert_same(gradients[1], torch.tensor([[1e4], [-1e4]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_autocast_stays_close_to_float32(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", 4 * V)
    hidden, weight, shift, labels = parts(torch.float32)
    wanted = [part for part in (hidden, weight, shift) if part is not None]
    exact = linear_cross_entropy(hidden, weight, shift, labels, smoothing)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = linear_cross_entropy(hidden, weight, shift, labels, smoothing)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2**-8)
    assert rounded.item() != exact.item()  # autocast was in force
    gradients = torch.autograd.grad(rounded, wanted), torch.autograd.grad(exact, wanted)
    for mine, other in zip(*gradients, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 2**-7 * other.norm()


def test_float32_matches_the_dtype_of_its_inputs() -> None:
    hidden, weight, shift, labels = parts(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, shift, labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


# Mutants: each bug is planted in a copy of a step, and the comparison with PyTorch must notice it.


def plant_smoothing_forgotten_in_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = losses._smoothed
    monkeypatch.setattr(losses, "_smoothed", lambda log_p, labels, smoothing: smoothed(log_p, labels, 0.0))


def plant_smoothing_forgotten_in_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = losses._gradient
    monkeypatch.setattr(losses, "_gradient", lambda log_p, labels, smoothing: gradient(log_p, labels, 0.0))


def plant_smoothing_without_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = losses._smoothed
    monkeypatch.setattr(
        losses, "_smoothed", lambda log_p, labels, e: smoothed(log_p, labels, e * log_p.shape[1] / (log_p.shape[1] - 1))
    )


def plant_last_group_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = losses._Gradients._multiply

    def overwrite(gradients: losses._Gradients, *rest: Tensor) -> None:
        assert gradients.for_weight is not None
        gradients.for_weight.zero_()
        multiply(gradients, *rest)

    monkeypatch.setattr(losses._Gradients, "_multiply", overwrite)


def plant_last_group_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = losses._Gradients.finished

    def forgetting(gradients: losses._Gradients) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gradients.n_kept = 0
        return finished(gradients)

    monkeypatch.setattr(losses._Gradients, "finished", forgetting)


def plant_labels_moved_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = losses._gradient
    monkeypatch.setattr(losses, "_gradient", lambda log_p, labels, e: gradient(log_p, (labels + 1) % V, e))


@pytest.mark.parametrize(
    "plant",
    [
        plant_smoothing_forgotten_in_the_value,
        plant_smoothing_forgotten_in_the_gradient,
        plant_smoothing_without_the_label,
        plant_last_group_wins,
        plant_last_group_lost,
        plant_labels_moved_by_one,
    ],
)
def test_the_comparison_notices_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", 4 * V)
    in_groups_of(4, monkeypatch)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        assert_like_pytorch(0.1, True)
