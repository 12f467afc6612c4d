"""Times training steps: ours, those of other libraries, and the matrix products that none can do without.

    python -m benchmarks.train_step --size S          # d_in 128, d_sae 1024, k 16, batches of 4096
    python -m benchmarks.train_step --size L          # d_in 768, d_sae 6144, k 32
    benchmarks/.venv/bin/python -m benchmarks.train_step --size S --markdown benchmarks/results/train_step_S.md

The second environment, which `benchmarks/environment.sh` makes, has the other libraries; one that is not installed is
skipped. A step is the whole of it: forward, loss, backward, clipping, Adam and the norm of the decoder, as each library
does it by itself. All are timed in turns within one process, so that ratios of a run can be compared; milliseconds of
different runs cannot: machines are noisy. The same goes for memory: glibc is told to keep what was freed (see
`stages.lib.run.machine`), as our training does, which makes the others faster too.

`encoder` is the product x W_enc alone; `five` are the dense products of a step: z, x_hat, and the gradients of f, W_dec
and W_enc. One thread, unless OMP_NUM_THREADS says otherwise; then times are the process's own, as other work on the
machine disturbs those least, else and on a GPU the wall's. Activations are sums of a few of many directions. Our SAEs
are trained for `--warm-up` steps first, since codes are denser at the start and our steps take as long as codes are
dense; the others' steps do not depend on it, so they get one. With `dead`, a tenth of the features are dead and the
loss that revives them is at work in every step. Pre-activations of dead features are above 0 on two tokens in a
thousand, as in trainings with as many; those of `new` ones on every other token, which takes us longer and the others
as long.

bf16 is autocast for others and for us the search for active features, whose codes are computed again in float32.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.ours import SETTINGS, OurTrainer, precisions, revives
from benchmarks.tables import Table, heading, write
from benchmarks.trainers import RARELY, Library, Recipe, Trainer, adapters, clock, libraries, use_threads
from stages.lib.io import plugins
from stages.lib.run.machine import keep_freed_memory
from stages.lib.sae.base import random_directions

SIZES = {"XS": (16, 64, 4), "S": (128, 1024, 16), "L": (768, 6144, 32)}
"""d_in, d_sae, k; XS is for tests."""
COEFFICIENTS = {"relu": 0.2, "p_anneal": 0.2, "gated": 0.3, "jump_relu": 0.006}
"""Weights of sparsity losses; the other methods have k."""
TARGET_L0 = {("dictionary_learning", "jump_relu")}
"""Where the level is a wanted L0 instead."""
OURS = "ours"
OTHERS_WARM_UP = 1
LR, LEAST_STEPS = 1e-3, 500
"""Of the training that a timed step belongs to: codes that a hasty penalty has emptied would flatter us."""
DEAD_SHARE = 0.1
DEAD, RARE = "10 %", "10 %, rarely positive"
"""Dead features whose pre-activations are as often above 0 as below, and such as `untrained` has (`RARELY`)."""
NEVER = 10**9
"""Tokens after which a feature is dead: none is, unless it is made so."""
PEAK_SIZE = 8192
"""Rows and columns of the product that tells a GPU's peak."""


class Row(NamedTuple):
    """What was timed."""

    method: str
    library: str
    precision: str
    dead: str = ""
    """Which features are dead."""


class Timed(NamedTuple):
    """A call to time, and what has to be done before."""

    call: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    l0: Callable[[], float] | None = None
    """Of our step: how dense codes were."""


def activations(n: int, d_in: int, generator: torch.Generator) -> torch.Tensor:
    """Sums of a few of many directions, with mean squared norm 1."""
    directions = random_directions(4 * d_in, d_in, generator)
    chosen = torch.rand(n, 4 * d_in, generator=generator) < 12 / (4 * d_in)
    x = (chosen * torch.rand(n, 4 * d_in, generator=generator)) @ directions
    x += 0.05 * torch.randn(n, d_in, generator=generator)
    x -= x.mean(0)
    return x / x.square().sum(1).mean().sqrt()


def products(d_sae: int, x: torch.Tensor, dtype: torch.dtype) -> tuple[Callable[[], None], Callable[[], None]]:
    """The encoder's product, and the five."""
    W = torch.randn(x.shape[1], d_sae, device=x.device).to(dtype)
    f, x = torch.randn(len(x), d_sae, device=x.device).to(dtype), x.to(dtype)
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


