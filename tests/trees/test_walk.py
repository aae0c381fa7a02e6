"""Rows sent through trees on several cores."""

from __future__ import annotations

import threading

import numba
import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

from transfuse.trees import walk
from transfuse.trees.read import read_trees


@pytest.fixture(scope="module")
def forest() -> tuple[RandomForestClassifier, np.ndarray]:
    draw = np.random.default_rng(0)
    X = draw.standard_normal((1000, 5))
    return RandomForestClassifier(7, random_state=0).fit(X, (X[:, 0] * X[:, 1] > 0).astype(int)), X


def test_cores_change_nothing(forest: tuple[RandomForestClassifier, np.ndarray]) -> None:
    trees, X = read_trees(forest[0]).trees, forest[1]
    numbers, orders = np.ones((len(X), 1)), np.array([np.random.default_rng(1).permutation(len(X))])
    found = []
    for n in (1, 2, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", str(n))
            assert walk.n_threads() == min(n, numba.config.NUMBA_NUM_THREADS)
            results = (walk.gathered(trees, X, numbers), walk.summed(trees, X), walk.changes(trees, X, orders, 1, 3))
        found.append(results)
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other, strict=True))
    assert found[0][1].argmax(1).tolist() == forest[0].predict(X).tolist()


def test_other_libraries_keep_their_threads(
    forest: tuple[RandomForestClassifier, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert torch.get_num_threads() == 1
    walk.summed(read_trees(forest[0]).trees, forest[1])
    assert torch.get_num_threads() == 1


def test_loops_run_in_a_thread_of_their_own_on_as_many_cores_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for n in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", n)
        walk._apart(lambda: seen.append((threading.get_ident(), numba.get_num_threads())))
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert [n for _, n in seen] == [1, min(2, numba.config.NUMBA_NUM_THREADS)]


def test_a_setting_that_is_no_number_is_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    every = walk.n_threads()
    assert every >= 1
    for value, expected in (("", every), ("many", every), ("0", every), ("1,2", 1), (" 1 ", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert walk.n_threads() == expected
