"""What a training says while it runs: on a terminal a live table with a row for each level, else plain lines."""

from types import TracebackType
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from stages.lib.run.log import Log

COLUMNS = {"fvu": ".4f", "l0": ".2f", "dead_fraction": ".1%", "lr": ".2e", "coefficient": ".3g", "n_resampled": ",d"}
"""Columns of the history that are shown, and how."""


class LevelRow(NamedTuple):
    """One level: its name, and columns of its history."""

    name: str
    values: dict[str, float]


class TrainingLog(Log):
    """The progress of the levels that train together."""

    def __init__(self, stage: str, total: int, start: int = 0, console: Console | None = None) -> None:
        super().__init__(stage, total, "steps", start)
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("steps, {task.fields[rate]:,.0f}/s,"), TimeElapsedColumn(), TimeRemainingColumn(),
            console=self._console,
        )  # fmt: skip
        self._task = self._progress.add_task(stage, total=total, completed=start, rate=0.0)
        self._levels: list[LevelRow] = []

    def __enter__(self) -> "TrainingLog":
        """Show the table, where there is a terminal."""
        if self._console.is_terminal:
            self._live = Live(self._view(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the table away and leave its last state as plain lines."""
        if self._live is not None:
            self._live.stop()
            self._console.print(self._table())
        super().__exit__(kind, error, trace)

    def show(self, levels: list[LevelRow]) -> None:
        """Have these numbers shown from now on."""
        self._levels = levels

    def advance(self, units: int = 1, **facts: float | str) -> None:
        """Count steps done."""
        if self._live is None:
            super().advance(units, **facts)
            return
        self._progress.advance(self._task, units)
        self._progress.update(self._task, rate=self._progress.tasks[0].speed or 0.0)
        self._live.update(self._view())

    def say(self, line: str) -> None:
        """Print a line for the person at the terminal."""
        if self._live is None:
            super().say(line)
        else:
            self._console.print(line, highlight=False)

    def _view(self) -> Group:
        return Group(self._table(), self._progress)

    def _table(self) -> Table:
        shown = Table("level", *COLUMNS, title=self.stage, title_justify="left")
        for level in self._levels:
            shown.add_row(level.name, *(format(level.values[name], style) for name, style in COLUMNS.items()))
        return shown
