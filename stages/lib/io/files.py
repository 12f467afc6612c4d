"""Files that are either whole or absent: everything is written under a temporary name and renamed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.lib.io.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with unix line ends."""
    with atomic(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys and 2 spaces, so that equal content is equal bytes; NaN is an error."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file that a stage wrote.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc checkout` or `dvc repro` brings it back") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); `dvc checkout --force` restores it") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
