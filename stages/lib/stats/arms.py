"""The tables of arms against the reference and against one another: {target: {metric: ...}}."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.stats.contrasts import Comparison, against_reference, all_pairs, omnibus
from stages.lib.stats.equal_l0 import Nested, key, per_seed
from stages.lib.stats.intervals import paired


def differences(
    values: pd.DataFrame, metrics: Sequence[str], targets: Sequence[float], reference: str,
    controls: Sequence[str], margins: Mapping[str, float],
) -> Nested:  # fmt: skip
    """Every arm against the reference (`stages.lib.stats.contrasts.against_reference`).

    Tested arms have mean, low, high, p, detectable, n and verdict, and where `margins` has the metric (as a share of
    the reference's mean) margin and p_equal. A control has the mean of the differences of equal seeds and n: it is kept
    out of the model, since its errors are of another kind.
    """
    table: Nested = {}
    for target in targets:
        for metric in metrics:
            seeds = per_seed(values, metric, target)
            tested = {arm: own for arm, own in seeds.items() if arm not in controls}
            cells = {arm: _cell(one) for arm, one in
                     against_reference(tested, reference, margins.get(metric)).items()}  # fmt: skip
            for arm in [arm for arm in seeds if arm in controls]:
                if shared := paired(seeds[arm], seeds.get(reference, {})):
                    cells[arm] = {"mean": float(np.mean(shared)), "n": len(shared)}
            if cells:
                table.setdefault(key(target), {})[metric] = cells
    return table


def _cell(found: Comparison) -> dict[str, Any]:
    cell = {name: value for name, value in found._asdict().items() if value is not None}
    return cell | ({"verdict": found.verdict} if found.verdict is not None else {})


def contrasts(values: pd.DataFrame, metrics: Sequence[str], targets: Sequence[float], arms: Sequence[str]) -> Nested:
    """{target: {metric: {"omnibus": f, df, df_error, p; "pairs": {arm: {other: mean, p}}}}} of the arms named."""
    table: Nested = {}
    for target in targets:
        for metric in metrics:
            seeds = {arm: own for arm, own in per_seed(values, metric, target).items() if arm in arms}
            pairs: dict[str, dict[str, dict[str, float]]] = {}
            for (arm, other), pair in all_pairs(seeds).items():
                pairs.setdefault(arm, {})[other] = pair._asdict()
            if pairs:
                table.setdefault(key(target), {})[metric] = {"omnibus": omnibus(seeds), "pairs": pairs}
    return table
