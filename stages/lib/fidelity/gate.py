"""What a results table must not contain: SAEs that explain nothing, are not sparse, or lose to a table of tokens."""

from collections.abc import Mapping

MAX_FVU = 0.95
MAX_DENSITY = 0.5


def sanity_failures(name: str, metrics: Mapping[str, float]) -> list[str]:
    """Why the SAE called `name` is no result, a sentence each; empty if nothing is wrong.

    `metrics` are its summary's `fvu`, `density` (L0 / d_sae), `fvu_unigram` (mean activation by token id) and `fvu_pca`
    (as many principal components as it has active features).
    """
    fvu, density = metrics["fvu"], metrics["density"]
    failures = []
    if fvu >= MAX_FVU:
        failures.append(f"{name}: test FVU {fvu:.3f} is not below {MAX_FVU}")
    if density > MAX_DENSITY:
        failures.append(f"{name}: {density:.0%} of the features are active at a token, more than {MAX_DENSITY:.0%}")
    for key, label in (("fvu_unigram", "the mean activation by token"), ("fvu_pca", "PCA of the rank of its L0")):
        if fvu >= metrics[key]:
            failures.append(f"{name}: test FVU {fvu:.3f} does not beat {label}, {metrics[key]:.3f}")
    return failures
