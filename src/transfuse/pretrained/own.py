"""Our own directories, for architectures that no other family has: grouped heads, rotary positions, gates, …"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transfuse.errors import ModelDirectoryError
from transfuse.models.seq2seq import Seq2SeqConfig
from transfuse.pretrained.family import Family


def _config(values: Mapping[str, Any]) -> Seq2SeqConfig:
    names = {field.name for field in dataclasses.fields(Seq2SeqConfig)}
    missing = sorted(names - set(values))
    if missing:  # a default in its place would compute something else
        raise ModelDirectoryError(f"config.json has no {', '.join(missing)}")
    return Seq2SeqConfig.from_dict({name: value for name, value in values.items() if name in names})


OWN = Family(
    model_type="transfuse-seq2seq",
    architecture="Seq2SeqModel",
    expresses=lambda config: True,
    values=lambda config: config.to_dict(),
    config=_config,
    table=lambda config: [],
    complete=lambda config, weights: None,
    reduce=lambda config, weights: None,
)
"""Config fields and weight names as they are here."""
