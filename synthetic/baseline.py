"""What random directions recover, and what the truth itself scores: the levels that SAEs are read by.

in: data/activations, data/truth      out: reports/baseline.json

Random directions are as many as an SAE has features. Their best cosines are far from 0, the more so the more true
features there are, so a score says something only beside theirs. The true codes are not perfect either: their FVU is
the share of the noise, and their L0 is the number that an SAE would have to find.
"""

from typing import NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from stages.lib.activations.store import Store, open_store
from stages.lib.features.matching import random_directions
from stages.lib.fidelity.measures import Moments, squared_distance
from stages.lib.io import params
from stages.lib.io.summary import REPORTS
from stages.lib.io.tables import write_rounded
from stages.lib.run.log import Log
from stages.lib.run.seeds import integer
from stages.lib.run.start import run
from synthetic.recovery import directions
from synthetic.truth import BLOCK, REVISION, TRUTH, load_codes, load_truth
from synthetic.world import Truth, mean_max_cosine


class BaselineParams(params.Params):
    """The section `baseline`."""

    n_random: PositiveInt
    """Random dictionaries."""
    seed: NonNegativeInt


class Settings(NamedTuple):
    """All that is read from `params.yaml`."""

    baseline: BaselineParams
    d_sae: int


def settings() -> Settings:
    """The settings."""
    return Settings(params.read("baseline", BaselineParams), params.read("train.d_sae", int))


def chance(truth: Truth, d_sae: int, own: BaselineParams) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1 below) of every score of directions over random dictionaries."""
    found: dict[str, list[float]] = {}
    for draw in range(own.n_random):
        generator = torch.Generator().manual_seed(integer(own.seed, "baseline", draw))
        random = random_directions(d_sae, truth.dictionary.shape[1], generator)
        for name, value in directions(random, truth.dictionary).numbers().items():
            found.setdefault(name, []).append(value)
    spread = {name: float(np.std(values, ddof=1)) for name, values in found.items()} if own.n_random > 1 else {}
    return {
        name: {"mean": float(np.mean(values)), "n": own.n_random} | ({"sd": spread[name]} if spread else {})
        for name, values in found.items()
    }


def ceiling(truth: Truth, store: Store) -> dict[str, float]:
    """FVU and L0 of the true codes on the test split, and what the dictionary is like."""
    directory, n_rows = TRUTH / REVISION, store.n_rows("test")
    mean = Moments(store.batches("test", BLOCK)).mean
    error = total = active = 0.0
    for number, x in enumerate(store.batches("test", BLOCK)):
        codes = load_codes(directory, number)
        error += float(squared_distance(x, codes @ truth.dictionary).sum())
        total += float(squared_distance(x, mean).sum())
        active += int((codes > 0).sum())
    p = truth.frequency
    facts = {"fvu": error / total, "l0": active / n_rows, "expected_l0": float(p.sum())}
    facts |= {"p_min": float(p.min()), "p_max": float(p.max()), "mean_max_cosine": mean_max_cosine(truth.dictionary)}
    return facts | {"n_test": n_rows, "d_in": store.d_in, "n_features": len(p), "n_parents": len(truth.parents)}


def main() -> None:
    """Write both levels."""
    own = settings()
    truth, store = load_truth(TRUTH / REVISION), open_store(REVISION)
    with Log("baseline", 1, "dictionary"):
        content = {"random": chance(truth, own.d_sae, own.baseline), "truth": ceiling(truth, store)}
        write_rounded(REPORTS / "baseline.json", content)


if __name__ == "__main__":
    run(main)
