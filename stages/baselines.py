"""How well concepts are detected in a revision's activations without an SAE: what the SAEs' numbers are to be read by.

in: data/activations, data/tokens, data/concepts
out: data/baselines/<revision> (`stages.lib.detectors.saved_baselines`)

Lookups of one, two and three tokens (`stages.lib.detectors.ngram_lookup`), from what `stages.concepts` has counted,
the dense probe (`stages.lib.detectors.baselines`), and signed residual and principal coordinates with the
selection that SAE features go through (`stages.lib.detectors.coverage`): as many as an SAE has features, or all there
are. A stage of its own, because all arms on the same revision share these numbers; `stages.interpret` joins them to
those of its SAEs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.lib.activations.store import open_store
from stages.lib.concepts.labels import read_concepts
from stages.lib.concepts.ngrams import read_ngrams
from stages.lib.detectors.baselines import DenseProbe
from stages.lib.detectors.choose import Detected, DetectionParams, Detector, choose_and_score
from stages.lib.detectors.coverage import Features, bases, chance_level
from stages.lib.detectors.ngram_lookup import NgramLookup, lookups
from stages.lib.detectors.sample import (
    SPLITS,
    Parts,
    Sample,
    candidates,
    document_resamples,
    draw_sample,
    read_parts,
    shifted,
    stream,
)
from stages.lib.detectors.saved_baselines import Baselines, identity, write_baselines
from stages.lib.io import params
from stages.lib.io.files import read_json
from stages.lib.language.windows import TOKENS
from stages.lib.run.log import Log
from stages.lib.run.start import run


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    interpret: DetectionParams
    d_sae: int


def settings() -> Settings:
    """The stage's settings."""
    raw = {name: params.value(f"interpret.{name}") for name in DetectionParams.model_fields}
    return Settings(params.check("interpret", raw, DetectionParams), params.read("train.d_sae", int))


def coordinates(sample: Sample, d_sae: int) -> dict[str, Features]:
    """The bases whose coordinates are candidates as SAE features are."""
    return {
        name: candidates(basis.encode, basis.d_sae, sample)[0] for name, basis in bases(sample.x["fit"], d_sae).items()
    }


def counted(parts: Parts) -> dict[str, NgramLookup]:
    """The tables of n-grams, for those of validation and test."""
    names = [concept.name for concept in read_concepts()]
    columns = np.array([names.index(concept.name) for concept in parts.concepts])
    d_vocab = int(read_json(TOKENS / "tokens.json")["d_vocab"])
    asked = np.concatenate([parts.whole[split].context for split in ("validation", "test")])
    return lookups(read_ngrams(columns), asked, d_vocab)


def detect(own: DetectionParams, d_sae: int, parts: Parts, advance: Callable[[int], None]) -> Baselines:
    """The results of all sets of detectors; `advance` is told of the tokens that are done."""
    test = parts.whole["test"]
    sample = draw_sample(parts, own.n_shifts, stream(own.seed, "draw"))
    # On all tokens, since a ceiling that more labels would raise is none: with 30,000 of 80,000 it is 0.03 too low.
    dense = DenseProbe(parts.whole["fit"].x(), parts.whole["fit"].labels, own.l2)
    features = coordinates(sample, d_sae)
    resamples = document_resamples(test, own.n_resamples, own.seed)
    detectors: dict[str, Detector | Features] = {**counted(parts), "probe": dense, **features}
    scores = choose_and_score(detectors, parts, resamples, advance)
    prevalence: npt.NDArray[np.float64] = test.labels.mean(0)
    chance = {name: chance_level(prevalence, shifted(one, sample, slice(None))) for name, one in features.items()}
    detected = {
        name: Detected(found, chance.get(name), features[name].choice if name in features else None)
        for name, found in scores.items()
    }
    return Baselines(detected, dense.probe)


def main(revision: str) -> None:
    """Detect the concepts of a revision without an SAE."""
    own, d_sae = settings()
    parts = read_parts(open_store(revision, verify=SPLITS), n_tokens=own.n_tokens, n_sample=own.n_sample, seed=own.seed)
    n_tokens = sum(len(parts.whole[split]) for split in ("validation", "test"))
    with Log(f"baselines@{revision}", total=n_tokens, unit="token") as log:
        found = detect(own, d_sae, parts, log.advance)
    write_baselines(revision, found, identity(own, d_sae, parts.concepts))


if __name__ == "__main__":
    run(main)
