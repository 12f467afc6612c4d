"""Times of emergence as tables: each concept in each SAE, on average over seeds, and as survival curves."""

import numpy as np
import pandas as pd

from stages.lib.emergence.censoring import crossing
from stages.lib.emergence.checkpoints import Followed
from stages.lib.emergence.times import first_passage, half_rise, kaplan_meier, mean_rank, sharpness

TERCILES = ("rare", "medium", "frequent")


def time_table(followed: Followed, names: list[str], min_final: float) -> pd.DataFrame:
    """One row per concept: when it emerged in this SAE; a time that is censored is missing.

    The rise lies between the checkpoints `tau_after` and `tau`; where its curve, linear in log(1 + step) between the
    two, passes half of its end is `tau_interpolated`. `at_start` means at or before the first checkpoint.
    """
    cc, steps = followed.cc_f1(), followed.steps
    index, first = half_rise(cc, min_final), first_passage(cc, min_final)
    never = np.isnan(index)
    at = np.where(never, 0, index).astype(int)
    exact = crossing(cc, cc[-1] / 2, np.where(never, len(steps), index).astype(int), steps)
    log_step = np.log(steps[steps > 0])
    fits = [None if gone else sharpness(log_step, curve) for gone, curve in zip(never, cc[steps > 0].T, strict=True)]
    return pd.DataFrame({
        "arm": followed.member.arm, "seed": followed.member.seed, "level": followed.member.level, "concept": names,
        "tau": np.where(never, np.nan, steps[at]),
        "tau_after": np.where(never | (at == 0), np.nan, steps[np.maximum(at - 1, 0)]),
        "tau_interpolated": exact,
        "tau_first_passage": np.where(never, np.nan, steps[np.where(never, 0, first).astype(int)]),
        "censored": never, "at_start": ~never & (at == 0), "last_step": int(steps[-1]),
        "cc_final": cc[-1], "f1_final": followed.f1[-1], "f1_chance": followed.f0[-1],
        "width": [fit.width if fit else np.nan for fit in fits],
        "delta_bic": [fit.delta_bic if fit else np.nan for fit in fits],
    })  # fmt: skip


def mean_times(times: pd.DataFrame, by_concept: pd.DataFrame) -> pd.DataFrame:
    """The concepts' properties with their place in the order of emergence.

    `rank` is the mean over seeds, censored concepts last; `tau` is the geometric mean over seeds of 1 + the
    interpolated time, less 1, where the concept emerges in all of them.
    """
    by_seed = times.pivot(index="seed", columns="concept", values="tau_interpolated")
    rank = pd.Series(mean_rank(by_seed.to_numpy(dtype=np.float64)), index=by_seed.columns)
    groups = times.groupby("concept")
    log_tau = np.log1p(times["tau_interpolated"]).groupby(times["concept"])
    together = pd.DataFrame({
        "n_seeds": groups.size(), "n_emerged": groups["tau"].count(), "n_at_start": groups["at_start"].sum(),
        "cc_final": groups["cc_final"].mean(), "f1_chance": groups["f1_chance"].mean(), "rank": rank,
        "tau": np.expm1(log_tau.mean()),
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
            at = np.where(observed, cases["tau_interpolated"], cases["last_step"]).astype(np.float64)
            curve = kaplan_meier(at, observed)
            steps, surviving = [0.0, *curve.time], [1.0, *curve.surviving]
            frames.append(pd.DataFrame({"tercile": name, "step": steps, "surviving": surviving, "n": len(cases)}))
    return pd.concat(frames[1:] or frames, ignore_index=True)
