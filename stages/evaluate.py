"""How faithful each SAE of an arm is to the activations and to the language model, on held-out documents.

in: data/activations, data/tokens, data/model, data/train/<arm>
out: data/evaluate/<arm> (`l0.parquet`, `documents.parquet`), reports/evaluate/<arm>.json

The numbers are defined in `stages.lib.fidelity.measures`; dead features are those that fire nowhere in validation and
test. For the cross-entropy (nats a token) the reconstruction replaces the activation at all positions but the first,
and the predictions of all positions but the first count:

    ce_recovered_mean = (ce_mean - ce_sae) / (ce_mean - ce_clean)       (with ce_zero: ce_recovered_zero)

Baselines: the mean training activation of each token id, and the principal components of the `fit` tokens, as many as
the SAE has active features on average.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from pydantic import NonNegativeInt, PositiveInt

from stages.lib.activations.store import Store, open_store
from stages.lib.fidelity.cross_entropy import Site, Sums, joined, spread, window_sums
from stages.lib.fidelity.measures import Fidelity
from stages.lib.fidelity.reconstruction import Baselines, dead, fidelities
from stages.lib.fidelity.summary_rows import ce_rows, fidelity_rows
from stages.lib.io import params
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.language.model import check_weights, load_model
from stages.lib.language.patching import check_resumption, index_batches
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.run.start import run
from stages.lib.sae.members import Member, members, revision
from stages.lib.sae.saved import SAE, load_sae
from stages.lib.stats.intervals import resample_counts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DATA = Path("data/evaluate")
LOGITS = 2**25
"""Logits at a time."""


class EvaluateParams(params.Params):
    """The section `evaluate`."""

    n_ce_tokens: PositiveInt
    """Test tokens behind the cross-entropies, as whole windows spread evenly over the split."""
    n_resamples: PositiveInt
    """Resamples of documents behind each interval."""
    seed: NonNegativeInt
    """Of the resamples and of the random error directions."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    evaluate: EvaluateParams
    seeds: list[int]


def settings() -> Settings:
    """The stage's settings."""
    return Settings(params.read("evaluate", EvaluateParams), params.read("train.seeds", list[int]))


class Inputs(NamedTuple):
    """What is read before anything is measured."""

    runs: list[Member]
    saes: list[SAE]
    store: Store
    windows: Windows
    """Of the test split."""
    model: "TransformerBridge"


def prepare(arm: str, seeds: list[int]) -> Inputs:
    """Load the SAEs and the language model whose activations they were trained on."""
    runs = members(arm, seeds)
    store = open_store(revision(arm, seeds[0]), verify=("validation", "test"))
    check_weights(store.index, store.directory)
    windows, model = read_windows("test"), load_model(store.index["revision"], device())
    return Inputs(runs, [load_sae(run.directory).to(device()) for run in runs], store, windows, model)


class CrossEntropies(NamedTuple):
    """What the language model was measured on."""

    sums: Sums
    document: Int[np.ndarray, " window"]
    """The document of each window, numbered among those that occur."""
    n_documents: int


def cross_entropies(own: EvaluateParams, inputs: Inputs) -> CrossEntropies:
    """The sums of test windows spread evenly over the split."""
    store, windows, model = inputs.store, inputs.windows, inputs.model
    per_window = store.n_rows("test") / len(windows.length)
    chosen = torch.from_numpy(spread(len(windows.length), math.ceil(own.n_ce_tokens / per_window)))
    size = max(1, min(16, LOGITS // (windows.n_ctx * model.cfg.d_vocab)))
    generator = torch.Generator().manual_seed(integer(own.seed, "evaluate", "random_error"))
    site, valid = Site(model, store.hook_name, store.mean.to(device())), windows.valid()
    parts: list[Sums] = []
    for rows in index_batches(len(chosen), size):
        indices = chosen[rows]
        longest = int(windows.length[indices].max())
        tokens, mask = (whole[indices, :longest].to(device()) for whole in (windows.tokens, valid))
        if not parts:
            check_resumption(model, tokens, store.hook_name)
        parts.append(window_sums(site, tokens, mask, inputs.saes, generator))
    present, document = np.unique(windows.document[chosen].numpy(), return_inverse=True)
    return CrossEntropies(joined(parts), document, len(present))


class Measured(NamedTuple):
    """What was measured of all SAEs."""

    baselines: Baselines
    fidelities: list[Fidelity]
    silent: list[Bool[np.ndarray, " d_sae"]]
    """The features that fire neither in test nor in validation."""
    patched: CrossEntropies


def measure(own: EvaluateParams, inputs: Inputs, log: Log) -> Measured:
    """The sums of all SAEs over the activations and over the runs of the language model."""
    baselines, sums = fidelities(inputs.store, inputs.windows, inputs.saes, inputs.model.cfg.d_vocab)
    patched = cross_entropies(own, inputs)
    silent = []
    for sae, fidelity in zip(inputs.saes, sums, strict=True):
        silent.append(dead(inputs.store, sae, fidelity))
        log.advance(1, fvu=fidelity.fvu(baselines.total))
    return Measured(baselines, sums, silent, patched)


def summarise(own: EvaluateParams, inputs: Inputs, found: Measured) -> Iterator[Row]:
    """Every number of the arm's summary."""
    patched, n_validation = found.patched, inputs.store.n_rows("validation")
    generator = numpy_generator(own.seed, "evaluate", "documents")
    counts = resample_counts(len(inputs.windows.document_ids), own.n_resamples, generator)
    ce_counts = resample_counts(patched.n_documents, own.n_resamples, generator)
    for index, (member, fidelity, silent) in enumerate(zip(inputs.runs, found.fidelities, found.silent, strict=True)):
        yield from fidelity_rows(member, fidelity, found.baselines, silent, n_validation, counts)
        yield from ce_rows(member, patched.sums, index, patched.document, ce_counts)


def documents_table(member: Member, own: Fidelity, total: np.ndarray) -> pd.DataFrame:
    """The sums behind the FVU, by document."""
    table = pd.DataFrame({"squared_error": own.squared_error, "total": total})
    return table.assign(level=member.level, seed=member.seed, document=np.arange(len(table)))


def l0_table(member: Member, own: Fidelity) -> pd.DataFrame:
    """How many test tokens have each L0."""
    seen = np.flatnonzero(own.l0_counts)
    return pd.DataFrame({"level": member.level, "seed": member.seed, "l0": seen, "n_tokens": own.l0_counts[seen]})


def main(arm: str) -> None:
    """Evaluate all levels and seeds of an arm."""
    own, seeds = settings()
    keep_freed_memory()
    inputs = prepare(arm, seeds)
    with Log(f"evaluate@{arm}", unit="SAE") as log, torch.no_grad():
        found = measure(own, inputs, log)
    pairs = list(zip(inputs.runs, found.fidelities, strict=True))
    tables = {
        "documents": [documents_table(*pair, found.baselines.total) for pair in pairs],
        "l0": [l0_table(*pair) for pair in pairs],
    }
    for name, parts in tables.items():
        write_parquet(DATA / arm / f"{name}.parquet", pd.concat(parts, ignore_index=True))
    write_summary("evaluate", arm, summarise(own, inputs, found))


if __name__ == "__main__":
    run(main)
