"""What the model's tokens look like at one hook or several.

in: data/model, data/tokens    out: data/activations/<entry of activations.revisions>

A row is a token. The model runs only up to the highest hooked layer. Training rows go where a seeded permutation sends
them, so reading the shards in order is reading tokens at random; the rows of the other splits stay in the order of the
text. The first position of every window (BOS) and padding give no row. All revisions take the same tokens to the same
places.

A batch of windows is worked out by one thread, whole, and its rows have places of their own. So the bytes are the same
however many threads and processes there are, in whatever order they come, and however often they were killed.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.activations.extract import build_stores
from stages.lib.activations.layout import Request
from stages.lib.activations.store import ACTIVATIONS, SETTINGS, SPLITS
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.language.model import MODEL, Place, model_path, place_of, resolve_hook, revisions_of
from stages.lib.language.windows import TOKENS
from stages.lib.run.machine import device, full_disk_said, keep_freed_memory
from stages.lib.run.processes import Team, launch
from stages.lib.run.resume import Resume, fingerprint
from stages.lib.run.start import run


class ActivationsParams(params.Params):
    """Where in the model, of how many tokens, and how stored."""

    layer: int
    site: str
    revisions: Annotated[list[str], Field(min_length=1)]
    """Entries: a revision of the model, or `<revision>+<hook name>` for another hook than `layer` and `site` give."""
    n_tokens: PositiveInt
    compute: Literal["float32", "bfloat16"]
    dtype: Literal["float32", "bfloat16", "float16"]
    shard_rows: PositiveInt
    batch_windows: PositiveInt
    seed: NonNegativeInt

    def places(self) -> dict[str, Place]:
        """What each entry of `revisions` stands for."""
        return {entry: place_of(entry, self.layer, self.site) for entry in self.revisions}

    def revisions_of_model(self) -> list[str]:
        """The revisions of the model in the order in which they are first named."""
        return revisions_of(self.places())


def settings() -> ActivationsParams:
    """The stage's settings."""
    own = params.read("activations", ActivationsParams)
    if len(set(own.revisions)) < len(own.revisions):
        raise UserError(f"params.yaml: activations.revisions names a revision twice: {', '.join(own.revisions)}")
    resolve_hook(0, own.site, n_layers=1)  # the site alone: whether there is such a layer is for the model to say
    own.places()
    return own


def request(own: ActivationsParams) -> Request:
    """What the settings ask for."""
    return Request(
        places=own.places(),
        n_tokens=own.n_tokens,
        compute=getattr(torch, own.compute),
        dtype=own.dtype,
        shard_rows=own.shard_rows,
        batch_windows=own.batch_windows,
        seed=own.seed,
        settings=own.model_dump(include=set(SETTINGS)),
    )


def inputs(own: ActivationsParams) -> list[Path]:
    """The files that determine the result."""
    tokens = [TOKENS / "tokens.json", *(TOKENS / f"{split}.safetensors" for split in SPLITS)]
    models = [
        path
        for revision in own.revisions_of_model()
        for path in sorted(model_path(revision).iterdir())
        if path.is_file()
    ]
    return [MODEL / "model.json", *tokens, *models]


def main() -> None:
    """Build the stores of all entries, in several processes if asked to."""
    own = settings()
    keep_freed_memory()
    if launch("stages.activations"):
        return
    with full_disk_said(), Team() as team:
        # A thread takes a whole batch and shares no operation, so how many there are changes no rounding.
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        on = device()
        resume = Resume("activations", fingerprint((own, on.type), inputs(own)))
        build_stores(request(own), resume, ACTIVATIONS, team=team, on=on, n_threads=n_threads)


if __name__ == "__main__":
    run(main)
