"""What needs no SAE on disk: read as it was written, and refused where it belongs to something else."""

from pathlib import Path

import numpy as np
import pytest

from stages.lib.fidelity.ablations import Ablations, WithoutSAE, read_ablations, windows_at_a_time, write_ablations
from stages.lib.fidelity.reconstruction import Baselines
from stages.lib.io.errors import UserError


def test_what_is_read_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ablations = Ablations(np.array([3, 4]), np.array([1.5, 2.5]), np.array([9.0]), np.array([8.0]))
    baselines = Baselines(np.array([1.0, 2.0, 3.0]), 0.1 + 0.2, np.array([1.0, 0.5]))
    write_ablations("main", WithoutSAE(ablations, baselines), {"windows": "a", "n_ce_tokens": 5})
    found = read_ablations("main", {"windows": "a", "n_ce_tokens": 5})
    assert found.baselines.unigram == baselines.unigram
    for before, after in ((ablations, found.ablations), (baselines, found.baselines)):
        for own, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(own, other)
    with pytest.raises(UserError, match=r"made with another n_ce_tokens .* `dvc repro ablations` renews it"):
        read_ablations("main", {"windows": "a", "n_ce_tokens": 6})
    with pytest.raises(UserError, match=r"made with another windows"):
        read_ablations("main", {"windows": "b", "n_ce_tokens": 5})
    with pytest.raises(UserError, match=r"no ablations of revision 'mian'.*main"):
        read_ablations("mian", {})


def test_a_run_takes_few_windows_of_a_large_model() -> None:
    assert windows_at_a_time(128, 1024) == 16
    assert windows_at_a_time(128, 50257) == 1
    assert windows_at_a_time(1024, 50257) == 1
