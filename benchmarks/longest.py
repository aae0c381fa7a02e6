"""The longest window without a repeat in 10⁷ characters of real text against a plain loop with a set, and its growth.

    python benchmarks/longest.py TEXT

TEXT is a file of at least 10⁷ bytes (.xz too). Bars: 50 x, and a fitted exponent of 1.00 ± 0.05 from 10⁴ to 10⁸
characters, where the text is repeated. Exits 1 below a bar.
"""

from __future__ import annotations

import lzma
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from transfuse import longest_distinct

BAR, SLACK, ROUNDS = 50.0, 0.05, 5


def plain(text: str) -> int:
    """Two pointers and a set."""
    seen: set[str] = set()
    left = best = 0
    for right, character in enumerate(text):
        while character in seen:
            seen.remove(text[left])
            left += 1
        seen.add(character)
        best = max(best, right - left + 1)
    return best


def seconds(text: str) -> float:
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        longest_distinct(text)
        rounds.append(time.perf_counter() - began)
    return statistics.median(rounds)


def main(path: Path) -> int:
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    text = content.decode("utf-8", "replace")[: 10**7]
    longest_distinct(text[:2000])
    began = time.perf_counter()
    expected = plain(text)
    slow = time.perf_counter() - began
    own = seconds(text)
    assert len(longest_distinct(text)) == expected
    print(f"{len(text):,} characters, {len(set(text)):,} of them different, longest window {expected}")
    print(f"plain loop {slow:.2f} s, ours {own:.4f} s: {slow / own:.0f} x (bar {BAR})")
    sizes, times = [], []
    for size in (10**4, 10**5, 10**6, 10**7, 10**8):
        sample = (text * (size // len(text) + 1))[:size]
        repeats = max(1, 10**6 // size)
        began = time.perf_counter()
        for _ in range(repeats):
            longest_distinct(sample)
        sizes.append(size)
        times.append(min(seconds(sample), (time.perf_counter() - began) / repeats))
        print(f"{size:>11,} characters: {times[-1] * 1e9 / size:.2f} ns each")
    exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    print(f"fitted exponent {exponent:.3f} (bar 1.00 ± {SLACK})")
    ascii_text = "".join(chr(32 + i % 95) for i in np.random.default_rng(0).integers(0, 95, 50_000))
    print(f"50,000 ASCII characters: {seconds(ascii_text) * 1e3:.3f} ms")
    return int(slow < BAR * own or abs(exponent - 1) > SLACK)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
