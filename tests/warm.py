"""What the process that `tests.forked` forks from imports: a step of an SAE loads the optimiser and compiled loops."""

from tests.dictionaries import batch, build, directions

build("topk", directions()).step(batch(), 1e-3, 1.0)
