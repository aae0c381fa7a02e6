"""One thread for every test: the models are tiny, and two threads that wait for a busy core are slower than one."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("house", deadline=None)  # a first call imports, and a busy machine is slow
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A test that leaves more threads behind fails, for every later one would be slow."""
    yield
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    assert found == 1, f"{found} threads are left"


@pytest.fixture(scope="module")
def quiet_transformers() -> None:
    """No progress bars and no advice on standard error from `transformers`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
