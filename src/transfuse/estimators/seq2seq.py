"""Text to text: translation, summarisation, dialogue, anything that comes in pairs."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from transfuse.data.batches import PairDataset, hold_out
from transfuse.data.pairs import Columns, as_pairs, as_texts
from transfuse.data.tokenizer import SPECIAL_IDS, Tokenizer, TokenizerConfig
from transfuse.errors import (
    CacheTooLargeError,
    ConfigError,
    DataError,
    GenerationError,
    ModelDirectoryError,
    TruncatedWarning,
    UnseenCharactersWarning,
)
from transfuse.estimators.about import COMMON, ESTIMATOR, TOKENIZER, TOKENIZER_CONFIG, read_about, tokenizer_values
from transfuse.estimators.candidate import Candidate
from transfuse.estimators.model_card import model_card
from transfuse.estimators.trained import Prepared, TrainedEstimator
from transfuse.generation.beam import check_beams
from transfuse.generation.config import SearchConfig
from transfuse.generation.generate import generate
from transfuse.metrics.text_scores import Score, check_metrics, score_texts
from transfuse.models.seq2seq import Seq2SeqConfig, Seq2SeqModel
from transfuse.pretrained.directory import save_model
from transfuse.training.config import TrainingConfig
from transfuse.training.loop import mean_loss
from transfuse.training.run import pick_device
from transfuse.training.seq2seq import seq2seq_loss


class Seq2Seq(TrainedEstimator):
    """An encoder–decoder Transformer with its own BPE, trained on pairs of texts.

    `model`, `tokenizer`, `training` and `search` hold the settings of each part (their fields are parameters too:
    `training__epochs`). `model.vocab_size` is the vocabulary asked for; small data may have less to give. The ids of
    special tokens are the tokenizer's, whatever `model` says. `metric` is
    what `score` returns: one of "bleu", "bleu-lc", "bleu-char", "chrf", "rouge" (ROUGE-L) or "exact". Checkpoints and
    metrics go to `run_dir`, by default to a folder that is deleted afterwards. `device` is "cpu" or "cuda", by default
    the best there is. With `verbose`, progress goes to stderr.

    After `fit`: `model_` (the torch module), `tokenizer_`, `results_` (what the training came to), `characters_` (those
    the training text had).
    """

    def __init__(
        self,
        *,
        model: Seq2SeqConfig = Seq2SeqConfig(),
        tokenizer: TokenizerConfig = TokenizerConfig(),
        training: TrainingConfig = TrainingConfig(),
        search: SearchConfig = SearchConfig(),
        metric: str = "bleu",
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
        self.metric = metric
        self.validation_fraction = validation_fraction
        self.run_dir = run_dir
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Iterable[str],
        y: Iterable[str],
        *,
        validation: tuple[Iterable[str], Iterable[str]] | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn to turn each text of `X` into the text of `y` in the same place.

        `validation` holds pairs to judge by; without it a random `validation_fraction` of the rows, one at least and
        1,000 at most, is kept aside. `resume` goes on from the newest checkpoint in `run_dir`, to the same result as an
        undisturbed run.
        Raises DataError for unusable rows, TrainingInterrupted, TrainingDiverged and CheckpointError as they say; the
        estimator is then what it was before.
        """
        with self._unchanged_on_failure():
            self._fit(X, y, validation, resume)
        return self

    def _fit(
        self, X: Iterable[str], y: Iterable[str], validation: tuple[Iterable[str], Iterable[str]] | None, resume: bool
    ) -> None:
        self._check_settings()
        seed = self._seed()
        training, held_out = self._divided(X, y, validation, seed)
        self.tokenizer_ = Tokenizer.train([*training[0], *training[1]], self.model.vocab_size, self.tokenizer)
        characters = {c for side in training for text in side for c in self.tokenizer_.normalize(text)}
        self.characters_ = "".join(sorted(characters))
        check_beams(self.search.beams, len(self.tokenizer_))  # the training would be for nothing
        config = self.model.replace(vocab_size=len(self.tokenizer_), target_vocab_size=None, **SPECIAL_IDS)
        self.model_ = Seq2SeqModel(config).initialise(seed).to(pick_device(self.device))
        prepared = self._prepared(training, held_out)
        data, held = prepared.data, prepared.held

        def score() -> float:
            if self.training.select_by == "loss":
                return -mean_loss(self.model_, held, prepared.loss, self.training)
            greedy = self.search.replace(beams=1, n_best=1, sample=False)
            try:
                return self._scores(*held_out, [self.metric], greedy)[-1].value
            except CacheTooLargeError:
                raise
            except GenerationError:
                return math.nan

        # the vocabulary asked for: the one learned follows from the data
        identity = {"model": self.model.to_dict(), "data": data.fingerprint(), "validation": held.fingerprint()}
        if self.training.select_by == "metric":
            identity |= {"metric": self.metric, "search": self.search.to_dict()}
        with self._run_folder(resume) as folder:
            self.results_ = self._train(folder, data, prepared.loss, score, seed=seed, identity=identity, resume=resume)
        self.results_ |= prepared.judge()

    def held_out(self, X: Iterable[str], y: Iterable[str]) -> Columns:
        """The pairs of these that `fit` with a whole number for `random_state`, and any training that follows it, keeps
        aside to judge by."""
        return self._divided(X, y, None, self._known_seed())[1]

    def judging(self, folder: Path, X: Iterable[str], y: Iterable[str]) -> PairDataset:
        """Pairs in the form models are judged by."""
        del folder
        return self._dataset(as_pairs(X, y, "X", "y"), "held-out")

    def prepare(self, folder: Path, X: Any, y: Any, validation: Any, seed: int) -> Prepared:
        """Pairs in the form training takes; all of them in memory."""
        del folder, seed  # epochs of pairs are ordered by the seed that training gives them
        check_is_fitted(self, "model_")
        return self._prepared(*self._divided(X, y, validation, self._known_seed()))

    def _divided(
        self, X: Iterable[str], y: Iterable[str], validation: tuple[Iterable[str], Iterable[str]] | None, seed: int
    ) -> tuple[Columns, Columns]:
        """Pairs to learn from and pairs to judge by."""
        pairs = as_pairs(X, y, "X", "y")
        if validation is None:
            return hold_out(pairs, self.validation_fraction, seed)
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise DataError("validation must be two columns, the texts and what they become")
        return pairs, as_pairs(*validation, "validation[0]", "validation[1]")

    def _prepared(self, training: Columns, held_out: Columns) -> Prepared:
        data, held = self._dataset(training, "training"), self._dataset(held_out, "held-out")
        return Prepared(data, held, seq2seq_loss, lambda: self._judged(held, held_out))

    def predict(self, X: Iterable[str]) -> list[str]:
        """The best output for each text."""
        return [candidates[0].text for candidates in self.predict_n_best(X)]

    def predict_n_best(self, X: Iterable[str], search: SearchConfig | None = None) -> list[list[Candidate]]:
        """The `n_best` outputs for each text, best first; `search` overrides the estimator's own."""
        check_is_fitted(self, "model_")
        texts = as_texts(X, "X")
        self._warn_of_unseen(texts)
        return self._generate(texts, search or self.search)

    def score(self, X: Iterable[str], y: Iterable[str]) -> float:
        """`metric` of the predictions for `X` against `y`, 0 to 100 (the last score of `evaluate`)."""
        return self.evaluate(X, y)[-1].value

    def evaluate(self, X: Iterable[str], y: Iterable[str], metrics: str | Sequence[str] | None = None) -> list[Score]:
        """The scores that `metrics` (by default the estimator's) stand for, with their signatures."""
        check_is_fitted(self, "model_")
        pairs = as_pairs(X, y, "X", "y")
        self._warn_of_unseen(pairs[0])
        chosen = self.metric if metrics is None else metrics
        return self._scores(*pairs, [chosen] if isinstance(chosen, str) else chosen, self.search)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, cut to the model's positions with a TruncatedWarning."""
        check_is_fitted(self, "model_")
        return self._cut(self.tokenizer_.encode(as_texts(texts, "X")), "X")

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face style directory; `transformers` opens it where it has the architecture."""
        check_is_fitted(self, "model_")
        folder = Path(folder)
        about = self._about(metric=self.metric, characters=self.characters_)
        config = self.model_.config
        special = {"bos_token": config.start_id, "eos_token": config.end_id, "pad_token": config.pad_id}
        example = ["from transfuse import Seq2Seq", "", 'Seq2Seq.load("this-directory").predict(["a text"])']
        beside = {
            TOKENIZER: self.tokenizer_.to_json(),
            TOKENIZER_CONFIG: json.dumps(tokenizer_values(self.tokenizer_, config.max_positions, **special), indent=2),
            ESTIMATOR: json.dumps(about, indent=2, ensure_ascii=False),
            "README.md": model_card("Encoder–decoder Transformer", self.model_, self.results_, example),
        }
        save_model(self.model_, folder, beside)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None, dtype: str = "float32") -> Self:
        """The estimator saved in `folder`, or one around a `transformers` directory that has a tokenizer.json.

        `dtype` ("float32", "bfloat16" or "float16") is what it computes in, and what `save` writes.
        Raises ModelDirectoryError naming file and rule, ConfigError for a device that is not there or another dtype.
        """
        folder, model = cls._model_in(folder, device, dtype)
        if not isinstance(model, Seq2SeqModel):
            raise ModelDirectoryError(f"{folder}: a {type(model).__name__}, expected an encoder–decoder")
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        if model.config.n_target_tokens != model.config.vocab_size:
            raise ModelDirectoryError(
                f"{folder}: source and target have vocabularies of their own ({model.config.vocab_size} and "
                f"{model.config.n_target_tokens} tokens), which one {TOKENIZER} cannot serve"
            )
        about = read_about(folder, COMMON | {"metric": "bleu", "characters": ""})
        estimator = cls._opened(folder, model, tokenizer, about, metric=about["metric"], device=device)
        estimator.characters_ = about["characters"]
        return estimator

    def _check_settings(self) -> None:
        """Raise ConfigError for settings that fit cannot work with."""
        self._check_common_settings(
            {"model": Seq2SeqConfig, "tokenizer": TokenizerConfig, "training": TrainingConfig, "search": SearchConfig}
        )
        check_metrics([self.metric])
        if self.model.n_target_tokens != self.model.vocab_size:
            raise ConfigError(
                f"target_vocab_size={self.model.target_vocab_size} must be vocab_size={self.model.vocab_size}: "
                "fit learns one vocabulary for both sides"
            )

    def _dataset(self, pairs: Columns, name: str) -> PairDataset:
        sources, targets = (
            self._cut(self.tokenizer_.encode(side), f"{name} {kind}")
            for side, kind in zip(pairs, ("sources", "targets"), strict=True)
        )
        config = self.model_.config
        return PairDataset(sources, targets, config.start_id, config.pad_id, config.first_id)

    def _cut(self, rows: list[list[int]], name: str) -> list[list[int]]:
        """Rows no longer than the model's positions, each still closed by the end token."""
        longest, end_id = self.model_.config.max_positions, self.model_.config.end_id
        longest -= self.model_.config.first_id is not None and name.endswith("targets")
        long = [i for i, row in enumerate(rows) if len(row) > longest]
        if long:
            warnings.warn(
                f"{name}: {len(long)} of {len(rows)} texts have more than {longest} tokens and are cut "
                f"(the first is row {long[0]} with {len(rows[long[0]])})",
                TruncatedWarning,
                stacklevel=4,
            )
        return [row if len(row) <= longest else [*row[: longest - 1], end_id] for row in rows]

    def _warn_of_unseen(self, texts: Sequence[str]) -> None:
        known = set(self.characters_)
        unseen = {row: set(self.tokenizer_.normalize(text)) - known for row, text in enumerate(texts)} if known else {}
        rows = [row for row, characters in unseen.items() if characters]
        if rows:
            named = " ".join(map(repr, sorted(set().union(*(unseen[row] for row in rows)))[:5]))
            warnings.warn(
                f"{len(rows)} of {len(texts)} texts hold characters that never occurred in training "
                f"(the first is row {rows[0]}): {named}; expect little of what depends on them",
                UnseenCharactersWarning,
                stacklevel=3,
            )

    def _judged(self, held: PairDataset, held_out: Columns) -> dict[str, Any]:
        try:
            scores = self._scores(*held_out, [self.metric], self.search)
        except GenerationError as error:  # no reason to lose what was trained
            warnings.warn(f"the held-out pairs are not judged by {self.metric}: {error}", UserWarning, stacklevel=6)
            scores = []
        return {
            "held_out_loss": mean_loss(self.model_, held, seq2seq_loss, self.training),
            "held_out_rows": len(held),
            "held_out_metrics": [vars(score) for score in scores],
        }

    def _scores(
        self, sources: list[str], targets: list[str], metrics: Sequence[str], search: SearchConfig
    ) -> list[Score]:
        check_metrics(metrics)
        outputs = [row[0].text for row in self._generate(sources, search)]
        return [score for metric in metrics for score in score_texts(outputs, targets, metric)]

    def _generate(self, texts: Sequence[str], search: SearchConfig) -> list[list[Candidate]]:
        found = generate(self.model_, self._cut(self.tokenizer_.encode(texts), "X"), search)
        flat = [one.ids for hypotheses in found for one in hypotheses]
        outputs = iter(self.tokenizer_.decode(flat))
        return [
            [Candidate(next(outputs), one.score, one.log_probability, one.finished, one.loop) for one in row]
            for row in found
        ]
