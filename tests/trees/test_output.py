"""What becomes of the trees' sums, in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from transfuse.trees.output import Link, Output

LOG3 = np.log(3.0)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Output("shares", 3, divisor=4), [LOG3 / 4, 0, -LOG3 / 4]),
        (Output("mean", first=3, divisor=2), LOG3),
        (Output("logits", first=3), [1 / 10, 9 / 10]),  # the odds are 3²
        (Output("logits", first=3, divisor=2), [1 / 4, 3 / 4]),
        (Output("logits", 3), [9 / 13, 3 / 13, 1 / 13]),
        (Output("sigmoids", 3), [3 / 4, 1 / 2, 1 / 4]),
        (Output("sigmoids", 2, first=2, divisor=0.5), [1 / 10, 81 / 82]),
        (Output("identity", first=2), -LOG3),
        (Output("exponential", first=3), 9),
    ],
    ids=lambda value: value.link if isinstance(value, Output) else "",
)
def test_links(output: Output, expected: object) -> None:
    found = output.predicted(np.array([[LOG3, 0, -LOG3, 2 * LOG3]]))
    np.testing.assert_allclose(found, [expected], rtol=1e-14)
    assert output.of_classes == (found.ndim == 2)


@pytest.mark.parametrize(("link", "votes"), [("shares", True), ("mean", True), ("logits", False), ("identity", False)])
def test_trees_of_forests_vote(link: Link, votes: bool) -> None:
    assert Output(link).is_vote == votes
