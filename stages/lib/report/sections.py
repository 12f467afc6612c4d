"""What stands on the page: the five questions in order, single features, known results, what all of it rests on."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stages.lib.io.files import read_json
from stages.lib.io.tables import read_parquet
from stages.lib.report.answers import activation_functions as first
from stages.lib.report.answers import emergence as second
from stages.lib.report.answers import frequency as third
from stages.lib.report.answers import interpretability as fifth
from stages.lib.report.answers import known_results, setting, structure
from stages.lib.report.answers import training as fourth
from stages.lib.report.beside import beside
from stages.lib.report.close_up import Size, nearest_features, neighbours, single_features, tables
from stages.lib.report.figures import activation_functions as first_figures
from stages.lib.report.figures import emergence as second_figures
from stages.lib.report.figures import frequency as third_figures
from stages.lib.report.figures import interpretability as fifth_figures
from stages.lib.report.figures import structure as structure_figures
from stages.lib.report.figures import training as fourth_figures
from stages.lib.report.page import Block, Figure, Section
from stages.lib.report.results import Results

DATA, REPORTS = Path("data"), Path("reports")


def sections(results: Results, arm: str, size: Size, ends: Mapping[str, float]) -> list[Section]:
    """The page.

    Args:
        results: all numbers.
        arm: whose features are shown one by one.
        size: how many of them, and how much of each.
        ends: what ends or begins in training, as shares of the steps.
    """
    (one, two), others = beside(
        lambda: (activation_functions(results, ends), emergence(results, ends)),
        lambda: _others(results, arm, size),
    )
    return [
        Section("1. How do activation functions affect feature learning?", one),
        Section("2. What drives the emergence of concepts?", two),
        *others,
    ]


def _others(results: Results, arm: str, size: Size) -> list[Section]:
    features = nearest_features(results, tables(results, "frequency", "features"))
    model, corpus, tokens = (read_json(DATA / name / f"{name}.json") for name in ("model", "corpus", "tokens"))
    trajectories, checkpoints = (tables(results, "emergence", name) for name in ("trajectories", "checkpoints"))
    return [
        Section("3. Is the firing frequency a reliable sign of specialisation?", illustrated(
            third.frequency(results), third_figures.rates(results, features),
        )),
        Section("4. Can the behaviour of features during training be quantified and seen?", illustrated(
            fourth.training(results), fourth_figures.trajectories(results, trajectories, checkpoints),
        )),
        Section("5. How do sparsity mechanisms affect interpretability?", interpretability(results, arm)),
        Section("Known results, reproduced?", known_results.known_results(results)),
        Section("Features up close", single_features(results, arm, size, features)),
        Section("What the results rest on", setting.setting(model, corpus, tokens, results)),
    ]  # fmt: skip


def illustrated(blocks: list[Block], figure: Figure) -> list[Block]:
    """The blocks with the figure after the first, which is the answer."""
    return [*blocks[:1], figure, *blocks[1:]]


def activation_functions(results: Results, ends: Mapping[str, float]) -> list[Block]:
    """Question 1."""
    frontier, curves = (pd.read_csv(REPORTS / "compare" / f"{name}.csv") for name in ("frontier", "curves"))
    return [
        *illustrated(first.fidelity(results), first_figures.frontiers(results, frontier)),
        first_figures.agreement(results, read_parquet(DATA / "compare" / "shared.parquet")),
        first_figures.training_curves(results, curves, ends),
    ]


def emergence(results: Results, ends: Mapping[str, float]) -> list[Block]:
    """Question 2."""
    properties = read_parquet(DATA / "emergence" / results.reference / "drivers.parquet")
    concepts = tables(results, "emergence", "concepts")
    answer = second.drivers(results, tables(results, "emergence", "emergence"))
    return illustrated(answer, second_figures.emergence(results, concepts, properties, ends))


def interpretability(results: Results, arm: str) -> list[Block]:
    """Question 5, with what was found of directions and of effects on the language model."""
    clusters, counted = read_json(REPORTS / "embed" / "clusters.json"), read_json(DATA / "concepts" / "ngrams.json")
    nodes = tables(results, "attribution", "nodes")
    return [
        *illustrated(fifth.interpretability(results, counted), fifth_figures.coverage(results)),
        *illustrated(structure.clusters(results, clusters), neighbours(results, arm)),
        *illustrated(structure.attribution(results), structure_figures.attribution(results, nodes)),
        *structure.errors(results),
    ]
