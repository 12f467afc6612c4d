"""Tables on disk: Parquet for details, CSV and JSON with six significant digits for what is kept in git.

Fewer digits than were computed, so that those files change only when a result does.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.io.errors import UserError
from stages.lib.io.files import atomic, write_json, write_text


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    with atomic(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, with six significant digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def write_rounded(path: Path, content: dict[str, Any]) -> None:
    """Write nested objects of numbers as JSON with six significant digits."""
    write_json(path, _rounded(content))


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    return float(f"{content:.6g}") if isinstance(content, float) else content


def read_parquet(path: Path) -> pd.DataFrame:
    """A table that a stage wrote.

    Raises:
        UserError: if it is missing.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; `dvc checkout` or `dvc repro` brings it back")
    return pd.read_parquet(path)
