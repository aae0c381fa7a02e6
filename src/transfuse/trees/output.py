"""What becomes of the trees' sums: for each output of y, shares of its classes or numbers.

Shapes: n rows, P sums of a row, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Link = Literal["shares", "mean", "logits", "sigmoids", "identity", "exponential"]


@dataclass(frozen=True)
class Output:
    """One output of y, predicted from the sums `first` to `first` + `width`, each divided by `divisor`, through `link`:

    as they are (`shares` of classes, a `mean`, a number by `identity`), as a number's logarithm (`exponential`), as
    `logits` that compete for the row (one alone is that of the second of two classes), or as a logit of each class
    against all others (`sigmoids`, whose shares need not sum to 1).
    """

    link: Link
    width: int = 1
    first: int = 0
    divisor: float = 1.0

    @property
    def of_classes(self) -> bool:
        """Whether it gives shares of classes, not numbers."""
        return self.link in ("shares", "logits", "sigmoids")

    @property
    def is_vote(self) -> bool:
        """Whether each tree speaks for itself, as in a forest."""
        return self.link in ("shares", "mean")

    def predicted(self, sums: np.ndarray) -> np.ndarray:
        """Shares of classes (n, C), or numbers (n,), of sums (n, P)."""
        own = sums[:, self.first : self.first + self.width] / self.divisor
        if self.link == "shares":
            return own
        if self.link == "sigmoids":
            return _sigmoid(own)
        if self.link == "logits" and self.width == 1:
            second = _sigmoid(own[:, 0])
            return np.column_stack([1 - second, second])
        if self.link == "logits":
            powers = np.exp(own - own.max(1, keepdims=True))
            return np.asarray(powers / powers.sum(1, keepdims=True))
        return np.asarray(np.exp(own[:, 0])) if self.link == "exponential" else own[:, 0]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))
