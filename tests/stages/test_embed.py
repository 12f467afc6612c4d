"""The stage describes and maps every arm, the same on every run; neighbours by hand. UMAP compiles once here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages import embed
from stages.lib.features.map import nearest
from stages.lib.io.files import read_json
from tests.settings import write_params
from tests.toy_checkpoints import write_arm, write_held_out

PARAMS = """
train: {seeds: [0, 1]}
saes: {toy: {}, other: {}, untrained: {}}
embed: {n_tokens: 300, min_firings: 3, n_clusters: [2, 3], n_resamples: 3, subsample: 0.8, n_null: 3,
  pair_cosine: 0.5, n_neighbors: 5,
  min_dist: 0.1, seed: 0}
"""


@pytest.fixture
def here(project: Path) -> Path:
    write_params(PARAMS)
    write_held_out(16, 6, 10, ["main", "untrained"])
    for arm, revision in [("toy", "main"), ("other", "main"), ("untrained", "untrained")]:
        write_arm(arm, d_in=16, d_sae=24, rise=[1] * 6, seeds=[0, 1], revision=revision, steps=[0, 1])
    return project


@pytest.mark.slow
def test_every_arm_is_described_and_mapped_the_same_twice(here: Path) -> None:
    files = [Path("data/embed/features.parquet"), Path("reports/embed/clusters.json")]
    embed.main()
    before = [path.read_bytes() for path in files]
    table, numbers = pd.read_parquet(files[0]), read_json(files[1])
    assert table["arm"].unique().tolist() == ["toy", "other", "untrained"]
    assert np.isfinite(table[["x", "y"]].to_numpy()).all()
    for arm in ("toy", "other", "untrained"):
        own = table[table["arm"] == arm]
        assert (own["level"].unique().tolist(), own["seed"].unique().tolist()) == ([1], [0])
        assert len(own) == numbers[arm]["n_features"] == sum(numbers[arm]["sizes"].values())
        assert numbers[arm]["n_features"] + numbers[arm]["n_dead"] == 24
        assert own["cluster"].nunique() <= numbers[arm]["n_clusters"]
        assert own["silhouette"].mean() == pytest.approx(numbers[arm]["silhouette"]["value"], abs=1e-5)
        assert own["nearest"].mean() == pytest.approx(numbers[arm]["nearest"]["value"], abs=1e-5)
        assert own["opposite_null"].mean() == pytest.approx(-numbers[arm]["opposite"]["null"], abs=1e-5)
        assert own.sort_values("nearest", kind="stable")["nearest_null"].is_monotonic_increasing
        for name in ("silhouette", "nearest", "opposite"):
            assert 1 / 4 <= numbers[arm][name]["p"] <= numbers[arm][name]["p_holm"] <= 1
    embed.main()
    assert [path.read_bytes() for path in files] == before


def test_nothing_fires(here: Path) -> None:
    write_params(PARAMS.replace("min_firings: 3", "min_firings: 9999"))
    with pytest.raises(embed.UserError, match=r"features fire 9999 times on \d+ tokens, fewer than 8: lower embed"):
        embed.main()


def test_nearest_by_hand() -> None:
    directions = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0.2]]), dim=1).numpy()
    indices, distances = nearest(directions, 3)
    assert indices[0].tolist() == [0, 1, 3]
    assert indices[1].tolist() == [1, 0, 3]
    assert indices[2].tolist()[:2] == [2, 3]
    assert distances[0] == pytest.approx([0, 0, 1 - 1 / np.sqrt(1.04)], abs=1e-6)


def test_nearest_agrees_with_sklearn() -> None:
    from sklearn.neighbors import NearestNeighbors

    directions = np.random.default_rng(0).normal(size=(40, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = NearestNeighbors(n_neighbors=7, metric="cosine").fit(directions).kneighbors(directions)[1]
    np.testing.assert_array_equal(nearest(directions, 7)[0], expected)


def test_settings(project: Path) -> None:
    write_params(PARAMS)
    own, arms, seeds = embed.settings()
    assert (own.n_clusters, arms, seeds) == ([2, 3], ["toy", "other", "untrained"], [0, 1])
    write_params(PARAMS.replace("[2, 3]", "[1]"))
    with pytest.raises(embed.UserError, match=r"embed\.n_clusters\.0 is 1: input should be greater than or equal to 2"):
        embed.settings()
