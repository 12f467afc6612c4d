"""The few numbers of an arm that say how its features and concepts emerged, SAE by SAE and over all seeds."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from stages.lib.emergence import trajectories
from stages.lib.emergence.censoring import median_bracket, over_seeds, share_by
from stages.lib.emergence.checkpoints import Followed
from stages.lib.emergence.curves import Half, churn
from stages.lib.emergence.tables import other_seed, settling
from stages.lib.io.summary import Row
from stages.lib.stats.correlation import spearman
from stages.lib.stats.reliability import icc

SHARP_WIDTH, SHARP_BIC = 0.5, 10.0
"""A rise is called sharp below this width in decades and above this difference in BIC."""
MIN_ICC_FEATURES = 10
DECADE = 10
"""The last decade of training begins at a tenth of its steps."""


class Thresholds(NamedTuple):
    """Settings of the stage that turn curves into events."""

    min_firings: int
    settled_cosine: float
    min_final: float
    l0_tolerance: float


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
    """How far directions moved, when they settled, and how near they came to the features of another seed."""
    d = followed.directions
    index, time = settling(followed, own.settled_cosine)
    numbers = {
        "start_identified_fraction": float((trajectories.own_start_rank(d[0], d[-1]) == 0).mean()),
        "relative_movement": trajectories.relative_movement(d[0], d[-1]),
        "cos_initial_median": float(np.median(trajectories.cosine_to(d, d[0])[-1])),
        "median_settling_step": float(np.median(time)),
        "settled_at_start_fraction": float((index == 0).mean()),
        "settled_last_interval_fraction": float(1 - share_by(index, len(d))[-2]),
    }
    other = other_seed(followed, others)
    if other is not None:
        near = trajectories.cosine_to(d[[0, -1]], other)
        numbers |= {"cos_other_seed_first": float(np.median(near[0])), "cos_other_seed_last": float(np.median(near[1]))}
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
    numbers = {"n_emerged": float(len(emerged)), "cc_coverage_first": float(cc[0]), "cc_coverage_last": float(cc[-1]),
               "emerged_at_start": float(emerged["at_start"].sum())}  # fmt: skip
    if len(emerged):
        sharp = (emerged["width"] < SHARP_WIDTH) & (emerged["delta_bic"] > SHARP_BIC)
        numbers |= {"median_tau": float(emerged["tau_interpolated"].median()), "sharp_fraction": float(sharp.mean())}
        agreement = spearman(emerged["tau"].to_numpy(), emerged["tau_first_passage"].to_numpy())
        numbers |= {} if agreement is None else {"first_passage_spearman": agreement}
        fitted = emerged["width"].dropna()
        numbers |= {"median_width_decades": float(fitted.median())} if len(fitted) else {}
    return numbers


def last_decade(steps: np.ndarray) -> int:
    """The first checkpoint in the last decade of training: at a tenth of its steps or later."""
    return int(np.argmax(DECADE * steps >= steps[-1]))


def _relabelling(followed: Followed, by_checkpoint: pd.DataFrame, min_firings: int) -> tuple[dict[str, float], int]:
    """Excess churn in the last decade of steps: a mean over its intervals, and from its beginning to its end at once.

    The mean depends on how dense the checkpoints are, the second number does not.
    """
    first = last_decade(followed.steps)
    own = by_checkpoint[by_checkpoint["seed"] == followed.member.seed]
    excess = own["churn_excess"].to_numpy(dtype=np.float64)[first + 1 :]
    excess = excess[~np.isnan(excess)]
    across = churn(followed.halves[first], followed.halves[-1], min_firings)
    numbers = {"churn_excess_last_decade": float(excess.mean())} if len(excess) else {}
    if across is not None and len(excess):
        numbers |= {"churn_excess_across_last_decade": across.observed - across.null}
    return numbers, len(excess)


def _sparsity(followed: Followed, tolerance: float) -> dict[str, float]:
    """L0 over training: its range, and the share of checkpoints whose L0 is not that of the last within a tolerance."""
    l0 = followed.l0
    outside = np.abs(l0 - l0[-1]) > tolerance * l0[-1]
    return {"l0_first": float(l0[0]), "l0_min": float(l0.min()), "l0_max": float(l0.max()), "l0_last": float(l0[-1]),
            "l0_outside_fraction": float(outside.mean())}  # fmt: skip


def seed_rows(
    followed: Followed, others: list[Followed], by_checkpoint: pd.DataFrame, times: pd.DataFrame, own: Thresholds
) -> list[Row]:
    """The numbers of one SAE; the tables are those of all seeds."""
    level, seed = followed.member.level, followed.member.seed
    one, two = followed.halves[-1]
    d_sae, n_concepts = len(one.n_firings), followed.f1.shape[1]
    enough = (one.n_firings >= own.min_firings) & (two.n_firings >= own.min_firings)
    groups = [
        (_motion(followed, others, own), d_sae), (_lives(followed, own), d_sae),
        (_emerging(followed, times), n_concepts), (_sparsity(followed, own.l0_tolerance), len(followed.steps)),
        _relabelling(followed, by_checkpoint, own.min_firings),
        (_reliability(followed.halves[-1], enough), int(enough.sum())),
    ]  # fmt: skip
    return [Row(level, seed, name, value, n=n) for numbers, n in groups for name, value in numbers.items()]


def time_rows(followed: list[Followed], times: pd.DataFrame, own: Thresholds) -> list[Row]:
    """When half of the features have settled and half of the emerging concepts emerged, over all seeds.

    In the row of the first seed. `settling_step` interpolates angles; `settling_turnbull`, and the checkpoints
    `settling_after` and `settling_by` that hold it, pool the seeds and use the checkpoints alone.
    """
    level, seed, steps = followed[0].member.level, followed[0].member.seed, followed[0].steps
    found = [settling(one, own.settled_cosine) for one in followed]
    emerged = times[~times["censored"]].groupby("seed")["tau_interpolated"].median()
    rows = []
    for name, medians in (
        ("settling_step", [float(np.median(time)) for _, time in found]),
        ("emergence_step", [float(time) for time in emerged]),
    ):
        if medians:
            middle = over_seeds(medians, int(steps[-1]))
            low, high = middle.interval or (None, None)
            rows.append(Row(level, seed, name, middle.value, low, high, len(medians)))
    bracket = median_bracket(np.concatenate([index for index, _ in found]), steps)
    if bracket is not None and bracket.after >= 0:
        names = {"after": bracket.after, "by": bracket.by, "turnbull": bracket.middle}
        rows += [Row(level, seed, f"settling_{name}", float(value)) for name, value in names.items()]
    return rows
