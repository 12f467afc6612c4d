"""Which arms differ from the reference in one number, which are equal to it, and which pairs of arms differ.

Numbers are {arm: {seed: value}}, one metric at one L0, fitted by `stages.lib.stats.two_way`. Three families of tests,
each with an error of 5 % over the whole family:

    different   every arm against the reference: Dunnett's two-sided test and intervals (Dunnett 1955), with each
                contrast's own variance and degrees of freedom (Hasler and Hothorn 2008, Biometrical J. 50:793)
    equal       every arm against the reference: two one-sided tests (Schuirmann 1987) of |difference| >= margin.
                The two sides of one arm need no correction, because both have to be passed (Berger 1982); the arms
                have Holm's, which holds however they depend on one another
    best        all pairs: studentised range, each pair's own variance and degrees of freedom (Games and Howell 1976)

Where a difference is neither told from 0 nor shown to be within the margin, the data do not decide, and `detectable`
says how large a difference the first test finds with a probability of 80 %.

How often a family of six arms errs: with three seeds in 7 %, with six in 5 to 6 %, whether variances are equal or
differ as those of the FVU do; a pooled variance errs in 8 to 21 % where they differ (tests/stats/test_contrasts.py).
"""

import functools
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr

from stages.lib.stats.best import CONFIDENCE, Pair
from stages.lib.stats.intervals import holm
from stages.lib.stats.multivariate_t import critical, loadings, power, within
from stages.lib.stats.studentized_range import survival
from stages.lib.stats.two_way import Contrast, Fit, Values, fit

POWER = 0.8


class Comparison(NamedTuple):
    """An arm against the reference."""

    mean: float
    """The arm less the reference."""
    low: float | None = None
    high: float | None = None
    """The simultaneous interval; None where nothing can be tested."""
    p: float | None = None
    """Of the difference, for all arms at once."""
    detectable: float | None = None
    margin: float | None = None
    """Within which a difference counts as none, if one was declared."""
    p_equal: float | None = None
    """Of |difference| >= margin, for all arms at once."""
    n: int = 0
    """The seeds that both have."""

    @property
    def verdict(self) -> str | None:
        """`equal` (within the margin), `differs` or `undecided`; None without a test.

        A difference that is told from 0 and yet shown to lie within the margin is `equal`: the margin says what counts.
        """
        if self.p is None:
            return None
        if self.p_equal is not None and self.p_equal < 1 - CONFIDENCE:
            return "equal"
        return "differs" if self.p < 1 - CONFIDENCE else "undecided"


def against_reference(values: Values, reference: str, share: float | None = None) -> dict[str, Comparison]:
    """Every arm that shares a seed with the reference against it.

    Args:
        values: the value of each arm and seed; controls, whose errors are of another kind, are better left out.
        reference: the arm that the others are compared with.
        share: the margin as a share of the reference's mean, which is taken as known.
    """
    model = fit(values)
    if model is None or reference not in model.arms:
        return {}
    others = [arm for arm in model.arms if arm != reference]
    margin = abs(float(np.mean(list(values[reference].values())))) * share if share is not None else None
    n = {arm: len(values[arm].keys() & values[reference].keys()) for arm in others}
    found = {arm: model.contrast({arm: 1.0, reference: -1.0}) for arm in others}
    tested = {arm: contrast for arm, contrast in found.items() if contrast is not None}
    if not tested:
        return {arm: Comparison(value, margin=margin, n=n[arm]) for arm, value in _values(model, reference).items()}
    loading = loadings(model.correlations([{arm: 1.0, reference: -1.0} for arm in tested]))
    equal = holm({arm: _p_equal(one, margin) for arm, one in tested.items()}) if margin is not None else {}
    result = {}
    for arm, value in _values(model, reference).items():
        if arm not in tested:
            result[arm] = Comparison(value, margin=margin, n=n[arm])
            continue
        _, error, df = tested[arm]
        limit, detectable = (error * one for one in _limits(tuple(loading.tolist()), df))
        t = abs(value) / error
        p = max(float(2 * stdtr(df, -t)), 1 - within(t, loading, df))  # no less than that of the one test alone
        result[arm] = Comparison(value, value - limit, value + limit, p, detectable, margin, equal.get(arm), n[arm])
    return result


def _values(model: Fit, reference: str) -> dict[str, float]:
    effects = dict(zip(model.arms, (model.weights @ model.cells).tolist(), strict=True))
    return {arm: effect - effects[reference] for arm, effect in effects.items() if arm != reference}


def _p_equal(contrast: Contrast, margin: float) -> float:
    """The larger p of the two one-sided tests."""
    return float(stdtr(contrast.df, (abs(contrast.value) - margin) / contrast.error))


@functools.cache
def _limits(loading: tuple[float, ...], df: float) -> tuple[float, float]:
    """The |t| that counts as a difference, and the difference, in standard errors, found with the power `POWER`."""
    limit = critical(np.array(loading), df, CONFIDENCE)
    found = brentq(lambda effect: power(effect, limit, df) - POWER, 0.0, 10 * limit + 10)
    return limit, float(found)


def all_pairs(values: Values) -> dict[tuple[str, str], Pair]:
    """Every pair of arms that can be tested."""
    model = fit(values)
    if model is None:
        return {}
    found = {}
    for one, other in combinations(model.arms, 2):
        contrast = model.contrast({one: 1.0, other: -1.0})
        if contrast is not None:
            distance = 2**0.5 * abs(contrast.value) / contrast.error
            p = survival(distance, len(model.arms), contrast.df)
            found[one, other] = Pair(contrast.value, p)
    return found


def omnibus(values: Values) -> dict[str, float | int]:
    """F of the arms, its degrees of freedom and p; empty where it is not defined."""
    model = fit(values)
    found = model.omnibus() if model is not None else None
    return dict(zip(("f", "df", "df_error", "p"), found, strict=True)) if found is not None else {}
