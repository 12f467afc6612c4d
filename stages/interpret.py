"""Which known concepts do single features detect, beyond chance, what n-grams tell, and other bases?

in: data/activations, data/tokens, data/concepts, data/train/<arm>, data/baselines/<revision of the arm>
out: data/interpret/<arm> (`concepts`, `baselines`, `probes`, all .parquet), reports/interpret/<arm>.json

Coverage and its corrections are defined in `stages.lib.detectors.coverage`: detectors are chosen on validation and
scored on test; intervals resample test documents. A level's chance level comes from the shifts of all its seeds, which
are repeats of one another; seeds that have the followed level alone are scored against the same. Beside them stand
`stages.lib.detectors.sparse_probes` and what `stages.baselines` found without an SAE, which is given once, for the
first seed and the level that training follows, and is corrected by that level's chance.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt
from scipy.sparse import csr_array

from stages.lib.activations.store import open_store
from stages.lib.detectors import sparse_probes
from stages.lib.detectors.choose import Detected, DetectionParams, choose_and_score
from stages.lib.detectors.coverage import Features, chance_level
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
from stages.lib.detectors.saved_baselines import Baselines, identity, read_baselines
from stages.lib.detectors.tables import Judged, Key, ProbeScores, basis_table, concept_table, probe_table, summary_rows
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.summary import write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.run.start import run
from stages.lib.sae.members import Member, followed_members, members, more_members, revision
from stages.lib.sae.saved import SAE, Encoder, load_sae


class InterpretParams(DetectionParams):
    """The section `interpret`."""

    k: Annotated[list[PositiveInt], Field(min_length=1)]
    """Features of the sparse probes."""
    n_examples: Annotated[int, Field(ge=2)]
    """Examples of each concept for the sparse probes, half of them positive."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    interpret: InterpretParams
    seeds: list[int]
    more_seeds: list[int]
    """Those that were trained at the followed level alone."""


def settings() -> Settings:
    """The stage's settings."""
    seeds = (params.read(f"train.{name}", list[int]) for name in ("seeds", "more_seeds"))
    return Settings(params.read("interpret", InterpretParams), *seeds)


class Inputs(NamedTuple):
    """What is read and drawn before any feature is looked at."""

    saes: dict[Key, SAE]
    parts: Parts
    sample: Sample
    probed: sparse_probes.Probed
    baselines: Baselines
    at: Key
    """The level that training follows, and the first seed."""
    seeds: list[int]
    """Those with all levels."""


def load_saes(runs: list[Member], max_k: int) -> dict[Key, SAE]:
    """The SAEs of the arm.

    Raises:
        UserError: if they have fewer features than the probes are to have.
    """
    saes = {Key(run.level, run.seed): load_sae(run.directory) for run in runs}
    d_sae = next(iter(saes.values())).d_sae
    if max_k > d_sae:
        raise UserError(f"params.yaml: interpret.k is {max_k}, but the SAEs of {runs[0].arm} have {d_sae} features")
    return saes


