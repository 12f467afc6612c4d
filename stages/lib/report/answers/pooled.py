"""Numbers that an analysis made once from all seeds of an arm: they stand in the row of the first seed."""

import pandas as pd

from stages.lib.report.results import Cell, Results


def pooled(results: Results, stage: str) -> dict[str, dict[str, Cell]]:
    """{arm: {metric: cell}} of a stage; a cell has `mean` and, where they were measured, `low`, `high` and `n`.

    Of a metric that each seed has a row of, the first seed's; `Results.near` is the mean of those.
    """
    rows = results.rows[stage].sort_values("seed", kind="stable").drop_duplicates(["arm", "metric"])
    found: dict[str, dict[str, Cell]] = {}
    for arm, metric, value, low, high, n in rows[["arm", "metric", "value", "low", "high", "n"]].itertuples(
        index=False
    ):
        interval = {"low": float(low), "high": float(high)} if pd.notna(low) and pd.notna(high) else {}
        number = {"n": int(n)} if pd.notna(n) else {}
        found.setdefault(str(arm), {})[str(metric)] = {"mean": float(value), **interval, **number}
    return {arm: found[arm] for arm in results.arms if arm in found}
