"""Which known concepts do single features detect, beyond chance, the token id and other bases?

in: data/activations, data/tokens, data/concepts, data/train/<arm>
out: data/interpret/<arm> (`concepts`, `baselines`, `probes`, all .parquet), reports/interpret/<arm>.json

Coverage and its corrections are defined in `stages.lib.coverage`: detectors are chosen on validation and scored on
test; intervals resample test documents. A level's chance level comes from the shifts of all its seeds, which are
repeats of one another. Beside the SAEs stand token lookup, the dense probe, k-sparse probes (`stages.lib.probes`), and
signed residual and principal coordinates with the same selection; what does not depend on the SAE is given once, for
the first seed and the level that training follows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stages.lib import params
from stages.lib.arms import Member, members
from stages.lib.baselines import DenseProbe, TokenLookup
from stages.lib.bootstrap import resample_counts
from stages.lib.concept_sample import Sample, dense_auroc, draw_sample, shifted, sparse_aurocs
from stages.lib.concept_tables import (
    Detector,
    Judged,
    Key,
    Prepared,
    ProbeScores,
    concept_table,
    probe_table,
    summary_rows,
)
from stages.lib.confusion import Encode, Predictions, encoded
from stages.lib.coverage import Features, Score, bases, score
from stages.lib.device import device
from stages.lib.errors import UserError, run
from stages.lib.files import read_json
from stages.lib.labelled import Labelled, read_labelled, usable_concepts, with_concepts
from stages.lib.labels import Concept, read_concepts
from stages.lib.log import Log
from stages.lib.saelens import SAE, load_sae
from stages.lib.seeds import numpy_generator
from stages.lib.store import Store, open_store
from stages.lib.summary import write_summary
from stages.lib.tables import write_parquet

BATCH = 8192
"""Tokens at a time."""


class InterpretParams(params.Params):
    """The section `interpret`."""

    n_tokens: PositiveInt
    """Tokens of each split, as whole windows; more than there are means all."""
    n_sample: PositiveInt
    """Tokens of each split behind the maxima, the probes and the shifted labels."""
    n_shifts: PositiveInt
    """Shifts behind each level's chance level, shared among its seeds."""
    n_resamples: PositiveInt
    """Resamples of test documents behind each interval."""
    k: Annotated[list[PositiveInt], Field(min_length=1)]
    """Features of the sparse probes."""
    n_examples: Annotated[int, Field(ge=2)]
    """Examples of each concept for the sparse probes, half of them positive."""
    l2: PositiveFloat
    """Penalty of the probes."""
    seed: NonNegativeInt
    """Of the windows, shifts, examples and resamples."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    interpret: InterpretParams
    seeds: list[int]


def settings(arm: str) -> Settings:  # noqa: ARG001 - every stage's settings take what its main takes
    """The stage's settings."""
    return Settings(params.read("interpret", InterpretParams), params.read("train.seeds", list[int]))


def encoder(sae: SAE) -> Encode:
    """What encodes raw activations of main memory into main memory."""
    sae = sae.to(device())
    return lambda x: sae.encode(x.to(sae.W_enc.device)).cpu()


def candidates(runs: list[Member], sample: Sample, control: Key, max_k: int) -> Iterator[tuple[Key, Features]]:
    """The SAEs of the arm, and the other bases with as many features where their dimension allows it."""
    n_concepts = sample.part["fit"].labels.shape[1]
    saes = {Key("sae", run.level, run.seed): load_sae(run.directory) for run in runs}
    encoders = {key: encoder(sae) for key, sae in saes.items()}
    d_sae = next(iter(saes.values())).d_sae
    if max_k > d_sae:
        raise UserError(f"params.yaml: interpret.k is {max_k}, but the SAEs of {runs[0].arm} have {d_sae} features")
    for name, basis in bases(sample.x["fit"], d_sae).items():
        encoders[control._replace(kind=name)] = basis.encode
    for key, encode in encoders.items():
        maximum = torch.stack([acts.amax(0) for acts in encoded(encode, sample.x["fit"])]).amax(0)
        yield key, Features(encode, maximum.numpy(), n_concepts)


