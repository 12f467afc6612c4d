"""Checkpoints of a training as emergence reads them."""

from pathlib import Path

import numpy as np
import pytest

from stages.lib.emergence.checkpoints import between, checkpoints, null_checkpoints
from stages.lib.io.errors import UserError


def test_too_few_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 checkpoints, but emergence needs at least 2"):
        checkpoints(tmp_path)


def test_chance_level_between_the_checkpoints_where_it_is_measured() -> None:
    assert null_checkpoints(24) == [0, 12, 23]
    assert null_checkpoints(2) == [0, 1]
    steps = np.array([0, 1, 3, 7, 15])
    got = between(np.array([[0.0, 1.0], [0.2, 1.0], [0.4, 3.0]]), [0, 2, 4], steps)
    assert np.allclose(got, [[0, 1], [0.1, 1], [0.2, 1], [0.3, 2], [0.4, 3]])
