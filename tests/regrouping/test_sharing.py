"""What a group of heads loses by sharing."""

from __future__ import annotations

import pytest
import torch

from transfuse.regrouping.sharing import Problem, _spectrum, lost


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rank", [12, 5])
def test_the_loss_is_what_the_largest_eigenvalues_leave(dtype: torch.dtype, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    owners, W = [0, 0, 1, 1, 2, 2], 4
    roots = torch.randn(6, 2, 3 * W, rank, dtype=dtype, generator=generator)
    inner = torch.randn(6, 2, W, W, dtype=dtype, generator=generator)
    problem = Problem(inner @ inner.mH, roots @ roots.mH, owners)
    _, spectrum, _ = _spectrum(problem)
    wanted = float(spectrum[:, :-W].sum())
    assert lost(problem) == pytest.approx(wanted, rel=1e-9)
    assert lost(problem) > 0.01 * float(spectrum.sum())
