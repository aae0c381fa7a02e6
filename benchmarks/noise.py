"""One true feature among noise of ever more values: what leads on training rows, and what on others.

    python benchmarks/noise.py [PICTURE]

The simulation of Strobl and others (2007): y depends on a column of two values; five columns of 2 to 50 values and one
of normal numbers are noise. Ten draws of 600 rows, half of them held out. Exits 1 unless noise leads by Gini importance
on training rows in every draw, and the true column on held-out rows.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

from transfuse import tree_importance

VALUES, N, DRAWS = (2, 4, 10, 20, 50), 600, 10


def main(picture: str | None) -> int:
    wrong = right = 0
    for seed in range(DRAWS):
        draw = np.random.default_rng(seed)
        true = draw.integers(0, 2, N)
        y = (draw.random(N) < np.where(true == 1, 0.62, 0.38)).astype(int)
        columns = {"true, 2 values": true}
        columns |= {f"noise, {values} values": draw.integers(0, values, N) for values in VALUES}
        X = pd.DataFrame(columns | {"noise, normal": draw.normal(size=N)}).astype(float)
        forest = RandomForestClassifier(300, random_state=0).fit(X[: N // 2], y[: N // 2])
        found = tree_importance(forest, X[N // 2 :], y[N // 2 :])
        wrong += found.table["gini_train"].idxmax() != "true, 2 values"
        right += found.table["gini_held_out"].idxmax() == "true, 2 values"
        if seed == 0:
            print(found.to_text())
            if picture is not None:
                found.save_picture(picture)
    print(f"of {DRAWS} draws noise leads on training rows in {wrong}, the true column on held-out rows in {right}")
    return int(wrong < DRAWS or right < DRAWS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or [None]))
