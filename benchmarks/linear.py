"""The float32 linear layer against torch.nn.functional.linear, forward and backward.

    python benchmarks/linear.py

Where our layer leaves the work to PyTorch (Intel processors), the two are the same and the ratio is 1. Exits 1 if ours
is slower by more than a tenth.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from transfuse.nn.linear import linear, prefers_onednn


def median_seconds(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    seconds = []
    gradient = torch.ones(len(x), len(weight))
    for _ in range(15):
        began = time.perf_counter()
        function(x, weight).backward(gradient)
        seconds.append(time.perf_counter() - began)
        x.grad = weight.grad = None
    return statistics.median(seconds[3:])


def main() -> int:
    print(f"{torch.get_num_threads()} threads; float32 products by {'oneDNN' if prefers_onednn() else 'PyTorch'}")
    ratios = []
    for rows, d_in, d_out in ((4096, 256, 1024), (4096, 1024, 256), (512, 256, 8000)):
        x, weight = torch.randn(rows, d_in, requires_grad=True), torch.randn(d_out, d_in, requires_grad=True)
        theirs, ours = median_seconds(F.linear, x, weight), median_seconds(linear, x, weight)
        work = 3 * 2 * rows * d_in * d_out / 1e9
        ratios.append(theirs / ours)
        print(f"{rows} x {d_in} x {d_out}: {work / theirs:.0f} -> {work / ours:.0f} GFLOP/s = {ratios[-1]:.2f} x")
    return int(min(ratios) < 0.9)


if __name__ == "__main__":
    sys.exit(main())
