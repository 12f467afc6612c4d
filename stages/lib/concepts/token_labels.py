"""Concepts of the tokens of a document, from those of its characters.

A token has the concepts of its first character that is no white space, or of its first character if it is white space
only: a token such as ` x` belongs to the `x`, and a line break with the indentation after it to the line break.
Languages present in the documents choose the concepts: all of `stages.lib.concepts.text` if there is any plain text,
else only those that make sense in code; those of `stages.lib.concepts.python_tokens` if there is any Python.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.lib.concepts import python_tokens
from stages.lib.concepts import text as text_concepts
from stages.lib.concepts.labels import Spec
from stages.lib.concepts.python_labels import label_python
from stages.lib.concepts.python_source import Source
from stages.lib.language.documents import Document

_OF_TEXT = frozenset(spec.name for spec in text_concepts.SPECS)


def choose_specs(languages: Collection[str]) -> list[Spec]:
    """The concepts for documents in these languages."""
    text = [spec for spec in text_concepts.SPECS if "text" in languages or spec.name in text_concepts.IN_CODE]
    return [*text, *(python_tokens.SPECS if "python" in languages else ())]


def first_characters(text: str, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each token the place of its first character that is no white space, or of its first character."""
    place = np.where(text_concepts.is_whitespace(text), len(text), np.arange(len(text)))
    following = np.minimum.accumulate(place[::-1])[::-1]
    # A byte-level tokenizer can give a part of a character an empty span at the end of the text.
    start = np.minimum(start, len(text) - 1)
    return np.where(following[start] < end, following[start], start)


class TokenLabels(NamedTuple):
    """The labels of a document's tokens."""

    labels: NDArray[np.bool_]
    """[token, concept]"""
    parsed: bool
    """Whether the document has a syntax tree if it should."""


def label_tokens(
    document: Document,
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    specs: Sequence[Spec],
    out: NDArray[np.bool_] | None = None,
) -> TokenLabels:
    """The labels of the tokens whose first and last character stand at `start` and before `end`.

    `out`, zeros [token, concept], is where they are written.
    """
    places = first_characters(document.text, start, end)
    names = [spec.name for spec in specs]
    labels = np.zeros((len(start), len(specs)), np.bool_) if out is None else out
    parsed = True
    if document.language == "python":
        source = Source(document.text)
        parsed = source.tree is not None
        label_python(source, names).label(source.place(places), labels)
    only_code = all(name in text_concepts.IN_CODE or name not in _OF_TEXT for name in names)
    masks = (text_concepts.label_code if only_code else text_concepts.label_text)(document.text)
    for column, name in enumerate(names):
        if name in masks:
            labels[:, column] = masks[name][places]
    return TokenLabels(labels, parsed)