def prepare(settings: Settings, arm: str) -> Inputs:
    """Load the SAEs, read the tokens and the baselines of the same tokens, and draw shifts and examples."""
    own, seeds, more_seeds = settings
    runs = [*members(arm, seeds), *more_members(arm, more_seeds)]
    saes, model = load_saes(runs, max(own.k)), revision(arm, seeds[0])
    parts = read_parts(open_store(model, verify=SPLITS), n_tokens=own.n_tokens, n_sample=own.n_sample, seed=own.seed)
    baselines = read_baselines(model, identity(own, next(iter(saes.values())).d_sae, parts.concepts))
    generator = stream(own.seed, "draw")
    # As many shifts for each seed, which share those of a level.
    sample = draw_sample(parts, -(-own.n_shifts // len(seeds)) * len(seeds), generator)
    probed = sparse_probes.draw_probed(sample, own.n_examples, generator)
    followed = followed_members(arm, seeds[:1])[0]
    return Inputs(saes, parts, sample, probed, baselines, Key(followed.level, followed.seed), seeds)


class Learnt(NamedTuple):
    """The features of an SAE before detectors are chosen, and the probes of a few of them, if concepts are probed."""

    features: Features
    probes: sparse_probes.SparseProbes | None


def learn(own: InterpretParams, inputs: Inputs) -> dict[Key, Learnt]:
    """What is learnt of each SAE on the sample of `fit`: the maxima and the probes."""
    sample, probed = inputs.sample, inputs.probed
    labels = csr_array(sample.part["fit"].labels[:, probed.columns])

    def learn_one(key: Key) -> Learnt:
        sae = inputs.saes[key]
        features, found = candidates(Encoder(sae.to(device())), sae.d_sae, sample)
        if not len(probed.columns):
            return Learnt(features, None)
        ranked = sparse_probes.largest_differences(found, labels, max(own.k), sae.d_sae)
        return Learnt(features, sparse_probes.fit_sparse_probes(found, ranked, probed.fit, own.k, own.l2))

    return dict(zip(inputs.saes, side_by_side(learn_one, inputs.saes, device()), strict=True))


def nulls(inputs: Inputs, learnt: dict[Key, Learnt]) -> dict[int, npt.NDArray[np.float64]]:
    """F1 on shifted labels [shift, concept], by level; the seeds of a level take turns at the shifts."""
    seeds, keys = inputs.seeds, [key for key in learnt if key.seed in inputs.seeds]

    def null_of(key: Key) -> npt.NDArray[np.float64]:
        return shifted(learnt[key].features, inputs.sample, slice(seeds.index(key.seed), None, len(seeds)))

    found = [*zip(keys, side_by_side(null_of, keys), strict=True)]
    return {at: np.concatenate([null for key, null in found if key.level == at]) for at in {key.level for key in keys}}


def probe_scores(inputs: Inputs, learnt: dict[Key, Learnt]) -> list[ProbeScores]:
    """The AUROCs of the baselines' probe of all coordinates and of the SAEs' probes; none without probed concepts."""
    probed = inputs.probed
    if not len(probed.columns):
        return []

    def score_one(key: Key) -> list[ProbeScores]:
        features, probes = learnt[key]
        assert probes is not None, "there are probed concepts"
        return [ProbeScores(*key, *one) for one in probes.aurocs(features.sampled("test"), probed.test).items()]

    dense = ProbeScores(*inputs.at, None, sparse_probes.dense_auroc(inputs.baselines.probe, inputs.sample, probed))
    return [dense, *(one for some in side_by_side(score_one, learnt) for one in some)]


def judge(own: InterpretParams, inputs: Inputs, advance: Callable[[int], None]) -> Judged:
    """The results of the SAEs beside those of the baselines; `advance` is told of the tokens that are done."""
    learnt, test = learn(own, inputs), inputs.parts.whole["test"]
    features = {key: one.features for key, one in learnt.items()}
    scores = choose_and_score(features, inputs.parts, document_resamples(test, own.n_resamples, own.seed), advance)
    prevalence: npt.NDArray[np.float64] = test.labels.mean(0)
    chance = {level: chance_level(prevalence, null) for level, null in nulls(inputs, learnt).items()}
    saes = {key: Detected(found, chance[key.level], features[key].choice) for key, found in scores.items()}
    baselines = {
        name: one if one.chance is not None else one._replace(chance=chance[inputs.at.level])
        for name, one in inputs.baselines.detected.items()
    }
    return Judged(saes, baselines, probe_scores(inputs, learnt), inputs.parts.concepts, prevalence, inputs.at)


def main(arm: str) -> None:
    """Detect the concepts with all features of the arm, join the baselines, and summarise."""
    own = settings()
    keep_freed_memory()
    inputs = prepare(own, arm)
    n_tokens = sum(len(inputs.parts.whole[split]) for split in ("validation", "test"))
    with Log(f"interpret@{arm}", total=n_tokens, unit="token") as log:
        judged = judge(own.interpret, inputs, log.advance)
    tables = {
        "concepts": concept_table(judged),
        "baselines": basis_table(judged),
        "probes": probe_table(judged.aurocs, [inputs.parts.concepts[column].name for column in inputs.probed.columns]),
    }
    for name, table in tables.items():
        write_parquet(Path("data/interpret") / arm / f"{name}.parquet", table.assign(arm=arm))
    write_summary("interpret", arm, summary_rows(judged))


if __name__ == "__main__":
    run(main)
