"""The tables that benchmarks print, and their headings: what ran, on what, in which versions."""

import csv
import io
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.trainers import Library, processor


class Table(NamedTuple):
    """Rows of cells; a cell that has no value is empty."""

    columns: Sequence[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Columns one below the other, as Markdown."""
        lines = [[*self.columns], *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        rule = ["-" * width for width in widths]
        cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in [cells[0], rule, *cells[1:]])

    def csv(self) -> str:
        """Comma-separated values."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


def heading(module: str, device: torch.device, found: list[Library]) -> str:
    """The command, the machine and the versions."""
    versions = [f"torch {torch.__version__}", f"numba {metadata.version('numba')}"]
    versions += [f"{library.name} {library.version}" for library in found]
    threads = torch.get_num_threads()
    return (
        f"`python -m {module} {shlex.join(sys.argv[1:])}`\n\n"
        f"{processor(device)}, {threads} thread{'s' * (threads > 1)}; {', '.join(versions)}.\n"
    )


def write(text: str, table: Table, markdown: Path | None, comma_separated: Path | None) -> None:
    """Write a heading and a table to files where wanted."""
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(f"{text}\n{table.text()}")
    if comma_separated is not None:
        comma_separated.parent.mkdir(parents=True, exist_ok=True)
        comma_separated.write_text(table.csv())