def peak(device: torch.device) -> float:
    """Operations a second of a big bfloat16 product."""
    square = torch.randn(PEAK_SIZE, PEAK_SIZE, device=device).bfloat16()
    out = torch.empty_like(square)
    seconds = measure({Row("", "peak", "bf16"): Timed(lambda: torch.mm(square, square, out=out))}, 20, device)
    return 2 * PEAK_SIZE**3 / next(iter(seconds.values()))


def recipe(method: str, sizes: tuple[int, int, int], x: torch.Tensor, precision: str, warm_up: int) -> Recipe:
    """A training that has reached neither the decay of its learning rate nor, in a short warm-up, its full penalty."""
    d_in, d_sae, k = sizes
    level = COEFFICIENTS.get(method, k)
    return Recipe(method, d_in, d_sae, level, len(x), max(2 * warm_up, LEAST_STEPS), LR, NEVER, 0, x.device, precision)


def doomed(d_sae: int, device: torch.device) -> torch.Tensor:
    """The features that are made dead."""
    order = torch.randperm(d_sae, generator=torch.Generator().manual_seed(2))
    return order[: round(DEAD_SHARE * d_sae)].to(device)


def our_steps(method: str, sizes: tuple[int, int, int], batches: list[torch.Tensor], warm_up: int) -> dict[Row, Timed]:
    """Our step in each precision, idle and with dead features, all from the same trained weights."""
    device, found = batches[0].device, {}
    kinds = precisions(device.type)
    trained = OurTrainer(recipe(method, sizes, batches[0], kinds[-1], warm_up))
    for step in range(warm_up):
        trained.step(batches[step % len(batches)])
    for precision in kinds:
        for dead in ("", DEAD, RARE) if revives(method) else ("",):
            trainer = OurTrainer(recipe(method, sizes, batches[0], precision, warm_up))
            trainer.sae.restore(copy.deepcopy(trained.sae.state()))
            trainer.done = trained.done
            found[Row(method, OURS, precision, dead)] = timed(trainer, batches[0], sizes[1], dead)
    return found


def other_steps(
    library: Library, method: str, sizes: tuple[int, int, int], batches: list[torch.Tensor], with_dead: bool
) -> dict[Row, Timed]:
    """A library's step in each precision that it has, idle and, if wanted, with dead features."""
    device, found = batches[0].device, {}
    for precision in library.precisions(method, device.type):
        for dead in ("", DEAD) if with_dead and revives(method) else ("",):
            chosen = recipe(method, sizes, batches[0], precision, OTHERS_WARM_UP)
            if (library.name, method) in TARGET_L0:
                chosen = chosen._replace(level=float(sizes[2]))
            trainer = library.trainer(chosen)
            for step in range(OTHERS_WARM_UP):
                trainer.step(batches[step % len(batches)])
            found[Row(method, library.name, precision, dead)] = timed(trainer, batches[0], sizes[1], dead)
    return found


def timed(trainer: Trainer, x: torch.Tensor, d_sae: int, dead: str) -> Timed:
    """A step of a trainer; dead features are made so before each, since they may fire again."""
    chosen = doomed(d_sae, x.device)
    own = trainer if isinstance(trainer, OurTrainer) else None

    def prepare() -> None:
        if dead == RARE and own:
            own.kill(chosen, positive=RARELY)
        elif dead:
            trainer.kill(chosen)

    return Timed(lambda: trainer.step(x), prepare, (lambda: float(own.latest.l0)) if own else None)


def measure(calls: dict[Row, Timed], rounds: int, device: torch.device) -> dict[Row, float]:
    """The median seconds of each call, called in turns."""

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: dict[Row, list[float]] = {row: [] for row in calls}
    now = clock(device)
    for _ in range(rounds):
        for row, timed_call in calls.items():
            timed_call.prepare()
            synchronise()
            begun = now()
            timed_call.call()
            synchronise()
            times[row].append(now() - begun)
    return {row: statistics.median(values) for row, values in times.items()}


