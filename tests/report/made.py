"""Results made of a few rows, for the tests of answers and figures (no test itself)."""

import pandas as pd

from stages.lib.io.summary import COLUMNS
from stages.lib.report.page import Block, Table
from stages.lib.report.results import Results

ARMS = ["relu", "topk", "frozen_decoder"]
SEEDS = [0, 1, 2]
Found = dict[str, float | tuple[float, float, float]]
"""By metric: a number, or one with its interval."""


def rows(arm: str, seed: int, found: Found, n: int = 40) -> pd.DataFrame:
    """The rows of one seed as `read_summaries` gives them."""
    cells = [(value if isinstance(value, tuple) else (value, None, None)) for value in found.values()]
    records = [(arm, 1, seed, metric, *cell, n) for metric, cell in zip(found, cells, strict=True)]
    return pd.DataFrame(records, columns=COLUMNS).astype({"low": float, "high": float})


def results(emergence: pd.DataFrame, frequency: pd.DataFrame | None = None) -> Results:
    """Results of three arms, the last one a control, at L0 16."""
    l0 = pd.concat([rows(arm, seed, {"l0": 16.0}) for arm in ARMS for seed in SEEDS])
    nothing = emergence.iloc[:0]
    found = {"evaluate": l0, "emergence": emergence, "frequency": nothing if frequency is None else frequency}
    return Results(ARMS, ["frozen_decoder"], "topk", SEEDS, [8.0, 16.0, 32.0], 16.0, {}, found)


def said(blocks: list[Block]) -> str:
    """All text of some blocks, with the cells of tables."""
    parts = []
    for block in blocks:
        if isinstance(block, Table):
            parts += [block.caption, *block.header, *(cell for row in block.rows for cell in row)]
        else:
            parts.append(getattr(block, "text", ""))
    return " ".join(parts)
