"""Activations made of known features: which directions there are, how often they are on, and which imply which.

    x_n = sum_j g_nj a_nj D_j + noise xi_n                          [token, d_in];  xi ~ N(0, 1)

D [feature, d_in] are unit directions of low coherence: descent on sum_{i != j} (D_i . D_j)^4. Which features are on, g,
comes from latent Gaussians, one threshold each (a Gaussian copula: Nelsen 2006, "An Introduction to Copulas", section
2.3), so the marginals are exact whatever the correlation:

    g_j = 1[B_j . u + sqrt(1 - ||B_j||^2) v_j > Phi^-1(1 - p_j)],   u ~ N(0, 1) [rank], v ~ N(0, 1)
    p_j = min(c r_j^-zipf, p_max),   r a random order of the features, c such that the expected number of them on is l0

A hierarchy makes some of those features parents. A parent that is on has one of its children on with probability
p_child, all alike, and else none: child implies parent, and children of one parent exclude each other. The strength is
a = max(0.05, m_j (1 + magnitude_sd xi')). The order of frequencies is random, since an order that said which features
are frequent would be known to nested dictionaries.

Whatever is random has a stream of its own (`stages.lib.run.seeds`). A dictionary that shared its numbers with the
initialisation of an SAE would be found before the first step.
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from scipy.optimize import brentq
from scipy.special import ndtri
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.io.params import Params
from stages.lib.run.seeds import integer, numpy_generator

MIN_MAGNITUDE = 0.05
DESCENT_LR = 0.01
"""Adam's rate in the descent on the coherence, where rows have norm 1."""
Probability = Annotated[float, Field(gt=0, lt=1)]


class Correlation(Params):
    """How features share their latent Gaussians."""

    shared: Probability
    """Variance of each that is shared, ||B_j||^2."""
    rank: PositiveInt
    """Number of shared Gaussians."""


class Hierarchy(Params):
    """Which features imply others."""

    n_parents: PositiveInt
    n_children: PositiveInt
    """Of each parent."""
    p_child: Probability
    """P(a child is on | its parent is on)."""


class SyntheticParams(Params):
    """What the activations are made of."""

    d_in: PositiveInt
    n_features: PositiveInt
    coherence_steps: NonNegativeInt
    """Of the descent on the coherence; after 0 the directions are random."""
    l0: PositiveFloat
    """Expected number of features that are on."""
    zipf: NonNegativeFloat
    """Exponent of frequencies over ranks; with 0 all are equally frequent."""
    p_max: Probability
    """Highest probability of being on."""
    correlation: Correlation | None
    hierarchy: Hierarchy | None
    magnitudes: Annotated[list[PositiveFloat], Field(min_length=1)]
    """Mean strengths, each that of as many features."""
    magnitude_sd: NonNegativeFloat
    """Standard deviation of a strength as a share of its mean."""
    noise: NonNegativeFloat
    """Standard deviation of each coordinate's noise."""


class Truth(NamedTuple):
    """What an SAE is to find."""

    dictionary: Float[Tensor, "feature d_in"]
    """Unit rows."""
    frequency: Float[np.ndarray, " feature"]
    """P(feature is on)."""
    magnitude: Float[np.ndarray, " feature"]
    """Mean strength."""
    roots: Int[np.ndarray, " root"]
    """Features that are no children: those with a latent Gaussian."""
    loadings: Float[np.ndarray, "root rank"]
    """B."""
    parents: Int[np.ndarray, " parent"]
    children: Int[np.ndarray, "parent child"]


