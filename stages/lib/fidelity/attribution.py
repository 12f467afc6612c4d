"""Estimates and exact values of what one feature at one token does to a quantity m of the language model.

A *node* is a pair (token t, feature i) with f_ti > 0. With `x = f W_dec + b_dec + error` and the error a node of its
own (a detached leaf), m depends on f_ti through x_t alone, so one forward and one backward run give all nodes at once:

    grad x act_ti = (0 - f_ti) W_dec[i] . dm/dx_t         estimates m(without the node) - m (Nanda 2023; Syed et al.,
                                                          arXiv 2310.10348; Marks et al. 2024, arXiv 2403.19647)
    ig_ti         = (0 - f_ti) (1/K) sum_k W_dec[i] . dm/dx_t at alpha_k = (k - 1/2) / K
                                                          (Sundararajan et al. 2017, arXiv 1703.01365, midpoint rule)
    ablation_ti   = m(without the node) - m               exact, a run for each node

The path of the integrated gradients takes all features of the window off together,
`x(alpha) = x - (1 - alpha) f W_dec`, so their sum over nodes is m(x(0)) - m(x(1)) up to the rule's error: completeness.

Here m is the sum over a window's counted predictions of the next token's negative log-likelihood, in nats. Attention is
causal, so a node at t moves only the predictions at t and later.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.fidelity.node_samples import Draws, drawn_nodes, strata
from stages.lib.language.patching import WindowLoss, index_batches
from stages.lib.run.parallel import side_by_side
from stages.lib.sae.saved import SAE

Metric = Callable[[Tensor, Tensor], Tensor]
"""`metric(x, windows)`: m of each row of x [row, pos, d_in], standing for the window of the index beside it."""


class Nodes(NamedTuple):
    """Active (window, pos, feature) triples with their activation."""

    window: Tensor
    pos: Tensor
    feature: Tensor
    activation: Tensor

    def take(self, rows: Int[Tensor, " node"]) -> "Nodes":
        """The nodes of these rows."""
        return Nodes(self.window[rows], self.pos[rows], self.feature[rows], self.activation[rows])


def active_nodes(feature_acts: Float[Tensor, "window pos d_sae"]) -> Nodes:
    """All nodes of a batch of windows; positions that do not take part hold zeros."""
    where = (feature_acts > 0).nonzero(as_tuple=True)
    return Nodes(where[0], where[1], where[2], feature_acts[where])


def gradient(metric: Metric, x: Float[Tensor, "window pos d_in"], batch: int) -> Float[Tensor, "window pos d_in"]:
    """The gradient of m at x, `batch` windows at a time; they do not mix, so one backward run serves all in a batch."""
    [found] = gradients(metric, [x], batch)
    return found


def gradients(
    metric: Metric, points: Sequence[Float[Tensor, "window pos d_in"]], batch: int
) -> list[Float[Tensor, "window pos d_in"]]:
    """The gradient of m at each of several x, side by side."""

    def of(work: tuple[Tensor, Tensor]) -> Tensor:
        x, windows = work
        leaf = x[windows].detach().requires_grad_()
        [found] = torch.autograd.grad(metric(leaf, windows).sum(), leaf)
        return found

    parts = [*index_batches(len(points[0]), batch)]
    pieces = side_by_side(of, ((x, windows) for x in points for windows in parts), points[0].device)
    return [torch.cat(pieces[start : start + len(parts)]) for start in range(0, len(pieces), len(parts))]


def removal_scores(
    nodes: Nodes, slope: Float[Tensor, "window pos d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " node"]:
    """`(0 - f_ti) W_dec[i] . slope_t` of every node, with `slope` a gradient of m or the mean of several."""
    pieces = []
    for rows in index_batches(len(nodes.activation), 1 << 16):
        some = nodes.take(rows)
        pieces.append(-some.activation * (W_dec[some.feature] * slope[some.window, some.pos]).sum(1))
    return torch.cat(pieces) if pieces else slope.new_zeros(0)


def path_gradient(
    metric: Metric,
    x: Float[Tensor, "window pos d_in"],
    contribution: Float[Tensor, "window pos d_in"],
    n_steps: int,
    batch: int,
) -> Float[Tensor, "window pos d_in"]:
    """The mean gradient along the path that takes `contribution` (`f W_dec`) off x, at the midpoints of `n_steps`."""
    alphas = [(step + 0.5) / n_steps for step in range(n_steps)]
    total = torch.zeros_like(x)
    for found in gradients(metric, [x - (1 - alpha) * contribution for alpha in alphas], batch):
        total += found
    return total / n_steps


def values(metric: Metric, work: Iterable[tuple[Tensor, Tensor]], on: torch.device) -> list[Tensor]:
    """`metric(x, windows)` of each batch of rows, without gradients, side by side."""

    @torch.no_grad()  # which holds for one thread alone
    def of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return metric(*batch)

    return side_by_side(of, work, on)


@torch.no_grad()
def ablations(
    metric: Metric,
    x: Float[Tensor, "window pos d_in"],
    nodes: Nodes,
    W_dec: Float[Tensor, "d_sae d_in"],
    batch: int,
) -> Float[Tensor, " node"]:
    """The value of m without each node: a run of its window for each, `batch` at a time."""

    def without(rows: Tensor, windows: Tensor) -> Tensor:
        some = nodes.take(rows)
        ablated = x[windows]
        ablated[torch.arange(len(rows)), some.pos] -= some.activation[:, None] * W_dec[some.feature]
        return metric(ablated, windows)

    parts = [(rows, nodes.window[rows]) for rows in index_batches(len(nodes.activation), batch)]
    pieces = values(without, parts, x.device)
    return torch.cat(pieces) if pieces else x.new_zeros(0)


def feature_effects(nodes: Nodes, score: Float[Tensor, " node"]) -> pd.DataFrame:
    """The mean |score| (nats) of each feature's nodes as `effect`, and their number `n_firings`, for features with any.

    Where a feature fires, this is how much one gradient says that the window's summed loss would move without it.
    """
    feature, size = nodes.feature.cpu().numpy(), np.abs(score.double().cpu().numpy())
    present, place, n = np.unique(feature, return_inverse=True, return_counts=True)
    return pd.DataFrame({
        "feature": present.astype(np.int32), "effect": np.bincount(place, weights=size) / n,
        "n_firings": n.astype(np.int32),
    })  # fmt: skip


def completeness_error(scores: Float[Tensor, " node"], effect: float) -> float | None:
    """How far the scores' sum is from the effect of taking all nodes off, relative to it; None without an effect."""
    return (scores.double().sum().item() - effect) / effect if effect else None


