"""SAEs under training of every form, small, and batches for them (no test itself).

They are built from the smallest settings that a variant accepts; a variant with settings of its own adds them to `OWN`,
and so does every other form of it.
"""

from typing import Any

import torch

from stages.lib.io import plugins
from stages.lib.sae.base import SAE, random_directions

OWN: dict[str, dict[str, Any]] = {
    "topk": {"k": [4], "aux_coefficient": 0.03125},
    "frozen_decoder": {"k": [4], "aux_coefficient": 0.03125},
    "relu": {"l1_coefficient": [0.05]},
    "relu with free norms": {"variant": "relu", "l1_coefficient": [0.05], "decoder_norm": "free"},
    "relu of a wanted L0": {"variant": "relu", "l0": [5.0]},
    "p_anneal": {"l1_coefficient": [0.05], "p_end": 0.2},
    "gated": {"l1_coefficient": [0.05]},
    "batch_topk": {"k": [4], "aux_coefficient": 0.03125},
    "matryoshka": {"k": [4], "aux_coefficient": 0.03125, "groups": [0.125, 0.25]},
    "soft_frozen": {"k": [4], "aux_coefficient": 0.03125, "min_cosine": 0.8},
    "pca_topk": {"k": [4]},
    "jump_relu": {"l0_coefficient": [0.01], "bandwidth": 0.2, "initial_threshold": 0.1},
    "jump_relu with a quadratic loss": {
        "variant": "jump_relu",
        "l0": [5.0],
        "loss": "quadratic",
        "bandwidth": 0.2,
        "initial_threshold": 0.1,
    },
    "jump_relu with a tanh loss": {
        "variant": "jump_relu",
        "l0_coefficient": [0.02],
        "loss": "tanh",
        "bandwidth": 0.2,
        "initial_threshold": 0.1,
        "pre_act_coefficient": 0.1,
    },
}
"""Settings by form; a form is called as its variant, unless it says which it is of."""
FORMS = [*OWN]
TRAINED = [form for form in OWN if form != "pca_topk"]
D_IN, D_SAE = 12, 24


D_IN, D_SAE = 12, 24


def build(
    name: str,
    decoder: torch.Tensor,
    dead_tokens: int = 10**9,
    encoder_dtype: torch.dtype | None = None,
    **settings: Any,
) -> SAE:
    """The first level of an arm of this form, with other settings where they are given."""
    own = {"variant": name, **OWN[name], **settings}
    module = plugins.load("saes", own["variant"], "saes.x.variant")
    params = module.SAEParams(activations="main", **own)
    return module.Variant(params, params.levels[0], decoder, dead_tokens, encoder_dtype)


def directions(seed: int = 0) -> torch.Tensor:
    """Random unit directions for a decoder."""
    return random_directions(D_SAE, D_IN, torch.Generator().manual_seed(seed))


def batch(n: int = 60, seed: int = 1) -> torch.Tensor:
    """Random activations of unit mean square norm."""
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) / D_IN**0.5


def perturb(sae: SAE, seed: int = 2) -> None:
    """Move every trained weight but the decoder away from its special initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sae.names:
            weight = getattr(sae, name)
            noise = 0.05 * torch.randn(weight.shape, generator=generator)
            if name in sae.trained and name != "W_dec":
                weight.add_(noise.to(weight.dtype))
        sae.constrain_()
