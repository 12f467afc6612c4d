"""A whole run of `evaluate` on toy data, against the same numbers worked out in one piece."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages import ablations, evaluate
from stages.lib.activations.store import open_store
from stages.lib.fidelity.reconstruction import dead, labelled, shift_of, token_means, unshifted
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, write_json
from stages.lib.language.windows import read_windows
from stages.lib.sae.saved import SAE, load_sae
from tests import toy_data
from tests.settings import working_directory, write_params

PARAMS = """
train: {seeds: [0, 1], more_seeds: [2]}
evaluate: {n_ce_tokens: 10000, n_train_tokens: 300, n_resamples: 50, seed: 0}
"""


@pytest.fixture(scope="module", autouse=True)
def data(shared_project: Path) -> None:
    """The toy data as the working directory, after a run."""
    write_params(PARAMS)
    toy_data.write_all()
    # A further seed, which has the followed level alone.
    shutil.copytree("data/train/toy/seed-1", "data/train/toy/more/seed-2", ignore=shutil.ignore_patterns("level-0"))
    ablations.main("main")
    evaluate.main("toy")


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[None]:
    """A copy of it as the working directory, for a test that runs the stage with other settings."""
    with working_directory(shutil.copytree(Path.cwd(), tmp_path / "copy")):
        yield


def values(level: int, seed: int) -> dict[str, dict[str, float]]:
    """The numbers of one SAE."""
    summary = read_json(Path("reports/evaluate/toy.json"))
    cells = {name: levels.get(f"level-{level}", {}).get(f"seed-{seed}") for name, levels in summary.items()}
    return {name: cell for name, cell in cells.items() if cell is not None}


def test_all_metrics_are_there() -> None:
    expected = """fvu l0 l0_sd l0_p5 l0_p95 density dead_fraction dense_fraction effective_dictionary relative_bias
        hoyer gini cosine ce_clean ce_sae ce_zero ce_mean ce_recovered_mean ce_recovered_zero delta_ce kl
        ce_random_error fvu_unigram fvu_pca ce_clean_test delta_ce_random_error fvu_train relative_bias_train"""
    for level in (0, 1):
        for seed in (0, 1):
            assert set(expected.split()) <= set(values(level, seed))


def test_the_fvu_is_that_of_all_rows_at_once() -> None:
    store = open_store("main")
    x = store.rows("test", 0, store.n_rows("test"))
    one = load_sae(Path("data/train/toy/seed-1/level-0"))
    acts = one.encode(x)
    cell = values(0, 1)
    expected = (x - one.decode(acts)).square().sum() / (x - x.mean(0)).square().sum()
    assert cell["fvu"]["value"] == pytest.approx(expected.item(), rel=1e-5)
    assert cell["fvu"]["low"] < cell["fvu"]["value"] < cell["fvu"]["high"]
    assert cell["fvu"]["n"] == len(x)
    assert cell["l0"]["value"] == pytest.approx((acts > 0).sum(1).float().mean().item())
    rates = (acts > 0).float().mean(0)
    assert cell["dense_fraction"]["value"] == pytest.approx((rates > 0.1).float().mean().item())
    both = torch.cat([x, store.rows("validation", 0, store.n_rows("validation"))])
    assert cell["dead_fraction"]["n"] == len(both)
    expected_dead = (~(one.encode(both) > 0).any(0)).float().mean().item()
    assert cell["dead_fraction"]["value"] == pytest.approx(expected_dead)


def test_a_further_seed_is_scored_at_its_one_level() -> None:
    assert values(0, 2) == {}
    # It is a copy of seed 1.
    assert values(1, 2) == values(1, 1)


def test_training_activations_are_measured_as_the_test_ones_are() -> None:
    store = open_store("main")
    x = store.rows("train", 0, 300)
    one = load_sae(Path("data/train/toy/seed-1/level-0"))
    expected = (x - one.decode(one.encode(x))).square().sum() / (x - x.mean(0)).square().sum()
    assert values(0, 1)["fvu_train"]["value"] == pytest.approx(expected.item(), rel=1e-5)
    assert values(0, 1)["fvu_train"]["n"] == 300
    assert "relative_bias_train_unshifted" not in values(0, 1)  # a TopK has no threshold


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_undoing_a_shift_gives_the_sae_before_it(architecture: str) -> None:
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec, x = (torch.randn(*size, generator=generator) for size in ((4, 6), (6, 4), (50, 4)))
    threshold = torch.full((6,), 0.5) if architecture == "jumprelu" else None
    before = SAE(architecture, W_enc, torch.zeros(6), W_dec, torch.zeros(4), threshold, None, {})
    # As training applies it: on the threshold where there is one, else on the bias.
    after = (
        replace(before, b_enc=before.b_enc - 0.2) if threshold is None else replace(before, threshold=threshold + 0.2)
    )
    assert (after.encode(x) > 0).sum() < (before.encode(x) > 0).sum()
    torch.testing.assert_close(unshifted(after, 0.2).encode(x), before.encode(x))


def test_the_shift_is_that_of_the_level() -> None:
    path = Path("data/train/toy/seed-1/train.json")
    facts, member = read_json(path), evaluate.members("toy", [1])[1]
    assert shift_of(member) == 0.0
    for shifts in ([0.1, 0.3], [0.3]):
        write_json(path, facts | {"shift": shifts})
        assert shift_of(member) == 0.3
    write_json(path, facts)


def test_the_unigram_baseline_is_the_mean_by_token() -> None:
    store = open_store("main")
    by_token: dict[int, list[torch.Tensor]] = {}
    for x, ids, _ in labelled(store, read_windows("train"), "train"):
        for row, token in zip(x, ids.tolist(), strict=True):
            by_token.setdefault(token, []).append(row)
    table = token_means(store, toy_data.D_VOCAB)
    for token, rows in by_token.items():
        torch.testing.assert_close(table[token].float(), torch.stack(rows).mean(0), rtol=1e-4, atol=1e-5)
    error = total = 0.0
    test = store.rows("test", 0, store.n_rows("test"))
    for x, ids, _ in labelled(store, read_windows("test"), "test"):
        error += (x - table[ids.long()]).square().sum().item()
        total += (x - test.mean(0)).square().sum().item()
    assert values(0, 0)["fvu_unigram"]["value"] == pytest.approx(error / total, rel=1e-5)


def test_rows_get_the_token_and_document_they_come_from() -> None:
    windows = read_windows("test")
    valid = windows.valid()
    x, ids, documents = next(labelled(open_store("main"), windows, "test"))
    assert ids.tolist() == windows.tokens[valid].tolist()
    expected = windows.document[:, None].expand_as(valid)[valid]
    assert documents.tolist() == expected.tolist()
    assert len(x) == valid.sum()


def test_dead_features_are_looked_for_in_validation_too() -> None:
    store = open_store("main")
    # Feature 0 fires on every token, feature 1 never; both were silent in test.
    zeros = torch.zeros(toy_data.D_IN, 2)
    one = SAE("standard", zeros, torch.tensor([1.0, -1.0]), zeros.T, zeros[:, 0], None, None, {})
    silent = evaluate.Fidelity(2, 1, zeros[:, 0])
    assert dead(store, one, silent).tolist() == [False, True]


def test_the_pca_baseline_has_the_rank_of_the_l0() -> None:
    store = open_store("main")
    fit, test = (store.rows(split, 0, store.n_rows(split)).double() for split in ("fit", "test"))
    _, _, directions = torch.linalg.svd(fit - fit.mean(0), full_matrices=False)
    rank = round(values(1, 0)["l0"]["value"])
    centred = test - fit.mean(0)
    left = centred - centred @ directions[:rank].T @ directions[:rank]
    expected = left.square().sum() / (test - test.mean(0)).square().sum()
    assert values(1, 0)["fvu_pca"]["value"] == pytest.approx(expected.item(), rel=1e-4)


def test_cross_entropies_are_consistent() -> None:
    windows = read_windows("test")
    for level in (0, 1):
        cell = {name: number["value"] for name, number in values(level, 0).items()}
        assert cell["delta_ce"] == pytest.approx(cell["ce_sae"] - cell["ce_clean"], abs=1e-6)
        recovered = (cell["ce_mean"] - cell["ce_sae"]) / (cell["ce_mean"] - cell["ce_clean"])
        assert cell["ce_recovered_mean"] == pytest.approx(recovered, rel=1e-5)
        assert cell["kl"] > 0
        random = cell["ce_random_error"] - cell["ce_clean"]
        assert cell["delta_ce_random_error"] == pytest.approx(random, abs=1e-6)
        assert cell["random_error_ratio"] == pytest.approx(random / cell["delta_ce"], rel=1e-4)
    # Every window was used: a prediction for each text token that follows a text token.
    n_predictions = int((windows.length - 2).clamp(min=0).sum())
    assert values(0, 0)["ce_clean"]["n"] == n_predictions
    assert values(0, 0)["ce_clean"]["value"] == values(1, 1)["ce_clean"]["value"]


def test_the_clean_loss_is_that_of_all_windows_however_few_saes_run_on(copy: None) -> None:
    whole = values(0, 0)
    assert whole["ce_clean_test"]["value"] == pytest.approx(whole["ce_clean"]["value"], rel=1e-6)
    write_params(PARAMS.replace("n_ce_tokens: 10000", "n_ce_tokens: 40"))
    with pytest.raises(UserError, match=r"another n_ce_tokens .* `dvc repro ablations`"):
        evaluate.main("toy")
    ablations.main("main")
    evaluate.main("toy")
    some = values(0, 0)
    assert some["ce_clean"]["n"] < 60 < whole["ce_clean"]["n"]
    assert some["ce_clean_test"] == pytest.approx(whole["ce_clean_test"], rel=1e-6)
    assert some["ce_clean"]["low"] < some["ce_clean"]["value"] < some["ce_clean"]["high"]


def test_rates_of_all_features_are_kept() -> None:
    table = pd.read_parquet("data/evaluate/toy/alive.parquet")
    assert table.dtypes.astype(str).to_dict() == {
        "seed": "int32", "level": "int8", "feature": "int32", "rate": "float32"
    }  # fmt: skip
    assert len(table) == (2 * 2 + 1) * toy_data.D_SAE
    store = open_store("main")
    one = load_sae(Path("data/train/toy/seed-1/level-0"))
    rate = (one.encode(store.rows("test", 0, store.n_rows("test"))) > 0).float().mean(0)
    own = table.query("seed == 1 and level == 0")
    assert own["feature"].tolist() == list(range(toy_data.D_SAE))
    assert own["rate"].to_numpy() == pytest.approx(rate.numpy(), abs=1e-6)


def test_the_details_add_up() -> None:
    documents = pd.read_parquet("data/evaluate/toy/documents.parquet")
    own = documents[(documents["level"] == 1) & (documents["seed"] == 0)]
    assert own["squared_error"].sum() / own["total"].sum() == pytest.approx(values(1, 0)["fvu"]["value"], rel=1e-6)
    l0 = pd.read_parquet("data/evaluate/toy/l0.parquet")
    own = l0[(l0["level"] == 1) & (l0["seed"] == 0)]
    assert np.average(own["l0"], weights=own["n_tokens"]) == pytest.approx(values(1, 0)["l0"]["value"])


def test_a_second_run_gives_the_same_bytes() -> None:
    path = Path("reports/evaluate/toy.json")
    before = path.read_bytes()
    evaluate.main("toy")
    assert path.read_bytes() == before
