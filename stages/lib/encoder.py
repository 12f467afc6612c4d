"""An SAE on whatever device as a function from main memory to main memory, for analyses that count in NumPy."""

import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.firing_search import Search
from stages.lib.saelens import SAE
from stages.lib.selection import Active


class Encoder:
    """Encodes raw activations; who can do with the active features alone is spared the others (`SparseEncode`).

    On a CPU the active features are searched for (`stages.lib.firing_search`).
    """

    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self._search = None
        if sae.W_enc.device.type == "cpu":
            limit = torch.zeros_like(sae.b_enc) if sae.threshold is None else sae.threshold.clamp_min(0)
            self._search = Search(sae.W_enc, sae.b_enc, sae.b_dec, limit if sae.k is None else sae.k)

    def __call__(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """All feature activations."""
        return self.sae.encode(x.to(self.sae.W_enc.device)).cpu()

    def active(self, x: Float[Tensor, "token d_in"]) -> Active:
        """The feature activations above 0."""
        if self._search is None:
            return Active(*(tensor.cpu() for tensor in self.on_device(x.to(self.sae.W_enc.device))))
        return self._search(x)

    def on_device(self, x: Float[Tensor, "token d_in"]) -> Active:
        """The feature activations above 0, on the device of the SAE like `x`."""
        return self.sae.active(x) if self._search is None else self._search(x)