class CleanRun(NamedTuple):
    """Windows with nothing replaced, which all SAEs on the same activations share."""

    loss: WindowLoss
    slopes: Tensor
    """The gradient of m at the clean x, [window, pos, d_in]."""
    batch: int
    """How many windows run at a time."""


class Measured(NamedTuple):
    """The ablated nodes of one SAE, and what concerns all its nodes."""

    table: pd.DataFrame
    """A row per node and stratum."""
    features: pd.DataFrame
    """Of `feature_effects`."""
    whole: dict[str, float | None]


class Scores(NamedTuple):
    """All active nodes of an SAE, and the two estimates for each."""

    nodes: Nodes
    grad_x_act: Tensor
    ig: Tensor


class Plan(NamedTuple):
    """How an SAE's nodes are scored and which of them are ablated."""

    ig_steps: int
    draws: Draws
    n_stratum: int
    """Nodes of each of the other strata."""


def measure(clean: CleanRun, sae: SAE, plan: Plan, generator: np.random.Generator) -> Measured:
    """Scores of all active nodes, and exact ablations of the nodes drawn at random and of the other strata."""
    with torch.no_grad():
        feature_acts = sae.encode(clean.loss.x) * clean.loss.counted[..., None]
        contribution = feature_acts @ sae.W_dec
    scores = score(clean, sae, active_nodes(feature_acts), contribution, plan.ig_steps)
    activation = scores.nodes.activation.cpu().numpy()
    drawn = {"random": drawn_nodes(plan.draws, feature_acts)}
    drawn |= strata(scores.grad_x_act.cpu().numpy(), activation, plan.n_stratum, generator)
    rows = np.unique(np.concatenate([*drawn.values()]))
    naive = sae.W_enc.abs().mean(0) * (feature_acts.sum((0, 1)) / clean.loss.counted.sum())
    columns = {
        **scores.nodes._asdict(),
        "grad_x_act": scores.grad_x_act,
        "ig": scores.ig,
        "naive": naive[scores.nodes.feature],
    }
    table = pd.DataFrame({key: values.cpu().numpy()[rows] for key, values in columns.items()})
    sample = scores.nodes.take(torch.from_numpy(rows))
    table["ablation"] = ablations(clean.loss, clean.loss.x, sample, sae.W_dec, clean.batch).cpu().numpy()
    taken = [table[np.isin(rows, chosen)].assign(stratum=stratum) for stratum, chosen in drawn.items()]
    effects = feature_effects(scores.nodes, scores.grad_x_act)
    return Measured(pd.concat(taken, ignore_index=True), effects, checks(clean, contribution, scores))


def score(
    clean: CleanRun, sae: SAE, nodes: Nodes, contribution: Float[Tensor, "window pos d_in"], ig_steps: int
) -> Scores:
    """The estimates for all nodes: from the gradient at the clean x, and from the path that takes all features off."""
    loss = clean.loss
    paths = path_gradient(loss, loss.x, contribution, ig_steps, clean.batch)
    slopes = (clean.slopes, paths)
    return Scores(nodes, *(removal_scores(nodes, slope, sae.W_dec) for slope in slopes))


@torch.no_grad()
def checks(clean: CleanRun, contribution: Float[Tensor, "window pos d_in"], scores: Scores) -> dict[str, float | None]:
    """How exact the patching is (the largest change of a loss, in nats, that should be 0), and how complete the scores.

    `contribution` is `f W_dec`.
    """
    loss, parts = clean.loss, [*index_batches(len(clean.loss.x), clean.batch)]
    error = loss.x - contribution
    exact = values(loss.by_position, [((contribution + error)[some], some) for some in parts], loss.x.device)
    total = float(torch.cat(values(loss, [(error[some], some) for some in parts], loss.x.device)).sum())
    return {
        "hook_max_error": float(torch.cat(exact).abs().max()),
        "completeness_ig": completeness_error(scores.ig, total),
        "completeness_grad_x_act": completeness_error(scores.grad_x_act, total),
    }
