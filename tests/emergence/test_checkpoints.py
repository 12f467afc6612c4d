"""Checkpoints of a training as emergence reads them."""

from pathlib import Path

import pytest

from stages.lib.emergence.checkpoints import checkpoints
from stages.lib.io.errors import UserError


def test_too_few_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 checkpoints, but emergence needs at least 2"):
        checkpoints(tmp_path)