def table(seconds: dict[Row, float], calls: dict[Row, Timed], peak_ms: float | None) -> Table:
    """One row a call; `peak_ms` is what five products would take at a GPU's peak."""
    encoder, five = (seconds[Row("", f"limit: {name}", "bf16")] for name in ("encoder", "five"))
    columns = ["method", "library", "precision", "dead", "ms", "/ encoder bf16", "/ five bf16"]
    columns += ["/ fastest other", "/ fastest other, equal precision", "/ idle", "L0"]
    columns += [] if peak_ms is None else ["share of peak"]
    rows, digits = [], 1 if peak_ms is None else 3
    for row, value in seconds.items():
        others = [other for other in seconds if other.library not in (OURS, row.library) and row.method]
        others = [other for other in others if (other.method, other.dead) == (row.method, row.dead)]
        equal = [other for other in others if other.precision == row.precision]
        idle = seconds[row._replace(dead="")] if row.dead else None
        l0 = calls[row].l0
        cells = [row.method, row.library, row.precision, row.dead, f"{value * 1e3:.{digits}f}"]
        cells += [f"{value / limit:.2f}" for limit in (encoder, five)]
        cells += [f"{value / min(map(seconds.__getitem__, group)):.2f}" if group else "" for group in (others, equal)]
        cells += ["" if idle is None else f"{value / idle:.2f}", "" if l0 is None else f"{l0():.1f}"]
        share = 0.0 if peak_ms is None else peak_ms / value / 1e3
        cells += [] if peak_ms is None else [f"{share:.2f}" if share >= 0.1 else f"{share:.2g}"]
        rows.append(cells)
    return Table(columns, rows)


NOTE = """
Training steps of d_in {d_in}, d_sae {d_sae}, k {k}, batches of {batch}; medians of {rounds} rounds in which all are
called in turns, in the process's time where one thread computes. Ratios below 1 are faster. `/ fastest other` leaves
out our own and the row's own library. glibc keeps freed memory for all alike (`stages.lib.run.machine`). `L0`: active
features a token in our last step, after {warm_up} steps of training. `10 %` of features dead means that the loss that
revives them is at work, `/ idle` what that costs: their pre-activations are above 0 on every other token, or, where
they are `rarely positive`, on two in a thousand, as in a training with as many.
"""
GPU_NOTE = """
Products of fp32 are in TF32 here, as in our training. `share of peak`: what five products would take at the rate of a
bfloat16 product of {size} rows and columns, {rate:.0f} TFLOP/s here, by what the row takes; `encoder` is one of them.
"""


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--methods", nargs="+", default=[name for name in SETTINGS if name in plugins.names("saes")])
    parser.add_argument("--libraries", nargs="*", default=adapters(), help="to compare with; none for ours alone")
    parser.add_argument(
        "--dead", choices=["all", "ours"], default="all", help="whose steps with dead features are timed"
    )
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=150, help="steps")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--csv", type=Path, help="file for the table")
    parser.add_argument("--markdown", type=Path, help="file for heading and table")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    chosen = arguments()
    keep_freed_memory()
    use_threads()
    torch.backends.cuda.matmul.allow_tf32 = True  # as `stages.train` does
    sizes, device = SIZES[chosen.size], chosen.device
    x = activations(8 * chosen.batch, sizes[0], torch.Generator().manual_seed(1)).to(device)
    batches = list(torch.split(x, chosen.batch))
    found = libraries(chosen.libraries)
    calls: dict[Row, Timed] = {}
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for name, call in zip(("encoder", "five"), products(sizes[1], batches[0], dtype), strict=True):
            calls[Row("", f"limit: {name}", label)] = Timed(call)
    for method in chosen.methods:
        calls |= our_steps(method, sizes, batches, chosen.warm_up)
        for library in found:
            if method in library.methods:
                calls |= other_steps(library, method, sizes, batches, chosen.dead == "all")
    seconds = measure(calls, chosen.rounds, device)
    rate = peak(device) if device.type == "cuda" else None
    peak_ms = None if rate is None else 10e3 * chosen.batch * sizes[0] * sizes[1] / rate
    note = NOTE.format(
        d_in=sizes[0], d_sae=sizes[1], k=sizes[2], batch=chosen.batch, rounds=chosen.rounds, warm_up=chosen.warm_up
    )
    note += "" if rate is None else GPU_NOTE.format(size=PEAK_SIZE, rate=rate / 1e12)
    text = heading("benchmarks.train_step", device, found) + note
    found_table = table(seconds, calls, peak_ms)
    sys.stdout.write(f"{text}\n{found_table.text()}")
    write(text, found_table, chosen.markdown, chosen.csv)


if __name__ == "__main__":
    main()
