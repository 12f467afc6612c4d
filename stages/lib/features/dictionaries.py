"""The decoders of runs as they are compared: with the features that fired, and the directions they began with."""

from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from stages.lib.features.agreement import Dictionary
from stages.lib.io.tables import read_parquet
from stages.lib.io.tensors import load
from stages.lib.sae.members import Member
from stages.lib.sae.saved import load_sae


def fired(member: Member) -> Bool[Tensor, " d_sae"]:
    """Which features of a member fired on held-out text."""
    path = Path("data/evaluate") / member.arm / "alive.parquet"
    rates = read_parquet(path if path.exists() else Path("data/frequency") / member.arm / "features.parquet")
    rates = rates[(rates["seed"] == member.seed) & (rates["level"] == member.level)].sort_values("feature")
    return torch.tensor(rates["rate"].to_numpy() > 0)


def dictionary(member: Member, follow_level: int) -> Dictionary:
    """The decoder of a member, which of its features fired, and the decoder it began with."""
    decoder, alive = load_sae(member.directory).W_dec, fired(member)
    assert len(alive) == len(decoder), f"{member.directory}: {len(decoder)} features, {len(alive)} rates"
    # Levels of one seed start from the same weights, and only the followed one keeps its checkpoints.
    start = member.directory.parent / f"level-{follow_level}" / "checkpoints" / "step-00000000.safetensors"
    return Dictionary(member.arm, member.seed, decoder, alive, load(start, ["W_dec"])["W_dec"].float())
