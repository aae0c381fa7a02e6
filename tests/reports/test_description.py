"""What columns hold, and texts that repeat themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from commands import call, failure
from transfuse import ConfigError, describe
from transfuse.reports import description
from transfuse.reports.description import RUN, SHORTEST, distinct_shares
from transfuse.strings.longest import longest_distinct_rows

LOOP = "and so we went on " * 12
PLAIN = " ".join(f"word{i}" for i in range(60))


def by_definition(text: str) -> float:
    """Every window of runs of words, tried."""
    words = text.split()
    runs = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    if len(runs) < SHORTEST:
        return 1.0
    best = max(
        stop - start
        for start in range(len(runs))
        for stop in range(start + 1, len(runs) + 1)
        if len(set(runs[start:stop])) == stop - start
    )
    return best / len(runs)


def test_shares_are_those_of_the_longest_window() -> None:
    draw = np.random.default_rng(0)
    texts = [LOOP, PLAIN, PLAIN + " " + LOOP, "too short", ""]
    texts += [" ".join(draw.choice(list("abc"), 60)) for _ in range(20)]
    np.testing.assert_allclose(distinct_shares(texts), [by_definition(text) for text in texts])
    assert distinct_shares([LOOP])[0] < 0.2 and distinct_shares([PLAIN])[0] == 1


def test_one_long_text_does_not_make_the_others_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def scanned(ids: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(ids.shape)
        return longest_distinct_rows(ids, keep)

    monkeypatch.setattr(description, "longest_distinct_rows", scanned)
    texts = [PLAIN + " " + LOOP] * 3000 + [LOOP * 20_000] + [PLAIN] * 2000
    shares = distinct_shares(texts)
    assert shares[0] == by_definition(texts[0]) < 1 and (shares[:3000] == shares[0]).all()
    assert shares[3000] < 1e-4 and (shares[3001:] == 1).all()
    assert sum(rows for rows, _ in seen) == len(texts)
    assert max(rows * width for rows, width in seen if rows > 1) <= description.NUMBERS


def test_each_column_is_described() -> None:
    frame = pd.DataFrame(
        {
            "story": [PLAIN, LOOP, None, PLAIN + " end"],
            "size": [1.0, 5.0, None, 2.0],
            "letter": ["a", "b", "a", None],
            "day": ["2024-01-05", "2023-12-31", None, "2024-02-01"],
            "memo": ["one\ntwo", "three four", "x", "y"],
            "photo": ["a.png", "b.png", "c.png", "d.png"],
            "empty": [None] * 4,
        }
    )
    found = {one.name: one for one in describe(frame, {"letter": "category", "story": "text", "memo": "text"}).columns}
    story = found["story"]
    assert (story.known, story.different, story.repeating, story.worst_row) == (3, 3, 1, 2)
    assert story.words == pytest.approx((60 + 60 + 61) / 3)
    assert found["size"].about == "1 to 5, median 2" and found["size"].known == 3
    assert found["letter"].about == "most often a (67 %)"
    assert found["day"].about == "2023-12-31 to 2024-02-01"
    assert found["memo"].about == "one two"
    assert found["photo"].kind == "image" and found["empty"].about == "nothing is known"
    text = describe(frame, {"letter": "category", "story": "text"}).to_text()
    assert text.startswith("4 rows") and "1 (most: row 2)" in text


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"story,size\n{PLAIN},1\n{LOOP},2\n")
    code, output, _ = call("describe", tmp_path / "t.csv", "--kind", "story=text", "--json")
    assert code == 0 and json.loads(output)["columns"][0]["worst_row"] == 2
    assert call("describe", tmp_path / "t.csv")[0] == 0
    assert failure("describe", tmp_path / "t.csv", "--kind", "story") == (
        2,
        "transfuse: --kind story: expected COLUMN=KIND",
    )
    with pytest.raises(ConfigError, match="'film' must be one of"):
        describe(pd.DataFrame({"a": [1]}), {"a": "film"})  # type: ignore[dict-item]
