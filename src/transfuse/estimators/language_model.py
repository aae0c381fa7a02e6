"""Text that goes on: a language model learned from plain text, and the continuation of prompts."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

import transfuse
from transfuse.data.corpus import Corpus, Texts, as_corpus
from transfuse.data.packing import PackedDataset, split_tail
from transfuse.data.pairs import as_texts
from transfuse.data.token_file import TextSize, TokenFile
from transfuse.data.tokenizer import BOUNDARY, Tokenizer, TokenizerConfig
from transfuse.errors import ConfigError, DataError, GenerationError, ModelDirectoryError
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, TOKENIZER_CONFIG, read_about, tokenizer_values
from transfuse.estimators.candidate import Candidate
from transfuse.estimators.model_card import model_card
from transfuse.estimators.trained import Prepared, TrainedEstimator, scratch_folder
from transfuse.generation.candidates import suspect
from transfuse.generation.config import SearchConfig
from transfuse.generation.generate import generate, stream
from transfuse.metrics.text_scores import Score
from transfuse.models.decoder import DecoderConfig, DecoderModel
from transfuse.pretrained.directory import GENERATION, Origin, read_json, read_origin, save_model
from transfuse.training.config import TrainingConfig
from transfuse.training.language import language_loss
from transfuse.training.loop import mean_loss
from transfuse.training.run import pick_device

MODEL = DecoderConfig()
TRAINING = TrainingConfig(
    epochs=10, schedule="cosine", warmup_steps=100, weight_decay=0.1, label_smoothing=0.0, average=1
)
SEARCH = SearchConfig(beams=1, sample=True, temperature=0.8, top_p=0.95, max_tokens=200, batch_tokens=16_384)

AT_A_TIME = 1 << 16
"""Tokens that are decoded together to be counted."""

MOST_HELD_OUT = 1 << 18
"""Tokens that `held_out` gives at most."""

Text = Corpus | Iterable[str]
"""Documents: a `Corpus` of files, or a list, array or column of texts."""

Prompt = str | Sequence[int]
"""A text, or the ids of one."""


class LanguageModel(TrainedEstimator):
    """A decoder-only Transformer with its own tokenizer, trained to go on with a text.

    `model`, `tokenizer`, `training` and `search` hold the settings of each part (their fields are parameters too:
    `training__epochs`). Training rows have `context` tokens; a batch has `training.batch_tokens` of them. Tokens and
    checkpoints go to `run_dir`, by default to a folder that is deleted afterwards.

    After `fit`: `model_` (the torch module), `tokenizer_`, `results_` (what the training came to).
    """

    _is_foreign = False
    """Whether it was opened from a directory of another library's."""

    def __init__(
        self,
        *,
        model: DecoderConfig = MODEL,
        tokenizer: TokenizerConfig = TokenizerConfig(),
        training: TrainingConfig = TRAINING,
        search: SearchConfig = SEARCH,
        context: int = 256,
        validation_fraction: float = 0.05,
        run_dir: str | Path | None = None,
        device: str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.training = training
        self.search = search
        self.context = context
        self.validation_fraction = validation_fraction
        self.run_dir = run_dir
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Text, y: None = None, *, validation: Text | None = None, resume: bool = False) -> Self:
        """Learn from the documents of `X`, which are read from disk as they are needed.

        `validation` holds documents to judge by; without it the last `validation_fraction` of the tokens is kept aside.
        `resume` goes on from the newest checkpoint in `run_dir`, to the same result as an undisturbed run. Raises
        DataError for unusable text, TrainingInterrupted, TrainingDiverged and CheckpointError as they say; the
        estimator is then what it was before.
        """
        with self._unchanged_on_failure(), self._run_folder(resume) as folder:
            self._fit(folder, X, validation, resume)
        return self

    def _fit(self, folder: Path, X: Text, validation: Text | None, resume: bool) -> None:
        self._check_settings()
        seed = self._seed()
        corpus = as_corpus(X)
        pieces = itertools.chain.from_iterable(corpus)
        self.tokenizer_ = Tokenizer.train_language(pieces, self.model.vocab_size, self.tokenizer)
        boundary = self.tokenizer_.id_of(BOUNDARY)
        config = self.model.replace(vocab_size=len(self.tokenizer_), start_id=boundary, end_ids=(boundary,))
        self.model_ = DecoderModel(config).initialise(seed).to(pick_device(self.device))
        self.origin_: Origin | None = None
        prepared = self._prepared(folder, corpus, validation, boundary, seed)
        data, held = prepared.data, prepared.held
        identity = {"model": self.model.to_dict(), "data": data.fingerprint(), "validation": held.fingerprint()}

        def score() -> float:
            return -mean_loss(self.model_, held, prepared.loss, self.training)

        self.results_ = self._train(folder, data, prepared.loss, score, seed=seed, identity=identity, resume=resume)
        self.results_ |= prepared.judge()

    def judging(self, folder: Path, X: Any, y: None = None) -> PackedDataset:
        """Documents in the form models are judged by, their tokens in files in `folder`."""
        file = TokenFile.write(folder / "tokens", as_corpus(X), self.tokenizer_, self._start_id)
        return self._dataset(file.tokens, file.starts, file.about.fingerprint, 0)

    def held_out(self, X: Text, y: None = None) -> tuple[list[str], None]:
        """The end of these documents, which `fit`, and any training that follows it, keeps aside to judge by; of a
        large corpus the beginning of that."""
        check_is_fitted(self, "model_")
        with scratch_folder() as folder:
            file = TokenFile.write(Path(folder) / "tokens", as_corpus(X), self.tokenizer_, self._start_id)
            _, (tokens, starts) = split_tail(file.tokens, file.starts, self.validation_fraction)
            stops = np.minimum(starts, MOST_HELD_OUT).tolist()
            rows = [tokens[first:last].tolist() for first, last in itertools.pairwise(stops) if last > first]
            return self.tokenizer_.decode_exactly(rows), None

    def prepare(self, folder: Path, X: Any, y: Any, validation: Any, seed: int) -> Prepared:
        """Documents in the form training takes, their tokens in files in `folder`, cut into rows by `seed`."""
        check_is_fitted(self, "model_")
        return self._prepared(folder, as_corpus(X), validation, self._start_id, seed)

    def _prepared(
        self, folder: Path, corpus: Corpus | Texts, validation: Text | None, start_id: int, seed: int
    ) -> Prepared:
        file = TokenFile.write(folder / "tokens", corpus, self.tokenizer_, start_id)
        if validation is None:
            learned, judged = split_tail(file.tokens, file.starts, self.validation_fraction)
            judged_print = file.about.fingerprint
            n_words, n_bytes = self._size_of(file, len(learned[0]))
        else:
            apart = TokenFile.write(
                folder / "validation", as_corpus(validation, "validation"), self.tokenizer_, start_id
            )
            learned, judged = (file.tokens, file.starts), (apart.tokens, apart.starts)
            judged_print = apart.about.fingerprint
            n_words, n_bytes = apart.about.n_words, apart.about.n_bytes
        data = self._dataset(*learned, file.about.fingerprint, seed)
        held = self._dataset(*judged, judged_print, seed)

        def judge() -> dict[str, Any]:
            loss = mean_loss(self.model_, held, language_loss, self.training)
            return {
                "held_out_loss": loss,
                "held_out_rows": len(held.in_order(held.context)),
                "held_out_metrics": [vars(one) for one in self._scores(loss, len(judged[0]), n_words, n_bytes)],
            }

        return Prepared(data, held, language_loss, judge)

    def predict(self, X: Iterable[Prompt]) -> list[str]:
        """How each prompt goes on (the prompt itself is not repeated)."""
        return [candidates[0].text for candidates in self.predict_n_best(X)]

    def predict_n_best(self, X: Iterable[Prompt], search: SearchConfig | None = None) -> list[list[Candidate]]:
        """The `n_best` continuations of each prompt, best first; `search` overrides the estimator's own."""
        search = search or self.search
        _check_search(search)
        prompts = self.encode(X)
        found = generate(self.model_, prompts, search)
        written = [(prompt, one.ids) for prompt, row in zip(prompts, found, strict=True) for one in row]
        texts = iter(self.tokenizer_.decode_after(written))
        return [
            [Candidate(next(texts), one.score, one.log_probability, one.finished, one.loop) for one in row]
            for row in found
        ]

    def stream(self, prompt: Prompt, search: SearchConfig | None = None) -> Iterator[str]:
        """The continuation of one prompt in pieces, as they are written; joined, they are what `predict` returns, and
        what a loop had repeated by the time it was noticed. Raises ConfigError if `n_best` is more than 1."""
        search = search or self.search
        _check_search(search)
        if search.n_best != 1:
            raise ConfigError(f"n_best={search.n_best}: a stream is one continuation")
        (row,) = self.encode([prompt])
        # the prompt's last token decides whether a space comes first
        start, end, ids = 0, 1, row[-1:]
        for written in stream(self.model_, row, search):
            ids = [row[-1], *written]
            before, now = self.tokenizer_.decode_exactly([ids[start:end], ids[start:]])
            # half a character: its other bytes are still to come
            if len(now) > len(before) and not now.endswith("\ufffd"):
                yield now[len(before) :]
                start, end = end, len(ids)
        (before,) = self.tokenizer_.decode_exactly([ids[start:end]])
        (told,) = self.tokenizer_.decode_exactly([ids[start : start + 1]])
        (after,) = self.tokenizer_.decode_after([(ids[start : start + 1], ids[start + 1 :])])
        if len(told + after) > len(before):
            yield (told + after)[len(before) :]

    def score(self, X: Text, y: None = None) -> float:
        """Minus the bits that a byte of these documents costs: higher is better."""
        return -self.evaluate(X)[-1].value

    def evaluate(self, X: Text) -> list[Score]:
        """Perplexity a token, perplexity a word (a stretch without white space), and bits a byte, of documents.

        Documents are read in rows of `context` tokens, each of which is predicted from those before it in its row.
        """
        check_is_fitted(self, "model_")
        with scratch_folder() as folder:
            file = TokenFile.write(Path(folder) / "tokens", as_corpus(X), self.tokenizer_, self._start_id)
            data = self._dataset(file.tokens, file.starts, file.about.fingerprint, 0)
            loss = mean_loss(self.model_, data, language_loss, self.training)
            return self._scores(loss, file.about.n_tokens, file.about.n_words, file.about.n_bytes)

    def encode(self, texts: Iterable[Prompt]) -> list[list[int]]:
        """Ids of each prompt, which may be given as ids. Raises DataError for one that is empty or longer than the
        model's positions, or whose ids are not the vocabulary's.

        In text nothing is read as a special token: a chat model's prompts are the ids that its template makes. A
        warning says where the text of a foreign model's prompt spells one.
        """
        check_is_fitted(self, "model_")
        if _are_ids(texts):
            rows = [_as_ids(one, f"X[{i}]", self.model_.config.vocab_size) for i, one in enumerate(texts)]
        else:
            prompts = as_texts(texts, "X")
            rows = self.tokenizer_.encode(prompts)
            self._warn_of_spelled(prompts)
        for i, row in enumerate(rows):
            if not 0 < len(row) <= self.model_.config.max_positions:
                raise DataError(
                    f"X[{i}]: {len(row)} tokens; at least 1 is needed and the model has "
                    f"{self.model_.config.max_positions} positions"
                )
        return rows

    def _warn_of_spelled(self, prompts: Sequence[str]) -> None:
        if not self._is_foreign:
            return
        spelled = next((token for text in prompts for token in self.tokenizer_.special if token in text), None)
        if spelled is not None:
            warnings.warn(
                f"a prompt spells {spelled}, which in text is not a special token; give ids, as a chat template makes "
                "them",
                UserWarning,
                stacklevel=4,
            )

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face style directory; `transformers` opens it where it has the architecture."""
        check_is_fitted(self, "model_")
        folder, config = Path(folder), self.model_.config
        about = self._about(context=self.context)
        special = {"bos_token": config.start_id, "eos_token": self._end_id}
        example = [
            "from transfuse import LanguageModel",
            "",
            'LanguageModel.load("this-directory").predict(["It was"])',
        ]
        beside = {
            TOKENIZER: self.tokenizer_.to_json(),
            TOKENIZER_CONFIG: self.origin_.tokenizer_config
            if self.origin_ and self.origin_.tokenizer_config
            else json.dumps(tokenizer_values(self.tokenizer_, config.max_positions, **special), indent=2),
            ESTIMATOR: json.dumps(about, indent=2, ensure_ascii=False),
            "README.md": model_card("Language model", self.model_, self.results_, example),
        }
        save_model(self.model_, folder, beside, self.origin_)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None, dtype: str = "float32") -> Self:
        """The estimator saved in `folder`, or one around a Llama, Mistral, Qwen2 or GPT-2 directory or hub id.

        `dtype` ("float32", "bfloat16" or "float16") is what it computes in; `save` writes the dtype it was stored in.
        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there or another dtype.
        """
        folder, model = cls._model_in(folder, device, dtype)
        if not isinstance(model, DecoderModel):
            raise ModelDirectoryError(f"{folder}: a {type(model).__name__}, expected a language model")
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        context = min(256, model.config.max_positions)
        own = {"training": TRAINING.to_dict(), "search": SEARCH.to_dict(), "context": context}
        about = read_about(folder, COMMON | own)
        model.config = model.config.replace(end_ids=_all_end_ids(folder, model.config))
        estimator = cls._opened(folder, model, tokenizer, about, context=about["context"], device=device)
        estimator.origin_, estimator._is_foreign = read_origin(folder), not (folder / ESTIMATOR).is_file()
        return estimator

    def _check_settings(self) -> None:
        """Raise ConfigError for settings that fit cannot work with."""
        kinds = {"model": DecoderConfig, "tokenizer": TokenizerConfig, "training": TrainingConfig}
        self._check_common_settings(kinds | {"search": SearchConfig})
        _check_search(self.search)
        if self.training.select_by != "loss":
            raise ConfigError(f"select_by={self.training.select_by!r}: a language model is judged by its loss")
        self._check_context(self.model.max_positions)

    @property
    def _start_id(self) -> int:
        """What stands before a document."""
        start_id = self.model_.config.start_id
        return self._end_id if start_id is None else start_id

    @property
    def _end_id(self) -> int:
        return int(self.model_.config.end_ids[0])

    def _check_context(self, max_positions: int) -> None:
        if not 2 <= self.context <= max_positions:
            raise ConfigError(f"context={self.context} must be at least 2 and at most max_positions={max_positions}")

    def _dataset(self, tokens: Any, starts: Any, fingerprint: str, seed: int) -> PackedDataset:
        self._check_context(self.model_.config.max_positions)  # it may have changed since the training
        return PackedDataset(
            tokens, starts, context=self.context, end_id=self._end_id, fingerprint=fingerprint, seed=seed
        )

    def _size_of(self, file: TokenFile, cut: int) -> tuple[int, int]:
        """Words (stretches without white space) and UTF-8 bytes of a corpus from one of its tokens on."""
        whole = int(np.searchsorted(file.starts, cut))
        n_words, n_bytes = file.sizes[whole:].sum(0).tolist()
        part = TextSize()
        for first in range(cut, int(file.starts[whole]), AT_A_TIME):  # of the document that the cut goes through
            last = min(first + AT_A_TIME, int(file.starts[whole]))
            (text,) = self.tokenizer_.decode_exactly([file.tokens[first:last].tolist()])
            part.add(text)
        return n_words + part.n_words, n_bytes + part.n_bytes

    def _scores(self, loss: float, n_tokens: int, n_words: int, n_bytes: int) -> list[Score]:
        if math.isnan(loss):
            raise GenerationError(f"the loss on this text is not a number; {suspect(self.model_.output.weight.dtype)}")
        signature = f"context:{self.context}|stride:{self.context}|version:{transfuse.__version__}"
        total = loss * n_tokens
        scores = [
            Score("perplexity", _exp(loss), f"per:token|{signature}"),
            Score("word perplexity", _exp(total / n_words) if n_words else math.inf, f"per:word|{signature}"),
            Score("bits a byte", total / max(n_bytes, 1) / math.log(2), f"per:byte|{signature}"),
        ]
        # where there are no words, or one is a line, as in Chinese, its perplexity is no number that a computer has
        return [score for score in scores if math.isfinite(score.value)]


def _all_end_ids(folder: Path, config: DecoderConfig) -> tuple[int, ...]:
    """The end tokens of config.json and those that only generation_config.json names, as chat models have them."""
    further = read_json(folder / GENERATION, missing={}).get("eos_token_id")
    further = further if isinstance(further, list) else [further]
    known = [i for i in further if isinstance(i, int) and 0 <= i < config.vocab_size]
    return tuple(dict.fromkeys([*config.end_ids, *known]))


def _are_ids(given: Any) -> bool:
    """Whether these are rows of ids and no texts: a list of rows, or a matrix."""
    if getattr(given, "ndim", 0) == 2 and not hasattr(given, "columns"):
        return True
    of_rows = isinstance(given, list | tuple) and len(given) > 0
    return of_rows and all(not isinstance(one, str | bytes) and hasattr(one, "__len__") for one in given)


def _as_ids(given: Any, name: str, vocab_size: int) -> list[int]:
    try:
        ids = np.asarray(given)
    except ValueError:  # rows of different lengths inside of one
        ids = np.zeros((0, 0))
    if ids.ndim != 1 or (len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size)):
        raise DataError(f"{name}: expected a text, or whole numbers from 0 to {vocab_size - 1} in a row")
    found: list[int] = ids.tolist()
    return found


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def _check_search(search: SearchConfig) -> None:
    if search.beams != 1:
        raise ConfigError(f"beams={search.beams}: a language model is sampled or greedy, beams=1")
