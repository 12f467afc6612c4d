"""Whether cheap scores say what a feature at a token does to the language model's loss, against exact ablation.

in: data/activations, data/tokens, data/model, data/train/<arm>
out: data/attribution/<arm> (`nodes.parquet`, `features.parquet`), reports/attribution/<arm>.json

The quantity m is the sum of the next-token negative log-likelihood over all positions of a window but the first; a node
(t, i) can move the predictions at t and later only. Scores, baselines and m are defined in
`stages.lib.fidelity.attribution`, the statistics in `stages.lib.fidelity.calibration`. Ablation and path go to 0 ("what
if the feature were absent"). Each seed's SAE at the level that training follows is measured. The headline numbers are
those of nodes at tokens drawn at random, the same tokens in every arm and seed, one active feature at each:

    spearman sign_agreement                        grad x act and ablation, signed
    slope                                          median of ablation / grad x act where |grad x act| > `min_score`
    spearman_magnitude[_ig, _activation]           |score| and |ablation|, with IG, or f alone, for the score
    spearman_naive                                 |ablation| and mean |W_enc[:, i]| x mean f_i, which knows no token

The interval of a seed is over documents. `<name>_pooled`, written at the first seed, takes the nodes of all seeds
together, with an interval over documents and seeds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.lib.activations.store import open_store
from stages.lib.fidelity.ablations import spread, windows_at_a_time
from stages.lib.fidelity.attribution import CleanRun, Measured, Plan, gradient, measure
from stages.lib.fidelity.calibration import Columns, agreements, block_counts, crossed_counts
from stages.lib.fidelity.node_samples import draw_tokens
from stages.lib.io import params
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.language.copies import Copies
from stages.lib.language.model import check_weights, load_model
from stages.lib.language.patching import WindowLoss, check_resumption
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run
from stages.lib.sae.members import Member, followed_members, revision
from stages.lib.sae.saved import load_sae
from stages.lib.stats.correlation import spearman, top_recall

DATA = Path("data/attribution")
RECALL = (10, 50)
"""Sizes of the sets of largest effects that are looked for among the largest scores."""


class AttributionParams(params.Params):
    """The section `attribution`."""

    n_windows: PositiveInt
    """Test windows, spread evenly over the split."""
    n_random: PositiveInt
    """Tokens drawn at random, the same in every arm and seed; one active feature at each is ablated."""
    n_stratum: PositiveInt
    """Nodes to ablate beside these: so many by largest score, and so many spread over the activations."""
    min_score: NonNegativeFloat
    """Nats: the size of a score above which effect / score goes into the slope."""
    ig_steps: PositiveInt
    """Midpoints on the path of the integrated gradients."""
    n_resamples: PositiveInt
    """Resamples of documents behind each interval."""
    seed: NonNegativeInt
    """The seed of the samples and of the resamples."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    attribution: AttributionParams
    seeds: list[int]


def settings() -> Settings:
    """The stage's settings."""
    return Settings(params.read("attribution", AttributionParams), params.read("train.seeds", list[int]))


def columns(table: pd.DataFrame) -> Columns:
    """The scores and effects of a table of nodes."""
    return Columns(*(table[name].to_numpy(np.float64) for name in Columns._fields))


def secondary(table: pd.DataFrame) -> Iterator[tuple[str, float | None, int]]:
    """Other numbers, without intervals: recall of the largest effects, the other strata, thirds of the activations."""
    parts = {str(name): part for name, part in table.groupby("stratum")}
    random = parts["random"]
    size, score = random["ablation"].abs().to_numpy(), random["grad_x_act"].abs().to_numpy()
    for k in RECALL:
        yield f"recall_top_{k}", top_recall(score, size, k), len(random)
    for name in ("top", "activation"):
        some = parts[name]
        yield f"spearman_{name}_stratum", _spearman(some), len(some)
    by_activation = parts["activation"].sort_values("activation")
    for label, rows in zip(("low", "middle", "high"), np.array_split(np.arange(len(by_activation)), 3), strict=True):
        yield f"spearman_{label}_activation", _spearman(by_activation.iloc[rows]), len(rows)


def _spearman(table: pd.DataFrame) -> float | None:
    return spearman(table["grad_x_act"].to_numpy(np.float64), table["ablation"].to_numpy(np.float64))


