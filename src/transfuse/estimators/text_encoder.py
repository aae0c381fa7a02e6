"""Text to vectors: BERT pre-trained on the user's own text, or anyone's checkpoint, with both of its outputs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from transfuse.config import Config
from transfuse.data.corpus import Corpus, as_corpus
from transfuse.data.masking import MaskedDataset, MaskingConfig, sentences
from transfuse.data.pairs import as_texts
from transfuse.data.sequences import PackedSequences, by_length, pack
from transfuse.data.wordpiece import MASK, Pieces, WordPiece, WordPieceConfig
from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, TOKENIZER_CONFIG, read_about
from transfuse.estimators.limits import cut, warn_of_unknown, warn_of_untrained
from transfuse.estimators.model_card import model_card
from transfuse.estimators.trained import TrainedEstimator
from transfuse.models.bert import BertConfig, BertModel, Head, check_pairs
from transfuse.nn.linear import packed
from transfuse.pretrained.directory import save_model
from transfuse.training.config import TrainingConfig
from transfuse.training.pretraining import pretraining_loss, pretraining_scores, token_vectors
from transfuse.training.run import Score, pick_device

MODEL = BertConfig()
MASKING = MaskingConfig()
TOKENS = WordPieceConfig()
TRAINING = TrainingConfig(
    epochs=10,
    learning_rate=5e-4,
    schedule="cosine",
    warmup_steps=100,
    weight_decay=0.01,
    label_smoothing=0.0,
    average=1,
)
ENCODED_TOKENS = 2048
"""Tokens that are encoded together."""

Pooling = Literal["cls", "mean", "max"]


@dataclass(frozen=True)
class TokenVectors:
    """The pieces of one text: what each is, where it stands in the text (first character, last + 1), which word it
    belongs to, and its vector; `vectors` is (pieces, d_model). Special tokens are left out."""

    tokens: list[str]
    offsets: list[tuple[int, int]]
    words: list[int]
    vectors: np.ndarray

    def word_vectors(self) -> np.ndarray:
        """One vector a word, the mean of its pieces', (words, d_model)."""
        _, index, counts = np.unique(self.words, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), self.vectors.shape[1]), self.vectors.dtype)
        np.add.at(sums, index, self.vectors)
        return sums / counts[:, None]


