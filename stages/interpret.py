"""Which known concepts do single features detect, beyond chance, what n-grams tell, and other bases?

in: data/activations, data/tokens, data/concepts, data/train/<arm>, data/baselines/<revision of the arm>
out: data/interpret/<arm> (`concepts`, `baselines`, `probes`, all .parquet), reports/interpret/<arm>.json

Coverage and its corrections are defined in `stages.lib.detectors.coverage`: detectors are chosen on validation and
scored on test; intervals resample test documents. A level's chance level comes from the shifts of all its seeds, which
are repeats of one another; seeds that have the followed level alone are scored against the same. Beside the SAEs stand
k-sparse probes (`stages.lib.detectors.probes`) and what `stages.baselines` found without an SAE, which is given once,
for the first seed and the level that training follows, and is corrected by that level's chance.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from stages.lib.activations.store import open_store
from stages.lib.detectors.choose import Detected, DetectionParams, choose_and_score
from stages.lib.detectors.coverage import Features, chance_level
from stages.lib.detectors.probes import Probed, dense_auroc, draw_probed, sparse_aurocs
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
    probed: Probed
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
    probed = draw_probed(sample, own.n_examples, generator)
    followed = followed_members(arm, seeds[:1])[0]
    return Inputs(saes, parts, sample, probed, baselines, Key(followed.level, followed.seed), seeds)


class Learnt(NamedTuple):
    """The features of the SAEs before detectors are chosen, and what was learnt on the samples."""

    features: dict[Key, Features]
    null: dict[int, npt.NDArray[np.float64]]
    """F1 on shifted labels [shift, concept], by level."""
    aurocs: list[ProbeScores]


def learn(own: InterpretParams, inputs: Inputs) -> Learnt:
    """Everything of the SAEs that the samples are enough for: the maxima, the chance levels and the probes."""
    saes, sample, probed = inputs.saes, inputs.sample, inputs.probed
    seeds = inputs.seeds

    def learn_one(key: Key) -> tuple[Features, npt.NDArray[np.float64], list[ProbeScores]]:
        features, fit_acts = candidates(Encoder(saes[key].to(device())), sample)
        null: npt.NDArray[np.float64] = np.empty((0, len(inputs.parts.concepts)))
        if key.seed in seeds:  # the seeds of a level take turns at the shifts
            null = shifted(features, sample, slice(seeds.index(key.seed), None, len(seeds)))
        if not len(probed.columns):
            return features, null, []
        found = sparse_aurocs(fit_acts, features.encode, sample, probed, own.k, own.l2)
        return features, null, [ProbeScores(*key, k, auroc) for k, auroc in found.items()]

    features, nulls, aurocs = zip(*side_by_side(learn_one, saes, device()), strict=True)
    by_level = {
        level: np.concatenate([null for key, null in zip(saes, nulls, strict=True) if key.level == level])
        for level in dict.fromkeys(key.level for key in saes)
    }
    return Learnt(dict(zip(saes, features, strict=True)), by_level, [one for some in aurocs for one in some])


def dense_scores(inputs: Inputs) -> list[ProbeScores]:
    """The AUROC of the baselines' probe of all coordinates; none without probed concepts."""
    if not len(inputs.probed.columns):
        return []
    return [ProbeScores(*inputs.at, None, dense_auroc(inputs.baselines.probe, inputs.sample, inputs.probed))]


def judge(own: InterpretParams, inputs: Inputs, advance: Callable[[int], None]) -> Judged:
    """The results of the SAEs beside those of the baselines; `advance` is told of the tokens that are done."""
    learnt, whole = learn(own, inputs), inputs.parts.whole
    resamples = document_resamples(whole["test"], own.n_resamples, own.seed)
    scores = choose_and_score(learnt.features, whole["validation"], whole["test"], resamples, advance)
    prevalence: npt.NDArray[np.float64] = whole["test"].labels.mean(0)
    saes = {
        key: Detected(found, chance_level(prevalence, learnt.null[key.level]), learnt.features[key].choice)
        for key, found in scores.items()
    }
    level = saes[inputs.at].chance
    baselines = {
        name: one if one.chance is not None else one._replace(chance=level)
        for name, one in inputs.baselines.detected.items()
    }
    aurocs = [*dense_scores(inputs), *learnt.aurocs]
    return Judged(saes, baselines, aurocs, inputs.parts.concepts, prevalence, inputs.at)


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
