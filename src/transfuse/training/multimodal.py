"""The loss of rows of several modalities.

Shapes: B rows, K classes or numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from transfuse.data.modalities import MultimodalBatch
from transfuse.models.fusion import FusionModel


@dataclass(frozen=True)
class MultimodalLoss:
    """Summed over rows by their weights: cross-entropy of a class, or half the squared error of numbers."""

    kind: Literal["class", "number"]

    def __call__(self, model: FusionModel, batch: MultimodalBatch, smoothing: float = 0.0) -> Tensor:
        """The loss of a batch, in the form the training loop takes."""
        found_BK = model(batch.parts).float()
        if self.kind == "number":
            losses_B = F.mse_loss(found_BK, batch.targets, reduction="none").sum(1) / 2
        else:
            losses_B = F.cross_entropy(found_BK, batch.targets, reduction="none", label_smoothing=smoothing)
        return (losses_B * batch.weights_B).sum()
