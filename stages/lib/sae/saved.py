"""Trained SAEs on disk, in SAELens' format, applied to raw activations. Inference only: analyses import nothing else.

A directory holds `cfg.json` and `sae_weights.safetensors` (SAELens 6, `SAE.load_from_disk`). With
z = (x - b_dec) W_enc + b_enc, x_hat = f W_dec + b_dec and

    standard    f = max(z, 0)
    topk        f = max(z, 0) for the k largest z of the token, else 0
    jumprelu    f = z where z > threshold, else 0

SAEs are trained on x~ = (x - mean) / scale. Multiplying f by `scale` folds that into the biases alone and leaves W_dec
at unit norm: b_enc -> scale b_enc, threshold -> scale threshold, b_dec -> scale b_dec + mean.

What is our own goes under the key `exploring_saes` of `cfg.json`, which SAELens ignores.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from stages.lib.io import tensors
from stages.lib.io.errors import UserError, nearest
from stages.lib.io.files import read_json, write_json
from stages.lib.sae import exact
from stages.lib.sae.selection import Active, top_k

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.0"
"""The release of SAELens whose format this is; without one, a file passes for older than 6.0 and loses its metadata."""
COMMON = ["W_enc", "W_dec", "b_enc", "b_dec"]
TENSORS = {"standard": COMMON, "topk": COMMON, "jumprelu": [*COMMON, "threshold"]}
"""The exact tensors of each architecture: SAELens refuses a file with one more or one less."""


@dataclass(frozen=True)
class SAE:
    """A trained SAE: raw activations in, raw reconstructions out."""

    architecture: str
    W_enc: Tensor
    """[d_in, d_sae]"""
    b_enc: Tensor
    """[d_sae]"""
    W_dec: Tensor
    """[d_sae, d_in], unit rows"""
    b_dec: Tensor
    """[d_in]"""
    threshold: Tensor | None
    """[d_sae], JumpReLU only"""
    k: int | None
    """TopK only"""
    extra: dict[str, Any]
    """What `cfg.json` holds under `exploring_saes`: arm, variant, level, seed, ..."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.W_enc.shape[0])

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.W_enc.shape[1])

    def to(self, device: torch.device | str) -> "SAE":
        """The same SAE on another device."""
        moved = {name: getattr(self, name).to(device) for name in TENSORS[self.architecture]}
        return replace(self, **moved)

    def hidden_pre(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest d_sae"]:
        """Pre-activations z = (x - b_dec) W_enc + b_enc."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest d_sae"]:
        """Feature activations f >= 0 of raw activations."""
        z = self.hidden_pre(x)
        if self.threshold is not None:
            return torch.where(z > self.threshold, z, 0.0)
        if self.k is None:
            return z.relu()
        flat = z.reshape(-1, self.d_sae)
        chosen = top_k(flat, self.k)
        return torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen).relu()).reshape(z.shape)

    def active(self, x: Float[Tensor, "token d_in"]) -> Active:
        """The entries of `encode` above 0, by token; on a CPU without the others (`stages.lib.sae.exact`)."""
        if x.device.type == "cpu" and x.dtype == self.W_enc.dtype == torch.float32:
            return exact.active(self._coarse, x)
        acts = self.encode(x)
        on = acts > 0
        first = torch.cat([on.new_zeros(1, dtype=torch.int64), on.sum(1).cumsum(0)])
        return Active(first, on.nonzero()[:, 1], acts[on])

    @cached_property
    def _coarse(self) -> exact.Coarse:
        return exact.coarse(self.W_enc, self.b_enc, self.b_dec, self.threshold, self.k)

    def decode_active(self, active: Active) -> Float[Tensor, "token d_in"]:
        """What `decode` gives for a code of these entries."""
        summed = embedding_bag(
            active.feature, self.W_dec, active.first, mode="sum",
            per_sample_weights=active.value, include_last_offset=True,
        )  # fmt: skip
        return summed.add_(self.b_dec)

    def decode(self, feature_acts: Float[Tensor, "*rest d_sae"]) -> Float[Tensor, "*rest d_in"]:
        """The reconstruction f W_dec + b_dec of raw activations."""
        return feature_acts @ self.W_dec + self.b_dec


def fold(weights: dict[str, Tensor], mean: Float[Tensor, " d_in"], scale: float) -> dict[str, Tensor]:
    """Weights trained on (x - mean) / scale, made to apply to x; f is then `scale` times what it was."""
    folded = dict(weights)
    for name in ("b_enc", "threshold"):
        if name in folded:
            folded[name] = folded[name] * scale
    folded["b_dec"] = folded["b_dec"] * scale + mean
    return folded


def save_sae(
    directory: Path,
    architecture: str,
    weights: dict[str, Tensor],
    *,
    k: int | None = None,
    metadata: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write weights that apply to raw activations.

    Args:
        directory: where `cfg.json` and `sae_weights.safetensors` go.
        architecture: a key of `TENSORS`.
        weights: exactly the tensors of that architecture.
        k: for `topk`.
        metadata: what SAELens keeps as such, above all `hook_name`.
        extra: what is our own.
    """
    assert sorted(weights) == sorted(TENSORS[architecture]), f"{architecture} with {sorted(weights)}"
    assert (k is not None) == (architecture == "topk"), f"{architecture} with k = {k}"
    d_in, d_sae = weights["W_enc"].shape
    cfg = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": VERSION, **(metadata or {})},
        "exploring_saes": extra or {},
    }
    if k is not None:
        cfg |= {"k": k, "rescale_acts_by_decoder_norm": False}
    tensors.save(directory / WEIGHTS, {name: weight.float() for name, weight in weights.items()})
    write_json(directory / CFG, cfg)


def load_sae(directory: Path) -> SAE:
    """The SAE in a directory.

    Raises:
        UserError: if a file is missing or damaged, or the SAE is of a kind that is not read here.
    """
    cfg = read_json(directory / CFG)
    architecture = cfg.get("architecture")
    if architecture not in TENSORS:
        raise UserError(
            f"{directory / CFG}: architecture {architecture!r} is unknown{nearest(str(architecture), [*TENSORS])}"
        )
    plain = {"apply_b_dec_to_input": True, "normalize_activations": "none", "rescale_acts_by_decoder_norm": False}
    for key, expected in plain.items():
        if cfg.get(key, expected) != expected:
            raise UserError(f"{directory / CFG}: {key} is {cfg[key]!r}, but only {expected!r} can be read")
    weights = tensors.load(directory / WEIGHTS)
    if sorted(weights) != sorted(TENSORS[architecture]):
        raise UserError(
            f"{directory / WEIGHTS} holds {', '.join(sorted(weights))}, "
            f"but {architecture} needs exactly {', '.join(sorted(TENSORS[architecture]))}"
        )
    shape = (cfg.get("d_in"), cfg.get("d_sae"))
    if tuple(weights["W_enc"].shape) != shape:
        raise UserError(
            f"{directory / WEIGHTS}: W_enc is {list(weights['W_enc'].shape)}, but cfg.json says {list(shape)}"
        )
    if architecture == "topk" and "k" not in cfg:
        raise UserError(f"{directory / CFG}: k is missing")
    return SAE(
        architecture=architecture,
        **{name: weights[name] for name in COMMON},
        threshold=weights.get("threshold"),
        k=cfg["k"] if architecture == "topk" else None,
        extra=cfg.get("exploring_saes", {}),
    )


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
