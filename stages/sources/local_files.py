"""Files of your own under `texts/`: source code, plain text, JSON lines or Parquet, also compressed with gzip.

They lie under one folder because that folder is a dependency of the corpus stage: a changed file re-runs what it must.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from stages.lib.documents import Document
from stages.lib.errors import UserError, nearest
from stages.lib.params import Params

TEXTS = Path("texts")


class SourceParams(Params):
    """Which of the files, and which column of those that are tables."""

    glob: str
    column: str


def documents(params: SourceParams) -> Iterator[Document]:
    """A document for each text file, and for each row of a table (`.jsonl`, `.parquet`), sorted by path.

    Raises:
        UserError: if nothing matches, a file is no UTF-8 text, or a row lacks the column.
    """
    if params.glob.startswith("/") or ".." in Path(params.glob).parts:
        raise UserError(f"corpus.local_files.glob is {params.glob!r}: it must stay below {TEXTS}/ (put a link there)")
    paths = sorted(path for path in TEXTS.glob(params.glob) if path.is_file() and path != TEXTS / "README.md")
    if not paths:
        raise UserError(f"corpus.local_files.glob is {params.glob!r}, which matches no file in {TEXTS}/")
    for path in paths:
        yield from _read(path, params.column)


def _read(path: Path, column: str) -> Iterator[Document]:
    name = path.relative_to(TEXTS).as_posix()
    plain = name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        yield from _parquet_rows(path, name, column)
        return
    try:
        text = (gzip.decompress(path.read_bytes()) if name != plain else path.read_bytes()).decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); take it away or narrow corpus.local_files.glob") from None
    if plain.endswith(".jsonl"):
        for number, line in enumerate(text.splitlines(), 1):
            yield Document(f"{name}#{number}", _cell(path, number, line, column), "text")
    else:
        yield Document(name, text, "python" if plain.endswith(".py") else "text")


def _cell(path: Path, number: int, line: str, column: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}, is not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        known = nearest(column, list(row)) if isinstance(row, dict) else ""
        raise UserError(f"{path}, line {number}, has no text in corpus.local_files.column = {column!r}{known}")
    text: str = row[column]
    return text


def _parquet_rows(path: Path, name: str, column: str) -> Iterator[Document]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(path)
    except ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file ({error})") from None
    if column not in table.schema_arrow.names:
        known = nearest(column, table.schema_arrow.names)
        raise UserError(f"{path} has no column corpus.local_files.column = {column!r}{known}")
    number = 0
    for batch in table.iter_batches(columns=[column]):
        for text in batch.column(0).to_pylist():
            number += 1
            if text is not None:
                yield Document(f"{name}#{number}", text, "text")
