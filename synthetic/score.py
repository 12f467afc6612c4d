"""How much of the truth the SAEs of one arm have found.

in: data/activations, data/truth, data/train/<arm>
out: data/score/<arm>: `features.parquet` (a row per SAE and true feature), `children.parquet` (a row per SAE, parent
and child); reports/score/<arm>.json (`stages.lib.io.summary`)

The numbers are defined in `synthetic.recovery`, all of them on the test split, whose features were drawn from other
random numbers than the training's. A feature counts as that of a true one in what is said about absorption if they are
matched with a cosine of at least `match_cosine`: without it there is nothing that could be silent, or absorb.

    absorption           mean over parents with a feature, of all their children together
    absorption_learned   mean over pairs of a parent and a child of it that have a feature each
    absorption_sham      the same with the children of other parents
    absorbed_fraction    share of the former pairs with more than 0.5
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from stages.lib.activations.store import Store, open_store
from stages.lib.fidelity.measures import Fidelity, Moments, l0_statistics, squared_distance
from stages.lib.io import params, tensors
from stages.lib.io.files import read_json
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.run.log import Log
from stages.lib.run.machine import device
from stages.lib.run.parallel import side_by_side
from stages.lib.run.start import run
from stages.lib.sae.members import Member, cell, members
from stages.lib.sae.saved import load_sae
from stages.lib.sae.selection import Active
from synthetic.recovery import N_GROUPS, RECOVERED, Directions, Families, Firings, directions, frequency_groups
from synthetic.truth import BLOCK, REVISION, TRUTH, load_codes, load_truth
from synthetic.world import Truth

SCORES = Path("data/score")
ABSORBED = 0.5
"""Absorption by one child from which it counts as absorbed."""


class ScoreParams(params.Params):
    """The section `score`."""

    match_cosine: Annotated[float, Field(gt=0, le=1)]
    """From which the matched feature of a parent or a child counts as its own."""


class Settings(NamedTuple):
    """All that is read from `params.yaml`."""

    score: ScoreParams
    seeds: list[int]


def settings() -> Settings:
    """The settings."""
    return Settings(params.read("score", ScoreParams), params.read("train.seeds", list[int]))


class Scored:
    """One SAE, its pairs with true features, and its sums over the test split."""

    def __init__(self, member: Member, truth: Truth, mean: Float[Tensor, " d_in"], match_cosine: float) -> None:
        sae = load_sae(member.directory)
        self.member, self.sae = member, sae.to(device())
        self.pairs = directions(sae.W_dec, truth.dictionary)
        self.fidelity, self.firings = Fidelity(sae.d_sae, 1, mean), Firings(self.pairs)
        self.own = np.zeros(len(truth.dictionary), bool)
        """Which true features have a feature of their own."""
        self.own[self.pairs.true[self.pairs.cosine >= match_cosine]] = True
        learned = np.zeros(len(self.own), np.int64)
        learned[self.pairs.true] = self.pairs.learned
        self.kept = np.flatnonzero(self.own[truth.parents])
        """Families whose parent has one."""
        parents = truth.parents[self.kept]
        self.families = Families(learned[parents], parents, self.kept, truth.children)

    def add(self, x: Float[Tensor, "token d_in"], codes: Float[Tensor, "token feature"]) -> None:
        """Take in a batch."""
        active = self.sae.active(x.to(device()))
        x_hat = self.sae.decode_active(active)
        self.fidelity.add(x.to(device()), x_hat, active, np.zeros(len(x), np.int64))
        fires, on = dense(active, self.sae.d_sae), codes > 0
        for counts in (self.firings, self.families):
            counts.add(fires, on)


def dense(active: Active, d_sae: int) -> Tensor:
    """Which feature fires on which token, bool [token, d_sae], in main memory."""
    counts = active.first.diff().cpu()
    fires = torch.zeros(len(counts), d_sae, dtype=torch.bool)
    fires[torch.repeat_interleave(torch.arange(len(counts)), counts), active.feature.cpu().long()] = True
    return fires


def numbers(one: Scored, truth: Truth, total: float) -> Iterator[tuple[str, float, int | None]]:
    """Name, value and, where it is a mean over fewer than all features, over how many."""
    yield "sparsity", one.member.sparsity, None
    yield "l0", l0_statistics(one.fidelity.l0_counts)["l0"], one.fidelity.n
    yield "fvu", one.fidelity.fvu(np.array([total])), one.fidelity.n
    yield "dead_fraction", float((one.fidelity.firings == 0).double().mean()), one.fidelity.n
    for name, value in one.pairs.numbers().items():
        yield name, value, None
    for name in ("precision", "recall", "f1"):
        yield from mean(f"matched_{name}", getattr(one.firings, name)())
    recovered, group = one.pairs.best.numpy() > RECOVERED, frequency_groups(truth.frequency)
    for number in range(N_GROUPS):
        yield from mean(f"recovered_decile_{number + 1}_fraction", recovered[group == number].astype(np.float64))
    for name, whole in (("parents", truth.parents), ("children", truth.children.ravel())):
        yield from mean(f"{name}_found_fraction", one.own[whole].astype(np.float64))
    yield from mean("absorption", one.families.absorption())
    by_child, learned = one.families.by_child(), one.own[truth.children]
    is_own = one.families.is_own()[:, :, None]
    absorbed = by_child[is_own & learned]
    yield from mean("absorption_learned", absorbed)
    yield from mean("absorption_sham", by_child[~is_own & learned])
    yield from mean("absorbed_fraction", np.where(np.isnan(absorbed), np.nan, absorbed > ABSORBED))


def mean(name: str, values: npt.NDArray[np.float64]) -> Iterator[tuple[str, float, int]]:
    """The mean of the values that are defined, and how many those are; nothing if there are none."""
    known = values[np.isfinite(values)]
    if len(known):
        yield name, float(known.mean()), len(known)


def features_table(one: Scored, truth: Truth) -> pd.DataFrame:
    """A row per true feature; without a learned feature of its own, what is said about that one is missing."""
    pairs: Directions = one.pairs
    matched = pd.DataFrame({
        "learned": pairs.learned, "cosine": pairs.cosine, "precision": one.firings.precision(),
        "recall": one.firings.recall(), "f1": one.firings.f1(),
    }, index=pairs.true)  # fmt: skip
    table = pd.DataFrame({"frequency": truth.frequency, "best_cosine": pairs.best.numpy()})
    table["role"] = "independent"
    table.loc[truth.parents, "role"] = "parent"
    table.loc[truth.children.ravel(), "role"] = "child"
    return labelled(table.join(matched.astype({"learned": "Int64"})).rename_axis("feature").reset_index(), one.member)


def children_table(one: Scored, truth: Truth) -> pd.DataFrame:
    """A row per child whose parent has a feature."""
    children, is_own = truth.children[one.kept], one.families.is_own()
    return labelled(pd.DataFrame({
        "parent": np.repeat(truth.parents[one.kept], children.shape[1]), "child": children.ravel(),
        "learned": one.own[children].ravel(), "n": one.families.n_child.numpy()[is_own].ravel(),
        "absorption": one.families.by_child()[is_own].ravel(),
    }), one.member)  # fmt: skip


def labelled(table: pd.DataFrame, member: Member) -> pd.DataFrame:
    """The table with the columns that say of which SAE it is."""
    for place, name in enumerate(("arm", "level", "seed")):
        table.insert(place, name, getattr(member, name))
    return table


def initial(arm: str, seeds: list[int], truth: Truth) -> Iterator[Row]:
    """MCC before the first step, which has to be that of random directions: else the SAE was told the truth."""
    for seed in seeds:
        followed: int = read_json(cell(arm, seed) / "train.json")["follow_level"]
        path = cell(arm, seed) / f"level-{followed}" / "checkpoints" / "step-00000000.safetensors"
        decoder = tensors.load(path, ["W_dec"])["W_dec"].float()
        yield Row(followed, seed, "mcc_initial", directions(decoder, truth.dictionary).mcc)


def score(scored: list[Scored], store: Store, centre: Float[Tensor, " d_in"], log: Log) -> float:
    """Read the test split once for all SAEs; returns its summed squared deviation from `centre`, its mean."""
    total = 0.0
    for number, x in enumerate(store.batches("test", BLOCK)):
        codes = load_codes(TRUTH / REVISION, number)
        total += float(squared_distance(x, centre).sum())
        side_by_side(partial(Scored.add, x=x, codes=codes), scored, device())
        log.advance(len(x))
    return total


def main(arm: str) -> None:
    """Score the SAEs of an arm."""
    own, seeds = settings()
    store, truth = open_store(REVISION), load_truth(TRUTH / REVISION)
    scored = [Scored(one, truth, store.mean.to(device()), own.match_cosine) for one in members(arm, seeds)]
    with Log(f"score@{arm}", store.n_rows("test"), "token") as log:
        total = score(scored, store, Moments(store.batches("test", BLOCK)).mean, log)
    rows = [*initial(arm, seeds, truth)]
    for one in scored:
        found = numbers(one, truth, total)
        rows += [Row(one.member.level, one.member.seed, name, value, n=n) for name, value, n in found]
    write_summary("score", arm, rows)
    for name, table in (("features", features_table), ("children", children_table)):
        parts = [table(one, truth) for one in scored]
        write_parquet(SCORES / arm / f"{name}.parquet", pd.concat(parts, ignore_index=True))


if __name__ == "__main__":
    run(main)
