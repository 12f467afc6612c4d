"""The numbers of an arm's summary that say how faithful its SAEs are, with their intervals over documents."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

from stages.lib.fidelity.ablations import Ablations
from stages.lib.fidelity.cross_entropy import Sums
from stages.lib.fidelity.measures import Fidelity, effective_dictionary, l0_statistics
from stages.lib.fidelity.reconstruction import Baselines, OnTraining
from stages.lib.io.summary import Row
from stages.lib.sae.members import Member
from stages.lib.stats.correlation import spearman
from stages.lib.stats.intervals import block_sums, ratio_interval

DENSE = 0.1
"""Features that fire on more than this share of the tokens are dense."""
MIN_ABLATION_EFFECT = 0.05
"""Nats; where replacing the activation costs less, a share of that cost means nothing."""


def fidelity_numbers(
    own: Fidelity, baselines: Baselines, silent: Bool[np.ndarray, " d_sae"]
) -> dict[str, float | None]:
    """The numbers of one SAE that need no language model; None where one is not defined."""
    rates, spread_of_l0 = own.rates(), l0_statistics(own.l0_counts)
    d_in = len(baselines.principal) - 1
    return {
        **spread_of_l0,
        "fvu": own.fvu(baselines.total),
        "density": spread_of_l0["l0"] / len(rates),
        "dead_fraction": float(silent.mean()),
        "dense_fraction": float((rates > DENSE).mean()),
        "effective_dictionary": effective_dictionary(rates),
        "relative_bias": own.relative_bias(),
        "hoyer": own.hoyer(),
        "gini": own.gini(),
        "cosine": own.cosine(),
        "fvu_unigram": baselines.unigram,
        "fvu_pca": float(baselines.principal[min(d_in, round(spread_of_l0["l0"]))]),
    }


def fidelity_rows(
    member: Member,
    own: Fidelity,
    baselines: Baselines,
    silent: Bool[np.ndarray, " d_sae"],
    n_validation: int,
    counts: Int[np.ndarray, "resample document"],
) -> Iterator[Row]:
    """The numbers of one SAE that need no language model, the FVU with its interval.

    `silent` says which features fire neither in test nor on the `n_validation` tokens of validation.
    """
    for name, value in fidelity_numbers(own, baselines, silent).items():
        low, high = None, None
        if name == "fvu":
            low, high = ratio_interval(own.squared_error, baselines.total, counts) or (None, None)
        if value is not None:
            n = own.n + n_validation if name == "dead_fraction" else own.n
            yield Row(member.level, member.seed, name, value, low, high, n)


def ce_rows(
    member: Member,
    sums: Sums,
    ablations: Ablations,
    index: int,
    documents: Int[np.ndarray, " window"],
    counts: Int[np.ndarray, "resample document"],
) -> Iterator[Row]:
    """The cross-entropies of one SAE, ratios of sums over documents, with their intervals over documents.

    `random_error_ratio` is the loss that a random error of the same size adds, over the loss that the SAE's error adds:
    below 1 where the SAE's error lies in directions that the model uses more (Gurnee 2024). `index` is the SAE's place
    in the sums.
    """

    def by_document(values: np.ndarray) -> np.ndarray:
        return block_sums(values.astype(np.float64), documents, counts.shape[1])

    n, clean, zero, mean = (by_document(values) for values in (sums.n, sums.clean, ablations.zero, ablations.mean))
    sae, kl, random = (by_document(values[index]) for values in (sums.sae, sums.kl, sums.random_error))
    n_predictions = int(n.sum())
    plain = {"ce_sae": sae, "ce_zero": zero, "ce_mean": mean, "ce_random_error": random}
    for name, values in plain.items():
        yield Row(member.level, member.seed, name, float(values.sum() / n.sum()), n=n_predictions)
    ratios = {"ce_clean": (clean, n), "delta_ce": (sae - clean, n), "kl": (kl, n)}
    ratios["delta_ce_random_error"] = (random - clean, n)
    if (sae - clean).sum() / n.sum() >= MIN_ABLATION_EFFECT:
        ratios["random_error_ratio"] = (random - clean, sae - clean)
    for name, ablated in (("ce_recovered_mean", mean), ("ce_recovered_zero", zero)):
        if (ablated - clean).sum() / n.sum() >= MIN_ABLATION_EFFECT:
            ratios[name] = (ablated - sae, ablated - clean)
    for name, (above, below) in ratios.items():
        low, high = ratio_interval(above, below, counts) or (None, None)
        yield Row(member.level, member.seed, name, float(above.sum() / below.sum()), low, high, n_predictions)
    correlation = spearman(sums.token_l0[index].astype(np.float64), sums.token_nll.astype(np.float64))
    if correlation is not None:
        yield Row(member.level, member.seed, "l0_nll_spearman", correlation, n=n_predictions)


def clean_row(
    member: Member,
    ablations: Ablations,
    documents: Int[np.ndarray, " window"],
    counts: Int[np.ndarray, "resample document"],
) -> Row:
    """The unchanged model's loss on all test tokens, with its interval over documents."""
    values = ablations.clean, ablations.n
    nll, n = (block_sums(one.astype(np.float64), documents, counts.shape[1]) for one in values)
    low, high = ratio_interval(nll, n, counts) or (None, None)
    return Row(member.level, member.seed, "ce_clean_test", float(nll.sum() / n.sum()), low, high, int(n.sum()))


def training_rows(member: Member, on_training: OnTraining) -> Iterator[Row]:
    """The numbers of one SAE on activations that it was trained on."""
    numbers = {
        "fvu_train": on_training.own.fvu(on_training.total),
        "relative_bias_train": on_training.own.relative_bias(),
        "relative_bias_train_unshifted": on_training.unshifted.relative_bias() if on_training.unshifted else None,
    }
    for name, value in numbers.items():
        if value is not None:
            yield Row(member.level, member.seed, name, value, n=on_training.own.n)
