"""Dropout on a CPU: packed random bits against torch.nn.functional.dropout, forward and backward, same rate.

    python benchmarks/dropout.py

Exits 1 if ours is not at least 3 times as fast in float32.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from transfuse.nn.dropout import Dropout

BAR = 3.0
SHAPE = 4096, 1024


def median_seconds(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    gradient = torch.ones_like(x)
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        function(x).backward(gradient)
        seconds.append(time.perf_counter() - began)
        x.grad = None
    return statistics.median(seconds[2:])


def main() -> int:
    ratios = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
        theirs = median_seconds(lambda x: F.dropout(x, 0.3), x)
        ours = median_seconds(Dropout(0.3), x)
        ratios[dtype] = theirs / ours
        print(f"{dtype}: {theirs * 1e3:.1f} ms / {ours * 1e3:.1f} ms = {ratios[dtype]:.1f} x")
    return int(ratios[torch.float32] < BAR)


if __name__ == "__main__":
    sys.exit(main())
