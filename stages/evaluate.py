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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import NonNegativeInt, PositiveInt

from stages.lib.activations.store import Store, open_store
from stages.lib.fidelity.cross_entropy import Sums, joined, spread, window_sums
from stages.lib.fidelity.measures import Fidelity, effective_dictionary, l0_statistics
from stages.lib.fidelity.reconstruction import Baselines, dead, fidelities
from stages.lib.io import params
from stages.lib.io.errors import run
from stages.lib.io.files import read_json
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.language.model import check_weights, load_model
from stages.lib.language.patching import check_resumption, index_batches
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.sae.members import Member, members
from stages.lib.sae.saved import SAE, load_sae
from stages.lib.stats.correlation import spearman
from stages.lib.stats.intervals import block_sums, ratio_interval, resample_counts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DATA = Path("data/evaluate")
LOGITS = 2**25
"""Logits at a time."""
DENSE = 0.1
"""Features that fire on more than this share of the tokens are dense."""
MIN_ABLATION_EFFECT = 0.05
"""Nats; where ablating the layer costs less, the share of it that is recovered means nothing."""


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


def settings(_arm: str) -> Settings:
    """The stage's settings."""
    return Settings(params.read("evaluate", EvaluateParams), params.read("train.seeds", list[int]))


def cross_entropies(
    own: EvaluateParams, store: Store, windows: Windows, saes: Sequence[SAE], model: "TransformerBridge"
) -> tuple[Sums, np.ndarray]:
    """The sums of the chosen test windows, and the document of each."""
    per_window = store.n_rows("test") / len(windows.length)
    chosen = torch.from_numpy(spread(len(windows.length), math.ceil(own.n_ce_tokens / per_window)))
    size = max(1, min(16, LOGITS // (windows.n_ctx * model.cfg.d_vocab)))
    generator = torch.Generator().manual_seed(integer(own.seed, "evaluate", "random_error"))
    parts: list[Sums] = []
    valid = windows.valid()
    for rows in index_batches(len(chosen), size):
        indices = chosen[rows]
        longest = int(windows.length[indices].max())
        tokens, mask = (whole[indices, :longest].to(device()) for whole in (windows.tokens, valid))
        if not parts:
            check_resumption(model, tokens, store.hook_name)
        parts.append(window_sums(model, store.hook_name, tokens, mask, store.mean.to(device()), saes, generator))
    return joined(parts), windows.document[chosen].numpy().astype(np.int64)


def fidelity_numbers(own: Fidelity, baselines: Baselines, silent: np.ndarray) -> dict[str, float | None]:
    """The numbers of one SAE that need no language model; None where one is not defined."""
    rates, spread_of_l0 = own.rates(), l0_statistics(own.l0_counts)
    d_in = len(baselines.principal) - 1
    return {
        **spread_of_l0,
        "fvu": own.fvu(baselines.total),
        "density": spread_of_l0["l0"] / len(rates),
        "dead_fraction": float(silent.mean()),
        "dense_fraction": float((rates > DENSE).mean()),
        "effective_dictionary": effective_dictionary(rates),
        "relative_bias": own.relative_bias(),
        "hoyer": own.hoyer(),
        "gini": own.gini(),
        "cosine": own.cosine(),
        "fvu_unigram": baselines.unigram,
        "fvu_pca": float(baselines.principal[min(d_in, round(spread_of_l0["l0"]))]),
    }


def ce_rows(member: Member, sums: Sums, index: int, documents: np.ndarray, counts: np.ndarray) -> Iterator[Row]:
    """The cross-entropies of one SAE, ratios of sums over documents, with the intervals of those that compare."""

    def by_document(values: np.ndarray) -> np.ndarray:
        return block_sums(values.astype(np.float64), documents, counts.shape[1])

    n, clean, zero, mean = (by_document(values) for values in (sums.n, sums.clean, sums.zero, sums.mean))
    sae, kl, random = (by_document(values[index]) for values in (sums.sae, sums.kl, sums.random_error))
    n_predictions = int(n.sum())
    plain = {"ce_clean": clean, "ce_sae": sae, "ce_zero": zero, "ce_mean": mean, "ce_random_error": random}
    for name, values in plain.items():
        yield Row(member.level, member.seed, name, float(values.sum() / n.sum()), n=n_predictions)
    ratios = {"delta_ce": (sae - clean, n), "kl": (kl, n)}
    for name, ablated in (("ce_recovered_mean", mean), ("ce_recovered_zero", zero)):
        if (ablated - clean).sum() / n.sum() >= MIN_ABLATION_EFFECT:
            ratios[name] = (ablated - sae, ablated - clean)
    for name, (above, below) in ratios.items():
        low, high = ratio_interval(above, below, counts) or (None, None)
        yield Row(member.level, member.seed, name, float(above.sum() / below.sum()), low, high, n_predictions)
    correlation = spearman(sums.token_l0[index].astype(np.float64), sums.token_nll.astype(np.float64))
    if correlation is not None:
        yield Row(member.level, member.seed, "l0_nll_spearman", correlation, n=n_predictions)


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
    own, seeds = settings(arm)
    keep_freed_memory()
    cells = members(arm, seeds)
    store = open_store(
        read_json(cells[0].directory.parent / "train.json")["activations"], verify=("validation", "test")
    )
    check_weights(store.index, store.directory)
    windows, model = read_windows("test"), load_model(store.index["revision"], device())
    saes = [load_sae(cell.directory).to(device()) for cell in cells]
    with Log(f"evaluate@{arm}", unit="SAE") as log, torch.no_grad():
        baselines, sums = fidelities(store, windows, saes, model.cfg.d_vocab)
        patched, documents = cross_entropies(own, store, windows, saes, model)
        generator = numpy_generator(own.seed, "evaluate", "documents")
        counts = resample_counts(len(windows.document_ids), own.n_resamples, generator)
        present, blocks = np.unique(documents, return_inverse=True)
        ce_counts = resample_counts(len(present), own.n_resamples, generator)
        rows: list[Row] = []
        for index, (cell, one, fidelity) in enumerate(zip(cells, saes, sums, strict=True)):
            numbers = fidelity_numbers(fidelity, baselines, dead(store, one, fidelity))
            held_out = fidelity.n + store.n_rows("validation")
            for name, value in numbers.items():
                low, high = None, None
                if name == "fvu":
                    low, high = ratio_interval(fidelity.squared_error, baselines.total, counts) or (None, None)
                if value is not None:
                    n = held_out if name == "dead_fraction" else fidelity.n
                    rows.append(Row(cell.level, cell.seed, name, value, low, high, n))
            rows += ce_rows(cell, patched, index, blocks, ce_counts)
            log.advance(1, fvu=fidelity.fvu(baselines.total))
        tables = [documents_table(*pair, baselines.total) for pair in zip(cells, sums, strict=True)]
        write_parquet(DATA / arm / "documents.parquet", pd.concat(tables, ignore_index=True))
        write_parquet(DATA / arm / "l0.parquet", pd.concat(map(l0_table, cells, sums), ignore_index=True))
        write_summary("evaluate", arm, rows)


if __name__ == "__main__":
    run(main)
