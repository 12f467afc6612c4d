"""What could make a concept emerge early: numbers of each concept, measured on activations before any SAE is trained.

On normalised activations (their total variance is 1), labels y and prevalence p, with mu_1 and mu_0 the
means of tokens with and without the concept and delta their difference:

    variance share   eta = p (1 - p) ||delta||^2          the share of the FVU that telling the concept explains
    separability     J = ||delta||^2 / Var_within(x . delta / ||delta||)         what one direction can see
    redundancy       max |phi(c, c')| over more prevalent concepts c'
    lexicality       F1 of the best list of tokens
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from stages.lib.concepts.directions import mean_differences
from stages.lib.concepts.labelled import Labelled
from stages.lib.concepts.labels import Concept
from stages.lib.detectors.counts import f1
from stages.lib.detectors.probes import accepted_ids, lookup
from stages.lib.emergence.curves import Sample
from stages.lib.stats.correlation import mean_ranks, spearman
from stages.lib.stats.intervals import Interval, percentile_interval

BLOCK = 8192
"""Tokens projected at a time."""


class Contrast(NamedTuple):
    """How the activations differ between tokens with and without each concept, [concept]."""

    variance_share: np.ndarray
    separability: np.ndarray


def contrast(x: Float[np.ndarray, "token d_in"], labels: Bool[np.ndarray, "token concept"]) -> Contrast:
    """Variance share and separability of each concept; every concept needs tokens with it and without."""
    blocks = range(0, len(x), BLOCK)
    pairs = ((torch.from_numpy(x[start : start + BLOCK]), labels[start : start + BLOCK]) for start in blocks)
    delta = mean_differences(pairs).numpy()
    n, n_with = len(x), labels.sum(axis=0).astype(np.float64)
    power = (delta.astype(np.float64) ** 2).sum(axis=1)
    directions = (delta / np.sqrt(power)[:, None]).astype(x.dtype)
    sums, squares, with_projection = (np.zeros(labels.shape[1]) for _ in range(3))
    for start in blocks:
        projection = x[start : start + BLOCK] @ directions.T
        sums += projection.sum(axis=0, dtype=np.float64)
        squares += (projection.astype(np.float64) ** 2).sum(axis=0)
        with_projection += np.where(labels[start : start + BLOCK], projection, 0).sum(axis=0, dtype=np.float64)
    # Sum of squares within the two groups: all squares less those of the group means.
    within = squares - with_projection**2 / n_with - (sums - with_projection) ** 2 / (n - n_with)
    prevalence = n_with / n
    return Contrast(prevalence * (1 - prevalence) * power, power / (within / n))


def redundancy(labels: Bool[np.ndarray, "token concept"]) -> Float[np.ndarray, " concept"]:
    """The largest |phi| of each concept with a more prevalent one; 0 for the most prevalent."""
    phi = np.abs(np.corrcoef(labels.T.astype(np.float32)))
    prevalence = labels.mean(axis=0)
    return np.asarray(np.where(prevalence[None, :] > prevalence[:, None], phi, 0).max(axis=1))


class Ids(NamedTuple):
    """Token ids and their labels."""

    tokens: np.ndarray
    """Int [token]"""
    labels: np.ndarray
    """Bool [token, concept]"""

    def counts(self, d_vocab: int) -> tuple[Int[np.ndarray, "token_id concept"], Int[np.ndarray, " token_id"]]:
        """How often each id occurs with each concept, and at all."""
        together = [np.bincount(self.tokens[on], minlength=d_vocab) for on in self.labels.T]
        return np.stack(together, axis=1), np.bincount(self.tokens, minlength=d_vocab)


def lexicality(fit: Ids, validation: Ids, test: Ids, d_vocab: int) -> Float[np.ndarray, " concept"]:
    """F1 on test of the best list of token ids of each concept.

    Probabilities of the ids are from the fit tokens, how long the list is from the validation tokens.
    """
    accepted = accepted_ids(lookup(*fit.counts(d_vocab)), *validation.counts(d_vocab))
    together, seen = test.counts(d_vocab)
    both = np.where(accepted, together, 0).sum(axis=0)
    fired = np.where(accepted, seen[:, None], 0).sum(axis=0)
    return np.asarray(f1(both, fired, together.sum(axis=0)), dtype=np.float64)


def properties(concepts: Sequence[Concept], parts: Mapping[str, Labelled], fit: Sample) -> pd.DataFrame:
    """One row a concept with what could make it emerge early; `fit` is the part of that name with its activations."""
    apart = contrast(fit.x.numpy(), fit.labels)
    d_vocab = 1 + max(int(part.tokens.max()) for part in parts.values())
    ids = {split: Ids(part.tokens, part.labels) for split, part in parts.items()}
    return pd.DataFrame({
        "concept": [concept.name for concept in concepts],
        "kind": [concept.kind for concept in concepts],
        "prevalence": fit.labels.mean(axis=0),
        "variance_share": apart.variance_share,
        "separability": apart.separability,
        "lexicality": lexicality(ids["fit"], ids["validation"], ids["test"], d_vocab),
        "redundancy": redundancy(fit.labels),
    })  # fmt: skip


class Correlation(NamedTuple):
    """Spearman's correlation of a driver with the time of emergence."""

    value: float
    interval: Interval | None
    """95 %, resampling concepts: they are the unit, not concepts x seeds."""


def correlation(
    driver: Float[np.ndarray, " concept"],
    time: Float[np.ndarray, " concept"],
    n_resamples: int,
    generator: np.random.Generator,
) -> Correlation | None:
    """The rank correlation, or None for fewer than 4 concepts or without variation."""
    value = spearman(driver, time) if len(time) >= 4 else None
    if value is None:
        return None
    rows = generator.integers(len(time), size=(n_resamples, len(time)))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (mean_ranks(one[rows]) for one in (driver, time)))
    power = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    varied = power > 0  # a resample of one concept only has no correlation
    return Correlation(value, percentile_interval(((a * b).sum(axis=1)[varied] / power[varied]).tolist()))
