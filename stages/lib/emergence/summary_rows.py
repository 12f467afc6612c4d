"""Times of emergence as tables, and the few numbers of an arm that say how its features and concepts emerged."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from stages.lib.emergence import drivers, trajectories
from stages.lib.emergence.checkpoints import Followed
from stages.lib.emergence.curves import Half
from stages.lib.emergence.times import first_passage, half_rise, kaplan_meier, kendall_w, sharpness
from stages.lib.features.matching import match
from stages.lib.io.summary import Row
from stages.lib.sae.members import Member
from stages.lib.stats.correlation import spearman
from stages.lib.stats.reliability import icc

DRIVERS = ("prevalence", "variance_share", "separability", "lexicality", "redundancy")
SHARP_WIDTH, SHARP_BIC = 0.5, 10.0
"""A rise is called sharp below this width in decades and above this difference in BIC."""
MIN_ICC_FEATURES = 10
TERCILES = ("rare", "medium", "frequent")


class Thresholds(NamedTuple):
    """Settings of the stage that turn curves into events."""

    min_firings: int
    settled_cosine: float
    lazy_cosine: float
    min_final: float


def time_table(followed: Followed, names: list[str], min_final: float) -> pd.DataFrame:
    """One row per concept: when it emerged in this SAE; a time that is censored is missing.

    The rise lies between the checkpoints `tau_after` and `tau`; `at_start` means at or before the first checkpoint.
    """
    cc, steps = followed.cc_f1(), followed.steps
    index, first = half_rise(cc, min_final), first_passage(cc, min_final)
    never = np.isnan(index)
    at = np.where(never, 0, index).astype(int)
    log_step = np.log(steps[steps > 0])
    fits = [None if gone else sharpness(log_step, curve) for gone, curve in zip(never, cc[steps > 0].T, strict=True)]
    return pd.DataFrame({
        "arm": followed.member.arm, "seed": followed.member.seed, "level": followed.member.level, "concept": names,
        "tau": np.where(never, np.nan, steps[at]),
        "tau_after": np.where(never | (at == 0), np.nan, steps[np.maximum(at - 1, 0)]),
        "tau_first_passage": np.where(never, np.nan, steps[np.where(never, 0, first).astype(int)]),
        "censored": never, "at_start": ~never & (at == 0), "last_step": int(steps[-1]),
        "cc_final": cc[-1], "f1_final": followed.f1[-1], "f1_chance": followed.f0,
        "width": [fit.width if fit else np.nan for fit in fits],
        "delta_bic": [fit.delta_bic if fit else np.nan for fit in fits],
    })  # fmt: skip


def mean_times(times: pd.DataFrame, by_concept: pd.DataFrame) -> pd.DataFrame:
    """The concepts' properties with the geometric mean of tau over seeds, where the concept emerges in all of them.

    A tau of 0 counts as 1: the logarithm needs it, and nothing on the grid of steps lies between.
    """
    groups = times.groupby("concept")
    log_tau = np.log(times["tau"].clip(lower=1)).groupby(times["concept"])
    together = pd.DataFrame({
        "n_seeds": groups.size(), "n_emerged": groups["tau"].count(), "cc_final": groups["cc_final"].mean(),
        "f1_chance": groups["f1_chance"].mean(), "tau": np.exp(log_tau.mean()),
    })  # fmt: skip
    together["tau"] = together["tau"].where(together["n_emerged"] == together["n_seeds"])
    return by_concept.merge(together, left_on="concept", right_index=True, how="left", validate="one_to_one")


def survival_table(times: pd.DataFrame, by_concept: pd.DataFrame) -> pd.DataFrame:
    """The share of concepts that has not emerged by each step, by tercile of prevalence, seeds pooled."""
    tercile = (
        pd.qcut(by_concept["prevalence"].rank(method="first"), 3, labels=list(TERCILES))
        if len(by_concept) > 2
        else None
    )
    group = dict(zip(by_concept["concept"], tercile, strict=True)) if tercile is not None else {}
    frames = [pd.DataFrame({"tercile": pd.Series(dtype=str), "step": pd.Series(dtype=float),
                            "surviving": pd.Series(dtype=float), "n": pd.Series(dtype=int)})]  # fmt: skip
    for name in TERCILES:
        cases = times[times["concept"].map(group) == name]
        if len(cases):
            observed = ~cases["censored"].to_numpy()
            at = np.where(observed, cases["tau"], cases["last_step"]).astype(np.float64)
            curve = kaplan_meier(at, observed)
            steps, surviving = [0.0, *curve.time], [1.0, *curve.surviving]
            frames.append(pd.DataFrame({"tercile": name, "step": steps, "surviving": surviving, "n": len(cases)}))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _reliability(halves: tuple[Half, Half], enough: Bool[np.ndarray, " d_sae"]) -> dict[str, float]:
    """ICC(2,1) of each channel between the two halves of the last checkpoint."""
    one, two = halves
    channels = {
        "log_rate": [np.log10(np.maximum(half.n_firings, 1)) for half in (one, two)],
        "mean_activation": [half.mean for half in (one, two)],
        "max_activation": [half.maximum.astype(np.float64) for half in (one, two)],
        "best_mcc": [half.mcc for half in (one, two)],
    }
    values = {f"icc_{name}": np.stack(pair, axis=1)[enough] for name, pair in channels.items()}
    return {name: icc(pair) for name, pair in values.items() if len(pair) >= MIN_ICC_FEATURES and np.ptp(pair) > 0}


def _motion(followed: Followed, others: list[Followed], own: Thresholds) -> dict[str, float]:
    """How far directions moved, with the same for an SAE of another seed matched one to one."""
    d = followed.directions
    moved = trajectories.cosine_to(d, d[0])[-1]
    settled = trajectories.settling_index(trajectories.cosine_to(d, d[-1]), own.settled_cosine)
    numbers = {
        "lazy_fraction": trajectories.lazy_fraction(moved, own.lazy_cosine),
        "cos_initial_median": float(np.median(moved)),
        "median_settling_step": float(np.median(followed.steps[settled])),
        "settled_at_start_fraction": float((settled == 0).mean()),
    }
    independent = [one for one in others if one.member.seed != followed.member.seed]
    if independent:
        end = torch.from_numpy(d[-1])
        start = match(end, torch.from_numpy(independent[0].directions[0])).cosines.astype(np.float64)
        numbers["lazy_fraction_null"] = trajectories.lazy_fraction(start, own.lazy_cosine)
        numbers["cos_initial_null"] = float(np.median(start))
        finals = match(end, torch.from_numpy(independent[0].directions[-1])).cosines
        numbers["cos_final_null"] = float(np.median(finals))
    return numbers


def _lives(followed: Followed, own: Thresholds) -> dict[str, float]:
    """Births and deaths between checkpoints."""
    alive = followed.alive(own.min_firings)
    born, died = trajectories.births(alive), trajectories.deaths(alive)
    hazards = {
        "birth_hazard": trajectories.hazard(born, ~alive[:-1], followed.steps),
        "death_hazard": trajectories.hazard(died, alive[:-1], followed.steps),
    }
    rates = {f"{name}_per_100_steps": 100 * rate for name, rate in hazards.items() if rate is not None}
    return {
        "births": float(born.sum()),
        "deaths": float(died.sum()),
        "alive_fraction": float(alive[-1].mean()),
        **rates,
    }


def _emerging(followed: Followed, times: pd.DataFrame) -> dict[str, float]:
    """How many concepts emerged, when and how sharply."""
    own = times[times["seed"] == followed.member.seed]
    emerged = own[~own["censored"]]
    cc = followed.cc_f1().mean(axis=1)
    numbers = {"n_emerged": float(len(emerged)), "cc_coverage_first": float(cc[0]), "cc_coverage_last": float(cc[-1])}
    if len(emerged):
        sharp = (emerged["width"] < SHARP_WIDTH) & (emerged["delta_bic"] > SHARP_BIC)
        numbers |= {"median_tau": float(emerged["tau"].median()), "sharp_fraction": float(sharp.mean()),
                    "emerged_at_start": float(emerged["at_start"].sum())}  # fmt: skip
        agreement = spearman(emerged["tau"].to_numpy(), emerged["tau_first_passage"].to_numpy())
        numbers |= {} if agreement is None else {"first_passage_spearman": agreement}
        fitted = emerged["width"].dropna()
        numbers |= {"median_width_decades": float(fitted.median())} if len(fitted) else {}
    return numbers


def seed_rows(
    followed: Followed, others: list[Followed], by_checkpoint: pd.DataFrame, times: pd.DataFrame, own: Thresholds
) -> list[Row]:
    """The numbers of one SAE; the tables are those of all seeds."""
    level, seed = followed.member.level, followed.member.seed
    one, two = followed.halves[-1]
    d_sae, n_concepts = len(one.n_firings), followed.f1.shape[1]
    enough = (one.n_firings >= own.min_firings) & (two.n_firings >= own.min_firings)
    changes = by_checkpoint.loc[by_checkpoint["seed"] == seed, ["churn", "churn_null"]].dropna()
    churn = {} if changes.empty else {
        "churn": float(changes["churn"].mean()), "churn_null": float(changes["churn_null"].mean()),
        "churn_excess": float((changes["churn"] - changes["churn_null"]).mean()),
        "churn_excess_last": float((changes["churn"] - changes["churn_null"]).iloc[-1]),
    }  # fmt: skip
    groups = [
        (_motion(followed, others, own), d_sae), (_lives(followed, own), d_sae),
        (_emerging(followed, times), n_concepts), (churn, len(changes)),
        (_reliability(followed.halves[-1], enough), int(enough.sum())),
    ]  # fmt: skip
    return [Row(level, seed, name, value, n=n) for numbers, n in groups for name, value in numbers.items()]


def order_rows(
    first: Member,
    times: pd.DataFrame,
    order: pd.DataFrame,
    n_permutations: int,
    n_resamples: int,
    generator: np.random.Generator,
) -> list[Row]:
    """The numbers over all seeds, on the concepts that emerged in every one: do seeds agree, and what goes with tau.

    `driver_half_width` is what a Spearman interval would have for that many concepts: 1.96 / sqrt(n - 3) (Fisher).
    """
    common = order[order["tau"].notna()]
    n = len(common)
    numbers: list[tuple[str, float, float | None, float | None]] = [("n_emerged_all_seeds", float(n), None, None)]
    by_seed = times[times["concept"].isin(common["concept"])].pivot(index="seed", columns="concept", values="tau")
    agreement = kendall_w(by_seed.to_numpy(dtype=np.float64), n_permutations, generator)
    if agreement is not None:
        numbers += [("kendall_w", agreement.w, None, None), ("kendall_w_p", agreement.p, None, None)]
    if n > 3:
        numbers.append(("driver_half_width", float(1.96 / np.sqrt(n - 3)), None, None))
    for name in DRIVERS:
        driver, tau = common[name].to_numpy(dtype=np.float64), common["tau"].to_numpy(dtype=np.float64)
        found = drivers.correlation(driver, tau, n_resamples, generator)
        if found is not None:
            low, high = found.interval or (None, None)
            numbers.append((f"driver_{name}", found.value, low, high))
    return [Row(first.level, first.seed, *number, n) for number in numbers]
