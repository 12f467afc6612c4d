"""A whole run of `frequency` on a small world, and its parts against the same numbers worked out in one piece."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import frequency
from stages.lib.activations.store import open_store
from stages.lib.concepts.labelled import Batch, Labelled
from stages.lib.concepts.labels import read_labels
from stages.lib.features import counting
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json
from stages.lib.language.windows import read_windows
from stages.lib.sae.saved import load_sae
from tests import toy_concepts
from tests.settings import parsed, working_directory, write_params

PARAMS = """
train: {seeds: [0, 1]}
frequency:
  {n_tokens: 100000, n_shifts: 19, n_resamples: 50, min_firings: 30, n_rarefied: 20, match_cosine: 0.7,
   specialised: 0.5, random_decoder: toy, endpoint: entropy_rarefied, least_difference: 0.3, least_arms: 1, seed: 0}
"""
N_CONCEPTS, D_SAE = 6, 32


@pytest.fixture(scope="module", autouse=True)
def data(shared_project: Path) -> Path:
    """The small world as the working directory, after a run; no test changes it."""
    write_params(PARAMS)
    toy_concepts.write_saes("toy", toy_concepts.write_world(3000), D_SAE, [0, 1], [2, 4])
    frequency.main("toy")
    return shared_project


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it as the working directory, for a test that runs the stage again."""
    with working_directory(shutil.copytree(data, tmp_path / "copy")) as directory:
        yield directory


def features(level: int = 0, seed: int = 0) -> pd.DataFrame:
    """The rows of one SAE."""
    table = pd.read_parquet("data/frequency/toy/features.parquet")
    return table[(table["level"] == level) & (table["seed"] == seed)].reset_index(drop=True)


def summary() -> dict[str, Any]:
    """The summary."""
    found: dict[str, Any] = read_json(Path("reports/frequency/toy.json"))
    return found


def test_every_feature_of_every_sae_has_a_row() -> None:
    table = pd.read_parquet("data/frequency/toy/features.parquet")
    assert len(table) == 2 * 2 * D_SAE
    assert not table.duplicated(["arm", "level", "seed", "feature"]).any()


def test_rates_are_those_of_all_rows_at_once() -> None:
    store = open_store("main")
    sae = load_sae(Path("data/train/toy/seed-0/level-0"))
    table = features()
    for split, column in (("test", "rate"), ("validation", "rate_validation")):
        acts = sae.encode(store.rows(split, 0, store.n_rows(split)))
        assert table[column].to_numpy() == pytest.approx((acts > 0).double().mean(0).numpy())
    acts = sae.encode(store.rows("test", 0, store.n_rows("test")))
    assert table["n_firings"].tolist() == (acts > 0).sum(0).tolist()
    assert table["max_act"].to_numpy() == pytest.approx(acts.amax(0).numpy())


def test_the_mcc_is_that_of_the_concept_chosen_on_validation() -> None:
    store = open_store("main")
    sae = load_sae(Path("data/train/toy/seed-0/level-0"))
    fires = {s: (sae.encode(store.rows(s, 0, store.n_rows(s))) > 0).numpy() for s in ("validation", "test")}
    labels = {s: read_labels(s, store.positions(s)) for s in fires}
    for i, row in features().iloc[:10].iterrows():
        values = {s: [np.corrcoef(fires[s][:, i], labels[s][:, c])[0, 1] for c in range(N_CONCEPTS)] for s in fires}
        best = int(np.argmax(values["validation"]))
        assert row["best_concept"] == f"concept_{best}"
        assert row["mcc"] == pytest.approx(values["test"][best])
        assert row["mcc_validation"] == pytest.approx(values["validation"][best])


def test_the_features_that_are_concepts_are_found() -> None:
    table = features(level=1)
    assert (table["best_concept"][1:N_CONCEPTS] == [f"concept_{c}" for c in range(1, N_CONCEPTS)]).all()
    assert (table["mcc_calibrated"][1:N_CONCEPTS] > 0.5).all() and (table["mcc_p"][1:N_CONCEPTS] == 0.05).all()
    assert table["mcc_calibrated"][N_CONCEPTS:].median() < 0.3


def test_the_concepts_features_are_stable_across_seeds() -> None:
    table = features()
    assert table["stability"][:N_CONCEPTS].to_numpy() == pytest.approx(np.ones(N_CONCEPTS), abs=1e-5)
    assert (table["stability"][N_CONCEPTS:] < 0.95).all()
    assert table["stability_matched"][:N_CONCEPTS].to_numpy() == pytest.approx(np.ones(N_CONCEPTS), abs=1e-5)
    assert (table["stability_matched"] <= table["stability"] + 1e-6).all()


def test_the_chance_level_is_that_of_the_same_choice_on_shifted_labels() -> None:
    own = frequency.settings().frequency
    inputs = frequency.prepare(own, "toy", [0, 1])
    sae = load_sae(Path("data/train/toy/seed-0/level-0"))
    fires = [(sae.encode(part.x()) > 0).numpy() for part in (inputs.validation, inputs.test)]
    shifted = []
    for by in zip(*inputs.shifts, strict=True):
        labels = [np.roll(part.labels, s, axis=0)
                  for part, s in zip((inputs.validation, inputs.test), by, strict=True)]  # fmt: skip
        pairs = [[np.corrcoef(f[:, 3], y)[0, 1] for y in own.T] for f, own in zip(fires, labels, strict=True)]
        shifted.append(pairs[1][int(np.argmax(pairs[0]))])
    row = features().iloc[3]
    assert row["mcc_chance"] == pytest.approx(np.mean(shifted))
    assert row["mcc_p"] == pytest.approx((1 + (np.array(shifted) >= row["mcc"]).sum()) / 20)


