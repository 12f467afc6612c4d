"""Whether activations on disk are those that the settings stand for.

DVC keeps the two in step, unless a stage is run by itself or files are moved by hand.
"""

from typing import Any

from stages.lib import params
from stages.lib.errors import UserError
from stages.lib.store import Store

SETTINGS = ("layer", "site", "n_tokens", "compute", "dtype", "seed")
"""What the index of a store repeats of the section `activations`."""


def activation_settings() -> dict[str, Any]:
    """Those settings as they are now; none in a pipeline that makes its activations otherwise."""
    if "activations" not in params.document():
        return {}
    return {name: params.value(f"activations.{name}") for name in SETTINGS}


def check_settings(store: Store, now: dict[str, Any]) -> None:
    """Refuse activations that were made with other settings than `now`.

    Raises:
        UserError: naming the index, the setting and both values.
    """
    for name, made in store.index.get("settings", {}).items():
        if now.get(name, made) != made:
            raise UserError(
                f"{store.directory}/index.json was made with activations.{name} = {made!r}, params.yaml has "
                f"{now[name]!r}: `dvc repro activations` makes what it asks for"
            )
