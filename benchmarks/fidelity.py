"""How well our SAEs reconstruct held-out activations at equal L0, next to the same methods trained by other libraries.

    benchmarks/.venv/bin/python -m benchmarks.fidelity --markdown benchmarks/results/fidelity.md

Everything but the library is the same: the activations (a store of the pipeline, normalised as `stages.train` does),
the batches and their order, the number of tokens, the width, the schedule's shares (`benchmarks.trainers.SHARES`; the
libraries' own warm-ups are longer than so short a training) and the tokens after which a feature is dead. The others
keep their losses, initialisations, optimisers and thresholds. All train with the same learning rates, the others with
their default too; the one with the least FVU on the validation split with the first seed counts.

    FVU = sum ||x - x_hat||^2 / sum ||x - x_bar||^2         over the test split, x_bar its mean
    L0  = active features a token                           over the test split

Both are of SAEs as they are used: BatchTopK with its threshold, SAELens' after saving and loading. Where L0 is not set
but results, there are several levels, and up to two more where all are on one side of the wanted L0; log FVU is
interpolated in log L0, never beyond the levels.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.ours import OurTrainer
from benchmarks.tables import Table, heading, write
from benchmarks.trainers import Inference, Recipe, Trainer, adapters, clock, libraries, use_threads
from stages.lib.activations.batches import normalised_batches
from stages.lib.activations.store import Store
from stages.lib.run.machine import keep_freed_memory
from stages.lib.stats.equal_l0 import at_l0

METHODS = ("topk", "batch_topk", "relu", "jump_relu")
OURS = "ours"
LRS = (1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates of all, beside the defaults of the other libraries."""
DEAD_SHARE = 0.13
"""A feature that has not fired on this share of all tokens is dead: 65,000 of 500,000, as in `params.yaml`."""
TOLERANCE = 0.03
"""How far beyond the last level, as a share, the wanted L0 may lie and still take that level's value."""
SAMPLE = 2**14
"""Validation activations, at least, on which what inference needs is set, from all over the split."""
AROUND = (0.75, 1.0, 1.35)
"""Levels as multiples of the wanted L0, where it is aimed at and not met exactly."""
COEFFICIENTS = {"relu": (0.1, 0.17, 0.3), "jump_relu": (0.0025, 0.006, 0.015)}
"""Levels where L0 results from the weight of a penalty; SAELens' and dictionary_learning's losses are ours there."""
PENALTY_STEP, AIM_STEP = 2.5, 1.6
"""From the last level to a further one, where the wanted L0 is beyond it."""
MOST_FURTHER_LEVELS = 2
AIMED = {("dictionary_learning", "jump_relu")}
"""Whose penalty aims at an L0, so that the level is that."""
EXACT = {(OURS, "batch_topk"), (OURS, "relu"), (OURS, "jump_relu")}
"""Who give the wanted L0 on validation activations."""


class Score(NamedTuple):
    """What a split says of one SAE."""

    fvu: float
    l0: float
    dead: float
    """Share of the features that never fire."""


class Outcome(NamedTuple):
    """One trained SAE."""

    lr: float | None
    level: float
    validation: Score
    test: Score
    seconds: float


class Data(NamedTuple):
    """The activations, and how much of them."""

    store: Store
    n_steps: int
    batch: int
    validation: Tensor
    test: Tensor

    def training(self, seed: int) -> Iterator[Tensor]:
        """The batches of a seed."""
        store = self.store
        return normalised_batches(store, store.scaling(), seed=seed, size=self.batch, steps=range(self.n_steps))


def held_out(store: Store, split: str) -> Tensor:
    """All rows of a split, normalised."""
    return store.scaling().normalise_(store.rows(split, 0, store.n_rows(split)))


def levels(library: str, method: str, l0: float) -> tuple[float, ...]:
    """The levels that give L0s around the wanted one."""
    if (library, method) in AIMED:
        return tuple(share * l0 for share in AROUND)
    if method == "topk" or (library, method) in EXACT:
        return (l0,)
    if method in COEFFICIENTS:
        return COEFFICIENTS[method]
    return tuple(float(round(share * l0)) for share in AROUND)


