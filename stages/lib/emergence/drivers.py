"""What could make a concept emerge early: numbers of each concept, measured on activations before any SAE is trained.

On normalised activations (their total variance is 1), labels y and prevalence p, with mu_1 and mu_0 the
means of tokens with and without the concept and delta their difference:

    magnitude        ||delta||                            how far the concept moves the activation
    variance share   eta = p (1 - p) ||delta||^2          the share of the FVU that telling the concept explains
    separability     J = ||delta||^2 / Var_within(x . delta / ||delta||)         what one direction can see
    redundancy       max |phi(c, c')| over more prevalent concepts c'
    lexicality       F1 of the best list of tokens

The variance share is prevalence and magnitude in one, and separability is nearly magnitude again: with them in one
model, none of their effects could be told (variance inflation above 5). Which properties enter the model is declared in
`params.yaml`, before any result; the others are described one by one.
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
from stages.lib.io.errors import UserError, nearest

BLOCK = 8192
"""Tokens projected at a time."""
PROPERTIES = ("prevalence", "magnitude", "variance_share", "separability", "lexicality", "redundancy")
PREDICTORS = (*PROPERTIES, *(f"log_{name}" for name in PROPERTIES[:4]))
"""What the joint model can take; those that are spread over decades also as logarithms."""


class Contrast(NamedTuple):
    """How the activations differ between tokens with and without each concept, [concept]."""

    magnitude: np.ndarray
    variance_share: np.ndarray
    separability: np.ndarray


def contrast(x: Float[np.ndarray, "token d_in"], labels: Bool[np.ndarray, "token concept"]) -> Contrast:
    """Magnitude, variance share and separability of each concept; every concept needs tokens with it and without."""
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
    return Contrast(np.sqrt(power), prevalence * (1 - prevalence) * power, power / (within / n))


def redundancy(
    phi: Float[np.ndarray, "concept concept"], prevalence: Float[np.ndarray, " concept"]
) -> Float[np.ndarray, " concept"]:
    """The largest |phi| of each concept with a more prevalent one; 0 for the most prevalent."""
    return np.asarray(np.where(prevalence[None, :] > prevalence[:, None], np.abs(phi), 0).max(axis=1))


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


def properties(
    concepts: Sequence[Concept], parts: Mapping[str, Labelled], fit: Sample, phi: Float[np.ndarray, "concept concept"]
) -> pd.DataFrame:
    """One row a concept with what could make it emerge early.

    `fit` is the part of that name with its activations, `phi` the correlation of its labels.
    """
    apart, prevalence = contrast(fit.x.numpy(), fit.labels), fit.labels.mean(axis=0)
    d_vocab = 1 + max(int(part.tokens.max()) for part in parts.values())
    ids = {split: Ids(part.tokens, part.labels) for split, part in parts.items()}
    return pd.DataFrame({
        "concept": [concept.name for concept in concepts],
        "kind": [concept.kind for concept in concepts],
        "prevalence": prevalence,
        "magnitude": apart.magnitude,
        "variance_share": apart.variance_share,
        "separability": apart.separability,
        "lexicality": lexicality(ids["fit"], ids["validation"], ids["test"], d_vocab),
        "redundancy": redundancy(phi, prevalence),
    })  # fmt: skip


def check_predictors(names: Sequence[str]) -> None:
    """Refuse predictors that are not measured.

    Raises:
        UserError: naming the first that is unknown, or that there is none.
    """
    if not names:
        raise UserError("params.yaml: emergence.drivers is empty; name at least one property of concepts")
    for name in names:
        if name not in PREDICTORS:
            raise UserError(
                f"params.yaml: emergence.drivers has {name!r}, which is none of {', '.join(PREDICTORS)}"
                f"{nearest(name, [*PREDICTORS])}"
            )


def predictors(by_concept: pd.DataFrame, names: Sequence[str]) -> Float[np.ndarray, "concept predictor"]:
    """The columns of the joint model; `log_<property>` is the natural logarithm of a property."""
    columns = [
        np.log(by_concept[name.removeprefix("log_")]) if name.startswith("log_") else by_concept[name] for name in names
    ]
    return np.stack([column.to_numpy(dtype=np.float64) for column in columns], axis=1)
