"""How much of a list of concepts a set of features detects, corrected for what chance and the text alone reach.

For each concept the best feature and threshold on validation are scored on test (`stages.lib.detectors.counts`);
coverage is the mean F1 over concepts (Karvonen et al. 2024, arXiv 2408.00113, section 3.1, there without the held-out
split). With

    F0 = max(2 p / (1 + p), the F1 that one in a hundred of the same selections reaches on shifted labels)
    cc = (F1 - F0) / (1 - F0)

where 2 p / (1 + p) is the F1 of firing always. Beyond the token, F0 is also at least the F1 of a table of token ids;
beyond n-grams, at least that of tables of one, two and three tokens (`stages.lib.detectors.ngram_lookup`). These two
are means over the contextual concepts: those that are neither lexical nor local nor positional and need no look ahead,
which a causal model does not have. A cc below 0 counts as 0 unless a name says `unfloored`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.concepts.labelled import Shared
from stages.lib.detectors.counts import Choice, Confusion, Predictions, detected
from stages.lib.detectors.firings import Encode, Firings, encoded_firings, joined, level_of

CHANCE_PERCENTILE = 99


def at_places(found: Firings, places: Int[np.ndarray, " chosen"], n_rows: int, first: int) -> Firings:
    """The firings of some rows, in ascending order, counted from `first` on."""
    chosen = np.zeros(n_rows, np.bool_)
    chosen[places] = True
    row = (np.cumsum(chosen, dtype=np.int32) + np.int32(first - 1))[found.row]
    if len(places) == n_rows:
        return found._replace(row=row)
    kept = chosen[found.row]
    return Firings(row[kept], found.feature[kept], found.activation[kept])


class Features:
    """A set of candidate features of the activations: an SAE, or another basis."""

    def __init__(self, encode: Encode, maximum: Float[np.ndarray, " d_sae"], n_concepts: int) -> None:
        self.encode, self.maximum = encode, maximum
        self._confusion = Confusion(len(maximum), n_concepts)
        self._sampled: dict[str, list[Firings]] = {}
        self.choice: Choice | None = None
        """The detectors, once they are chosen, with their validation F1."""

    def firings(self, shared: Shared, split: str) -> Firings:
        """The firings of a batch; those of the sample are kept, and those of all tokens returned."""
        found = encoded_firings(self.encode, shared.x)
        n = len(shared.x)
        self._sampled.setdefault(split, []).append(at_places(found, shared.other_places, n, shared.first))
        return at_places(found, shared.places, n, 0)

    def sampled(self, split: str) -> Firings:
        """The firings on the sample, after a pass over the split."""
        self._sampled[split] = [joined(self._sampled[split])]
        return self._sampled[split][0]

    def observe(self, found: Firings, labels: Bool[np.ndarray, "token concept"]) -> None:
        """Count the firings of a validation batch."""
        level = level_of(found.activation, self.maximum[found.feature])
        self._confusion.add(found.row, found.feature, level, labels)

    def choose(self) -> None:
        """Fix the best detector of each concept."""
        self.choice = self._confusion.best_detectors()

    def predict(self, found: Firings, n_rows: int) -> Bool[np.ndarray, "token concept"]:
        """Where the chosen detectors fire."""
        assert self.choice is not None, "choose before predicting"
        return detected(found, self.choice, self.maximum, n_rows)


class Basis(NamedTuple):
    """Directions of the centred activation whose two signs are features."""

    mean: Tensor
    directions: Tensor
    """[d_in, direction]"""

    @property
    def d_sae(self) -> int:
        """How many features that gives."""
        return 2 * self.directions.shape[1]

    def encode(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """Positive parts of the coordinates and of their negatives."""
        z = (x - self.mean) @ self.directions
        return torch.cat([z, -z], dim=1).clamp_min(0)


def bases(x: Float[Tensor, "token d_in"], n_candidates: int) -> dict[str, Basis]:
    """Residual coordinates and principal components of `x`, those with the largest variance.

    As many as give `n_candidates` features with both signs, or all if there are fewer.
    """
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    n = max(1, min(n_candidates // 2, x.shape[1]))
    largest = centred.square().mean(0).topk(n).indices
    coordinates = torch.eye(x.shape[1], dtype=torch.float64)[:, largest]
    principal = vectors[:, values.argsort(descending=True)[:n]]
    return {
        "residual": Basis(mean.float(), coordinates.float()),
        "pca": Basis(mean.float(), principal.float()),
    }


def always_on(prevalence: Float[np.ndarray, " concept"]) -> Float[np.ndarray, " concept"]:
    """The F1 of firing on every token."""
    score: npt.NDArray[np.float64] = 2 * prevalence / (1 + prevalence)
    return score


def chance_level(
    prevalence: Float[np.ndarray, " concept"], null: Float[np.ndarray, "shift concept"]
) -> Float[np.ndarray, " concept"]:
    """F0: of m shifts the ceil(0.99 (m + 1))-th smallest F1, or the F1 of firing always if that is larger.

    One more exchangeable F1 is above the k-th smallest of m with a probability of at most (m + 1 - k) / (m + 1): with
    99 shifts the largest of them is passed by chance in one of a hundred. With fewer than 99 the largest is taken,
    which is passed in one of m + 1. (The interpolated 99th percentile of 20 would be passed in one of 19.)
    """
    rank = min(-(-CHANCE_PERCENTILE * (len(null) + 1) // 100), len(null))
    level: npt.NDArray[np.float64] = np.maximum(always_on(prevalence), np.sort(null, axis=0)[rank - 1])
    return level


def corrected(score: Float[np.ndarray, "*any"], chance: Float[np.ndarray, "*#any"]) -> Float[np.ndarray, "*any"]:
    """(S - S0) / (1 - S0): 0 at chance, 1 for a perfect score, negative below chance; 0 where chance is perfect."""
    room = np.broadcast_to(1 - chance, score.shape)
    result: npt.NDArray[np.float64] = np.divide(score - chance, room, out=np.zeros(score.shape), where=room > 0)
    return result


def beyond(
    f0: Float[np.ndarray, " concept"], lookups: Mapping[str, Float[np.ndarray, "*batch concept"]]
) -> dict[str, Float[np.ndarray, "*batch concept"]]:
    """F0 with the F1 of the token lookup, and with those of all lookups, as `token` and `ngrams`."""
    return {
        "token": np.maximum(f0, lookups["token"]),
        "ngrams": np.maximum(f0, np.maximum.reduce([*lookups.values()])),
    }


def averages(
    f1: Float[np.ndarray, "*batch concept"],
    f0: Float[np.ndarray, " concept"],
    lookups: Mapping[str, Float[np.ndarray, "*batch concept"]],
    contextual: Bool[np.ndarray, " concept"],
) -> dict[str, Float[np.ndarray, "*batch"]]:
    """The averages over concepts that stand for a set of features; contextual ones only if there are such concepts.

    Names that begin with `n_` are numbers of concepts whose F1 is above F0; `gain_over_token` is the mean over all
    concepts of F1 - F1_token where positive.
    """
    cc = corrected(f1, f0)
    found = {
        "coverage": f1.mean(-1),
        "cc_coverage": np.maximum(cc, 0).mean(-1),
        "cc_coverage_unfloored": cc.mean(-1),
        "n_above_chance": (cc > 0).sum(-1),
        "gain_over_token": np.maximum(f1 - lookups["token"], 0).mean(-1),
    }
    if contextual.any():
        found["coverage_contextual"] = f1[..., contextual].mean(-1)
        for name, level in beyond(f0, lookups).items():
            own = corrected(f1, level)[..., contextual]
            found[f"cc_beyond_{name}"] = np.maximum(own, 0).mean(-1)
            found[f"cc_beyond_{name}_unfloored"] = own.mean(-1)
            found[f"n_beyond_{name}"] = (own > 0).sum(-1)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


class Score(NamedTuple):
    """What a set of features or a baseline reaches."""

    f1: npt.NDArray[np.float64]
    """[concept]"""
    resampled: npt.NDArray[np.float64]
    """[resample, concept], over documents"""
    mcc: npt.NDArray[np.float64]


def score(predictions: Predictions, counts: Int[np.ndarray, "resample document"]) -> Score:
    """F1 and MCC on test, and F1 on resampled documents."""
    return Score(predictions.f1(), predictions.resampled_f1(counts), predictions.mcc())