class TextEncoder(TransformerMixin, TrainedEstimator):  # type: ignore[misc]
    """A BERT that `fit` pre-trains on texts and whose `transform` gives one vector a text.

    `model` holds the sizes of one that starts from nothing, with a vocabulary of its own; or it is what pre-training
    goes on from: a fitted `TextEncoder`, or the directory or hub id of any BERT, whose sizes and vocabulary it keeps.
    `pooling` makes it of the tokens': "mean" or "max" over all of them, or "cls", the first one's as the pooler, which
    next-sentence training gave its meaning, leaves it; `sklearn.preprocessing.Normalizer` behind it scales vectors to
    length 1. `masking` says what pre-training hides in rows of how many tokens. Nothing is ever computed on padding.

    After `fit`: `model_` (the torch module), `tokenizer_`, `results_` (what the training came to).
    """

    SETTINGS: ClassVar[dict[str, type[Config]]] = {
        "tokenizer": WordPieceConfig,
        "training": TrainingConfig,
        "masking": MaskingConfig,
    }

    def __init__(
        self,
        *,
        model: BertConfig | str | Path | TextEncoder = MODEL,
        tokenizer: WordPieceConfig = TOKENS,
        training: TrainingConfig = TRAINING,
        masking: MaskingConfig = MASKING,
        pooling: Pooling = "mean",
        validation_fraction: float = 0.05,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.training = training
        self.masking = masking
        self.pooling = pooling
        self.validation_fraction = validation_fraction
        self.run_dir = run_dir
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Corpus | Iterable[str], y: Any = None, *, resume: bool = False) -> Self:
        """Learn a vocabulary, and to guess hidden words, from documents; `y` is ignored.

        The last `validation_fraction` of all their sentences is kept aside to judge by. `resume` goes on from the
        newest checkpoint in `run_dir`. Raises DataError for unusable text; otherwise as the other estimators.
        """
        with self._unchanged_on_failure(), self._run_folder(resume) as folder:
            self._fit(folder, X, resume)
        return self

    def _fit(self, folder: Path, X: Corpus | Iterable[str], resume: bool) -> None:
        self._check_settings()
        if self.pooling == "cls" and not self.masking.next_sentence:
            raise ConfigError('pooling="cls" is of next-sentence training, but masking.next_sentence=False')
        seed = self._seed()
        documents = [sentences("".join(pieces)) for pieces in as_corpus(X)]
        learned, judged = held_out_tail(documents, self.validation_fraction)
        start: TextEncoder | None = None
        if isinstance(self.model, BertConfig):
            self.tokenizer_ = WordPiece.train(
                (text for parts in learned for text in parts), self.model.vocab_size, self.tokenizer
            )
        else:
            start = opened(self.model)
            self._check_masking(start.model_.config)
            self.tokenizer_ = start.tokenizer_
        data = self._masked(learned, seed)
        held = MaskedDataset(judged, self.tokenizer_, data.config, seed=seed, name="the held-out share")
        head: Head = "pretraining" if data.config.next_sentence else "words"
        if start is not None:
            model = begun_from(start, seed, head=head)
        else:
            assert isinstance(self.model, BertConfig)
            config = self.model.replace(vocab_size=len(self.tokenizer_), head=head, pad_id=0)
            model = BertModel(config).initialise(seed)
        self.model_ = model.to(pick_device(self.device))
        identity = {
            "model": self.model_.config.to_dict(),
            "masking": data.config.to_dict(),
            "data": data.fingerprint(),
            "validation": held.fingerprint(),
        }

        def score() -> Score:
            found = pretraining_scores(self.model_, held, self.training)
            figures = {name: value for name, value in asdict(found).items() if value is not None}
            return {"score": -found.loss, **figures}

        self.results_ = self._train(folder, data, pretraining_loss, score, seed=seed, identity=identity, resume=resume)
        found = pretraining_scores(self.model_, held, self.training)
        shares = {"hidden words guessed, %": found.word_accuracy, "next sentences told, %": found.pair_accuracy}
        self.results_ |= {
            "held_out_loss": found.word_loss,
            "held_out_rows": len(held),
            "held_out": asdict(found),
            "held_out_metrics": [
                {"name": name, "value": 100 * share, "signature": f"hidden:{self.masking.share}"}
                for name, share in shares.items()
                if share is not None
            ],
            "positions": max(start.trained_positions if start else 0, data.longest),
        }

    def _masked(self, documents: list[list[str]], seed: int) -> MaskedDataset:
        """Rows as `masking` wants them; without next sentences, and a warning, where no document has two stretches.

        Raises DataError where that leaves the first token, which `pooling="cls"` is about, without training.
        """
        data = MaskedDataset(documents, self.tokenizer_, self.masking, seed=seed)
        if not self.masking.next_sentence or data.has_pairs:
            return data
        short = f"no document has more than one stretch of {data.room} pieces, so none has a next one"
        if self.pooling == "cls":
            raise DataError(f'{short} to train the first token by; lower masking.context or use pooling="mean"')
        warnings.warn(
            f"{short}: hidden words alone are learned (a lower masking.context makes shorter stretches)",
            UserWarning,
            stacklevel=5,
        )
        return MaskedDataset(documents, self.tokenizer_, self.masking.replace(next_sentence=False), seed=seed)

    @property
    def trained_positions(self) -> int:
        """Tokens of the longest row of pre-training, as far as the directory it comes from says; else all positions."""
        found: int = self.results_.get("positions", self.model_.config.max_positions)
        return found

    def transform(self, X: Iterable[str]) -> np.ndarray:
        """One vector a text, (texts, d_model), float32."""
        pieces = self.encode(X)
        found = np.empty((len(pieces), self.model_.config.d_model), np.float32)
        for sequences, x_ND in self._vectors(pieces):
            found[list(sequences.rows)] = self._pooled(sequences, x_ND).float().cpu().numpy()
        return found

    def tokens(self, X: Iterable[str]) -> list[TokenVectors]:
        """One vector a piece of a word of each text, with its place in it."""
        pieces = self.encode(X)
        found: list[TokenVectors | None] = [None] * len(pieces)
        for sequences, x_ND in self._vectors(pieces):
            vectors = x_ND.float().cpu().numpy()
            for row, first in zip(sequences.rows, sequences.starts.tolist(), strict=False):
                one = pieces[row]
                own = [i for i, word in enumerate(one.words) if word is not None]
                found[row] = TokenVectors(
                    [self.tokenizer_.token(one.ids[i]) for i in own],
                    [one.offsets[i] for i in own],
                    [word for word in one.words if word is not None],
                    vectors[[first + i for i in own]],
                )
        return [one for one in found if one is not None]

    def fill_mask(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """The `top` likeliest pieces, with their probabilities, for each [MASK] of a text.

        Raises DataError for a text without one, ConfigError for a model without a word head.
        """
        check_is_fitted(self, "model_")
        (text,) = as_texts([text], "text")
        if top < 1:
            raise ConfigError(f"top={top} must be at least 1")
        if self.model_.words is None:
            raise ConfigError(f"a model with head={self.model_.config.head!r} has no word head to guess with")
        parts = text.split(MASK)
        if len(parts) == 1:
            raise DataError(f"the text has no {MASK} to fill")
        ids = [self.tokenizer_.id_of("[CLS]")]
        for number, part in enumerate(parts):
            ids += [self.tokenizer_.id_of(MASK)] * (number > 0)
            ids += self.tokenizer_.encode_plain([part])[0] if part.strip() else []
        ids.append(self.tokenizer_.id_of("[SEP]"))
        row = torch.tensor([ids], device=next(self.model_.parameters()).device)
        with torch.inference_mode():
            logits_MV = self.model_.words(self.model_(row)[row == self.tokenizer_.id_of(MASK)])
            best = logits_MV.float().softmax(-1).topk(min(top, logits_MV.shape[1]))
        return [
            [(self.tokenizer_.token(piece), value) for piece, value in zip(pieces, values, strict=True)]
            for pieces, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def encode(self, X: Iterable[str]) -> list[Pieces]:
        """Pieces of each text, cut to the model's positions with a TruncatedWarning; an UntrainedPositionsWarning where
        they reach past `trained_positions`."""
        check_is_fitted(self, "model_")
        found = self.tokenizer_.encode(as_texts(X, "X"))
        pieces = cut(found, self.model_.config.max_positions, self.tokenizer_)
        warn_of_untrained(pieces, self.trained_positions)
        warn_of_unknown(pieces, self.tokenizer_)
        return pieces

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face style directory, which `transformers` opens."""
        check_is_fitted(self, "model_")
        about = self._about(pooling=self.pooling)
        example = ["from transfuse import TextEncoder", "", 'TextEncoder.load("this-directory").transform(["a text"])']
        beside = {
            TOKENIZER: self.tokenizer_.to_json(),
            TOKENIZER_CONFIG: json.dumps(bert_tokenizer_values(self.model_.config.max_positions), indent=2),
            ESTIMATOR: json.dumps(about, indent=2, ensure_ascii=False),
            "README.md": model_card(
                "Text encoder (BERT)", self.model_, self.results_, example, "cross-entropy, nats a hidden word"
            ),
        }
        save_model(self.model_, Path(folder), beside)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None, dtype: str = "float32") -> Self:
        """The estimator saved in `folder`, or one around anyone's BERT directory or hub id that has a tokenizer.json.

        `dtype` ("float32", "bfloat16" or "float16") is what it computes in, and what `save` writes; training is in
        float32 weights whatever it is.
        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there or another dtype.
        """
        folder, model = cls._model_in(folder, device, dtype)
        if not isinstance(model, BertModel):
            raise ModelDirectoryError(f"{folder}: a {type(model).__name__}, expected a BERT")
        tokenizer = WordPiece.load(folder / TOKENIZER)
        context = min(MASKING.context, model.config.max_positions)
        masking = {"context": context, "next_sentence": model.config.n_segments > 1}
        about = read_about(folder, COMMON | {"masking": masking, "pooling": "mean"})
        return cls._opened(folder, model, tokenizer, about, device=device, pooling=about["pooling"])

    def _check_settings(self) -> None:
        """Raise ConfigError for settings that fit cannot work with."""
        if not isinstance(self.model, BertConfig | str | Path | TextEncoder):
            raise ConfigError(f"model={self.model!r} must be a BertConfig, or a BERT to go on from")
        self._check_common_settings(self.SETTINGS)
        if self.pooling not in ("cls", "mean", "max"):
            raise ConfigError(f"pooling={self.pooling!r} must be cls, mean or max")
        if self.training.select_by != "loss":
            raise ConfigError(f"select_by={self.training.select_by!r}: an encoder is judged by its loss")
        if isinstance(self.model, BertConfig):
            self._check_masking(self.model)

    def _check_masking(self, model: BertConfig) -> None:
        """Raise ConfigError for rows that a model cannot read."""
        if self.masking.context > model.max_positions:
            raise ConfigError(
                f"masking.context={self.masking.context} must be at most max_positions={model.max_positions}"
            )
        if self.masking.next_sentence:
            check_pairs(model)

    @torch.inference_mode()
    def _vectors(self, pieces: Sequence[Pieces]) -> Iterator[tuple[PackedSequences, Tensor]]:
        """Sequences laid end to end, and one vector for each of their tokens."""
        device = next(self.model_.parameters()).device
        self.model_.eval()
        with packed(self.model_.encoder.modules()):
            for rows in by_length([len(one) for one in pieces], ENCODED_TOKENS):
                ids, segments = ([getattr(pieces[row], part) for row in rows] for part in ("ids", "segments"))
                sequences = pack(rows, ids, segments).to(device)
                yield sequences, token_vectors(self.model_, sequences)

    @torch.inference_mode()
    def _pooled(self, sequences: PackedSequences, x_ND: Tensor) -> Tensor:
        """One vector a sequence, (B, D)."""
        if self.pooling == "cls":
            pooled_BD = self.model_.pool(x_ND[sequences.starts[:-1]])
        else:
            parts, first = [], 0
            for n, T in sequences.groups:
                part_nTD = x_ND[first : first + n * T].view(n, T, -1)
                parts.append(part_nTD.mean(1) if self.pooling == "mean" else part_nTD.amax(1))
                first += n * T
            pooled_BD = torch.cat(parts)
        return pooled_BD


def opened(encoder: str | Path | TextEncoder) -> TextEncoder:
    """A fitted encoder, or the one in a directory or hub id."""
    found = encoder if isinstance(encoder, TextEncoder) else TextEncoder.load(encoder)
    check_is_fitted(found, "model_")
    return found


def begun_from(source: TextEncoder, seed: int, *, head: Head, n_labels: int = 2) -> BertModel:
    """A model with the weights of a fitted encoder, what its own head lacks drawn from `seed`."""
    config = source.model_.config.replace(head=head, n_labels=n_labels, pooler=None)
    model = BertModel(config).initialise(seed)
    known = dict(source.model_.named_parameters())
    own_labels = head != "pretraining" or source.model_.config.head != "pretraining"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in known and not (own_labels and name.startswith("labels")):
                weight.copy_(known[name])
    return model


def bert_tokenizer_values(max_positions: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")},
        "model_max_length": max_positions,
    }


def held_out_tail(documents: list[list[str]], fraction: float) -> tuple[list[list[str]], list[list[str]]]:
    """Documents to learn from, and the last `fraction` of all sentences to judge by; the one that the cut goes through
    is two."""
    n = sum(map(len, documents))
    if n < 4:
        raise DataError(f"{n} sentences are too few; at least 4 are needed, two to learn from and two to judge by")
    left = min(max(2, round((1 - fraction) * n)), n - 2)
    learned: list[list[str]] = []
    judged: list[list[str]] = []
    for document in documents:
        learned.append(document[:left])
        judged.append(document[left:])
        left = max(0, left - len(document))
    return [part for part in learned if part], [part for part in judged if part]
