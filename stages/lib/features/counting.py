"""What the features of an SAE do on the held-out splits, counted; each token is encoded once."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from stages.lib.concepts.labelled import Labelled
from stages.lib.detectors.counts import Confusion, Table
from stages.lib.detectors.firings import Encode, Firings, encoded_firings, joined, level_of
from stages.lib.detectors.label_sums import Words, in_words
from stages.lib.detectors.null import Track, feature_null
from stages.lib.detectors.shifted import Circle, circle
from stages.lib.features.specialisation import Tally
from stages.lib.run.parallel import compiled
from stages.lib.sae.saved import SAE, Encoder

BATCH = 8192
"""Tokens read at a time."""


@compiled
def _add_pairs(counts: np.ndarray, documents: np.ndarray, row: np.ndarray, feature: np.ndarray) -> None:
    """Add each firing to the count of its document and feature."""
    for p in range(row.shape[0]):
        counts[documents[row[p]], feature[p]] += 1


class FiringCounts:
    """The firings of one SAE; memory grows with documents and token ids, not with tokens."""

    def __init__(self, sae: SAE, n_concepts: int, n_documents: int, d_vocab: int) -> None:
        self.sae = sae
        self._validation = Confusion(sae.d_sae, n_concepts, n_levels=1)
        self._test = Confusion(sae.d_sae, n_concepts, n_levels=1)
        self.validation_maximum = np.zeros(sae.d_sae, np.float32)
        self.tally = Tally(sae.d_sae, d_vocab)
        self.by_document: npt.NDArray[np.int64] = np.zeros((n_documents, sae.d_sae), np.int64)
        """Test firings, [document, feature]."""
        self.above_tenth: npt.NDArray[np.int64] = np.zeros(sae.d_sae, np.int64)
        """Test firings above a tenth of the feature's maximum on validation."""

    def add_validation(self, found: Firings, labels: Words) -> None:
        """Count firings on validation tokens."""
        np.maximum.at(self.validation_maximum, found.feature, found.activation)
        self._validation.add(found.row, found.feature, None, labels)

    def add_test(
        self, found: Firings, labels: Words, tokens: Int[np.ndarray, " token"], documents: Int[np.ndarray, " token"]
    ) -> None:
        """Count firings on test tokens with these ids and documents; all of validation comes first."""
        d_sae = self.sae.d_sae
        self._test.add(found.row, found.feature, None, labels)
        self.tally.add(found, tokens)
        _add_pairs(self.by_document, documents, found.row, found.feature)
        high = level_of(found.activation, self.validation_maximum[found.feature]) >= 1
        self.above_tenth += np.bincount(found.feature[high], minlength=d_sae)

    def validation(self) -> Table:
        """The counts on validation."""
        return self._validation.table()

    def test(self) -> Table:
        """The counts on test."""
        return self._test.table()


class Part(NamedTuple):
    """A part of a split, with its labels in the forms in which they add up fastest, made once for all SAEs."""

    labelled: Labelled
    words: Words
    circle: Circle

    def firings(self, encode: Encode) -> Firings:
        """Where features fire; memory grows with the firings of one SAE."""
        parts, first = [], 0
        for batch in self.labelled.batches(BATCH):
            found = encoded_firings(encode, batch.x)
            parts.append(found._replace(row=found.row + np.int32(first)))
            first += len(batch.x)
        return joined(parts)

    def track(self, found: Firings, d_sae: int) -> Track:
        """Firings with the labels of their tokens; no levels."""
        none = np.zeros(len(found.row), np.uint8)
        return Track(found.row, found.feature, none, self.labelled.labels, d_sae, self.circle)


def as_part(labelled: Labelled) -> Part:
    """A part to count on."""
    return Part(labelled, in_words(labelled.labels), circle(labelled.labels))


class Counted(NamedTuple):
    """What the features of one SAE do."""

    counts: FiringCounts
    null: Float[np.ndarray, "shift feature"]
    """The MCC that the same choice of a concept reaches on shifted labels."""


def count(
    sae: SAE, validation: Part, test: Part, d_vocab: int, shifts: tuple[Int[np.ndarray, " shift"], ...]
) -> Counted:
    """Count the firings of an SAE on both parts; `shifts` are those of the labels of each."""
    counts = FiringCounts(sae, validation.words.n_concepts, test.labelled.n_documents, d_vocab)
    before, after = (part.firings(Encoder(sae)) for part in (validation, test))
    counts.add_validation(before, validation.words)
    counts.add_test(after, test.words, test.labelled.tokens, test.labelled.documents)
    tracks = validation.track(before, sae.d_sae), test.track(after, sae.d_sae)
    return Counted(counts, feature_null(*tracks, *shifts))
