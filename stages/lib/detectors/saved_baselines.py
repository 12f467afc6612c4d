"""The results of `stages.baselines` on disk: `data/baselines/<revision>`.

`detectors.parquet` has a row for each concept and set of detectors (`token`, `bigram`, `trigram`, `probe`, `residual`,
`pca`), in the order of the concepts; `f1_chance`, `best_feature`, `tenths` (the threshold, in tenths of the feature's
maximum) and `f1_validation` are missing for the first four. Their chance level is that of the SAE that they stand
beside. `baselines.safetensors` holds their F1 on resampled documents, `resampled/<set>` [resample,
concept], and the dense probe, `probe/weights` [d_in, concept] and `probe/bias` [concept]; its description says what the
numbers belong to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from stages.lib.concepts.labels import Concept
from stages.lib.detectors.choose import Detected, DetectionParams
from stages.lib.detectors.counts import Choice
from stages.lib.detectors.coverage import Score
from stages.lib.detectors.probes import Probe
from stages.lib.io import tensors
from stages.lib.io.errors import UserError, nearest
from stages.lib.io.tables import read_parquet, write_parquet

BASELINES = Path("data/baselines")
TABLE, TENSORS = "detectors.parquet", "baselines.safetensors"


class Baselines(NamedTuple):
    """What detects concepts in the activations of a revision without an SAE."""

    detected: dict[str, Detected]
    """By set of detectors."""
    probe: Probe
    """The dense probe of all concepts."""


def identity(own: DetectionParams, d_sae: int, concepts: Sequence[Concept]) -> dict[str, Any]:
    """What the numbers were measured on and with; SAEs are compared with those of the same."""
    shared = own.model_dump(include=set(DetectionParams.model_fields))
    return shared | {"d_sae": d_sae, "concepts": [concept.name for concept in concepts]}


def _table(name: str, found: Detected, concepts: list[str]) -> pd.DataFrame:
    columns = {"concept": concepts, "f1": found.score.f1, "mcc": found.score.mcc}
    table = pd.DataFrame(columns).assign(detectors=name)
    if found.choice is None:
        return table
    table["f1_chance"] = found.chance
    feature, tenths, score = found.choice
    return table.assign(best_feature=feature, tenths=tenths, f1_validation=score)


def write_baselines(revision: str, found: Baselines, description: dict[str, Any]) -> None:
    """Write them; `description` is their `identity`."""
    table = pd.concat([_table(name, one, description["concepts"]) for name, one in found.detected.items()])
    write_parquet(BASELINES / revision / TABLE, table.astype({"best_feature": "Int64", "tenths": "Int64"}))
    content = {f"resampled/{name}": torch.from_numpy(one.score.resampled) for name, one in found.detected.items()}
    content |= {"probe/weights": found.probe.weights, "probe/bias": found.probe.bias}
    tensors.save(BASELINES / revision / TENSORS, content, description)


def read_baselines(revision: str, description: dict[str, Any]) -> Baselines:
    """The baselines of a revision whose `identity` is `description`.

    Raises:
        UserError: if there are none, or none of that identity.
    """
    known = sorted(path.parent.name for path in BASELINES.glob(f"*/{TENSORS}"))
    if revision not in known:
        raise UserError(
            f"{BASELINES} has no baselines of revision {revision!r}{nearest(revision, known)}; "
            "`dvc repro baselines` makes those of the revisions in activations.revisions"
        )
    path = BASELINES / revision / TENSORS
    found = tensors.describe(path)
    for name, value in description.items():
        if found.get(name) != value:
            raise UserError(f"{path} was made with another {name} than this run has; `dvc repro baselines` renews it")
    content = tensors.load(path)
    detected: dict[str, Detected] = {}
    table = read_parquet(path.with_name(TABLE))
    for name in table["detectors"].unique():
        rows = table[table["detectors"] == name]
        score = Score(rows["f1"].to_numpy(), content[f"resampled/{name}"].numpy(), rows["mcc"].to_numpy())
        choice, chance = None, None
        if rows["best_feature"].notna().all():
            feature, tenths = (rows[column].to_numpy(np.int64) for column in ("best_feature", "tenths"))
            choice, chance = Choice(feature, tenths, rows["f1_validation"].to_numpy()), rows["f1_chance"].to_numpy()
        detected[name] = Detected(score, chance, choice)
    return Baselines(detected, Probe(content["probe/weights"], content["probe/bias"]))