def prepare(
    runs: list[Member], parts: dict[str, Labelled], sample: Sample, own: InterpretParams, control: Key
) -> Prepared:
    """Everything that the samples are enough for: the baselines, the chance levels and the probes."""
    d_vocab = int(max(part.tokens.max() for part in parts.values())) + 1
    dense = DenseProbe(sample.x["fit"], sample.part["fit"].labels, own.l2)
    detectors: dict[Key, Detector] = {
        control._replace(kind="token"): TokenLookup(parts["fit"], d_vocab),
        control._replace(kind="probe"): dense,
    }
    null: dict[tuple[str, int], list[npt.NDArray[np.float64]]] = {}
    aurocs = []
    if len(sample.probed):
        aurocs.append(ProbeScores(control.level, control.seed, None, dense_auroc(dense.probe, sample)))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    for key, features in candidates(runs, sample, control, max(own.k)):
        detectors[key] = features
        # The seeds of a level take turns at the shifts; of the other bases there is one each, which takes them all.
        turn = slice(seeds.index(key.seed), None, len(seeds)) if key.kind == "sae" else slice(None)
        null.setdefault((key.kind, key.level), []).append(shifted(features, sample, turn))
        if key.kind == "sae" and len(sample.probed):
            found = sparse_aurocs(features, sample, own.k, own.l2)
            aurocs += [ProbeScores(key.level, key.seed, k, auroc) for k, auroc in found.items()]
    return Prepared(detectors, {level: np.concatenate(shifts) for level, shifts in null.items()}, aurocs)


def test_scores(
    detectors: dict[Key, Detector], parts: dict[str, Labelled], own: InterpretParams, log: Log
) -> dict[Key, Score]:
    """Choose all detectors on validation and score them on test, in one pass over each."""
    for batch in parts["validation"].batches(BATCH):
        for detector in detectors.values():
            detector.observe(batch)
        log.advance(len(batch.tokens))
    for detector in detectors.values():
        detector.choose()
    test = parts["test"]
    predictions = {key: Predictions(test.n_documents, test.labels.shape[1]) for key in detectors}
    for batch in test.batches(BATCH):
        for key, detector in detectors.items():
            predictions[key].add(detector.predict(batch), batch.labels, batch.documents)
        log.advance(len(batch.tokens))
    counts = resample_counts(test.n_documents, own.n_resamples, numpy_generator(own.seed, "interpret", "documents"))
    return {key: score(found, counts) for key, found in predictions.items()}


def read_parts(store: Store, own: InterpretParams) -> tuple[dict[str, Labelled], dict[str, Labelled], list[Concept]]:
    """The splits, the samples of them, and the concepts that can be told in all of the splits."""

    def read(name: str, n_tokens: int) -> dict[str, Labelled]:
        splits = ("fit", "validation", "test")
        return {s: read_labelled(store, s, n_tokens, numpy_generator(own.seed, "interpret", name, s)) for s in splits}

    parts, samples = read("all", own.n_tokens), read("sample", min(own.n_sample, own.n_tokens))
    usable = usable_concepts(list(parts.values()))
    concepts = read_concepts()
    parts, samples = ({s: with_concepts(part, usable) for s, part in some.items()} for some in (parts, samples))
    return parts, samples, [concepts[column] for column in usable]


def main(arm: str) -> None:
    """Detect the concepts with all features of the arm and with the baselines, and summarise."""
    own, seeds = settings(arm)
    runs = members(arm, seeds)
    train = read_json(runs[0].directory.parent / "train.json")
    parts, samples, concepts = read_parts(open_store(train["activations"]), own)
    mean_run = max(concept.mean_run for concept in concepts)
    sample = draw_sample(
        samples,
        mean_run=mean_run,
        n_shifts=-(-own.n_shifts // len(seeds)) * len(seeds),
        n_examples=own.n_examples,
        generator=numpy_generator(own.seed, "interpret", "draw"),
    )
    control = Key("control", int(train["follow_level"]), runs[0].seed)
    with Log(f"interpret@{arm}", total=len(parts["validation"]) + len(parts["test"]), unit="token") as log:
        prepared = prepare(runs, parts, sample, own, control)
        scores = test_scores(prepared.detectors, parts, own, log)
    judged = Judged(prepared, scores, concepts, parts["test"].labels.mean(0), control)
    names = [concepts[column].name for column in sample.probed]
    for name, table in {
        "concepts": concept_table(judged, ("sae",)),
        "baselines": concept_table(judged, ("residual", "pca")),
        "probes": probe_table(prepared.aurocs, names),
    }.items():
        write_parquet(Path("data/interpret") / arm / f"{name}.parquet", table.assign(arm=arm))
    write_summary("interpret", arm, summary_rows(judged))


if __name__ == "__main__":
    run(main)
