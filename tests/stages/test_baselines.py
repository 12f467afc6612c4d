"""A whole run of `baselines` on a small world, its files, and what it has in common with `interpret`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score

from stages import baselines
from stages.lib.activations.store import open_store
from stages.lib.detectors.choose import Detected
from stages.lib.detectors.counts import Choice
from stages.lib.detectors.coverage import Score
from stages.lib.detectors.probes import Probe
from stages.lib.detectors.sample import Parts, Sample, document_resamples, draw_sample, read_parts, stream
from stages.lib.detectors.saved_baselines import Baselines, read_baselines, write_baselines
from stages.lib.detectors.sparse_probes import MIN_POSITIVES, Probed, dense_auroc, draw_probed
from stages.lib.io import tensors
from stages.lib.io.errors import UserError
from tests import toy_concepts
from tests.settings import parsed, write_params

PARAMS = """
train: {seeds: [0, 1], d_sae: 32}
interpret:
  {n_tokens: 100000, n_sample: 1500, n_shifts: 6, n_resamples: 50, k: [1, 2], n_examples: 60, l2: 1.0e-3, seed: 0}
"""
NAMES, N_CONCEPTS = ["token", "bigram", "trigram", "probe", "residual", "pca"], 6
OWN = Path("data/baselines/main")


@pytest.fixture(scope="module", autouse=True)
def data(shared_project: Path) -> None:
    """The small world as the working directory, after a run."""
    write_params(PARAMS)
    toy_concepts.write_world(3000)
    baselines.main("main")


def parts() -> Parts:
    return read_parts(open_store("main"), n_tokens=10**5, n_sample=1500, seed=0)


def sample(n_shifts: int = 6) -> Sample:
    return draw_sample(parts(), n_shifts, stream(0, "draw"))


def test_every_set_of_detectors_has_a_row_for_each_concept() -> None:
    table = pd.read_parquet(OWN / "detectors.parquet")
    assert table["detectors"].unique().tolist() == NAMES
    assert table["concept"].tolist() == [f"concept_{c}" for c in range(N_CONCEPTS)] * len(NAMES)
    fitted = table["detectors"].isin(["token", "bigram", "trigram", "probe"])
    for column in ("best_feature", "tenths", "f1_chance"):
        assert (table[column].isna() == fitted).all()
    assert table["f1"].between(0, 1).all() and (table["f1_chance"][~fitted] > 0).all()


def test_the_description_says_what_was_measured() -> None:
    found = tensors.describe(OWN / "baselines.safetensors")
    shared = {name: value for name, value in parsed(PARAMS)["interpret"].items() if name not in ("k", "n_examples")}
    assert found == {**shared, "d_sae": 32, "concepts": [f"concept_{c}" for c in range(N_CONCEPTS)]}


def test_a_basis_score_is_that_of_its_chosen_coordinates() -> None:
    mine, test = sample(), parts().whole["test"]
    features = baselines.coordinates(mine, 32)["pca"]
    acts = torch.cat([features.encode(batch.x) for batch in test.batches(4096)]).numpy()
    table = pd.read_parquet(OWN / "detectors.parquet")
    for c, row in table[table["detectors"] == "pca"].reset_index(drop=True).iterrows():
        i = int(row["best_feature"])
        fires = acts[:, i] > row["tenths"] / 10 * features.maximum[i]
        assert row["f1"] == pytest.approx(f1_score(test.labels[:, c], fires), abs=2e-3)
        assert row["mcc"] == pytest.approx(matthews_corrcoef(test.labels[:, c], fires), abs=2e-3)


def test_there_are_as_many_coordinates_as_features_or_all_there_are() -> None:
    mine = sample()
    assert [len(one.maximum) for one in baselines.coordinates(mine, 32).values()] == [32, 32]
    assert [len(one.maximum) for one in baselines.coordinates(mine, 999).values()] == [48, 48]  # d_in = 24


def test_resamples_are_drawn_for_each_concept() -> None:
    found = tensors.load(OWN / "baselines.safetensors")
    for name in NAMES:
        assert found[f"resampled/{name}"].shape == (50, N_CONCEPTS)
    counts = document_resamples(parts().whole["test"], 50, 0)
    assert counts.shape[0] == 50 and len(set(counts.sum(1))) == 1


def test_more_validation_shifts_begin_with_the_same() -> None:
    assert np.array_equal(sample(7).shifts["validation"][:6], sample(6).shifts["validation"])


def test_the_same_inputs_give_the_same_bytes() -> None:
    before = {path: path.read_bytes() for path in OWN.iterdir()}
    assert sorted(path.name for path in before) == ["baselines.safetensors", "detectors.parquet"]
    baselines.main("main")
    assert {path: path.read_bytes() for path in OWN.iterdir()} == before


def test_what_is_written_is_read() -> None:
    generator = np.random.default_rng(0)
    with_choice, without = (Score(generator.random(3), generator.random((4, 3)), generator.random(3)) for _ in range(2))
    choice = Choice(np.array([5, 0, 2]), np.array([9, 0, 1]), generator.random(3))
    detected = {
        "token": Detected(without, None, None),
        "pca": Detected(with_choice, generator.random(3), choice),
    }
    description = {"concepts": ["a", "b", "c"], "l2": 1e-3}
    probe = Probe(torch.randn(2, 3), torch.randn(3))
    write_baselines("other", Baselines(detected, probe), description)
    found = read_baselines("other", description)
    assert list(found.detected) == ["token", "pca"] and found.detected["token"].choice is None
    assert torch.equal(found.probe.weights, probe.weights) and torch.equal(found.probe.bias, probe.bias)
    for name, one in detected.items():
        read = found.detected[name].chance
        assert (read is None) == (one.chance is None) and (read is None or np.array_equal(read, one.chance))
        for ours, theirs in zip(found.detected[name].score, one.score, strict=True):
            assert np.array_equal(ours, theirs)
    again = found.detected["pca"].choice
    assert again is not None and all(np.array_equal(*pair) for pair in zip(again, choice, strict=True))
    assert again.feature.dtype == np.int64


def test_a_revision_without_baselines_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"data/baselines has no baselines of revision 'mian'; did you mean 'main'\?.*baselines"
    ):
        read_baselines("mian", {})
    with pytest.raises(UserError, match=r"was made with another d_sae than this run has"):
        read_baselines("main", {"d_sae": 33})


def test_a_revision_without_activations_is_refused() -> None:
    with pytest.raises(UserError, match=r"no activations of revision 'step-9'"):
        baselines.main("step-9")


@pytest.mark.parametrize(
    ("key", "setting", "message"),
    [
        ("n_shifts", 0, r"interpret.n_shifts is 0: input should be greater than 0"),
        ("l2", 0.0, r"interpret.l2 is 0.0: input should be greater than 0"),
        ("seed", -1, r"interpret.seed is -1: input should be greater than or equal to 0"),
    ],
)
def test_settings_refuse(key: str, setting: Any, message: str, project: Path) -> None:
    settings = parsed(PARAMS)
    write_params(settings | {"interpret": settings["interpret"] | {key: setting}})
    with pytest.raises(UserError, match=message):
        baselines.settings()


def probed() -> tuple[Sample, Probed]:
    generator = stream(0, "draw")
    mine = draw_sample(parts(), 6, generator)
    return mine, draw_probed(mine, 60, generator)


def test_concepts_with_few_examples_are_not_probed() -> None:
    mine, _ = probed()
    mine.part["test"].labels[:, 2] = np.arange(len(mine.part["test"])) < MIN_POSITIVES - 1
    mine.part["fit"].labels[:, 3] = np.arange(len(mine.part["fit"])) >= MIN_POSITIVES - 1
    assert draw_probed(mine, 60, np.random.default_rng(0)).columns.tolist() == [0, 1, 4, 5]


def test_the_dense_probe_ranks_the_examples_as_scikit_learn_says() -> None:
    mine, drawn = probed()
    probe = read_baselines("main", {}).probe
    found = dense_auroc(probe, mine, drawn)
    for number, column in enumerate(drawn.columns):
        p = probe.probability(mine.x["test"])[drawn.test.rows[number], column]
        assert found[number] == pytest.approx(roc_auc_score(drawn.test.positive[number], p))
    assert found.mean() > 0.9
