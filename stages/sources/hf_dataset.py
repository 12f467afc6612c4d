"""A data set of the Hugging Face hub, through the `datasets` library; each row is a document."""

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveInt

from stages.lib.documents import Document
from stages.lib.errors import UserError, nearest
from stages.lib.params import Params


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
        UserError: if the hub does not give the data set, or it has no such split or column.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    what = f"corpus.hf_dataset.name = {params.name!r}"
    try:
        rows = load_dataset(
            params.name, params.config, split=params.split, revision=params.revision, streaming=params.streaming
        )
    except DatasetNotFoundError as error:
        raise UserError(f"{what}: not found on the hub, or not open to you ({error})") from None
    except ValueError as error:  # an unknown split or configuration; the library's message lists the known ones
        raise UserError(f"{what}: {error}") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{what}: the hub could not be read ({type(error).__name__}: {error})") from None
    for number, row in enumerate(rows):
        if number == params.max_documents:
            return
        if not isinstance(row.get(params.column), str):
            known = nearest(params.column, list(row))
            raise UserError(f"{what}: row {number} has no text in corpus.hf_dataset.column = {params.column!r}{known}")
        yield Document(f"{params.split}/{number}", row[params.column], params.language)
