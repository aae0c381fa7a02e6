"""Opening a saved model without knowing which estimator it is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from transfuse.errors import ConfigError, ModelDirectoryError
from transfuse.estimators.about import ESTIMATOR, read_about
from transfuse.estimators.language_model import LanguageModel
from transfuse.estimators.multimodal import MultimodalEstimator
from transfuse.estimators.multimodal_classifier import MultimodalClassifier
from transfuse.estimators.multimodal_regressor import MultimodalRegressor
from transfuse.estimators.question_answerer import QuestionAnswerer
from transfuse.estimators.seq2seq import Seq2Seq
from transfuse.estimators.sequence_head import gives_numbers
from transfuse.estimators.text_classifier import TextClassifier
from transfuse.estimators.text_encoder import TextEncoder
from transfuse.estimators.text_regressor import TextRegressor
from transfuse.estimators.token_tagger import TokenTagger
from transfuse.models.bert import BertConfig, Head
from transfuse.models.decoder import DecoderConfig
from transfuse.pretrained.directory import read_config
from transfuse.pretrained.hub import local_directory

Estimator = (
    Seq2Seq
    | LanguageModel
    | TextEncoder
    | TextClassifier
    | TextRegressor
    | TokenTagger
    | QuestionAnswerer
    | MultimodalClassifier
    | MultimodalRegressor
)

_ESTIMATORS: dict[str, type[Estimator]] = {kind.__name__: kind for kind in get_args(Estimator)}

_OF_HEAD: dict[Head, str] = {"sequence": "TextClassifier", "token": "TokenTagger", "span": "QuestionAnswerer"}
"""What opens a BERT of other origin; one with another head, or none, is a TextEncoder."""


def kind_of(folder: str | Path) -> str:
    """The name of the estimator that `load` makes of a directory or hub id. Raises ModelDirectoryError as it does."""
    folder = local_directory(folder)
    name: str = read_about(folder, {"estimator": ""})["estimator"]
    if not name:
        config = read_config(folder)[1]
        if isinstance(config, BertConfig):
            name = _OF_HEAD.get(config.head, "TextEncoder")
            if name == "TextClassifier" and gives_numbers(folder, "", config.n_labels):
                name = "TextRegressor"
        else:
            name = "LanguageModel" if isinstance(config, DecoderConfig) else "Seq2Seq"
    if name not in _ESTIMATORS:
        raise ModelDirectoryError(f"{folder / ESTIMATOR}: estimator={name!r} must be one of {', '.join(_ESTIMATORS)}")
    return name


def load(folder: str | Path, *, device: str | None = None, dtype: str = "float32") -> Estimator:
    """The estimator saved in `folder`; a bare directory or hub id of `transformers` opens as what its config.json says.

    `dtype` ("float32", "bfloat16" or "float16") is what it computes in; multimodal models know float32 alone.
    Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there or another dtype.
    """
    kind = _ESTIMATORS[kind_of(folder)]
    if not issubclass(kind, MultimodalEstimator):
        return kind.load(folder, device=device, dtype=dtype)
    if dtype != "float32":
        raise ConfigError(f"dtype={dtype!r}: a {kind.__name__} computes in float32")
    return kind.load(folder, device=device)
