"""A language model that several threads run at once, each on a copy of its own with the same weights in memory.

A run of TransformerLens keeps its hooks, and the activation that it begins with, on the model, so two runs at once on
the same model would mix. A small model is run side by side because its products are too small to be shared by threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

from stages.lib.language.extraction import share

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Copies:
    """As many copies of a model as there are threads; one on a device other than a CPU."""

    def __init__(self, model: "TransformerBridge") -> None:
        """Copy the model's modules, not its weights."""
        self.model = model
        n_copies = torch.get_num_threads() if next(model.parameters()).device.type == "cpu" else 1
        self._free: SimpleQueue[TransformerBridge] = SimpleQueue()
        for one in [model, *(share(model) for _ in range(1, n_copies))]:
            self._free.put(one)

    @contextmanager
    def one(self) -> Iterator["TransformerBridge"]:
        """A copy that no other thread runs meanwhile; waits for one if all are taken."""
        model = self._free.get()
        try:
            yield model
        finally:
            self._free.put(model)
