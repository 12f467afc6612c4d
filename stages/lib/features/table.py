"""What each feature of an SAE does on the held-out splits: counted batch by batch, then one row a feature.

A feature's concept is the one with the highest MCC at f > 0 on validation; everything about it is measured on test. The
sensitivity measures choose their own concept by their own score on validation: a concept chosen by raw F1 and corrected
afterwards would pair frequent features with prevalent concepts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.concepts.labelled import Batch, Labelled
from stages.lib.detectors.counts import Confusion, Table, f1, mcc
from stages.lib.detectors.coverage import always_on, corrected
from stages.lib.detectors.firings import encoded_firings, level_of
from stages.lib.detectors.null import Track
from stages.lib.features.matching import match
from stages.lib.features.specialisation import Tally, plugin_entropy, purity, rarefied_entropy
from stages.lib.run.machine import device
from stages.lib.sae.saved import SAE, Encoder
from stages.lib.stats.reliability import rates


class FiringCounts:
    """The firings of one SAE; memory grows with documents and token ids, not with tokens."""

    def __init__(self, sae: SAE, n_concepts: int, n_documents: int, d_vocab: int) -> None:
        self.sae = sae.to(device())
        self.encode = Encoder(self.sae)
        self._validation = Confusion(sae.d_sae, n_concepts, n_levels=1)
        self._test = Confusion(sae.d_sae, n_concepts, n_levels=1)
        self.validation_maximum = np.zeros(sae.d_sae, np.float32)
        self.tally = Tally(sae.d_sae, d_vocab)
        self.by_document: npt.NDArray[np.int64] = np.zeros((n_documents, sae.d_sae), np.int64)
        """Test firings, [document, feature]."""
        self.above_tenth: npt.NDArray[np.int64] = np.zeros(sae.d_sae, np.int64)
        """Test firings above a tenth of the feature's maximum on validation."""

    def add_validation(self, batch: Batch) -> None:
        """Count a validation batch."""
        found = encoded_firings(self.encode, batch.x)
        np.maximum.at(self.validation_maximum, found.feature, found.activation)
        self._validation.add(found.row, found.feature, None, batch.labels)

    def add_test(self, batch: Batch) -> None:
        """Count a test batch; all of validation comes first."""
        found = encoded_firings(self.encode, batch.x)
        d_sae = self.sae.d_sae
        self._test.add(found.row, found.feature, None, batch.labels)
        self.tally.add(found, batch.tokens)
        cell = batch.documents[found.row] * d_sae + found.feature
        self.by_document += np.bincount(cell, minlength=self.by_document.size).reshape(self.by_document.shape)
        high = level_of(found.activation, self.validation_maximum[found.feature]) >= 1
        self.above_tenth += np.bincount(found.feature[high], minlength=d_sae)

    def validation(self) -> Table:
        """The counts on validation."""
        return self._validation.table()

    def test(self) -> Table:
        """The counts on test."""
        return self._test.table()


def track(counts: FiringCounts, part: Labelled, batch: int) -> Track:
    """Where the features fire on a part with the labels of its tokens, encoded `batch` tokens at a time; no levels."""
    rows, features = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    first = 0
    for some in part.batches(batch):
        found = encoded_firings(counts.encode, some.x)
        rows.append(found.row + np.int32(first))
        features.append(found.feature)
        first += len(some.tokens)
    row, feature = np.concatenate(rows), np.concatenate(features)
    return Track(row, feature, np.zeros(len(row), np.uint8), part.labels, counts.sae.d_sae)


def matched_cosine(
    own: Float[Tensor, "d_sae d_in"], others: Sequence[Float[Tensor, "other d_in"]]
) -> Float[np.ndarray, " d_sae"]:
    """The cosine of each feature with its one-to-one match in each other SAE, mean over those; NaN without others.

    Features that are left over without a match count as NaN there.
    """
    total = np.full((max(len(others), 1), len(own)), np.nan)
    for row, other in zip(total, others, strict=False):
        pairs = match(own.cpu(), other.cpu())
        row[pairs.left] = pairs.cosines
    mean: npt.NDArray[np.float64] = total.mean(0)
    return mean


def _chosen(
    validation: Float[np.ndarray, "feature concept"], test: Float[np.ndarray, "feature concept"]
) -> Float[np.ndarray, " feature"]:
    """The test score of the concept with the highest validation score."""
    score: npt.NDArray[np.float64] = test[np.arange(len(test)), validation.argmax(1)]
    return score


def feature_table(
    counts: FiringCounts,
    null: Float[np.ndarray, "shift feature"],
    n_tokens: Int[np.ndarray, " document"],
    resamples: Int[np.ndarray, "resample document"],
    concepts: list[str],
    n_rarefied: int,
) -> pd.DataFrame:
    """One row a feature; missing numbers are NaN.

    Args:
        counts: both splits, counted.
        null: the MCC that the same choice of a concept reaches on shifted labels.
        n_tokens: test tokens of each document.
        resamples: for the error of the rates.
        concepts: the names of the columns of the labels.
        n_rarefied: firings to which the token entropy is rarefied.
    """
    validation, test = counts.validation(), counts.test()

    def scores(table: Table) -> tuple[npt.NDArray[np.float64], ...]:
        both, fired, n = table.both[:, 0], table.fired, table.n
        raw = f1(both, fired, table.positives)
        beyond = corrected(raw, always_on(table.positives / n))
        return mcc(both, fired, table.positives, n), raw, beyond, purity(both, fired[:, 0], table.positives, n)

    chosen_by, measured = scores(validation), scores(test)
    own_mcc, own_f1, own_cc, own_purity = map(_chosen, chosen_by, measured)
    error = rates(counts.by_document, n_tokens, resamples)
    fires = counts.tally.n_firings > 0
    chance = null.mean(0)
    return pd.DataFrame(
        {
            "feature": np.arange(len(fires)),
            "rate": error.rate,
            "rate_se": error.standard_error,
            "design_effect": error.design_effect,
            "rate_validation": validation.fired[:, 0] / validation.n,
            "n_firings": counts.tally.n_firings,
            "n_firings_validation": validation.fired[:, 0],
            "max_act": counts.tally.maximum,
            "mean_act": counts.tally.mean(),
            "kurtosis": counts.tally.kurtosis(),
            # A feature that is silent on validation has no best concept.
            "best_concept": np.where(validation.fired[:, 0] > 0, np.array(concepts)[chosen_by[0].argmax(1)], None),
            "mcc_validation": chosen_by[0].max(1),
            "mcc": own_mcc,
            "mcc_chance": chance,
            "mcc_calibrated": corrected(own_mcc, chance),
            # (1 + #{null >= observed}) / (1 + shifts): Phipson and Smyth 2010, arXiv 1603.05766.
            "mcc_p": (1 + (null >= own_mcc).sum(0)) / (1 + len(null)),
            "f1": own_f1,
            "cc_f1": own_cc,
            "purity": own_purity,
            "entropy": plugin_entropy(counts.tally.tokens),
            "entropy_rarefied": rarefied_entropy(counts.tally.tokens, n_rarefied),
            "encoder_norm": counts.sae.W_enc.norm(dim=0).cpu().numpy(),
            "encoder_decoder_cosine": torch.cosine_similarity(counts.sae.W_enc.T, counts.sae.W_dec).cpu().numpy(),
        }
    )
