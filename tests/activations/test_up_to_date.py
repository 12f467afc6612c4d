"""Activations of other settings, or of other weights, are refused before anything is computed from them."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stages import activations as stage
from stages.lib.activations.store import activation_settings, check_settings, open_store
from stages.lib.io.errors import UserError
from stages.lib.language.model import MODEL, check_weights
from tests.extraction import configure


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", 0),
        ("site", "hook_mlp_out"),
        ("n_tokens", 60),
        ("compute", "bfloat16"),
        ("dtype", "float16"),
        ("seed", 1),
    ],
)
def test_other_settings(workspace: Path, name: str, value: object) -> None:
    configure(revisions=["main"])
    stage.main()
    check_settings(open_store("main"), activation_settings())
    configure(revisions=["main"], **{name: value})
    with pytest.raises(UserError, match=rf"index.json was made with activations.{name} = .*`dvc repro activations`"):
        check_settings(open_store("main"), activation_settings())


def test_other_weights(workspace: Path) -> None:
    stage.main()
    for revision in ("main", "untrained"):
        store = open_store(revision)
        check_weights(store.index, store.directory)
    path = MODEL / "revisions/untrained/model.safetensors"
    weights = load_file(path)
    weights[min(weights)].view(-1)[0] += 1
    save_file(weights, path, {"format": "pt"})
    store = open_store("main")
    check_weights(store.index, store.directory)
    store = open_store("untrained")
    with pytest.raises(UserError, match=r"untrained/index.json is of other weights than .*untrained has: .*checkout"):
        check_weights(store.index, store.directory)
