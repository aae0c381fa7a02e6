"""Model directories: config.json, model.safetensors and what lies beside them.

New files are written completely in a folder beside the old ones and flushed; renaming that folder commits them, and
only then are they moved over the old ones. So a full disk or a crash before the commit leaves what was there before,
and what a crash after it left undone is done when the directory is next opened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from transfuse.durable import flush, flush_folder
from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.models.bert import BertConfig, BertModel
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.models.fusion import FusionModel, MultimodalConfig
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.models.towers import ImageTower, ImageTowerConfig
from transfuse.pretrained.bart_shaped import M2M100, MARIAN
from transfuse.pretrained.bert import BERT
from transfuse.pretrained.family import Family
from transfuse.pretrained.gpt2 import GPT2
from transfuse.pretrained.llama_shaped import LLAMA, MISTRAL, QWEN2
from transfuse.pretrained.own import OWN_DECODER, OWN_FUSION, OWN_SEQ2SEQ
from transfuse.pretrained.renames import to_ours, to_theirs
from transfuse.pretrained.vit import VIT
from transfuse.pretrained.weights import INDEX, WEIGHTS, read_weights

CONFIG, GENERATION, CHAT_TEMPLATE = "config.json", "generation_config.json", "chat_template.jinja"
OF_GENERATION = ("eos_token_id", "forced_bos_token_id", "bad_words_ids")
"""What a directory may say in generation_config.json alone."""

COMMITTED = ".saved"
"""Where files lie between the moment they are all written and the moment they are all in place."""

Model = Seq2SeqModel | DecoderModel | BertModel | ImageTower | FusionModel

FAMILIES: dict[type, tuple[Family[Any], ...]] = {
    Seq2SeqConfig: (MARIAN, M2M100, OWN_SEQ2SEQ),
    DecoderConfig: (LLAMA, MISTRAL, QWEN2, GPT2, OWN_DECODER),
    BertConfig: (BERT,),
    ImageTowerConfig: (VIT,),
    MultimodalConfig: (OWN_FUSION,),
}
"""Every family of a kind of model, in the order in which a config looks for one that has its architecture."""


@dataclass(frozen=True)
class Origin:
    """The form a directory has: its `model_type`, the dtype of its weights, and its tokenizer_config.json, which may
    say more than is known here."""

    model_type: str
    dtype: torch.dtype
    tokenizer_config: str = ""
    chat_template: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    pad_id: int | None = None


def save_model(
    model: Model,
    folder: Path,
    beside: Mapping[str, str] | None = None,
    origin: Origin | None = None,
    says: Mapping[str, Any] | None = None,
) -> None:
    """Write `model`, and `beside` (file name to text), into `folder`, in the form `transformers` reads where it has
    the architecture: that of `origin` if it has it too, and in its dtype. `says` goes into config.json as well.

    Raises ModelDirectoryError, saying what the folder holds then, if the disk refuses.
    """
    able = [family for family in FAMILIES[type(model.config)] if family.expresses(model.config)]
    family = next((family for family in able if origin and family.model_type == origin.model_type), able[0])
    dtype = origin.dtype if origin else next(model.parameters()).dtype
    weights = {name: weight.detach().to(dtype).contiguous() for name, weight in model.named_parameters()}
    if table := family.table(model.config):
        weights = to_theirs(table, weights)
    family.complete(model.config, weights)
    values = {
        "model_type": family.model_type,
        "architectures": [
            family.architecture if isinstance(family.architecture, str) else family.architecture(model.config)
        ],
        "dtype": str(dtype).removeprefix("torch."),
        **family.values(model.config),
        **(says or {}),
    }
    if origin and origin.pad_id is not None:
        values.setdefault("pad_token_id", origin.pad_id)
    texts = {CONFIG: json.dumps(values, indent=2), **(beside or {})}
    if isinstance(model, Seq2SeqModel | DecoderModel):
        own = _generation_values(model.config)
        told = {**own, **(origin.generation if origin else {}), "eos_token_id": own["eos_token_id"]}
        texts[GENERATION] = json.dumps(told, indent=2)
    if origin and origin.chat_template:
        texts[CHAT_TEMPLATE] = origin.chat_template
    stage = folder / ".saving"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _finish_saving(folder)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        save_file({name: weight.cpu() for name, weight in weights.items()}, stage / WEIGHTS, {"format": "pt"})
        for name, text in texts.items():
            (stage / name).write_text(text, encoding="utf-8")
        flush_folder(stage)
        stage.rename(folder / COMMITTED)
        flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise ModelDirectoryError(f"cannot write {folder}: {error}; what was there is unchanged") from error
    _finish_saving(folder)
    if CHAT_TEMPLATE not in texts:  # of another model
        (folder / CHAT_TEMPLATE).unlink(missing_ok=True)


def _finish_saving(folder: Path) -> None:
    """Move what was committed into place."""
    committed = folder / COMMITTED
    if not committed.is_dir():
        return
    try:
        for path in committed.iterdir():
            path.replace(folder / path.name)
        for shard in _shards(folder):  # that were here before: the weights are in one file now
            shard.unlink(missing_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        committed.rmdir()
        flush(folder)
    except OSError as error:
        raise ModelDirectoryError(f"cannot move {committed}/* to {folder}: {error}; move them yourself") from error


def _shards(folder: Path) -> list[Path]:
    """Files beside the weights that an index names."""
    try:
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [folder / name for name in named if isinstance(name, str) and Path(name).name == name != WEIGHTS]


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Model:
    """The model of a directory, in evaluation mode, in `dtype` (by default torch's: float32).

    Raises ModelDirectoryError naming file and rule when something is missing, damaged, unknown or contradictory.
    """
    family, config = read_config(folder)
    weights = read_weights(folder)
    config = family.fitted(config, weights)
    unknown: list[str] = []
    if table := family.table(config):
        try:
            family.reduce(config, weights)
        except ModelDirectoryError as error:
            raise ModelDirectoryError(f"{folder / WEIGHTS}: {error}") from error
        weights, unknown = to_ours(table, weights)
    with torch.device("meta"):
        model = family.model(config)
    _check(folder / WEIGHTS, model, weights, unknown)
    model = family.model(config).to(dtype or torch.get_default_dtype())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.pop(name))
    return model.eval()  # type: ignore[return-value]


def read_origin(folder: Path) -> Origin:
    """The form of a directory. Raises ModelDirectoryError as `load_model` does."""
    values = read_json(folder / CONFIG)
    name = values.get("dtype") or values.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelDirectoryError(f"{folder / CONFIG}: dtype={name!r} is not a kind of floating-point number")
    beside, template = (folder / name for name in ("tokenizer_config.json", CHAT_TEMPLATE))
    return Origin(
        read_config(folder)[0].model_type,
        dtype,
        beside.read_text(encoding="utf-8") if beside.is_file() else "",
        template.read_text(encoding="utf-8") if template.is_file() else "",
        read_json(folder / GENERATION, missing={}),
        values.get("pad_token_id"),
    )


def read_config(folder: Path) -> tuple[Family[Any], Any]:
    """The family of a directory and its config. Raises ModelDirectoryError as `load_model` does."""
    values = read_json(folder / CONFIG)
    told = read_json(folder / GENERATION, missing={})
    values |= {name: told[name] for name in OF_GENERATION if values.get(name) is None and name in told}
    known = {family.model_type: family for families in FAMILIES.values() for family in families}
    family = known.get(str(values.get("model_type")))
    if family is None:
        raise ModelDirectoryError(
            f"{folder / CONFIG}: model_type={values.get('model_type')!r} is not known here ({', '.join(known)})"
        )
    try:
        return family, family.config(values)
    except (ConfigError, ModelDirectoryError) as error:
        raise ModelDirectoryError(f"{folder / CONFIG}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelDirectoryError(
            f"{folder / CONFIG}: a value is missing or of another type than {family.model_type} has it ({error!r})"
        ) from error


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object of a model directory. Raises ModelDirectoryError if the file is something else, or is not there
    and `missing` does not stand in for it."""
    _finish_saving(path.parent)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if missing is not None and path.parent.is_dir():
            return missing
        hint = "no such directory" if not path.parent.is_dir() else f"no {path.name} in it; not a model directory"
        raise ModelDirectoryError(f"{path.parent}: {hint}") from error
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelDirectoryError(f"{path}: holds a {type(values).__name__}, expected an object")
    return values


def _check(path: Path, model: nn.Module, weights: Mapping[str, Tensor], unknown: list[str]) -> None:
    expected = dict(model.named_parameters())
    unknown = unknown + sorted(set(weights) - set(expected))
    missing = sorted(set(expected) - set(weights))
    if unknown or missing:
        parts = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        raise ModelDirectoryError(f"{path}: the weights are not those of {CONFIG}; {'; '.join(parts)}")
    for name, parameter in expected.items():
        if not weights[name].is_floating_point():
            raise ModelDirectoryError(f"{path}: {name} holds {weights[name].dtype}, expected floating-point numbers")
        if parameter.shape != weights[name].shape:
            raise ModelDirectoryError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, {CONFIG} asks for {tuple(parameter.shape)}"
            )


def _generation_values(config: Seq2SeqConfig | DecoderConfig) -> dict[str, Any]:
    values = {
        "bos_token_id": config.start_id,
        "eos_token_id": list(config.end_ids) if len(config.end_ids) > 1 else config.end_ids[0],
        "bad_words_ids": [[token] for token in config.never_written] or None,
        "max_length": config.max_positions,
    }
    if isinstance(config, Seq2SeqConfig):
        values |= {"decoder_start_token_id": config.start_id, "pad_token_id": config.pad_id}
        values |= {} if config.first_id is None else {"forced_bos_token_id": config.first_id}
    return values
