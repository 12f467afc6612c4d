"""What each feature of an SAE does on the held-out splits, one row a feature.

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

from stages.lib.detectors.counts import Table, f1, mcc
from stages.lib.detectors.coverage import always_on, corrected
from stages.lib.features.counting import FiringCounts
from stages.lib.features.matching import match
from stages.lib.features.specialisation import plugin_entropy, purity, rarefied_entropy
from stages.lib.stats.reliability import rates


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