def rows_of(own: AttributionParams, member: Member, measured: Measured) -> Iterator[Row]:
    """The summary of one SAE."""
    random = measured.table[measured.table["stratum"] == "random"]
    generator = numpy_generator(own.seed, "attribution", "documents")
    counts = block_counts(random["document"].to_numpy(), own.n_resamples, generator)
    for name, value, interval, n in agreements(columns(random), counts, own.min_score):
        low, high = interval or (None, None)
        yield Row(member.level, member.seed, name, value, low, high, n)
    for name, number, n in secondary(measured.table):
        if number is not None:
            yield Row(member.level, member.seed, name, number, n=n)
    for name, number in measured.whole.items():
        if number is not None:
            yield Row(member.level, member.seed, name, number)


def pooled_rows(own: AttributionParams, nodes: pd.DataFrame) -> Iterator[Row]:
    """The summary of all seeds together, at the first of them."""
    random = nodes[nodes["stratum"] == "random"]
    first = random.iloc[0]
    generator = numpy_generator(own.seed, "attribution", "documents and seeds")
    counts = crossed_counts(random["document"].to_numpy(), random["seed"].to_numpy(), own.n_resamples, generator)
    yield Row(int(first["level"]), int(first["seed"]), "min_score", own.min_score)
    for name, value, interval, n in agreements(columns(random), counts, own.min_score):
        low, high = interval or (None, None)
        yield Row(int(first["level"]), int(first["seed"]), f"{name}_pooled", value, low, high, n)


def located(table: pd.DataFrame, text: Windows, chosen: np.ndarray) -> pd.DataFrame:
    """The nodes with document and flat position of their token, in place of their place among the chosen windows."""
    index = chosen[table["window"]]
    position = index * text.n_ctx + table["pos"]
    return table.drop(columns=["window", "pos"]).assign(document=text.document.numpy()[index], position=position)


class Text(NamedTuple):
    """The test windows that are measured on."""

    windows: Windows
    chosen: np.ndarray
    """Their places in the split."""
    tokens: torch.Tensor
    valid: torch.Tensor


def read_text(n_windows: int) -> Text:
    """Windows spread evenly over the test split, cut after the longest."""
    windows = read_windows("test")
    chosen = spread(len(windows.length), n_windows)
    longest = int(windows.length[torch.from_numpy(chosen)].max())
    tokens, valid = (
        whole[torch.from_numpy(chosen), :longest].to(device()) for whole in (windows.tokens, windows.valid())
    )
    return Text(windows, chosen, tokens, valid)


def main(arm: str) -> None:
    """Score the nodes of every seed of an arm."""
    own, seeds = settings()
    keep_freed_memory()
    followed = followed_members(arm, seeds)
    store = open_store(revision(arm, seeds[0]))
    check_weights(store.index, store.directory)
    model, text = load_model(store.index["revision"], device()), read_text(own.n_windows)
    batch = windows_at_a_time(text.tokens.shape[1], model.cfg.d_vocab)
    nodes: list[pd.DataFrame] = []
    features: list[pd.DataFrame] = []
    rows: list[Row] = []
    with Log(f"attribution@{arm}", len(followed), "SAE") as log:
        check_resumption(model, text.tokens[:1], store.hook_name)
        loss = WindowLoss(Copies(model), store.hook_name, text.tokens, text.valid, batch)
        clean = CleanRun(loss, gradient(loss, loss.x, batch), batch)
        draws = draw_tokens(loss.counted, own.n_random, numpy_generator(own.seed, "attribution", "tokens"))
        for member in followed:
            generator = numpy_generator(own.seed, "attribution", f"seed-{member.seed}")
            sae = load_sae(member.directory).to(device())
            measured = measure(clean, sae, Plan(own.ig_steps, draws, own.n_stratum), generator)
            measured = measured._replace(table=located(measured.table, text.windows, text.chosen))
            nodes.append(measured.table.assign(arm=arm, level=member.level, seed=member.seed))
            features.append(measured.features.assign(level=member.level, seed=member.seed))
            rows += rows_of(own, member, measured)
            log.advance(1)
    table = pd.concat(nodes, ignore_index=True)
    write_parquet(DATA / arm / "nodes.parquet", table)
    write_parquet(DATA / arm / "features.parquet", pd.concat(features, ignore_index=True))
    write_summary("attribution", arm, [*rows, *pooled_rows(own, table)])


if __name__ == "__main__":
    run(main)
