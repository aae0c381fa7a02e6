"""How sequences are searched for."""

from __future__ import annotations

from dataclasses import dataclass

from transfuse.config import Config
from transfuse.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """Settings of generation.

    `beams` = 1 is greedy. `sample` draws from the model's distribution instead, after dividing logits by `temperature`
    and keeping the `top_k` most probable tokens and the fewest tokens that hold `top_p` of the probability; draws are a
    function of `seed` and the row, so a row's sample does not depend on what it is batched with. A finished sequence's
    score is its log-probability over its length (end token counted) to the power `length_penalty`: 0 prefers short
    sequences, larger values longer ones. `n_best` sequences come back for each row. A sequence has at most `max_tokens`
    tokens; by default twice its source's and 32 more for an encoder–decoder, and for a language model as many as its
    positions allow. `batch_tokens` bounds rows × longest row of a batch, where a row of a language model is as long as
    it may become. With `loop_repeats`, a sequence whose last tokens are that many times the same is cut after the first
    of them, and the finding reported (`beams` = 1 only).
    """

    beams: int = 4
    length_penalty: float = 1.0
    n_best: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int | None = None
    batch_tokens: int = 2048
    loop_repeats: int | None = None

    def __post_init__(self) -> None:
        self.check_types()
        self.check_finite("length_penalty", "temperature", "top_p")
        self.check_positive("beams", "n_best", "temperature", "top_k", "top_p", "max_tokens", "batch_tokens")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must be at least 0")
        if self.top_p > 1:
            raise ConfigError(f"top_p={self.top_p} must be at most 1")
        if self.sample and self.beams != 1:
            raise ConfigError(f"sample=True draws single sequences and needs beams=1, not beams={self.beams}")
        if self.loop_repeats is not None and self.loop_repeats < 2:
            raise ConfigError(f"loop_repeats={self.loop_repeats} must be at least 2: once is no repetition")
        if self.loop_repeats is not None and self.beams != 1:
            raise ConfigError(f"loop_repeats={self.loop_repeats} needs beams=1, not beams={self.beams}")
        if self.n_best > self.beams and not self.sample:
            raise ConfigError(f"n_best={self.n_best} must be at most beams={self.beams}")
