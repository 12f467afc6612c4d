"""Published claims: the verdict follows the test of the pair or the intervals, and its absence is said."""

import pandas as pd
import pytest

from stages.lib.report.answers import known_results as known
from stages.lib.report.results import Results


def cell(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 3}


def rows(**numbers: list[float]) -> pd.DataFrame:
    """Rows of seeds 0 to 2 of arms at their one level: `arm__metric`."""
    found = [
        {"arm": name.split("__")[0], "metric": name.split("__")[1], "seed": seed, "level": 0, "value": value}
        for name, values in numbers.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(found, columns=["arm", "metric", "seed", "level", "value"])


def results(compare: dict | None = None, **numbers: list[float]) -> Results:
    arms = ["topk", "relu", "gated", "jump_relu", "batch_topk", "matryoshka", "frozen_decoder", "untrained"]
    levels = {f"{arm}__l0": [16.0] * 3 for arm in arms}
    table = rows(**levels, **numbers)
    tables = {"matched": {}, "differences": {}, "contrasts": {}, "agreement": {}} | (compare or {})
    return Results(
        arms=arms, controls=["frozen_decoder", "untrained"], reference="topk", seeds=[0, 1, 2], targets=[16.0], l0=16.0,
        compare=tables, rows=dict.fromkeys(("evaluate", "attribution"), table),
    )  # fmt: skip


def pairs(**found: tuple[float, float]) -> dict:
    """`one__other`: their difference and its p."""
    table: dict = {}
    for name, (mean, p) in found.items():
        one, other = name.split("__")
        table.setdefault(one, {})[other] = {"mean": mean, "p": p}
    return {"contrasts": {"l0-16": {"fvu": {"pairs": table}}}}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({"topk__relu": (-0.04, 0.001)}, "agrees"),
        ({"relu__topk": (0.04, 0.001)}, "agrees"),  # the same pair the other way round
        ({"topk__relu": (0.04, 0.001)}, "differs"),
        ({"topk__relu": (-0.04, 0.2)}, "undecided"),
        ({"topk__gated": (-0.04, 0.001)}, "not testable here"),
    ],
)
def test_a_claim_about_two_arms_follows_their_test(found: dict, verdict: str) -> None:
    assert known.lower("fvu", "topk", "relu")(results(pairs(**found))).verdict == verdict


def test_a_claim_about_several_arms_needs_all_of_them() -> None:
    test = known.lower("fvu", "jump_relu", "gated", "topk")
    both = {"jump_relu__gated": (-0.01, 0.001), "jump_relu__topk": (-0.01, 0.001)}
    assert test(results(pairs(**both))).verdict == "agrees"
    assert test(results(pairs(**both | {"jump_relu__topk": (-0.01, 0.3)}))).verdict == "undecided"
    assert test(results(pairs(**both | {"jump_relu__topk": (0.01, 0.001)}))).verdict == "differs"


def test_two_numbers_are_apart_where_their_intervals_do_not_meet() -> None:
    names = ("one", "other")
    assert known.above(cell(0.5), cell(0.4), names).verdict == "agrees"
    assert known.above(cell(0.4), cell(0.5), names).verdict == "differs"
    assert known.above(cell(0.5), cell(0.485), names).verdict == "undecided"
    assert known.above(cell(0.5), None, names) == ("other: not measured", "not testable here")
    assert known.above({"mean": 1.0}, {"mean": 0.5}, names).verdict == "undecided"  # one seed says nothing


def test_shrinkage_by_hand() -> None:
    relu = {"relu__relative_bias": [0.869, 0.87, 0.871]}
    assert known.shrinkage(results(**relu, gated__relative_bias=[0.99, 0.991, 0.992])).verdict == "agrees"
    assert known.shrinkage(results(**relu, gated__relative_bias=[0.95, 0.951, 0.952])).verdict == "differs"
    assert known.shrinkage(results(relu__relative_bias=[0.9, 1.0, 1.1], gated__relative_bias=[1.0] * 3)).verdict == (
        "undecided"
    )
    assert known.shrinkage(results(**relu)).verdict == "not testable here"


def test_a_crossing_of_two_clear_differences_is_what_speaks_against_proxies() -> None:
    def differences(fvu: float, coverage: float, p: float) -> dict:
        found = {"fvu": {"relu": {"mean": fvu, "p": 0.001}}, known.BEYOND: {"relu": {"mean": coverage, "p": p}}}
        return {"differences": {"l0-16": found}}

    assert known.proxies(results(differences(0.04, 0.03, 0.001))).verdict == "agrees"
    assert known.proxies(results(differences(0.04, -0.03, 0.001))).verdict == "undecided"  # worse in both
    assert known.proxies(results(differences(0.04, 0.03, 0.3))).verdict == "undecided"
    assert known.proxies(results()).verdict == "not testable here"


def test_reproducibility_is_compared_at_one_learning_rate() -> None:
    arms = {"relu": {"relu": 0.8}, "topk": {"topk": 0.7}}
    assert known.reproducibility(
        results({"agreement": {"arms": arms, "rates": {"relu": 0.01, "topk": 0.02}}})
    ).verdict == ("not testable here")
    equal = {"relu": 0.01, "topk": 0.01}
    assert known.reproducibility(results({"agreement": {"arms": arms, "rates": equal}})).verdict == "agrees"
    assert known.reproducibility(results()).verdict == "not testable here"


def test_the_local_share_by_hand() -> None:
    matched = {known.BEYOND_TOKEN: {"topk": cell(0.1)}, known.BEYOND: {"topk": cell(0.04)}}
    found = known.local_share(results({"matched": {"l0-16": matched}}))
    assert found.verdict == "agrees" and "60% is local" in found.here


def test_contrary_claims_turn_the_verdict_alone() -> None:
    test = known.opposite(known.control("m", "untrained", "m"))
    apart = {"matched": {"l0-16": {"m": {"topk": cell(0.5), "untrained": cell(0.1)}}}}
    alike = {"matched": {"l0-16": {"m": {"topk": cell(0.5), "untrained": cell(0.495)}}}}
    assert [test(results(one)).verdict for one in (apart, alike)] == ["differs", "undecided"]


def test_every_claim_has_a_row_and_is_counted() -> None:
    text, table = known.known_results(results())
    assert len(table.rows) == len(known.CLAIMS) and {row[4] for row in table.rows} == {"not testable here"}
    assert f"not testable with it: {len(known.CLAIMS)}." in text.text
    assert len({claim.number for claim in known.CLAIMS}) == len(known.CLAIMS)
