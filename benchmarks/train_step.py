"""Times training steps against the matrix products that they cannot do without, interleaved in one process.

    python -m benchmarks.train_step --size S          # d_in 128, d_sae 1024, k 16, batches of 4096
    python -m benchmarks.train_step --size L          # d_in 768, d_sae 6144, k 32

`encoder` is the product x W_enc alone; `five` are the dense products of a step: z, x_hat, and the gradients of f, W_dec
and W_enc. One thread, unless OMP_NUM_THREADS says otherwise. Activations are sums of a few of many directions, and SAEs
are trained for `--warm-up` steps first, since codes are denser at the start. Ratios within a run can be compared,
milliseconds of different runs cannot: machines are noisy.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

from stages.lib import plugins
from stages.lib.memory import keep_freed_memory
from stages.lib.sae import SAE, random_directions

SIZES = {"S": (128, 1024, 16), "L": (768, 6144, 32)}
"""d_in, d_sae, k."""
SETTINGS = {
    "relu": {"l1_coefficient": [0.2]},
    "p_anneal": {"l1_coefficient": [0.2], "p_end": 0.2},
    "gated": {"l1_coefficient": [0.3]},
    "jump_relu": {"l0_coefficient": [0.006], "bandwidth": 0.1, "initial_threshold": 0.05},
    "topk": {"aux_coefficient": 1 / 32},
    "batch_topk": {"aux_coefficient": 1 / 32},
    "matryoshka": {"aux_coefficient": 1 / 32, "groups": [1 / 32, 1 / 16, 1 / 8, 1 / 4]},
}


def activations(n: int, d_in: int, generator: torch.Generator) -> torch.Tensor:
    """Sums of a few of many directions, with mean squared norm 1."""
    directions = random_directions(4 * d_in, d_in, generator)
    chosen = torch.rand(n, 4 * d_in, generator=generator) < 12 / (4 * d_in)
    x = (chosen * torch.rand(n, 4 * d_in, generator=generator)) @ directions
    x += 0.05 * torch.randn(n, d_in, generator=generator)
    x -= x.mean(0)
    return x / x.square().sum(1).mean().sqrt()


def build(name: str, d_in: int, d_sae: int, k: int, coarse: torch.dtype | None, dead: bool) -> SAE:
    """One SAE; with `dead`, a tenth of its features have never fired."""
    module = plugins.load("saes", name, "variant")
    penalised = {"l1_coefficient", "l0_coefficient"} & SETTINGS[name].keys()
    settings = {**SETTINGS[name], **({} if penalised else {"k": [k]})}
    own = module.SAEParams(variant=name, activations="main", **settings)
    level = getattr(own, module.Variant.sparsity_name)[0]
    decoder = random_directions(d_sae, d_in, torch.Generator().manual_seed(0))
    return module.Variant(own, level, decoder, 1 if dead else 10**12, coarse)


def products(
    d_in: int, d_sae: int, x: torch.Tensor, dtype: torch.dtype
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The encoder's product, and the five."""
    W, f, x = torch.randn(d_in, d_sae).to(dtype), torch.randn(len(x), d_sae).to(dtype), x.to(dtype)
    z, x_hat = torch.empty_like(f), torch.empty_like(x)
    gradient = torch.empty_like(W)

    def encoder() -> None:
        torch.mm(x, W, out=z)

    def five() -> None:
        torch.mm(x, W, out=z)
        torch.mm(f, W.T, out=x_hat)
        torch.mm(x, W, out=z)
        torch.mm(x.T, f, out=gradient)
        torch.mm(x.T, f, out=gradient)

    return encoder, five


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--methods", nargs="+", default=[name for name in SETTINGS if name in plugins.names("saes")])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=150)
    chosen = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    d_in, d_sae, k = SIZES[chosen.size]
    batches = activations(8 * chosen.batch, d_in, torch.Generator().manual_seed(1)).split(chosen.batch)
    calls: dict[str, Callable[[], object]] = {}
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        encoder, five = products(d_in, d_sae, batches[0], dtype)
        calls[f"limit: encoder {label}"], calls[f"limit: five {label}"] = encoder, five
    l0: dict[str, str] = {}
    for name in chosen.methods:
        for coarse, label in ((None, "fp32"), (torch.bfloat16, "bf16 search")):
            sae = build(name, d_in, d_sae, k, coarse, dead=False)
            for step in range(chosen.warm_up):
                losses = sae.step(batches[step % len(batches)], 1e-3, min(1.0, step / 50))
            calls[f"{name} {label}"] = lambda sae=sae: sae.step(batches[0], 1e-5, 1.0)  # type: ignore[misc]
            l0[f"{name} {label}"] = f"L0 {float(losses.l0):.1f}, FVU {float(losses.fvu):.3f}"
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(chosen.rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    unit = median["limit: encoder bf16"]
    five = median["limit: five bf16"]
    sys.stdout.write(f"{'':24}{'ms':>9}{'/ encoder bf16':>16}{'/ five bf16':>13}\n")
    for name, value in median.items():
        sys.stdout.write(f"{name:24}{value:9.1f}{value / unit:16.2f}{value / five:13.2f}  {l0.get(name, '')}\n")


if __name__ == "__main__":
    main()
