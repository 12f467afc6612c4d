"""Files of your own under `texts/`: source code, plain text, JSON lines or Parquet, also compressed.

They lie under one folder because that folder is a dependency of the corpus stage: a changed file re-runs what it must.

| file | documents |
|---|---|
| `.jsonl` | each line's `column`; blank lines are no lines of data, but count in line numbers |
| `.parquet` | each row's `column` |
| any other, which must be text | the whole file; it is Python source code if it is called `.py` |

All but Parquet, which has compression of its own, may be compressed: `.gz`, `.bz2`, `.xz`, `.zst`. Tables are read line
by line or row group by row group, so that memory does not grow with the file.

Text is UTF-8. A byte order mark at the beginning of a file is taken away; line ends stay as they are (the corpus makes
all of them unix ones). An empty file and a null in a table are documents without text, which the corpus counts as
short. What cannot be read stops the run with a line that names the file and where in it: nothing is left out.
"""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from glob import iglob
from pathlib import Path
from typing import Any

from stages.lib.io.errors import UserError, nearest
from stages.lib.io.params import Params
from stages.lib.language.documents import Document

TEXTS = Path("texts")
REMEDY = "mend it, take it away or narrow corpus.local_files.glob"
BATCH = 100
"""Rows of a Parquet file that are held as Python objects at once."""
BUFFER = 1 << 20
"""Bytes that are decompressed at once."""


class SourceParams(Params):
    """Which of the files, and which column of those that are tables."""

    glob: str
    """As in a shell (`**` is any depth, and `*` no hidden file), or a folder: all that is in it."""
    column: str


def documents(params: SourceParams) -> Iterator[Document]:
    """A document for each text file, and for each row of a table (`.jsonl`, `.parquet`), sorted by path.

    Raises:
        UserError: if nothing matches, a file is damaged or no UTF-8 text, or a row lacks the column or text in it.
    """
    for path in _paths(params.glob):
        name = path.relative_to(TEXTS).as_posix()
        plain = name.removesuffix(path.suffix) if path.suffix in COMPRESSED else name
        if plain.endswith(".parquet"):
            cells = _parquet_cells(path, params.column)
        elif plain.endswith(".jsonl"):
            cells = _jsonl_cells(path, params.column)
        else:
            yield Document(name, "".join(_lines(path)), "python" if plain.endswith(".py") else "text")
            continue
        for number, text in cells:
            yield Document(f"{name}#{number}", text, "text")


def _paths(pattern: str) -> list[Path]:
    """The files that a pattern stands for; links to folders are followed."""
    setting = f"corpus.local_files.glob is {pattern!r}"
    if pattern.startswith("/") or ".." in Path(pattern).parts:
        raise UserError(f"{setting}: it must stay below {TEXTS}/ (put a link there)")
    folder = TEXTS / pattern
    root, inside = (folder, "**/*") if folder.is_dir() else (TEXTS, pattern)
    # Path.glob does not follow links to folders.
    found = {root / name for name in iglob(inside, root_dir=root, recursive=True)}  # noqa: PTH207
    lost = sorted(path for path in found if not path.exists())
    if lost:
        raise UserError(f"{lost[0]} is a link to what is not there; {REMEDY}")
    paths = sorted(path for path in found if path.is_file() and path != TEXTS / "README.md")
    if not paths:
        raise UserError(f"{setting}, which matches no file in {TEXTS}/")
    return paths


def _open_zst(path: Path) -> io.BufferedReader:
    """A Zstandard file, decompressed; of windows up to 128 MiB, as its own command-line program without `--long=31`."""
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BUFFER)


COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, decompressed and decoded, with their ends."""
    number = 0
    try:
        if path.suffix in COMPRESSED and not path.stat().st_size:
            raise EOFError("it is empty, which no compressed file is")
        with COMPRESSED[path.suffix](path) if path.suffix in COMPRESSED else path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if "\0" in text:
                    raise UserError(f"{path}, line {number}, has a NUL byte, so it is no text; {REMEDY}")
                yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}, is not UTF-8 text ({error}); {REMEDY}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read beyond line {number} ({error}); {REMEDY}") from None


def _jsonl_cells(path: Path, column: str) -> Iterator[tuple[int, str]]:
    """The number of each line that is not blank, and its text."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number},"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error}); {REMEDY}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where} is not an object of JSON, with names and values; {REMEDY}")
        if column not in row:
            raise UserError(f"{where} has no corpus.local_files.column = {column!r}{nearest(column, list(row))}")
        yield number, _text(row[column], where, column)


def _parquet_cells(path: Path, column: str) -> Iterator[tuple[int, str]]:
    """The number of each row, and its text."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        # `pre_buffer`, which is on by default, holds the column of the whole file.
        with ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise UserError(f"{path} has no corpus.local_files.column = {column!r}{nearest(column, names)}")
            for batch in table.iter_batches(batch_size=BATCH, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield number, _text(value, f"{path}, row {number},", column)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after row {number}, is not UTF-8 text ({error}); {REMEDY}") from None
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file, or damaged after row {number} ({error}); {REMEDY}") from None


def _text(value: object, where: str, column: str) -> str:
    """A cell's text; a null is none."""
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(f"{where} has {kind}, not text, in corpus.local_files.column = {column!r}; {REMEDY}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can name one half of a surrogate pair, which no text has
        raise UserError(f"{where} is not Unicode text ({error}); {REMEDY}") from None
    return value
