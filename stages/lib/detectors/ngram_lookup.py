"""What the last one, two or three tokens tell of a concept: tables of P(concept | n-gram).

    P_0(c) = n_c / n        P_k(c | g) = (n_gc + s P_(k-1)(c | g')) / (n_g + s)

where n_g counts the k-gram g in labelled text (`stages.lib.concepts.ngrams`), n_gc its occurrences with the concept,
and g' is g without its oldest token: each table is smoothed towards the next shorter one, and the shortest towards the
concept's rate, as if `STRENGTH` more occurrences had been seen (a hierarchical Dirichlet prior: MacKay and Peto 1995,
equation 20). An n-gram that the text does not have gets what its shorter one gets. The threshold on P_k is the one with
the highest F1 on validation.

A concept that such a table tells needs no model: science.md's token lookup is k = 1. Tables are supervised, unlike SAE
features, of which one is only picked.
"""

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from stages.lib.concepts.labelled import Batch
from stages.lib.concepts.ngrams import FILE, LONGEST, ORDERS, Ngrams, pack, place_in
from stages.lib.detectors.counts import joint_counts
from stages.lib.detectors.label_sums import in_words, members
from stages.lib.io.errors import UserError

LOOKUPS = ORDERS
"""The tables by the number of tokens that they look at, from the one with the shortest n-grams."""
STRENGTH = 2.0
"""Any from 1/2 to 4 gives the same mean F1 to within 0.004 when 3 or 11 million tokens are counted."""


class NgramLookup:
    """Takes a token for a concept if the table of the n-gram that ends there says so; a detector."""

    def __init__(self, keys: Int[np.ndarray, " gram"], probability: Float[np.ndarray, "gram concept"],
                 order: int, d_vocab: int) -> None:  # fmt: skip
        self.keys, self.probability = keys, probability
        self._order, self._d_vocab = order, d_vocab
        self._seen: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]] = []
        self.threshold: npt.NDArray[np.float32] | None = None

    def _rows(self, batch: Batch) -> Int[np.ndarray, " token"]:
        return np.searchsorted(self.keys, pack(batch.context[:, -self._order :], self._d_vocab))

    def observe(self, batch: Batch) -> None:
        """Take note of a validation batch."""
        self._seen.append((self._rows(batch), batch.labels))

    def choose(self) -> None:
        """Fix the threshold of each concept."""
        rows, labels = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
        asked, row = np.unique(rows, return_inverse=True)
        grams = members(np.arange(len(row)), row, len(asked))
        positives = joint_counts(grams, in_words(labels))
        self.threshold = best_threshold(self.probability[asked], positives, np.diff(grams.first))
        self._seen = []

    def predict(self, batch: Batch) -> Bool[np.ndarray, "token concept"]:
        """Where the probability is at or above the threshold."""
        assert self.threshold is not None, "choose before predicting"
        fires: npt.NDArray[np.bool_] = self.probability[self._rows(batch)] >= self.threshold
        return fires


def lookups(counted: Ngrams, asked: Int[np.ndarray, "token 3"], d_vocab: int) -> dict[str, NgramLookup]:
    """The tables of all lengths, from the one with the shortest n-grams, for the n-grams at the tokens asked about.

    Raises:
        UserError: if one of them was not asked about when n-grams were counted.
    """
    found: dict[str, NgramLookup] = {}
    shorter: npt.NDArray[np.float64] = counted.rate[None]
    before = np.zeros(1, np.int64)
    for name, order in LOOKUPS.items():
        table, keys = counted.tables[name], np.unique(pack(asked[:, -order:], d_vocab))
        place = place_in(pack(table.grams, d_vocab), keys)
        if (place < 0).any():
            raise UserError(
                f"{FILE} lacks contexts of up to {LONGEST} tokens of validation and test: it was made from other "
                "tokens; `dvc repro concepts` makes it from these"
            )
        base = shorter[np.searchsorted(before, keys % d_vocab ** (order - 1))]
        total = table.total[place][:, None]
        shorter, before = (table.positives[place].toarray() + STRENGTH * base) / (total + STRENGTH), keys
        found[name] = NgramLookup(keys, shorter.astype(np.float32), order, d_vocab)
    return found


def best_threshold(
    probability: Float[np.ndarray, "gram concept"],
    positives: Int[np.ndarray, "gram concept"],
    totals: Int[np.ndarray, " gram"],
) -> Float[np.ndarray, " concept"]:
    """For each concept the probability from which on grams are taken for it, with the highest F1 on the counts.

    Grams of equal probability cannot be told apart, so a threshold falls behind the last of them.
    """
    found = np.empty(probability.shape[1], probability.dtype)
    for concept, (p, hits) in enumerate(zip(probability.T, positives.T, strict=True)):
        order = np.argsort(-p, kind="stable")
        falling, both = p[order], hits[order].cumsum()
        score = 2 * both / np.maximum(totals[order].cumsum() + both[-1], 1)
        score[:-1][falling[:-1] == falling[1:]] = -1
        found[concept] = falling[score.argmax()]
    return found
