"""A data set of the Hugging Face hub, through the `datasets` library; each row is a document.

With `streaming` rows come as they are needed, and nothing is kept on the disk; without, the whole data set is fetched
first, into the library's own cache, and can be read again without the network. Both give the same documents. Code that
comes with a data set is never run: files of Parquet, JSON lines, CSV or text are read, also compressed ones.

A null is a document without text, which the corpus counts as short. Any other value that is no text, and whatever
cannot be fetched or read, stops the run with a line that says where: nothing is left out. Tokens, mirrors, offline use
and time limits are the hub library's own environment variables: `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
`HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds).
"""

import logging
import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from stages.lib.io.errors import UserError, nearest
from stages.lib.io.params import Params
from stages.lib.language.documents import Document
from stages.lib.run.hub import answered, gated, limit_waiting, unknown


class SourceParams(Params):
    """Which data set, and how much of it."""

    name: str
    config: str | None
    split: str
    column: str
    revision: str | None
    streaming: bool
    max_documents: PositiveInt | None
    language: Literal["python", "text"]


def documents(params: SourceParams) -> Iterator[Document]:
    """The rows of the split in the data set's own order, at most `max_documents` of them.

    Raises:
        UserError: if the hub does not give the data set, it has no such split or column, or a row has no text in it.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError
    from pyarrow import ArrowException
    from zstandard import ZstdError

    what = f"corpus.hf_dataset.name is {params.name!r}"
    if Path(params.name).exists():
        raise UserError(f"{what}, a file or folder here; for your own text use corpus.source: local_files")
    number = 0
    # HTTPError: an answer, or none. OSError: not in the cache, or the disk is full. RuntimeError: hf_xet's downloads,
    # or a data set that is a program. ValueError: an unknown configuration or split. The others: damaged files.
    damage = (ArrowException, EOFError, ZstdError, LZMAError, zlib.error)
    try:
        for row in islice(_rows(params, what), params.max_documents):
            text = _text(row, params.column, f"{what}: row {number}")
            number += 1
            yield Document(f"{params.split}/{number - 1}", text, params.language)
    except (HTTPError, OSError, RuntimeError, ValueError, DatasetsError, *damage) as error:
        raise UserError(f"{what}{_refusal(params, error, number)}") from None


def _rows(params: SourceParams, what: str) -> Iterator[dict[str, Any]]:
    """The rows, each with the column alone if the data set says which columns it has."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong is said in one line of ours
    hub_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    limit_waiting()
    rows = datasets.load_dataset(
        params.name, params.config, split=params.split, revision=params.revision, streaming=params.streaming
    )
    if rows.column_names is not None:
        if params.column not in rows.column_names:
            known = nearest(params.column, rows.column_names)
            raise UserError(f"{what}, which has no corpus.hf_dataset.column = {params.column!r}{known}")
        rows = rows.select_columns([params.column])  # others need not be decoded: they may be images
    yield from rows


def _text(row: dict[str, Any], column: str, where: str) -> str:
    """A row's text; a null is none."""
    if column not in row:
        raise UserError(f"{where} has no corpus.hf_dataset.column = {column!r}{nearest(column, list(row))}")
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f"{where} has {type(text).__name__}, not text, in corpus.hf_dataset.column = {column!r}")
    return text


def _refusal(params: SourceParams, error: Exception, number: int) -> str:
    """The end of a message about a data set that cannot be read, or not beyond `number` rows."""
    from datasets import config
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants, errors

    causes = list(_causes(error))
    if isinstance(error, DatasetNotFoundError):
        if "is a gated dataset" in str(error):
            return gated(f"datasets/{params.name}")
        if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
            return f": corpus.hf_dataset.revision: it has no branch, tag or commit {params.revision!r}"
        return unknown("data set")
    where = f" after row {number - 1}" if number else ""
    if isinstance(error, ConnectionError) and config.HF_HUB_OFFLINE:
        return ": the cache does not have it, and HF_HUB_OFFLINE is set; unset it to fetch the data set"
    absent = errors.EntryNotFoundError  # a file that need not be there, such as README.md
    answers = [cause for cause in causes if isinstance(cause, errors.HTTPError) and not isinstance(cause, absent)]
    cause = next(iter(answers), error)
    if isinstance(cause, errors.HfHubHTTPError):
        return answered(cause, where)
    if isinstance(cause, (errors.HTTPError, ConnectionError)):
        why = " ".join(f"{type(cause).__name__}: {cause}".split())
        return f": {constants.ENDPOINT} cannot be reached, or the connection broke off{where} ({why}); run it again"
    told = error.__cause__ or error  # the cause of an error in "generating" a data set is what is wrong
    chosen = f"config {params.config!r}, split {params.split!r}"
    return f", {chosen}: it cannot be read{where} ({' '.join(str(told).split())})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from or after, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