def low_coherence_directions(
    n: int, d_in: int, n_steps: int, generator: torch.Generator
) -> Float[Tensor, "{n} {d_in}"]:
    """Unit rows after `n_steps` of Adam on sum_{i != j} (D_i . D_j)^4, in float64, from random ones."""
    normalised = torch.nn.functional.normalize
    rows = torch.randn(n, d_in, generator=generator, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([rows], lr=DESCENT_LR)
    with torch.no_grad():
        rows.copy_(normalised(rows, dim=1))
    for _ in range(n_steps):
        optimiser.zero_grad()
        unit = normalised(rows, dim=1)
        (unit @ unit.T).fill_diagonal_(0).pow(4).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return normalised(rows.detach(), dim=1).float()


def mean_max_cosine(dictionary: Float[Tensor, "feature d_in"]) -> float:
    """The mean over features of the largest |cosine| with another one."""
    return float((dictionary @ dictionary.T).fill_diagonal_(0).abs().amax(1).mean())


def zipf_frequencies(
    rank: Int[np.ndarray, " root"], weight: Float[np.ndarray, " root"], *, zipf: float, l0: float, p_max: float
) -> Float[np.ndarray, " root"]:
    """P = min(c rank^-zipf, p_max) with the c that makes sum weight p = l0; ranks count from 1.

    Raises:
        UserError: if p_max is too low for that.
    """
    highest = p_max * float(weight.sum())
    if l0 >= highest:
        raise UserError(
            f"params.yaml: generate.l0 is {l0:g}: it must be below {highest:g}, what all features at p_max give"
        )
    shape = rank.astype(np.float64) ** -zipf

    def excess(log_c: float) -> float:
        return float(weight @ np.minimum(np.exp(log_c) * shape, p_max)) - l0

    # At the upper end every feature is at p_max, at the lower one their sum is below l0.
    log_c = brentq(excess, np.log(l0 / (weight @ shape)) - 1, np.log(p_max / shape.min()) + 1, xtol=1e-14)
    frequency: np.ndarray = np.minimum(np.exp(log_c) * shape, p_max)
    return frequency


def draw_truth(own: SyntheticParams, seed: int) -> Truth:
    """The features of a seed.

    Raises:
        UserError: if there are fewer features than the hierarchy needs, or `l0` cannot be reached.
    """
    tree = own.hierarchy
    n_parents, n_children = (tree.n_parents, tree.n_children) if tree else (0, 0)
    in_tree = n_parents * (1 + n_children)
    if in_tree > own.n_features:
        raise UserError(
            f"params.yaml: generate.n_features is {own.n_features}, but generate.hierarchy needs {in_tree}: "
            "n_parents (1 + n_children)"
        )
    generator = numpy_generator(seed, "synthetic", "roles")
    order = generator.permutation(own.n_features)
    parents, children = order[:n_parents], order[n_parents:in_tree].reshape(n_parents, n_children)
    roots = np.concatenate([parents, order[in_tree:]])
    p_child = tree.p_child if tree else 0.0
    weight = np.where(np.arange(len(roots)) < n_parents, 1 + p_child, 1.0)
    frequency = np.zeros(own.n_features)
    frequency[roots] = zipf_frequencies(
        generator.permutation(len(roots)) + 1, weight, zipf=own.zipf, l0=own.l0, p_max=own.p_max
    )
    frequency[children] = frequency[parents][:, None] * p_child / max(n_children, 1)
    shared, rank = (own.correlation.shared, own.correlation.rank) if own.correlation else (0.0, 0)
    loadings = generator.standard_normal((len(roots), rank))
    if rank:
        loadings *= np.sqrt(shared) / np.linalg.norm(loadings, axis=1, keepdims=True)
    directions = torch.Generator().manual_seed(integer(seed, "synthetic", "dictionary"))
    return Truth(
        dictionary=low_coherence_directions(own.n_features, own.d_in, own.coherence_steps, directions),
        frequency=frequency,
        magnitude=generator.permutation(np.resize(own.magnitudes, own.n_features)),
        roots=roots,
        loadings=loadings,
        parents=parents,
        children=children,
    )


def draw_codes(
    truth: Truth, own: SyntheticParams, n_tokens: int, generator: np.random.Generator
) -> Float[np.ndarray, "{n_tokens} feature"]:
    """The strengths g a of `n_tokens` tokens; 0 where a feature is off."""
    rank = truth.loadings.shape[1]
    private = np.sqrt(1 - np.square(truth.loadings).sum(1)).astype(np.float32)
    shared = generator.standard_normal((n_tokens, rank), np.float32) @ truth.loadings.T.astype(np.float32)
    latent = shared + private * generator.standard_normal((n_tokens, len(truth.roots)), np.float32)
    on = np.zeros((n_tokens, len(truth.frequency)), bool)
    on[:, truth.roots] = latent > ndtri(1 - truth.frequency[truth.roots]).astype(np.float32)
    if own.hierarchy is not None:
        tree = own.hierarchy
        # A uniform number below p_child chooses one of the children, each with the same share of [0, p_child).
        drawn = generator.random((n_tokens, tree.n_parents)) / tree.p_child
        which = np.floor(drawn * tree.n_children).astype(np.int64)
        chosen = which[:, :, None] == np.arange(tree.n_children)
        on[:, truth.children] = chosen & on[:, truth.parents, None]
    codes = np.zeros(on.shape, np.float32)
    mean = np.broadcast_to(truth.magnitude, on.shape)[on]
    strength = mean * (1 + own.magnitude_sd * generator.standard_normal(len(mean)))
    codes[on] = np.maximum(strength, MIN_MAGNITUDE)
    return codes


def mix(
    truth: Truth, codes: Float[np.ndarray, "token feature"], noise: float, generator: np.random.Generator
) -> Float[Tensor, "token d_in"]:
    """X = codes D + noise xi."""
    x = torch.from_numpy(codes) @ truth.dictionary
    return x.add_(torch.from_numpy(generator.standard_normal(tuple(x.shape), np.float32)), alpha=noise)
