"""Which known concepts do single features detect, beyond chance, the token id and other bases?

in: data/activations, data/tokens, data/concepts, data/train/<arm>, data/baselines/<revision of the arm>
out: data/interpret/<arm> (`concepts`, `baselines`, `probes`, all .parquet), reports/interpret/<arm>.json

Coverage and its corrections are defined in `stages.lib.detectors.coverage`: detectors are chosen on validation and
scored on test; intervals resample test documents. A level's chance level comes from the shifts of all its seeds, which
are repeats of one another. Beside the SAEs stand k-sparse probes (`stages.lib.detectors.probes`) and what
`stages.baselines` found without an SAE, which is given once, for the first seed and the level that training follows.
"""

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
    Sample,
    candidates,
    document_resamples,
    draw_sample,
    read_parts,
    shifted,
    stream,
)
from stages.lib.detectors.saved_baselines import Baselines, identity, read_baselines
from stages.lib.detectors.tables import Judged, Key, ProbeScores, concept_table, probe_table, summary_rows
from stages.lib.io import params
from stages.lib.io.errors import UserError, run
from stages.lib.io.files import read_json
from stages.lib.io.summary import write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.sae.members import Member, members
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


def settings(arm: str) -> Settings:  # noqa: ARG001 - every stage's settings take what its main takes
    """The stage's settings."""
    return Settings(params.read("interpret", InterpretParams), params.read("train.seeds", list[int]))


class Prepared(NamedTuple):
    """The features of the SAEs before detectors are chosen, and what was learnt on the samples."""

    features: dict[Key, Features]
    null: dict[int, npt.NDArray[np.float64]]
    """F1 on shifted labels [shift, concept], by level."""
    aurocs: list[ProbeScores]


def prepare(saes: dict[Key, SAE], sample: Sample, probed: Probed, own: InterpretParams) -> Prepared:
    """Everything of the SAEs that the samples are enough for: the maxima, the chance levels and the probes."""
    seeds = list(dict.fromkeys(key.seed for key in saes))

    def prepare_one(key: Key) -> tuple[Features, npt.NDArray[np.float64], list[ProbeScores]]:
        features, fit_acts = candidates(Encoder(saes[key].to(device())), sample)
        # The seeds of a level take turns at the shifts.
        null = shifted(features, sample, slice(seeds.index(key.seed), None, len(seeds)))
        if not len(probed.columns):
            return features, null, []
        found = sparse_aurocs(fit_acts, features.encode, sample, probed, own.k, own.l2)
        return features, null, [ProbeScores(key.level, key.seed, k, auroc) for k, auroc in found.items()]

    features, nulls, aurocs = zip(*side_by_side(prepare_one, saes, device()), strict=True)
    by_level = {
        level: np.concatenate([null for key, null in zip(saes, nulls, strict=True) if key.level == level])
        for level in dict.fromkeys(key.level for key in saes)
    }
    return Prepared(dict(zip(saes, features, strict=True)), by_level, [one for some in aurocs for one in some])


def load_saes(runs: list[Member], max_k: int) -> dict[Key, SAE]:
    """The SAEs of the arm.

    Raises:
        UserError: if they have fewer features than the probes are to have.
    """
    saes = {Key("sae", run.level, run.seed): load_sae(run.directory) for run in runs}
    d_sae = next(iter(saes.values())).d_sae
    if max_k > d_sae:
        raise UserError(f"params.yaml: interpret.k is {max_k}, but the SAEs of {runs[0].arm} have {d_sae} features")
    return saes


def join(saes: dict[Key, Detected], baselines: Baselines, control: Key) -> dict[Key, Detected]:
    """The SAEs' results and the baselines', under the control's level and seed."""
    return saes | {control._replace(kind=kind): found for kind, found in baselines.detected.items()}


def main(arm: str) -> None:
    """Detect the concepts with all features of the arm, join the baselines, and summarise."""
    own, seeds = settings(arm)
    keep_freed_memory()
    runs = members(arm, seeds)
    train = read_json(runs[0].directory.parent / "train.json")
    saes, revision = load_saes(runs, max(own.k)), train["activations"]
    parts = read_parts(open_store(revision, verify=SPLITS), n_tokens=own.n_tokens, n_sample=own.n_sample, seed=own.seed)
    validation, test = parts.whole["validation"], parts.whole["test"]
    baselines = read_baselines(revision, identity(own, next(iter(saes.values())).d_sae, parts.concepts))
    control = Key("control", int(train["follow_level"]), runs[0].seed)
    with Log(f"interpret@{arm}", total=len(validation) + len(test), unit="token") as log:
        generator = stream(own.seed, "draw")
        sample = draw_sample(parts, -(-own.n_shifts // len(seeds)) * len(seeds), generator)
        probed = draw_probed(sample, own.n_examples, generator)
        prepared = prepare(saes, sample, probed, own)
        resamples = document_resamples(test, own.n_resamples, own.seed)
        scores = choose_and_score(prepared.features, validation, test, resamples, log.advance)
    prevalence: npt.NDArray[np.float64] = test.labels.mean(0)
    detected = {
        key: Detected(found, chance_level(prevalence, prepared.null[key.level]), prepared.features[key].choice)
        for key, found in scores.items()
    }
    aurocs = prepared.aurocs
    if len(probed.columns):
        dense = dense_auroc(baselines.probe, sample, probed)
        aurocs = [ProbeScores(control.level, control.seed, None, dense), *aurocs]
    judged = Judged(join(detected, baselines, control), aurocs, parts.concepts, prevalence, control)
    for name, table in {
        "concepts": concept_table(judged, ("sae",)),
        "baselines": concept_table(judged, ("residual", "pca")),
        "probes": probe_table(aurocs, [parts.concepts[column].name for column in probed.columns]),
    }.items():
        write_parquet(Path("data/interpret") / arm / f"{name}.parquet", table.assign(arm=arm))
    write_summary("interpret", arm, summary_rows(judged))


if __name__ == "__main__":
    run(main)
