"""Transformers you train on your own data, on your own machine, and can make cheaper afterwards.

Every public name is here, and is imported at its first use, so `import transfuse` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AlignmentComparison": "transfuse.reports.alignments",
    "AnsweringConfig": "transfuse.estimators.question_answerer",
    "AugmentationConfig": "transfuse.data.augmentation",
    "BertConfig": "transfuse.models.bert",
    "CacheTooLargeError": "transfuse.errors",
    "Candidate": "transfuse.estimators.candidate",
    "CheckpointError": "transfuse.errors",
    "Comparison": "transfuse.reports.comparison",
    "ConfigError": "transfuse.errors",
    "Corpus": "transfuse.data.corpus",
    "DataError": "transfuse.errors",
    "DecoderConfig": "transfuse.models.decoder",
    "Description": "transfuse.reports.description",
    "DistillationConfig": "transfuse.training.distillation",
    "Distinct": "transfuse.strings.longest",
    "DistinctStream": "transfuse.strings.longest",
    "Entity": "transfuse.estimators.token_tagger",
    "FoundAnswer": "transfuse.estimators.question_answerer",
    "FusionConfig": "transfuse.models.fusion",
    "GenerationError": "transfuse.errors",
    "ImageConfig": "transfuse.data.images",
    "Importance": "transfuse.reports.importance",
    "Inspection": "transfuse.reports.inspection",
    "LanguageModel": "transfuse.estimators.language_model",
    "Loop": "transfuse.generation.loops",
    "MaskingConfig": "transfuse.data.masking",
    "ModalityReport": "transfuse.reports.modalities",
    "ModelDirectoryError": "transfuse.errors",
    "MultimodalClassifier": "transfuse.estimators.multimodal_classifier",
    "MultimodalRegressor": "transfuse.estimators.multimodal_regressor",
    "NextSentenceAblation": "transfuse.estimators.ablation",
    "Pairs": "transfuse.data.pairs",
    "QuestionAnswerer": "transfuse.estimators.question_answerer",
    "Questions": "transfuse.data.questions",
    "Reading": "transfuse.strings.longest",
    "ResumeWarning": "transfuse.errors",
    "Score": "transfuse.metrics.text_scores",
    "SearchConfig": "transfuse.generation.config",
    "Seq2Seq": "transfuse.estimators.seq2seq",
    "Seq2SeqConfig": "transfuse.models.seq2seq",
    "SoundConfig": "transfuse.data.sounds",
    "Tagged": "transfuse.data.tags",
    "TextClassifier": "transfuse.estimators.text_classifier",
    "TextEncoder": "transfuse.estimators.text_encoder",
    "TextRegressor": "transfuse.estimators.text_regressor",
    "TokenTagger": "transfuse.estimators.token_tagger",
    "TokenVectors": "transfuse.estimators.text_encoder",
    "TokenizerConfig": "transfuse.data.tokenizer",
    "TowersConfig": "transfuse.models.towers",
    "TrainingConfig": "transfuse.training.config",
    "TrainingDiverged": "transfuse.errors",
    "TrainingInterrupted": "transfuse.errors",
    "TransfuseError": "transfuse.errors",
    "TruncatedWarning": "transfuse.errors",
    "UnknownWordsWarning": "transfuse.errors",
    "UnreadableWarning": "transfuse.errors",
    "UnseenCharactersWarning": "transfuse.errors",
    "UntrainedPositionsWarning": "transfuse.errors",
    "WordPieceConfig": "transfuse.data.wordpiece",
    "ablate_next_sentence": "transfuse.estimators.ablation",
    "all_longest_distinct": "transfuse.strings.longest",
    "compare": "transfuse.reports.compare",
    "compare_alignments": "transfuse.reports.alignments",
    "describe": "transfuse.reports.description",
    "expand_heads": "transfuse.estimators.regroup",
    "forest_importance": "transfuse.reports.forest",
    "inspect": "transfuse.reports.inspection",
    "kind_of": "transfuse.estimators.directory",
    "load": "transfuse.estimators.directory",
    "longest_distinct": "transfuse.strings.longest",
    "longest_distinct_rows": "transfuse.strings.longest",
    "modality_report": "transfuse.reports.modalities",
    "read_columns": "transfuse.data.pairs",
    "read_pairs": "transfuse.data.pairs",
    "read_questions": "transfuse.data.questions",
    "read_sources": "transfuse.data.pairs",
    "read_table": "transfuse.data.tables",
    "read_tags": "transfuse.data.tags",
    "regroup": "transfuse.estimators.regroup",
    "tree_importance": "transfuse.reports.importance",
    "uptrain": "transfuse.estimators.regroup",
}

__all__ = [
    "AlignmentComparison",
    "AnsweringConfig",
    "AugmentationConfig",
    "BertConfig",
    "CacheTooLargeError",
    "Candidate",
    "CheckpointError",
    "Comparison",
    "ConfigError",
    "Corpus",
    "DataError",
    "DecoderConfig",
    "Description",
    "DistillationConfig",
    "Distinct",
    "DistinctStream",
    "Entity",
    "FoundAnswer",
    "FusionConfig",
    "GenerationError",
    "ImageConfig",
    "Importance",
    "Inspection",
    "LanguageModel",
    "Loop",
    "MaskingConfig",
    "ModalityReport",
    "ModelDirectoryError",
    "MultimodalClassifier",
    "MultimodalRegressor",
    "NextSentenceAblation",
    "Pairs",
    "QuestionAnswerer",
    "Questions",
    "Reading",
    "ResumeWarning",
    "Score",
    "SearchConfig",
    "Seq2Seq",
    "Seq2SeqConfig",
    "SoundConfig",
    "Tagged",
    "TextClassifier",
    "TextEncoder",
    "TextRegressor",
    "TokenTagger",
    "TokenVectors",
    "TokenizerConfig",
    "TowersConfig",
    "TrainingConfig",
    "TrainingDiverged",
    "TrainingInterrupted",
    "TransfuseError",
    "TruncatedWarning",
    "UnknownWordsWarning",
    "UnreadableWarning",
    "UnseenCharactersWarning",
    "UntrainedPositionsWarning",
    "WordPieceConfig",
    "ablate_next_sentence",
    "all_longest_distinct",
    "compare",
    "compare_alignments",
    "describe",
    "expand_heads",
    "forest_importance",
    "inspect",
    "kind_of",
    "load",
    "longest_distinct",
    "longest_distinct_rows",
    "modality_report",
    "read_columns",
    "read_pairs",
    "read_questions",
    "read_sources",
    "read_table",
    "read_tags",
    "regroup",
    "tree_importance",
    "uptrain",
]

if TYPE_CHECKING:
    from transfuse.data.augmentation import AugmentationConfig
    from transfuse.data.corpus import Corpus
    from transfuse.data.images import ImageConfig
    from transfuse.data.masking import MaskingConfig
    from transfuse.data.pairs import Pairs, read_columns, read_pairs, read_sources
    from transfuse.data.questions import Questions, read_questions
    from transfuse.data.sounds import SoundConfig
    from transfuse.data.tables import read_table
    from transfuse.data.tags import Tagged, read_tags
    from transfuse.data.tokenizer import TokenizerConfig
    from transfuse.data.wordpiece import WordPieceConfig
    from transfuse.errors import (
        CacheTooLargeError,
        CheckpointError,
        ConfigError,
        DataError,
        GenerationError,
        ModelDirectoryError,
        ResumeWarning,
        TrainingDiverged,
        TrainingInterrupted,
        TransfuseError,
        TruncatedWarning,
        UnknownWordsWarning,
        UnreadableWarning,
        UnseenCharactersWarning,
        UntrainedPositionsWarning,
    )
    from transfuse.estimators.ablation import NextSentenceAblation, ablate_next_sentence
    from transfuse.estimators.candidate import Candidate
    from transfuse.estimators.directory import kind_of, load
    from transfuse.estimators.language_model import LanguageModel
    from transfuse.estimators.multimodal_classifier import MultimodalClassifier
    from transfuse.estimators.multimodal_regressor import MultimodalRegressor
    from transfuse.estimators.question_answerer import AnsweringConfig, FoundAnswer, QuestionAnswerer
    from transfuse.estimators.regroup import expand_heads, regroup, uptrain
    from transfuse.estimators.seq2seq import Seq2Seq
    from transfuse.estimators.text_classifier import TextClassifier
    from transfuse.estimators.text_encoder import TextEncoder, TokenVectors
    from transfuse.estimators.text_regressor import TextRegressor
    from transfuse.estimators.token_tagger import Entity, TokenTagger
    from transfuse.generation.config import SearchConfig
    from transfuse.generation.loops import Loop
    from transfuse.metrics.text_scores import Score
    from transfuse.models.bert import BertConfig
    from transfuse.models.decoder import DecoderConfig
    from transfuse.models.fusion import FusionConfig
    from transfuse.models.seq2seq import Seq2SeqConfig
    from transfuse.models.towers import TowersConfig
    from transfuse.reports.alignments import AlignmentComparison, compare_alignments
    from transfuse.reports.compare import compare
    from transfuse.reports.comparison import Comparison
    from transfuse.reports.description import Description, describe
    from transfuse.reports.forest import forest_importance
    from transfuse.reports.importance import Importance, tree_importance
    from transfuse.reports.inspection import Inspection, inspect
    from transfuse.reports.modalities import ModalityReport, modality_report
    from transfuse.strings.longest import (
        Distinct,
        DistinctStream,
        Reading,
        all_longest_distinct,
        longest_distinct,
        longest_distinct_rows,
    )
    from transfuse.training.config import TrainingConfig
    from transfuse.training.distillation import DistillationConfig


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transfuse' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
