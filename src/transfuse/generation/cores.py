"""Batches side by side, each on a core of its own.

A step of a small model is some forty short operations a layer; shared among cores, each of them begins and ends with
waiting. Two batches on a core each have nothing to wait for (`docs/log.md` has the figures).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_STEP = threading.local()
"""`n_threads` of it is what a step of this thread may share its work out among."""


def n_cores_of(device: torch.device) -> int:
    """Cores that batches can have to themselves: on a CPU as many as PyTorch has threads."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def each_on_a_core(work: Callable[[Item], Result], items: Sequence[Item], n_cores: int) -> list[Result]:
    """`work` of each item, in order, in inference mode; where there are as many items as cores, each on a thread of one
    core."""
    if n_cores == 1 or len(items) < n_cores:
        return [work(item) for item in items]

    def alone(item: Item) -> Result:
        torch.get_num_threads()  # a thread's first look would else take the process' number over what is set below
        torch.set_num_threads(1)  # of this thread; the others keep theirs
        _STEP.n_threads = 1
        with torch.inference_mode():
            return work(item)

    n_threads = torch.get_num_threads()
    threads = ThreadPoolExecutor(n_cores)
    try:
        # the longest first, so that none is left to run by itself at the end
        tasks = [threads.submit(alone, item) for item in reversed(items)]
        return [task.result() for task in reversed(tasks)]
    finally:
        threads.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # what threads made from now on begin with


class SharesOut:
    """A model that shares the work of a step out among threads by itself."""


@contextmanager
def threads_for(model: Any) -> Iterator[None]:
    """Inside, a step of `model` is made. PyTorch's threads wait busily for a while after each operation they shared;
    where a model has threads of its own, these would be in their way, so that PyTorch does what little is left alone.

    PyTorch remembers the number for threads that meet it first meanwhile: one that the caller starts at that moment
    should set its own.
    """
    if not isinstance(model, SharesOut) or hasattr(_STEP, "n_threads"):  # or a thread that has a core to itself
        yield
        return
    n_threads = _STEP.n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        del _STEP.n_threads


def n_threads_to_share() -> int:
    """Threads that the step being made may share its work out among."""
    return getattr(_STEP, "n_threads", None) or torch.get_num_threads()
