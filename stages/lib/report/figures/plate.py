"""A figure of the report while it is drawn, and what the figures share.

Tables in, pictures with captions out: modules here say what is drawn where, `draw` says how. Every caption says what an
interval or a band is and on how many seeds it rests.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib.figure
import pandas as pd
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.draw import canvas, png
from stages.lib.report.page import Figure
from stages.lib.report.results import Results

MAX_ROWS = 32
"""Rows of a heat map that can still be read."""


class Plate:
    """A figure of the report while it is drawn."""

    def __init__(self, name: str, figure: matplotlib.figure.Figure, axes: list[Axes]) -> None:
        self.name, self.axes = name, axes
        self._figure = figure
        self._picture = b""

    def legend(self, axes: Axes) -> None:
        """Put the legend of one of the axes below the figure."""
        draw.legend(self._figure, axes)

    def finish(self) -> None:
        """Keep the picture as it is."""
        self._picture = png(self._figure)

    def captioned(self, caption: str) -> Figure:
        """The finished figure."""
        assert self._picture, f"{self.name} is not drawn to the end"
        return Figure(self.name, self._picture, caption)


@contextmanager
def plate(name: str, width: float, height: float, columns: int = 1, **options: Any) -> Iterator[Plate]:
    """A figure of `width` x `height` inches with axes side by side, printed when the block ends."""
    with canvas(width, height, columns=columns, **options) as (figure, axes):
        drawn = Plate(name, figure, axes)
        yield drawn
        drawn.finish()


def reference_table(results: Results, tables: Mapping[str, pd.DataFrame], *columns: str) -> pd.DataFrame:
    """The table of the reference arm, or one without rows if it is not there or lacks one of the columns."""
    table = tables.get(results.reference)
    if table is None or not {*columns} <= {*table.columns}:
        return pd.DataFrame(columns=[*columns])
    return table
