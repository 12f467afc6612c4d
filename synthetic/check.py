"""All of `params.yaml` is right, and what each stage's results rest on, as the main pipeline's stage `check` has it.

out: data/check/code/<stage>[-<arm>].json (`stages.lib.run.closure`)
"""

from typing import Any

from stages import train
from stages.lib.io import params
from stages.lib.run.closure import records, write_records
from stages.lib.run.start import run
from synthetic import baseline, generate, report, score

STAGES = ["synthetic.generate", "synthetic.baseline", "stages.train", "synthetic.score", "synthetic.report"]


def settings() -> None:
    """Let every stage validate its settings, for each arm and seed.

    Raises:
        UserError: the first thing that is wrong.
    """
    for stage in (generate, baseline, score, report):
        stage.settings()
    for arm in params.read("saes", dict[str, Any]):
        for seed in params.read("train.seeds", list[int]):
            train.settings(arm, str(seed))


def main() -> None:
    """Check, then record."""
    settings()
    methods = {arm: section["variant"] for arm, section in params.value("saes").items()}
    write_records(records(STAGES, {}, methods))


if __name__ == "__main__":
    run(main)