def score(apply: Inference, x: Tensor, size: int = 4096) -> Score:
    """FVU, L0 and dead features on activations."""
    missed, n_active, fired = 0.0, 0, None
    for batch in torch.split(x, size):
        codes, x_hat = apply(batch)
        missed += float((batch - x_hat).double().square().sum())
        active = codes > 0
        n_active += int(active.sum())
        fired = active.any(0) if fired is None else fired | active.any(0)
    assert fired is not None, "no activations"
    spread = float((x - x.double().mean(0)).square().sum())
    return Score(missed / spread, n_active / len(x), 1 - float(fired.double().mean()))


def train(trainer: Trainer, batches: Iterator[Tensor]) -> float:
    """Train to the end; the seconds of the steps alone, as their number times the median, so without compilation."""
    seconds, now = [], clock(torch.device("cpu"))
    for x in batches:
        begun = now()
        trainer.step(x)
        seconds.append(now() - begun)
    return statistics.median(seconds) * len(seconds)


def outcome(build: Callable[[Recipe], Trainer], recipe: Recipe, data: Data) -> Outcome:
    """An SAE trained by the recipe, and its scores."""
    trainer = build(recipe)
    sample = data.validation[:: max(1, len(data.validation) // SAMPLE)]
    if isinstance(trainer, OurTrainer):
        trainer.look_at(sample)
    seconds = train(trainer, data.training(recipe.seed))
    apply = trainer.inference(sample)
    validation, test = score(apply, data.validation), score(apply, data.test)
    lr = "default" if recipe.lr is None else f"{recipe.lr:g}"
    sys.stderr.write(
        f"  lr {lr} seed {recipe.seed} level {recipe.level:g}: "
        f"L0 {test.l0:.1f} FVU {test.fvu:.4f} dead {test.dead:.2f} in {seconds:.0f} s\n"
    )
    return Outcome(recipe.lr, recipe.level, validation, test, seconds)


def at_wanted(found: list[Outcome], split: str, l0: float) -> float | None:
    """The FVU at the wanted L0, of one seed and learning rate."""
    scores = [getattr(one, split) for one in found]
    least, most = min(one.l0 for one in scores), max(one.l0 for one in scores)
    if not least / (1 + TOLERANCE) <= l0 <= most * (1 + TOLERANCE):
        return None
    return at_l0([one.l0 for one in scores], [one.fvu for one in scores], min(max(l0, least), most), log=True)


def beyond(library: str, method: str, found: list[Outcome], l0: float) -> float | None:
    """The next level to try where all L0s are on one side of the wanted one; None where they are not."""
    if at_wanted(found, "validation", l0) is not None or method == "topk" or (library, method) in EXACT:
        return None
    reached = [one.validation.l0 for one in found]
    known, denser = [one.level for one in found], max(reached) < l0
    if method in COEFFICIENTS and (library, method) not in AIMED:
        return min(known) / PENALTY_STEP if denser else max(known) * PENALTY_STEP
    return max(1.0, round(max(known) * AIM_STEP if denser else min(known) / AIM_STEP))


def compare(
    library: str, build: Callable[[Recipe], Trainer], first: Recipe, lrs: list[float | None], data: Data, l0: float
) -> list[Outcome]:
    """SAEs of one seed and each learning rate, at levels with L0s around the wanted one."""
    found = []
    for lr in lrs:
        recipe = first._replace(lr=lr)
        by_rate = [outcome(build, recipe._replace(level=level), data) for level in levels(library, first.method, l0)]
        for _ in range(MOST_FURTHER_LEVELS):
            if (level := beyond(library, first.method, by_rate, l0)) is None:
                break
            by_rate.append(outcome(build, recipe._replace(level=level), data))
        found += by_rate
    return found


def best(found: list[Outcome], l0: float) -> list[Outcome]:
    """The SAEs of the learning rate with the least FVU on the validation split; none where no rate reaches the L0."""
    groups = [[one for one in found if one.lr == lr] for lr in dict.fromkeys(one.lr for one in found)]
    values = [at_wanted(group, "validation", l0) for group in groups]
    ranked = [(value, place) for place, value in enumerate(values) if value is not None]
    return groups[min(ranked)[1]] if ranked else []


def row(method: str, library: str, seeds: list[list[Outcome]], l0: float) -> list[str]:
    """The cells of one method and library; `seeds` are the SAEs of the chosen learning rate, or of all if none is."""
    chosen = [one for seed in seeds for one in seed]
    values = [at_wanted(seed, "test", l0) for seed in seeds]
    reached = [value for value in values if value is not None]
    rates = {one.lr for one in chosen}
    rate = "none" if len(rates) > 1 else "default" if None in rates else f"{min(map(float, filter(None, rates))):g}"
    complete = rate != "none" and len(reached) == len(values)
    near = min((one.test for one in chosen), key=lambda test: abs(test.l0 - l0))
    return [
        method,
        library,
        rate,
        f"{statistics.fmean(reached):.4f}" if complete else "L0 not reached",
        " ".join("-" if value is None else f"{value:.4f}" for value in values) if rate != "none" else "",
        " ".join(f"{one.test.l0:.1f}" for one in sorted(chosen, key=lambda one: one.test.l0)),
        f"{near.dead:.2f}",
        f"{statistics.fmean(one.seconds for one in chosen):.1f}",
    ]


COLUMNS = ("method", "library", "lr", "FVU", "by seed", "L0 of the SAEs", "dead", "seconds")
NOTE = """
Test FVU at L0 {l0:g}: d_in {d_in}, d_sae {d_sae}, {n_tokens:,} tokens in batches of {batch}, seeds {seeds}.
Ours with the search in bfloat16, as in the pipeline, the others in float32. `lr`: the best of {rates}
on the validation split with the first seed. `L0 of the SAEs`: of all seeds, between which
was interpolated. `dead`: share of the features that never fire on the test split, of the SAE next to the wanted L0.
`seconds`: of the steps of one SAE, their number times the median, in the process's time where one thread computes.
"""


def seeds_of(
    method: str, library: str, build: Callable[[Recipe], Trainer], data: Data, chosen: argparse.Namespace
) -> list[list[Outcome]]:
    """The SAEs of each seed at the best learning rate; where none reaches the L0, those of the first seed and all."""
    ours = library == OURS
    first = Recipe(
        method, data.store.d_in, chosen.d_sae, chosen.l0, chosen.batch, data.n_steps, None,
        round(DEAD_SHARE * chosen.tokens), chosen.seeds[0], torch.device("cpu"), "bf16" if ours else "fp32",
    )  # fmt: skip
    tried = compare(library, build, first, [*([] if ours else [None]), *chosen.lrs], data, chosen.l0)
    seeds = [best(tried, chosen.l0)]
    if not seeds[0]:
        return [tried]
    others = (first._replace(seed=seed) for seed in chosen.seeds[1:])
    return seeds + [compare(library, build, other, [seeds[0][0].lr], data, chosen.l0) for other in others]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("data/activations/main"))
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--l0", type=float, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--lrs", type=float, nargs="*", default=LRS, help="of all, beside the others' defaults")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--libraries", nargs="*", choices=adapters(), default=["saelens", "dictionary_learning"])
    parser.add_argument("--csv", type=Path, help="file for the table")
    parser.add_argument("--markdown", type=Path, help="file for heading and table")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    chosen = arguments()
    keep_freed_memory()
    use_threads()
    store = Store(chosen.store)
    data = Data(
        store, chosen.tokens // chosen.batch, chosen.batch, held_out(store, "validation"), held_out(store, "test")
    )
    found, rows = libraries(chosen.libraries), []
    rates = ", ".join(["the library's default (ours has none)", *(f"{lr:g}" for lr in chosen.lrs)])
    note = NOTE.format(
        l0=chosen.l0, d_in=store.d_in, d_sae=chosen.d_sae, n_tokens=data.n_steps * chosen.batch, batch=chosen.batch,
        seeds=", ".join(map(str, chosen.seeds)), rates=rates,
    )  # fmt: skip
    text = heading("benchmarks.fidelity", torch.device("cpu"), found) + note
    for method in chosen.methods:
        builders: dict[str, Callable[[Recipe], Trainer]] = {
            OURS: lambda recipe: OurTrainer(recipe, led=recipe.method in COEFFICIENTS)
        }
        builders |= {library.name: library.trainer for library in found if method in library.methods}
        for name, build in builders.items():
            sys.stderr.write(f"{method}, {name}\n")
            rows.append(row(method, name, seeds_of(method, name, build, data, chosen), chosen.l0))
            write(text, Table(COLUMNS, rows), chosen.markdown, chosen.csv)  # a run takes long, and may be stopped
    sys.stdout.write(f"{text}\n{Table(COLUMNS, rows).text()}")


if __name__ == "__main__":
    main()
