"""A whole run of `interpret` on a small world, against the same numbers worked out in one piece."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from stages import baselines, interpret
from stages.lib.activations.store import open_store
from stages.lib.concepts.labelled import read_labelled, usable_concepts
from stages.lib.concepts.labels import read_labels
from stages.lib.detectors import choose
from stages.lib.detectors.coverage import corrected
from stages.lib.detectors.sample import stream
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json
from stages.lib.sae.saved import Encoder, load_sae
from stages.lib.sae.selection import Active
from tests import toy_concepts
from tests.settings import parsed, working_directory, write_params

PARAMS = """
train: {seeds: [0, 1], more_seeds: [], d_sae: 32}
interpret:
  {n_tokens: 100000, n_sample: 1500, n_shifts: 6, n_resamples: 50, k: [1, 2], n_examples: 60, l2: 1.0e-3, seed: 0}
"""
N_CONCEPTS, D_SAE = 6, 32


@pytest.fixture(scope="module", autouse=True)
def data(shared_project: Path) -> Path:
    """The small world as the working directory, after a run; no test changes it."""
    write_params(PARAMS)
    toy_concepts.write_saes("toy", toy_concepts.write_world(3000), D_SAE, [0, 1], [2, 4])
    baselines.main("main")
    interpret.main("toy")
    return shared_project


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it as the working directory, for a test that runs the stage again or changes files."""
    with working_directory(shutil.copytree(data, tmp_path / "copy")) as directory:
        yield directory


def summary() -> dict[str, Any]:
    """The summary."""
    found: dict[str, Any] = read_json(Path("reports/interpret/toy.json"))
    return found


def value(metric: str, level: int = 1, seed: int = 0) -> float:
    """One number of the summary."""
    return float(summary()[metric][f"level-{level}"][f"seed-{seed}"]["value"])


def concepts(level: int = 1, seed: int = 0) -> pd.DataFrame:
    """The table of one SAE."""
    table = pd.read_parquet("data/interpret/toy/concepts.parquet")
    return table[(table["level"] == level) & (table["seed"] == seed)].reset_index(drop=True)


def test_all_metrics_are_there() -> None:
    expected = """coverage cc_coverage cc_coverage_unfloored coverage_contextual gain_over_token n_above_chance
        cc_beyond_token cc_beyond_token_unfloored n_beyond_token cc_coverage_over_probe cc_beyond_token_over_probe
        cc_beyond_ngrams cc_beyond_ngrams_unfloored n_beyond_ngrams cc_beyond_ngrams_over_probe
        mcc chance_f1 coverage_validation probe_k1_auroc probe_k2_auroc probe_dense_auroc always_on_f1"""
    beside = ("token", "bigram", "trigram", "residual", "pca", "probe")
    names = [f"{name}_{kind}" for kind in beside for name in ("coverage", "cc_coverage", "coverage_contextual")]
    names += [f"cc_beyond_ngrams_{kind}" for kind in ("residual", "pca", "probe")]
    assert {*expected.split(), *names} <= set(summary())
    assert not any(name.endswith(("_token_token", "ngrams_token", "ngrams_trigram")) for name in summary())


def test_what_does_not_depend_on_the_sae_is_there_once() -> None:
    for metric in ("coverage_residual", "coverage_pca", "coverage_probe", "coverage_trigram", "probe_dense_auroc"):
        assert summary()[metric].keys() == {"level-1"} and summary()[metric]["level-1"].keys() == {"seed-0"}


def test_the_sae_that_holds_the_concepts_finds_them() -> None:
    assert value("cc_beyond_ngrams") > 0.8 and value("n_beyond_ngrams") == N_CONCEPTS - 1
    assert value("gain_over_token") > 0.5
    assert value("cc_coverage_residual") < value("cc_coverage") - 0.1
    assert value("probe_k1_auroc") > 0.95
    assert value("coverage_probe") > 0.9
    assert concepts()["best_feature"].tolist()[1:] == [*range(1, N_CONCEPTS)]


def test_intervals_hold_their_values() -> None:
    for metric in ("coverage", "cc_coverage", "gain_over_token", "coverage_pca", "coverage_token", "cc_beyond_ngrams"):
        cell = summary()[metric]["level-1"]["seed-0"]
        assert cell["low"] <= cell["value"] <= cell["high"]


