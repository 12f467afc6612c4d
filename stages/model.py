"""A causal language model as a Hugging Face directory.    in: data/corpus, or a hub    out: data/model.

Whatever the source, `data/model` holds the model, and `data/model/revisions/<name>` its other states: always
`untrained`, the control that tells what the architecture and the tokens alone give.
"""

from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from stages.lib.io import params, plugins
from stages.lib.io.files import write_json
from stages.lib.run.start import run

MODEL = Path("data/model")


class Settings(params.Params):
    """Which model; its source's own settings stand in `model.<source>`."""

    source: str
    name: str | None
    revision: str | None
    seed: NonNegativeInt


def settings() -> tuple[Settings, Any, Any]:
    """The stage's settings, the source's module and the source's settings."""
    fields = {name: params.value(f"model.{name}") for name in Settings.model_fields}
    own = params.check("model", fields, Settings)
    source = plugins.load("models", own.source, "model.source")
    return own, source, params.read(f"model.{own.source}", source.ModelParams)


def main() -> None:
    """Build the model and record what it is."""
    own, source, source_params = settings()
    facts = source.build(own.name, own.revision, source_params, own.seed, MODEL)
    write_json(MODEL / "model.json", {"source": own.source, **facts})


if __name__ == "__main__":
    run(main)
