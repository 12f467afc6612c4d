"""The stage recovers planted times of emergence; concept curves, drivers, rows and messages on small arrays."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from stages import emergence
from stages.lib.activations.parts import draw_rows
from stages.lib.detectors.label_sums import in_words
from stages.lib.emergence import curves as curves
from stages.lib.emergence import drivers
from stages.lib.emergence.checkpoints import checkpoints
from stages.lib.emergence.summary_rows import DRIVERS, mean_times, order_rows, survival_table
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.summary import read_summaries
from stages.lib.sae.members import Member
from stages.lib.sae.saved import SAE
from tests.toy_checkpoints import STEPS, write_arm, write_held_out

RISE = [1, 1, 2, 4, 8, 16, 32, 64]
PARAMS = """
train: {seeds: [0, 1]}
emergence: {n_fit: 1500, n_validation: 1500, n_test: 1500, min_positives: 20, min_firings: 5, settled_cosine: 0.9,
  lazy_cosine: 0.8, min_final: 0.2, n_shifts: 5, n_permutations: 200, n_resamples: 50, seed: 0}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the stage has run on a TopK and a JumpReLU arm."""
    root = tmp_path_factory.mktemp("emergence")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        params._document.cache_clear()
        Path("params.yaml").write_text(PARAMS)
        write_held_out(48, len(RISE), 30, ["main"])
        write_arm("toy", d_in=48, d_sae=24, rise=RISE, seeds=[0, 1])
        write_arm("jump", d_in=48, d_sae=24, rise=RISE, seeds=[0, 1], architecture="jumprelu")
        emergence.main("toy")
        emergence.main("jump")
    params._document.cache_clear()
    return root


@pytest.fixture
def here(ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ran)
    params._document.cache_clear()
    return ran


def number(metric: str, arm: str = "toy", seed: int = 0) -> float:
    rows = read_summaries("emergence", [arm])
    return float(rows[(rows["metric"] == metric) & (rows["seed"] == seed)]["value"].iloc[0])


@pytest.mark.parametrize("arm", ["toy", "jump"])
def test_planted_times_are_found(here: Path, arm: str) -> None:
    times = pd.read_parquet(f"data/emergence/{arm}/emergence.parquet")
    found = times[~times["censored"]]
    assert len(found) >= 12
    planted = np.array([RISE[int(name.split("-")[1])] for name in found["concept"]])
    assert (found["tau"].to_numpy() == planted).mean() > 0.8
    before = {step: earlier for earlier, step in pairwise(STEPS)}
    late = found[found["tau"] > 0]
    assert [before[int(step)] for step in late["tau"]] == late["tau_after"].tolist()


def test_seeds_agree_on_the_planted_order(here: Path) -> None:
    assert number("kendall_w") > 0.9
    assert number("kendall_w_p") < 0.05
    n = number("n_emerged_all_seeds")
    assert number("driver_half_width") == pytest.approx(1.96 / np.sqrt(n - 3), rel=1e-6)


def test_features_that_did_not_turn_are_lazy(here: Path) -> None:
    assert number("lazy_fraction") == pytest.approx(16 / 24)
    assert number("lazy_fraction_null") < 0.2
    table = pd.read_parquet("data/emergence/toy/trajectories.parquet")
    one = table[(table["seed"] == 0) & (table["feature"] == 5)].sort_values("step")
    assert one["cos_final"].iloc[-1] == pytest.approx(1, abs=1e-3)
    assert (one["cos_final"] > 0.99).tolist() == [step >= 16 for step in STEPS]
    assert one["angular_speed"].isna().tolist() == [True, True] + [False] * 6
    assert (one["angular_speed"].iloc[2:] > 0.5).tolist() == [step == 16 for step in STEPS[2:]]


def test_population_tables_are_consistent(here: Path) -> None:
    table = pd.read_parquet("data/emergence/toy/checkpoints.parquet")
    first = table[table["seed"] == 0]
    assert first["births"].sum() == number("births")
    assert first["l0"].max() <= 4
    assert first["fvu"].iloc[-1] < first["fvu"].iloc[0]
    curve = pd.read_parquet("data/emergence/toy/survival.parquet")
    assert (curve.groupby("tercile")["surviving"].diff().dropna() <= 0).all()
    assert curve.groupby("tercile")["surviving"].first().eq(1).all()
    concepts = pd.read_parquet("data/emergence/toy/concepts.parquet")
    last = concepts[concepts["step"] == STEPS[-1]]
    pd.testing.assert_series_equal(last["f1"], last["f1_fixed"], check_names=False)


def test_the_same_bytes_again(here: Path) -> None:
    files = sorted([*Path("data/emergence/toy").iterdir(), Path("reports/emergence/toy.json")])
    before = {path: path.read_bytes() for path in files}
    emergence.main("toy")
    assert {path: path.read_bytes() for path in files} == before


def test_too_few_positives(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text(PARAMS.replace("min_positives: 20", "min_positives: 9999"))
    try:
        with pytest.raises(
            UserError, match=r"no concept has 9999 tokens in each part \(the most frequent of 8 has \d+\)"
        ):
            emergence.main("toy")
    finally:
        Path("params.yaml").write_text(PARAMS)


def test_too_few_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 checkpoints, but emergence needs at least 2"):
        checkpoints(tmp_path)


def test_foreign_checkpoint(here: Path, tmp_path: Path) -> None:
    from stages.lib.emergence.checkpoints import at_checkpoint
    from stages.lib.io import tensors
    from stages.lib.sae.saved import load_sae

    tensors.save(tmp_path / "x.safetensors", {"W_enc": torch.zeros(2, 2)})
    final = load_sae(Path("data/train/toy/seed-0/level-1"))
    with pytest.raises(UserError, match="does not belong to the SAE beside it"):
        at_checkpoint(final, tmp_path / "x.safetensors")


def sae(d: int = 3) -> SAE:
    """Features are the coordinates."""
    eye, zeros = torch.eye(d), torch.zeros(d)
    return SAE("standard", eye, zeros, eye, zeros, None, None, {})


def sample(x: list[list[float]], labels: list[list[int]], n_first: int) -> curves.Sample:
    rows = torch.tensor(x)
    on = np.array(labels, bool)
    return curves.Sample(rows, on, n_first, float((rows - rows.mean(0)).square().sum()), in_words(on))


def test_select_and_score_by_hand() -> None:
    x = [[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0.5, 0]]
    found = curves.select(sae(), sample(x, [[1, 0], [0, 1], [1, 0], [0, 0]], 2))
    # Feature 0 is concept 0; feature 1 is concept 1 above half of its maximum.
    assert found.choice.feature.tolist() == [0, 1]
    assert found.choice.level.tolist() == [0, 5]
    assert found.halves[0].n_firings.tolist() == [1, 1, 0]
    assert found.halves[1].mean.tolist() == [1, 0.5, 0]
    assert found.halves[0].concept[:2].tolist() == [0, 1]
    test = sample([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0.2, 0]], [[1, 0], [0, 0], [0, 1], [0, 1]], 2)
    scores = curves.score(sae(), test, [found.choice], found.maximum)
    assert scores.f1[0] == pytest.approx([2 / 3, 2 / 3])
    assert scores.fvu == pytest.approx(0, abs=1e-9)
    assert scores.l0 == 1


def half(concept: list[int], n_firings: int = 9) -> curves.Half:
    n = len(concept)
    return curves.Half(np.full(n, n_firings), np.ones(n), np.ones(n), np.array(concept), np.ones(n))


def test_churn_by_hand() -> None:
    before, after = (half([0, 1, 2, 3]), half([0, 1, 2, 0])), (half([0, 2, 2, 3]), half([0, 2, 2, 3]))
    got = curves.churn(before, after, 5)
    assert got is not None
    # First to second half: feature 1 changes; second to first: features 1 and 3. Within: feature 3 before, none after.
    assert got.observed == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert got.null == pytest.approx((1 / 4 + 0) / 2)
    assert got.n == 4
    assert curves.churn(before, after, 10) is None


def test_contrast_by_hand() -> None:
    x = np.array([[1.0, 0], [3, 0], [0, 1], [0, -1]])
    got = drivers.contrast(x, np.array([[True], [True], [False], [False]]))
    # delta = (2, 0); p (1 - p) 4 = 1; within variance along it: (1 + 1 + 0 + 0) / 4.
    assert got.variance_share == pytest.approx([1.0])
    assert got.separability == pytest.approx([4 / 0.5])


def test_redundancy_is_with_more_prevalent_concepts() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    got = drivers.redundancy(labels)
    assert got[0] == 0
    assert got[1] == pytest.approx(stats.pearsonr(labels[:, 0], labels[:, 1]).statistic)


def test_lexicality_of_a_token_and_of_chance() -> None:
    tokens = np.array([3, 3, 4, 5] * 10)
    one = drivers.Ids(tokens, np.stack([tokens == 3, np.arange(40) % 8 < 4], axis=1))
    got = drivers.lexicality(one, one, one, 6)
    assert got[0] == 1
    assert got[1] == pytest.approx(2 / 3)  # all tokens, half of them positive


def test_correlation_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=30), generator.normal(size=30)
    got = drivers.correlation(a, a + b, 500, generator)
    assert got is not None and got.interval is not None
    assert got.value == pytest.approx(stats.spearmanr(a, a + b).statistic)
    assert got.interval.low < got.value < got.interval.high
    assert drivers.correlation(a[:3], b[:3], 10, generator) is None
    assert drivers.correlation(np.ones(9), b[:9], 10, generator) is None


def time_rows(taus: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": seed, "concept": name, "tau": tau, "censored": bool(np.isnan(tau)), "last_step": 64, "cc_final": 0.5,
         "f1_chance": 0.1}
        for name, row in taus.items() for seed, tau in enumerate(row)
    ])  # fmt: skip


def test_mean_times_by_hand() -> None:
    times = time_rows({"a": [2.0, 8.0], "b": [4.0, np.nan], "c": [0.0, 16.0]})
    got = mean_times(times, pd.DataFrame({"concept": ["a", "b", "c"], "prevalence": [0.1, 0.2, 0.3]}))
    assert got["tau"].round(6).tolist()[::2] == [4, 4]  # geometric; 0 counts as 1
    assert np.isnan(got["tau"][1])
    assert got["n_emerged"].tolist() == [2, 1, 2]


def test_survival_by_tercile() -> None:
    times = time_rows({"a": [2.0, np.nan], "b": [4.0, 4.0], "c": [8.0, 16.0]})
    got = survival_table(times, pd.DataFrame({"concept": ["a", "b", "c"], "prevalence": [0.1, 0.2, 0.3]}))
    assert got[got["tercile"] == "rare"][["step", "surviving"]].to_numpy().tolist() == [[0, 1], [2, 0.5]]
    assert got[got["tercile"] == "frequent"]["surviving"].tolist() == [1, 0.5, 0]


def test_without_emerged_concepts_there_are_no_numbers_about_order() -> None:
    times = time_rows({"a": [np.nan, 2.0]})
    by_concept = pd.DataFrame({"concept": ["a"]} | {name: [0.1] for name in DRIVERS})
    order = mean_times(times, by_concept)
    rows = order_rows(Member("toy", 0, 1, Path(), 8.0), times, order, 10, 10, np.random.default_rng(0))
    assert [(row.metric, row.value) for row in rows] == [("n_emerged_all_seeds", 0.0)]
    assert survival_table(times, order).empty


def test_drawn_rows_are_whole_windows_in_order() -> None:
    windows = np.repeat(np.arange(10), [5, 3] * 5)
    rows = draw_rows(windows, 12, np.random.default_rng(0))
    assert (np.diff(rows) > 0).all()
    chosen = np.unique(windows[rows])
    assert len(rows) == np.isin(windows, chosen).sum() >= 12
    assert len(rows) - 5 < 12
    np.testing.assert_array_equal(draw_rows(windows, 999, np.random.default_rng(0)), np.arange(40))


def test_settings_refuse_a_cosine_of_1(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params._document.cache_clear()
    monkeypatch.setattr(params, "value", lambda path: {"settled_cosine": 1.0} if path == "emergence" else [0])
    with pytest.raises(UserError, match=r"emergence\.(n_fit is missing|settled_cosine)"):
        emergence.settings("toy")