def test_the_f1_is_that_of_the_detector_on_all_test_rows() -> None:
    store = open_store("main")
    sae = load_sae(Path("data/train/toy/seed-0/level-1"))
    acts = sae.encode(store.rows("test", 0, store.n_rows("test"))).numpy()
    labels = read_labels("test", store.positions("test"))
    sample = read_labelled(store, "fit", 1500, stream(0, "sample", "fit"))
    maximum = sae.encode(torch.cat([batch.x for batch in sample.batches(4096)])).numpy().max(0)
    for c, row in concepts().iterrows():
        fires = acts[:, row["best_feature"]] > row["threshold"] * maximum[row["best_feature"]]
        assert row["f1"] == pytest.approx(f1_score(labels[:, c], fires), abs=2e-3)


def test_the_token_lookup_finds_the_lexical_concept_alone() -> None:
    table = concepts()
    assert table["f1_token"][0] == pytest.approx(1)
    assert (table["f1_token"][1:] < 0.6).all()
    assert (table["cc_f1_beyond_token"] <= table["cc_f1_unfloored"] + 1e-12).all()
    assert (table["cc_f1_beyond_ngrams"] <= table["cc_f1_beyond_token"] + 1e-12).all()


def test_the_lookups_are_learnt_on_the_counted_text() -> None:
    table = concepts()
    for name in ("token", "bigram", "trigram"):
        assert table[f"f1_{name}"][0] == pytest.approx(1)
    expected = corrected(
        table["f1"].to_numpy(),
        table[["f1_chance", "f1_token", "f1_bigram", "f1_trigram"]].to_numpy().max(1),
    )
    assert table["cc_f1_beyond_ngrams"].tolist() == pytest.approx(expected.tolist())
    assert value("cc_beyond_ngrams") == pytest.approx(np.maximum(expected[1:], 0).mean(), rel=1e-7)


def test_shares_of_the_ceiling_by_hand() -> None:
    table = concepts(0, 1)
    f0 = table["f1_chance"].to_numpy()
    ratio = (
        np.maximum(corrected(table["f1"].to_numpy(), f0), 0).mean()
        / np.maximum(corrected(table["f1_probe"].to_numpy(), f0), 0).mean()
    )
    cell = summary()["cc_coverage_over_probe"]["level-0"]["seed-1"]
    assert cell["value"] == pytest.approx(ratio, rel=1e-7) and cell["low"] <= ratio <= cell["high"]


def test_seeds_of_the_followed_level_alone_are_scored_as_the_others(copy: Path) -> None:
    before = summary()
    more = Path("data/train/toy/more/seed-7")
    shutil.copytree("data/train/toy/seed-0", more)
    write_params(PARAMS.replace("more_seeds: []", "more_seeds: [7]"))
    interpret.main("toy")
    for metric in ("coverage", "cc_coverage", "cc_beyond_ngrams", "cc_beyond_ngrams_over_probe", "mcc"):
        after = summary()[metric]
        assert after["level-1"]["seed-7"] == after["level-1"]["seed-0"] == before[metric]["level-1"]["seed-0"]
        assert after["level-0"].keys() == before[metric]["level-0"].keys()


def test_probes_of_every_number_of_features() -> None:
    table = pd.read_parquet("data/interpret/toy/probes.parquet")
    assert sorted(table["k"].dropna().unique()) == [1, 2]
    assert len(table[table["k"].isna()]) == len(table[(table["k"] == 1) & (table["level"] == 0) & (table["seed"] == 1)])


def test_baselines_have_a_table_of_their_own() -> None:
    table = pd.read_parquet("data/interpret/toy/baselines.parquet")
    assert sorted(table["basis"].unique()) == ["pca", "residual"] and len(table) == 2 * N_CONCEPTS


