"""A model made ready to write with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch

from transfuse.generation.sequences import Model
from transfuse.models.decoder import DecoderModel
from transfuse.nn.linear import packed

FEWEST_WEIGHTS = 1_000_000
"""Weights below which a model's steps are too short to be worth the loading of compiled code."""


@contextmanager
def ready(model: Model) -> Iterator[Model]:
    """The model to write with: compiled, or, where that cannot be, itself with its weights `packed`. The weights must
    not change inside, and take their memory twice."""
    if not _worth_compiling(model):
        with packed(model.modules()):
            yield model
        return
    from transfuse.generation import compiled  # loads a compiler

    if not compiled.fits(model.config):
        with packed(model.modules()):
            yield model
        return
    with compiled.CompiledDecoder(model) as decoder:
        yield decoder


def _worth_compiling(model: Model) -> TypeGuard[DecoderModel]:
    if not isinstance(model, DecoderModel):
        return False
    weight = model.output.weight
    known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    return known and sum(one.numel() for one in model.parameters()) >= FEWEST_WEIGHTS
