"""The most probable tokens, against sorting them all."""

from __future__ import annotations

import math

import pytest
import torch

from transfuse.errors import GenerationError
from transfuse.generation import candidates
from transfuse.generation.candidates import BLOCK, largest, most_probable
from transfuse.models.seq2seq import Seq2SeqConfig

CONFIG = Seq2SeqConfig(vocab_size=BLOCK * 40 + 7)


def scores(n_rows: int, n_scores: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n_rows, n_scores, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_scores", [BLOCK * 40, BLOCK * 40 + 1, BLOCK * 41 - 1, BLOCK * 3])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_largest_is_topk(n_scores: int, k: int) -> None:
    x = scores(13, n_scores)
    values, ids = largest(x, k)
    assert torch.equal(values, x.topk(k).values)
    assert torch.equal(ids, x.topk(k).indices)


def test_largest_finds_neighbours_and_those_after_the_last_whole_block() -> None:
    x = scores(3, BLOCK * 40 + 7)
    wanted = torch.tensor([[5, 6, 7], [BLOCK * 40 - 1, BLOCK * 40, BLOCK * 40 + 6], [0, BLOCK, BLOCK * 40 + 3]])
    x.scatter_(1, wanted, torch.tensor([30.0, 20.0, 10.0]).expand(3, -1))
    assert torch.equal(largest(x, 3)[1], wanted)


def test_fewer_possible_scores_than_asked_for_leave_minus_infinity() -> None:
    x = torch.full((1, BLOCK * 40), -math.inf)
    x[0, 77] = 1.0
    values, ids = largest(x, 2)
    assert values.tolist() == [[1.0, -math.inf]]
    assert ids[0, 0] == 77


@pytest.mark.parametrize("chunk", [1, CONFIG.vocab_size * 5, candidates.CHUNK_NUMBERS])
def test_probabilities_are_normalised_over_all_tokens_in_chunks_of_any_size(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "CHUNK_NUMBERS", chunk)
    hidden, weight = scores(13, 11).double(), scores(CONFIG.vocab_size, 11, seed=2).double()
    with torch.inference_mode():
        log_p, ids = most_probable(lambda part: part @ weight.T, hidden, CONFIG, 8)
    everything = (hidden @ weight.T).log_softmax(-1)
    everything[:, [CONFIG.pad_id, CONFIG.start_id]] = -math.inf
    expected = everything.topk(8)
    torch.testing.assert_close(log_p, expected.values, atol=1e-12, rtol=0)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(broken: float) -> None:
    logits = scores(3, CONFIG.vocab_size)
    logits[1, 100] = broken
    with pytest.raises(GenerationError, match="not numbers"):
        most_probable(lambda part: logits, logits, CONFIG, 4)
