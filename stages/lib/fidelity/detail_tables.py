"""The tables of an SAE that are too long for a summary, with its level and seed in each."""

import numpy as np
import pandas as pd

from stages.lib.fidelity.measures import Fidelity
from stages.lib.sae.members import Member


def documents_table(member: Member, own: Fidelity, total: np.ndarray) -> pd.DataFrame:
    """The sums behind the FVU, by document."""
    table = pd.DataFrame({"squared_error": own.squared_error, "total": total})
    return table.assign(level=member.level, seed=member.seed, document=np.arange(len(table)))


def l0_table(member: Member, own: Fidelity) -> pd.DataFrame:
    """How many test tokens have each L0."""
    seen = np.flatnonzero(own.l0_counts)
    return pd.DataFrame({"level": member.level, "seed": member.seed, "l0": seen, "n_tokens": own.l0_counts[seen]})


def alive_table(member: Member, own: Fidelity) -> pd.DataFrame:
    """The share of test tokens on which each feature fires; 0 for those that never do."""
    n = len(own.firings)
    return pd.DataFrame({
        "seed": np.full(n, member.seed, np.int32), "level": np.full(n, member.level, np.int8),
        "feature": np.arange(n, dtype=np.int32), "rate": own.rates().astype(np.float32),
    })  # fmt: skip