def test_the_same_inputs_give_the_same_bytes_whatever_the_batch(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, coverage = Path("reports/interpret/toy.json"), value("coverage", 0)
    before = path.read_bytes()
    interpret.main("toy")
    assert path.read_bytes() == before
    monkeypatch.setattr(choose, "BATCH", 700)
    interpret.main("toy")
    assert value("coverage", 0) == pytest.approx(coverage, abs=1e-3)


def configure(**changes: Any) -> None:
    """Write the settings of this file with others in the stage's section."""
    settings = parsed(PARAMS)
    write_params(settings | {"interpret": settings["interpret"] | changes})


@pytest.mark.parametrize(
    ("key", "setting", "message"),
    [
        ("k", [], r"interpret.k is \[\]: list should have at least 1 item"),
        ("k", [0], r"interpret.k.0 is 0: input should be greater than 0"),
        ("n_examples", 1, r"interpret.n_examples is 1: input should be greater than or equal to 2"),
        ("l2", 0.0, r"interpret.l2 is 0.0: input should be greater than 0"),
        ("shifts", 1, r"unknown key interpret.shifts; did you mean 'n_shifts'\?"),
    ],
)
def test_settings_refuse(key: str, setting: Any, message: str, project: Path) -> None:
    configure(**{key: setting})
    with pytest.raises(UserError, match=message):
        interpret.settings()


def test_probes_of_more_features_than_there_are_are_refused(copy: Path) -> None:
    configure(k=[33])
    with pytest.raises(UserError, match=r"interpret.k is 33, but the SAEs of toy have 32 features"):
        interpret.main("toy")


def test_an_arm_whose_revision_has_no_baselines_is_refused(copy: Path) -> None:
    shutil.rmtree("data/baselines")
    with pytest.raises(UserError, match=r"no baselines of revision.*`dvc repro baselines`.*activations.revisions"):
        interpret.main("toy")


def test_baselines_of_other_settings_are_refused(copy: Path) -> None:
    configure(n_sample=1000)
    with pytest.raises(UserError, match=r"was made with another n_sample than this run has; `dvc repro baselines`"):
        interpret.main("toy")


def test_the_baselines_numbers_are_those_of_the_revision() -> None:
    table = pd.read_parquet("data/baselines/main/detectors.parquet").groupby("detectors")
    for name in ("residual", "pca"):
        found = table.get_group(name)
        assert value(f"coverage_{name}") == pytest.approx(found["f1"].mean(), rel=1e-7)
        cc = corrected(found["f1"].to_numpy(), found["f1_chance"].to_numpy())
        assert value(f"cc_coverage_unfloored_{name}") == pytest.approx(cc.mean(), rel=1e-7)
    level = concepts()["f1_chance"].to_numpy()  # what is no feature takes the level of the SAEs
    for name in ("probe", "token", "bigram", "trigram"):
        found = table.get_group(name)["f1"].to_numpy()
        assert value(f"coverage_{name}") == pytest.approx(found.mean(), rel=1e-7)
        assert value(f"cc_coverage_unfloored_{name}") == pytest.approx(corrected(found, level).mean(), rel=1e-7)
    joined = pd.read_parquet("data/interpret/toy/baselines.parquet")
    for name in ("residual", "pca"):
        rows, found = joined[joined["basis"] == name], table.get_group(name)
        for column in ("concept", "f1", "mcc", "f1_chance", "f1_validation", "best_feature"):
            assert rows[column].tolist() == found[column].tolist()
        assert rows["threshold"].tolist() == pytest.approx((found["tenths"] / 10).tolist())


def test_the_maxima_and_the_probes_encode_the_fit_sample_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    class Watched(Encoder):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return super().__call__(x)

        def active(self, x: torch.Tensor) -> Active:
            seen.append(x)
            return super().active(x)

    monkeypatch.setattr(interpret, "Encoder", Watched)
    interpret.main("toy")
    store = open_store("main")
    first = read_labelled(store, "fit", 1500, stream(0, "sample", "fit"))
    beginning = next(iter(first.batches(1))).x[0]
    assert sum(torch.equal(x[0], beginning) for x in seen) == 4  # two seeds, two levels


def test_without_enough_examples_there_are_no_probes(copy: Path) -> None:
    configure(n_sample=30)
    baselines.main("main")
    interpret.main("toy")
    assert not any(name.startswith("probe_k") or name == "probe_dense_auroc" for name in summary())
    assert pd.read_parquet("data/interpret/toy/probes.parquet").empty


def test_concepts_that_are_nowhere_are_an_error() -> None:
    part = read_labelled(open_store("main"), "test", 100, np.random.default_rng(0))
    part.labels[:] = False
    with pytest.raises(UserError, match=r"no concept is present and absent in every split"):
        usable_concepts([part])
