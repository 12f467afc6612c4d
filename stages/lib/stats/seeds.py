"""Intervals of numbers that are made of pairs of seeds.

The agreement of two arms averages over pairs of runs of different seeds, and every run is in several pairs, so that
pairs are no independent repeats. The jackknife leaves out one seed at a time, with all its runs, and takes the whole
number again (Efron and Tibshirani 1993, chapter 11; Arvesen 1969, Ann. Math. Stat. 40:2076, for means over pairs):

    v_s = S g - (S - 1) g_(s)        pseudo-values, S seeds, g the number and g_(s) the same without seed s
    g -+ t_{.975, S-1} sd(v) / sqrt(S)

The interval is over further seeds of the same arms on the same text. It is wider than it had to be, since noise of a
pair alone counts for both of its seeds: it covers in 96 to 99 % (tests/stats/test_seeds.py). It needs three seeds:
without one of two there is no pair left.
"""

from collections.abc import Callable, Sequence

import numpy as np

from stages.lib.stats.intervals import Interval, t_interval

FEWEST = 3


def jackknife(number: Callable[[Sequence[int]], float | None], seeds: Sequence[int]) -> Interval | None:
    """The 95 % interval of `number(seeds)`; None with fewer than three seeds or where a number is not defined."""
    n = len(seeds)
    if n < FEWEST:
        return None
    whole = number(seeds)
    without = [number([other for other in seeds if other != seed]) for seed in seeds]
    known = [one for one in without if one is not None]
    if whole is None or len(known) < n:
        return None
    pseudo = n * whole - (n - 1) * np.array(known)
    spread = t_interval(pseudo.tolist())
    assert spread is not None
    half = (spread.high - spread.low) / 2
    return Interval(whole - half, whole + half)
