"""An SAE on whatever device as a function from main memory to main memory, for analyses that count in NumPy."""

from jaxtyping import Float
from torch import Tensor

from stages.lib.saelens import SAE
from stages.lib.selection import Active


class Encoder:
    """Encodes raw activations; who can do with the active features alone is spared the others (`SparseEncode`)."""

    def __init__(self, sae: SAE) -> None:
        self.sae = sae

    def __call__(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """All feature activations."""
        return self.sae.encode(x.to(self.sae.W_enc.device)).cpu()

    def active(self, x: Float[Tensor, "token d_in"]) -> Active:
        """The feature activations above 0."""
        found = self.sae.active(x.to(self.sae.W_enc.device))
        return Active(*(tensor.cpu() for tensor in found))
