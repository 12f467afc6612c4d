"""Our training step, in the shape that `benchmarks.trainers` asks for; called as `stages.lib.sae.training` calls it."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.trainers import POSITIVE, SHARES, Inference, Recipe, weaken
from stages.lib.io import plugins
from stages.lib.run.seeds import integer
from stages.lib.sae import saved
from stages.lib.sae.base import SAE, random_directions
from stages.lib.sae.schedule import Schedule

DEFAULT_LR = 8e-3
"""`train.lr` in `params.yaml`."""
SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {},
    "p_anneal": {"p_end": 0.2},
    "gated": {},
    "jump_relu": {"bandwidth": 0.1},
    "topk": {"aux_coefficient": 1 / 32},
    "batch_topk": {"aux_coefficient": 1 / 32},
    "matryoshka": {"aux_coefficient": 1 / 32, "groups": [1 / 32, 1 / 16, 1 / 8, 1 / 4]},
}
"""What the methods need besides their level; as in `params.yaml` where they are there."""
WITHOUT_L0: dict[str, dict[str, Any]] = {"jump_relu": {"initial_threshold": 0.1}}
"""What they need where the level is not a wanted L0."""


def precisions(device: str) -> tuple[str, ...]:
    """In which our methods train on a kind of device: the search in bfloat16 is for CPUs."""
    return ("fp32", "bf16") if device == "cpu" else ("fp32",)


def revives(method: str) -> bool:
    """Whether the method has a loss that revives dead features."""
    return "aux_coefficient" in SETTINGS[method]


class OurTrainer:
    """One of our SAEs in training."""

    def __init__(self, recipe: Recipe, led: bool = False) -> None:
        module = plugins.load("saes", recipe.method, "method")
        name = "l0" if led else module.SAEParams.own_level
        level = int(recipe.level) if name == "k" else float(recipe.level)
        more = SETTINGS[recipe.method] | ({} if led else WITHOUT_L0.get(recipe.method, {}))
        own = module.SAEParams(variant=recipe.method, activations="main", **{name: [level]}, **more)
        generator = torch.Generator().manual_seed(integer(recipe.seed, "initialisation"))
        decoder = random_directions(recipe.d_sae, recipe.d_in, generator).to(recipe.device)
        coarse = torch.bfloat16 if recipe.precision == "bf16" and recipe.device.type == "cpu" else None
        self.sae: SAE = module.Variant(own, own.levels[0], decoder, recipe.dead_tokens, coarse)
        lr = DEFAULT_LR if recipe.lr is None else recipe.lr
        self.schedule = Schedule(recipe.n_steps, lr, *SHARES)
        self.done = 0

    def look_at(self, validation: Tensor) -> None:
        """Validation activations, on which a method that is led to an L0 measures it."""
        self.sae.look_at(validation)

    def step(self, x: Tensor) -> None:
        """One step."""
        lr, warm_up = self.schedule.lr_at(self.done), self.schedule.sparsity_at(self.done)
        self.sae.advance(self.done / self.schedule.n_steps)
        self.latest = self.sae.step(x, lr, warm_up)
        self.sae.lead(self.latest, lr, warm_up)
        self.done = min(self.done + 1, self.schedule.n_steps - 1)

    def kill(self, dead: Tensor, positive: float = POSITIVE) -> None:
        """Make these features dead, with pre-activations that are above 0 on this share of the tokens."""
        weaken(self.sae.W_enc.detach().T, self.sae.b_enc.detach(), dead, positive)
        self.sae.tokens_since_fired[dead] = self.sae.dead_tokens

    def inference(self, validation: Tensor) -> Inference:
        """The SAE that is exported."""
        self.sae.settle(validation)
        self.sae.finish(validation)
        weights = self.sae.shifted()
        k = int(self.sae.level) if self.sae.architecture == "topk" else None
        tensors: dict[str, Any] = {"threshold": None}
        tensors |= {name: weights[name].clone() for name in saved.TENSORS[self.sae.architecture]}
        sae = saved.SAE(architecture=self.sae.architecture, k=k, extra={}, **tensors)
        return lambda x: (codes := sae.encode(x), sae.decode(codes))
