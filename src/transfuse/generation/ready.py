"""A model made ready to write with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch

from transfuse.generation.memory import available_bytes
from transfuse.generation.sequences import Model
from transfuse.models.decoder import DecoderModel
from transfuse.models.seq2seq import Seq2SeqModel
from transfuse.nn.linear import packed

FEWEST_WEIGHTS = 1_000_000
"""Weights below which a model's steps are too short to be worth the loading of compiled code."""


MOST_BEAMS = 128
"""Tokens of a step from which an encoder–decoder's is bound by arithmetic, which compiling does not make less."""


@contextmanager
def ready(model: Model, n_tokens: int) -> Iterator[Model]:
    """The model to write with, at most `n_tokens` in a step: compiled, or, where that cannot be or would not help,
    itself with its weights `packed`. The weights must not change inside, and take their memory twice; where there is
    no room for that, it is the model itself and nothing more."""
    if not _has_room_for_a_copy(model):
        yield model
        return
    if _worth_compiling(model, n_tokens):
        from transfuse.generation import compiled  # loads a compiler

        if compiled.fits(model):
            kind = compiled.CompiledDecoder if isinstance(model, DecoderModel) else compiled.CompiledTranslator
            # sources are read by products of the modules, prompts by few and large ones
            read = model.encoder.modules() if isinstance(model, Seq2SeqModel) else ()
            with packed(read), kind(model) as writer:
                yield writer
            return
    with packed(model.modules()):
        yield model


def _worth_compiling(model: Model, n_tokens: int) -> TypeGuard[DecoderModel | Seq2SeqModel]:
    if not isinstance(model, DecoderModel | Seq2SeqModel):
        return False
    if isinstance(model, Seq2SeqModel) and n_tokens > MOST_BEAMS:
        return False
    weights = list(model.parameters())
    kinds = {(weight.device.type, weight.dtype) for weight in weights}
    known = kinds in ({("cpu", torch.float32)}, {("cpu", torch.bfloat16)})
    # under autocast the modules compute, and keep their caches, in another dtype than the weights'
    return known and not torch.is_autocast_enabled("cpu") and sum(map(torch.numel, weights)) >= FEWEST_WEIGHTS


def _has_room_for_a_copy(model: Model) -> bool:
    n_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    available = available_bytes(torch.device("cpu"))
    return available is None or n_bytes <= available