def test_the_summary_has_the_ladder_and_the_relation() -> None:
    found = summary()
    for rung in ("split_half", "validation", "threshold", "cross_seed", "cross_seed_all", "cross_level_all"):
        for measure in ("spearman", "icc", "ccc", "dex", "sem"):
            assert f"{rung}_{measure}" in found
    assert {*frequency_names()} <= set(found)
    assert set(found["cross_level_all_icc"]) == {"level-0"}
    assert found["split_half_spearman"]["level-0"]["seed-0"]["value"] > 0.8


def frequency_names() -> list[str]:
    """Metrics that other stages read."""
    names = "spec_spearman spec_spearman_f1 spec_spearman_chance spec_spearman_entropy spec_partial_spearman "
    names += "spec_spearman_stability_matched spec_spearman_entropy_below beyond_chance_fraction n_specialised "
    return (names + "log_rate_sd design_effect_median unresolved_fraction cross_seed_matched_fraction").split()


def test_split_half_is_over_documents() -> None:
    store, windows = open_store("main"), read_windows("test")
    documents = windows.document.numpy()[store.positions("test") // windows.n_ctx]
    sae = load_sae(Path("data/train/toy/seed-0/level-0"))
    fires = (sae.encode(store.rows("test", 0, store.n_rows("test"))) > 0).numpy()
    even = documents % 2 == 0
    n = fires[even].sum(0), fires[~even].sum(0)
    kept = (n[0] >= 30) & (n[1] >= 30)
    logs = [np.log10(count[kept] / size) for count, size in zip(n, (even.sum(), (~even).sum()), strict=True)]
    cell = summary()["split_half_dex"]["level-0"]["seed-0"]
    assert cell["n"] == kept.sum()
    assert cell["value"] == pytest.approx(np.abs(logs[0] - logs[1]).mean())


def test_unresolved_features_are_counted() -> None:
    table = features()
    few = (table["n_firings"] < 30) | (table["n_firings_validation"] < 30)
    cell = summary()["unresolved_fraction"]["level-0"]["seed-0"]
    assert cell["value"] == pytest.approx(few.mean()) and cell["n"] == D_SAE
    assert (table["resolved"] == ~few).all()


def test_the_same_inputs_give_the_same_bytes(copy: Path) -> None:
    paths = [Path("reports/frequency/toy.json"), *Path("data/frequency/toy").iterdir()]
    before = [path.read_bytes() for path in paths]
    frequency.main("toy")
    assert [path.read_bytes() for path in paths] == before


def test_one_seed_has_no_other_to_agree_with(copy: Path) -> None:
    write_params(parsed(PARAMS) | {"train": {"seeds": [0]}})
    frequency.main("toy")
    assert not any(name.startswith(("cross_seed", "spec_spearman_stability")) for name in summary())
    assert features()["stability"].isna().all()


def test_without_resolved_features_all_are_counted_as_unresolved(copy: Path) -> None:
    configure(min_firings=10**6)
    frequency.main("toy")
    assert set(summary()) == {"unresolved_fraction", "cross_seed_matched_fraction", "cross_level_matched_fraction"}
    assert summary()["unresolved_fraction"]["level-0"]["seed-0"]["value"] == 1
    assert pd.read_parquet("data/frequency/toy/decades.parquet").empty


def configure(**changes: float) -> None:
    """Write the settings of this file with others in the stage's section."""
    settings = parsed(PARAMS)
    write_params(settings | {"frequency": settings["frequency"] | changes})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_rarefied", 1, r"frequency.n_rarefied is 1: input should be greater than or equal to 2"),
        ("n_resamples", 1, r"frequency.n_resamples is 1: input should be greater than or equal to 2"),
        ("match_cosine", 2.0, r"frequency.match_cosine is 2.0: input should be less than or equal to 1"),
        ("specialised", 1.0, r"frequency.specialised is 1.0: input should be less than 1"),
        ("n_shift", 3, r"unknown key frequency.n_shift; did you mean 'n_shifts'\?"),
    ],
)
def test_settings_refuse(key: str, value: float, message: str, project: Path) -> None:
    configure(**{key: value})
    with pytest.raises(UserError, match=message):
        frequency.settings()


def test_an_arm_that_was_not_trained_is_refused() -> None:
    with pytest.raises(UserError, match=r"data/train/nothing/seed-0/train.json is missing"):
        frequency.main("nothing")


def test_counts_in_batches_are_those_at_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = features()
    sizes: list[int] = []
    batches = Labelled.batches

    def counted(self: Labelled, size: int) -> Iterator[Batch]:
        for batch in batches(self, size):
            sizes.append(len(batch.tokens))
            yield batch

    monkeypatch.setattr(Labelled, "batches", counted)
    monkeypatch.setattr(counting, "BATCH", 500)
    frequency.main("toy")
    assert max(sizes) == 500 and len(sizes) > 2 * 3000 // 500
    pd.testing.assert_frame_equal(features(), before, rtol=1e-6)
