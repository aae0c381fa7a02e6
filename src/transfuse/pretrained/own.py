"""Our own directories, for architectures that no other family has: config fields and weight names as they are here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from transfuse.config import Config
from transfuse.errors import ModelDirectoryError
from transfuse.models.bert import BertConfig
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.models.fusion import FusionConfig, FusionModel, MultimodalConfig
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.models.towers import ImageTowerConfig, ScoreTowerConfig, SoundTowerConfig, TableTowerConfig
from transfuse.pretrained.family import Family

C = TypeVar("C", bound=Config)


def _read(kind: type[C], values: Mapping[str, Any]) -> C:
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    missing = sorted(names - set(values))
    if missing:  # a default in its place would compute something else
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    return kind.from_dict({name: value for name, value in values.items() if name in names})


OWN_SEQ2SEQ = Family(
    model_type="transfuse-seq2seq",
    architecture="Seq2SeqModel",
    model=Seq2SeqModel,
    expresses=lambda config: True,
    values=lambda config: config.to_dict(),
    config=lambda values: _read(Seq2SeqConfig, values),
    table=lambda config: [],
)
"""Encoder–decoders with grouped heads, rotary positions, gates, …"""

OWN_DECODER = Family(
    model_type="transfuse-decoder",
    architecture="DecoderModel",
    model=DecoderModel,
    expresses=lambda config: True,
    values=lambda config: config.to_dict(),
    config=lambda values: _read(DecoderConfig, values),
    table=lambda config: [],
)
"""Language models that mix the Llama and the GPT-2 way."""

_TOWERS: dict[str, type[Config]] = {
    "text": BertConfig,
    "image": ImageTowerConfig,
    "sound": SoundTowerConfig,
    "table": TableTowerConfig,
    "scores": ScoreTowerConfig,
}


def _fusion_values(config: MultimodalConfig) -> dict[str, Any]:
    kinds = {kind: name for name, kind in _TOWERS.items()}
    towers = [{"kind": kinds[type(tower)], **tower.to_dict()} for tower in config.towers]
    return {"fusion": config.fusion.to_dict(), "names": list(config.names), "towers": towers}


def _fusion_config(values: Mapping[str, Any]) -> MultimodalConfig:
    missing = sorted({"fusion", "names", "towers"} - set(values))
    if missing:
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    unknown = sorted({str(tower["kind"]) for tower in values["towers"]} - set(_TOWERS))
    if unknown:
        raise ModelDirectoryError(f"towers of kind {unknown[0]!r} are not known; there are {', '.join(_TOWERS)}")
    towers = tuple(_read(_TOWERS[tower["kind"]], tower) for tower in values["towers"])
    fusion = _read(FusionConfig, values["fusion"])
    return MultimodalConfig(fusion=fusion, towers=towers, names=tuple(values["names"]))  # type: ignore[arg-type]


OWN_FUSION = Family(
    model_type="transfuse-multimodal",
    architecture="FusionModel",
    model=FusionModel,
    expresses=lambda config: True,
    values=_fusion_values,
    config=_fusion_config,
    table=lambda config: [],
)
"""Towers of several modalities and their fusion."""
