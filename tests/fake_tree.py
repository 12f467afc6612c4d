"""A small made-up tree of what the analyses write, for the tests of compare and report (no test itself)."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.lib.concepts.labels import Concept, pack, write_concepts, write_labels
from stages.lib.io import tensors
from stages.lib.io.files import write_json
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.language.documents import Document, to_line
from stages.lib.language.windows import read_windows
from stages.lib.sae.saved import save_sae
from tests.settings import write_params
from tests.worlds import Rows, Text, random_unit, write_store, write_tokens

ARMS = {"relu": "main", "topk": "main", "frozen_decoder": "main", "untrained": "untrained"}
SEEDS = [0, 1, 2]
L0 = [4.0, 8.0, 16.0]
D_IN, D_SAE = 12, 40
STEPS = [0, 1, 4, 16, 64, 200]

PARAMS = """
train: {seeds: [0, 1, 2], more_seeds: [], lr: 0.01, lr_warm_up: 0.02, sparsity_warm_up: 0.1, lr_decay: 0.2}
saes:
  relu: {variant: relu}
  topk: {variant: topk}
  frozen_decoder: {variant: frozen_decoder}
  untrained: {variant: topk}
compare:
  l0: [4, 8, 16]
  reference: topk
  controls: [frozen_decoder, untrained]
  metrics: [fvu, delta_ce, cc_coverage, cc_beyond_ngrams]
  endpoints: {fvu: 0.02, cc_beyond_ngrams: 0.1}
  l0_type: [relu, topk]
  alike: 0.95
  n_permutations: 99
  n_random: 3
  seed: 0
frequency: {random_decoder: frozen_decoder, endpoint: entropy_rarefied, least_difference: 0.3, least_arms: 2,
            n_resamples: 20, seed: 0}
report: {arm: topk, n_features: 3, n_contexts: 2, n_tokens: 24, headline: [fvu, cc_coverage, delta_ce]}
"""


def unit(n: int, seed: int) -> torch.Tensor:
    """Random unit rows."""
    return random_unit(n, D_IN, seed)


def fvu(arm: str, level: int, seed: int) -> float:
    """A made-up FVU that falls with L0 and differs between arms."""
    base = {"relu": 0.45, "topk": 0.35, "frozen_decoder": 0.6, "untrained": 0.3}[arm]
    return base * 0.75**level + 0.004 * seed + 0.002 * level * (seed - 1)


def write_summaries() -> None:
    """The summaries of the analyses that compare reads."""
    for number, arm in enumerate(ARMS):
        rows: dict[str, list[Row]] = {
            name: [] for name in ("evaluate", "frequency", "emergence", "attribution", "interpret")
        }
        for seed in SEEDS:
            for level, l0 in enumerate(L0):
                value = fvu(arm, level, seed)
                shift = 0.2 * (arm == "relu")
                facts = {"fvu": value, "l0": l0 + shift + 0.01 * seed, "density": l0 / D_SAE,
                         "delta_ce": value * 0.8, "dead_fraction": 0.02 * number,
                         "fvu_unigram": 0.8, "fvu_pca": 0.9, "relative_bias": 1 - 0.1 * (arm == "relu")}  # fmt: skip
                rows["evaluate"] += [Row(level, seed, name, v, n=1000) for name, v in facts.items()]
                rows["evaluate"] += losses(level, seed, value, arm)
                rows["interpret"] += [
                    Row(level, seed, "cc_coverage", 0.3 - 0.05 * number + 0.01 * level + 0.003 * seed, n=6),
                    Row(level, seed, "cc_beyond_ngrams", 0.1 - 0.02 * number + 0.01 * level + 0.003 * seed, n=2),
                ]
                rows["frequency"] += [Row(level, seed, "spec_spearman", 0.3 + 0.01 * seed, 0.2, 0.4, 20)]
            moved = {"n_emerged": 20.0 + seed, "start_identified_fraction": 0.2 + 0.01 * seed,
                     "churn_excess_last_decade": 0.06 + 0.01 * seed, "cos_other_seed_last": 0.7 + 0.01 * seed,
                     "icc_log_rate": 0.9 + 0.01 * seed, "icc_best_mcc": 0.6 + 0.01 * seed,
                     "l0_outside_fraction": 0.5 * (arm == "relu")}  # fmt: skip
            rows["emergence"] += [Row(1, seed, name, v, n=40) for name, v in moved.items()]
            rows["attribution"].append(Row(1, seed, "spearman", 0.9 + 0.01 * seed, 0.85, 0.97, 200))
            rows["attribution"].append(Row(1, seed, "slope", 0.98 + 0.01 * seed, 0.95, 1.02, 150))
        rows["emergence"] += order_rows()
        rows["attribution"] += [Row(1, 0, "spearman_pooled", 0.9, 0.85, 0.95, 600), Row(1, 0, "min_score", 0.01),
                                Row(1, 0, "slope_pooled", 0.98, 0.95, 1.02, 450)]  # fmt: skip
        for stage, content in rows.items():
            write_summary(stage, arm, content)


def losses(level: int, seed: int, value: float, arm: str) -> list[Row]:
    """The clean loss on all test tokens and on some, the FVU on training activations, and errors against random ones.

    The untrained arm's error costs too little for a ratio.
    """
    found = [("ce_clean_test", 1.85, 1.75, 1.95, 800), ("ce_clean", 1.87, 1.7, 2.05, 100),
             ("fvu_train", 0.85 * value, None, None, 500), ("delta_ce_random_error", 0.4 * value, None, None, 100),
             ("random_error_ratio", 0.5, 0.4, 0.6, 100)]  # fmt: skip
    return [Row(level, seed, *cell) for cell in found[: 4 if arm == "untrained" else 5]]


def order_rows() -> list[Row]:
    """Times and the order of emergence: magnitude goes with it in both models, prevalence in one."""
    rows = [Row(1, 0, "kendall_w", 0.5, n=12), Row(1, 0, "kendall_w_p", 0.001, n=12),
            Row(1, 0, "settling_step", 60.0, 50.0, 70.0, 3), Row(1, 0, "settling_after", 16.0),
            Row(1, 0, "settling_by", 64.0), Row(1, 0, "emergence_step", 30.0, 20.0, 40.0, 3),
            Row(1, 0, "driver_prevalence", 0.1, -0.4, 0.5, 40), Row(1, 0, "driver_prevalence_p", 0.7, n=40),
            Row(1, 0, "driver_magnitude", -0.6, -0.8, -0.2, 40),
            Row(1, 0, "driver_magnitude_p", 1e-5, n=40)]  # fmt: skip
    for model, n, p in (("joint", 40, 0.3), ("joint_emerged", 12, 0.001)):
        rows += [Row(1, 0, f"{model}_p", 0.002, n=9), Row(1, 0, f"{model}_c_index", 0.8, n=9),
                 Row(1, 0, f"{model}_c_index_null", 0.6, n=9)]  # fmt: skip
        for name, value, own in (("log_prevalence", -0.2, p), ("log_magnitude", -0.6, 1e-4)):
            rows += [Row(1, 0, f"{model}_{name}", value, value - 0.1, value + 0.1, n),
                     Row(1, 0, f"{model}_{name}_p", own, n=n), Row(1, 0, f"{model}_vif_{name}", 1.5, n=n)]  # fmt: skip
    return rows


def measures(arm: str, rate: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Made-up measures of specialisation: the entropy grows with the rate, but not in the random decoder."""
    log_rate = np.log10(np.maximum(rate, 1e-5))
    grows = 0.0 if arm == "frozen_decoder" else 1.0
    return {"resolved": rate > 0, "entropy_rarefied": 5 + grows * log_rate + 0.3 * generator.normal(size=D_SAE),
            "purity": generator.random(D_SAE)}  # fmt: skip


def write_training() -> None:
    """SAEs, checkpoints, curves and firing rates."""
    shared = unit(D_SAE, 7)
    for number, (arm, revision) in enumerate(ARMS.items()):
        features = []
        for seed in SEEDS:
            cell = Path("data/train") / arm / f"seed-{seed}"
            start = unit(D_SAE, 100 + seed)
            for level, l0 in enumerate(L0):
                noise = 0.15 * unit(D_SAE, 1000 * number + 10 * seed + level)
                decoder = start if arm == "frozen_decoder" else torch.nn.functional.normalize(shared + noise, dim=1)
                weights = {
                    "W_enc": decoder.T.contiguous(),
                    "b_enc": torch.zeros(D_SAE),
                    "W_dec": decoder,
                    "b_dec": torch.zeros(D_IN),
                }
                save_sae(
                    cell / f"level-{level}",
                    "topk",
                    weights,
                    k=int(l0),
                    extra={"arm": arm, "level": level, "seed": seed},
                )
                rate = 10 ** np.random.default_rng(seed).uniform(-4, -0.5, D_SAE)
                rate[0] = 0.0
                table = {"arm": arm, "level": level, "seed": seed, "feature": range(D_SAE), "rate": rate}
                features.append(pd.DataFrame(table | measures(arm, rate, np.random.default_rng(100 + number + seed))))
            tensors.save(cell / "level-1/checkpoints/step-00000000.safetensors", {"W_dec": start.half()}, {"step": 0})
            facts = {"arm": arm, "variant": arm, "activations": revision, "seed": seed, "levels": L0, "follow_level": 1,
                     "d_in": D_IN, "d_sae": D_SAE, "n_tokens": 200000, "steps": 200, "sparsity_name": "k"}  # fmt: skip
            (cell / "train.json").write_text(json.dumps(facts))
            pd.DataFrame(
                [(arm, level, seed, step, 1024 * step, fvu(arm, level, seed) + 0.5 / (1 + step), L0[level], 0.0)
                 for level in range(3) for step in range(1, 200, 2)],
                columns=["arm", "level", "seed", "step", "tokens", "fvu", "l0", "dead_fraction"],
            ).to_csv(cell / "history.csv", index=False)  # fmt: skip
        table = pd.concat(features, ignore_index=True)
        path = Path("data/frequency") / arm / "features.parquet"
        path.parent.mkdir(parents=True)
        table.to_parquet(path, index=False)


SOURCE = '''def degree(graph, node=None):
    """Return the number of neighbours of `node`."""
    if node is None:
        return {n: len(graph[n]) for n in graph}
    total = 0
    for other in graph[node]:
        total += graph.weight(node, other) * 2
    return total
'''
CONCEPTS = {"keyword": "lexical", "operator": "lexical", "docstring": "contextual", "call_arg": "syntactic",
            "depth_1": "positional", "name": "syntactic"}  # fmt: skip
N_DOCUMENTS, N_CTX = 8, 64
SPLITS = ("train", "fit", "validation", "test")


def write_text() -> None:
    """Corpus, tokens, concepts, the activations of both revisions, and what is known of the model."""
    documents = [
        Document(f"package/file_{i}.py", SOURCE.replace("degree", f"degree_{i}"), "python") for i in range(N_DOCUMENTS)
    ]
    write_corpus(documents)
    texts = [encoded(document) for document in documents]
    write_tokens(dict.fromkeys(SPLITS, texts), n_ctx=N_CTX, d_vocab=50, bos_id=1, pad_id=2)
    windows, generator = read_windows("test"), np.random.default_rng(3)
    labels = generator.random((len(windows.length) * N_CTX, len(CONCEPTS))) < 0.2
    concepts = [Concept(name, kind, prevalence={}, positives={}, mean_run=2.0) for name, kind in CONCEPTS.items()]
    write_concepts(concepts)
    for split in SPLITS[1:]:
        write_labels(split, pack(labels), concepts)
    seen = {"test": {"token": 1.0, "bigram": 0.9, "trigram": 0.7}}
    write_json(Path("data/concepts/ngrams.json"), {"n_tokens": 9000, "seen": {"all": seen, "half": seen}})
    positions = windows.valid().flatten().nonzero().flatten().numpy()
    planted = torch.from_numpy(labels[positions]).float() @ unit(len(CONCEPTS), 7)
    for revision in ("main", "untrained"):
        x = torch.from_numpy(generator.normal(size=(len(positions), D_IN))) + 3 * planted
        rows = dict.fromkeys(SPLITS, Rows(x, positions))
        write_store(rows, hook_name="blocks.2.hook_resid_post", n_ctx=N_CTX, revision=revision)
    losses = {"model": 1.8, "untrained": 6.9, "unigram": 5.0, "bigram": 3.2, "trigram": 2.9}
    facts = {"source": "scratch", "nats_per_token": losses, "revisions": ["main", "untrained"]}
    write_json(Path("data/model/model.json"), facts)


def write_corpus(documents: list[Document]) -> None:
    """The documents as the split `test`, and a description of all splits."""
    Path("data/corpus").mkdir(parents=True)
    Path("data/corpus/test.jsonl").write_text("".join(map(to_line, documents)))
    counts = {split: {"documents": 8, "characters": 3000} for split in ("lm_train", "sae_train", "validation", "test")}
    facts = {"source": "python_packages", "splits": counts, "dropped": {"short": 0}}
    write_json(Path("data/corpus/corpus.json"), facts)


def encoded(document: Document) -> Text:
    """The document with a token per word, run of line ends, or other character, all of the same id."""
    spans = np.array([match.span() for match in re.finditer(r" ?\w+|\n *|[^\w\s]| ", document.text)])
    return Text(document.id, np.full(len(spans), 5), spans)


def write_emergence(folder: Path, keys: list[tuple[int, int, int]]) -> None:
    """Checkpoints, and when concepts emerge: the first at once, the second late, the others never."""
    rows = [(seed, 1, step, 0.4 / (1 + step / 20), min(1.0, step / STEPS[-1])) for seed, _, step in keys]
    columns = ["seed", "level", "step", "churn_excess", "settled_fraction"]
    write_parquet(folder / "checkpoints.parquet", pd.DataFrame(rows, columns=columns))
    names = list(CONCEPTS)
    times = [(seed, name, i > 1, i == 0) for seed in SEEDS for i, name in enumerate(names)]
    columns = ["seed", "concept", "censored", "at_start"]
    write_parquet(folder / "emergence.parquet", pd.DataFrame(times, columns=columns))
    known = {"concept": names, "kind": list(CONCEPTS.values()), "rank": np.arange(6.0), "lexicality": 0.3,
             "f1_chance": 0.1}  # fmt: skip
    write_parquet(folder / "drivers.parquet", pd.DataFrame(known))


def write_details() -> None:
    """The tables of the analyses that the report draws."""
    concepts, clusters, places = list(CONCEPTS), {}, []
    for number, arm in enumerate(ARMS):
        generator = np.random.default_rng(number)
        table = pd.read_parquet(f"data/frequency/{arm}/features.parquet").drop(columns="arm")
        n = len(table)
        score = np.clip(0.3 + 0.1 * np.log10(table["rate"].clip(1e-4)) + 0.15 * generator.normal(size=n) + 0.2, 0, 1)
        table["mcc_calibrated"] = np.where(table["rate"] > 0, score, np.nan)
        table["best_concept"] = [
            concepts[i] if rate > 0 else None
            for i, rate in zip(generator.integers(0, 6, n), table["rate"], strict=True)
        ]
        table["mean_act"], table["max_act"], table["n_firings"] = 1.0, 3.0, (table["rate"] * 1e5).astype(int)
        write_parquet(Path(f"data/frequency/{arm}/features.parquet"), table)
        keys = [(seed, 1, step) for seed in SEEDS for step in STEPS]
        parts, rows = [], []
        for seed, level, step in keys:
            grown = 1 / (1 + (30 / max(step, 0.1)) ** 1.2)
            parts.append(pd.DataFrame({
                "arm": arm, "seed": seed, "level": level, "step": step, "feature": range(D_SAE),
                "rate": 10 ** generator.normal(-1 - grown, 0.3 + grown / 2, D_SAE),
                "cos_other_seed": np.clip(0.3 + 0.5 * grown + 0.1 * generator.normal(size=D_SAE), 0, 1),
                "alive": True,
            }))  # fmt: skip
            rows += [
                (arm, seed, level, step, c, 0.0, max(0.0, (0.1 + 0.08 * i) * grown - 0.02 * number))
                for i, c in enumerate(concepts)
            ]
        folder = Path("data/emergence") / arm
        write_parquet(folder / "trajectories.parquet", pd.concat(parts, ignore_index=True))
        write_parquet(
            folder / "concepts.parquet",
            pd.DataFrame(rows, columns=["arm", "seed", "level", "step", "concept", "f1", "cc_f1"]),
        )
        write_emergence(folder, keys)
        effect = generator.normal(size=90) * 10 ** generator.normal(-2, 1, 90)
        nodes = {"seed": np.repeat(SEEDS, 30), "level": 1, "stratum": np.tile(["random", "random", "top"], 30),
                 "ablation": effect, "grad_x_act": effect * (1 + 0.2 * generator.normal(size=90)),
                 "ig": effect * (1 + 0.6 * generator.normal(size=90))}  # fmt: skip
        write_parquet(Path(f"data/attribution/{arm}/nodes.parquet"), pd.DataFrame(nodes))
        found = [(arm, seed, level, c, CONCEPTS[c], int(generator.integers(1, D_SAE)), 0.5 - 0.05 * i, "sae")
                 for seed in SEEDS for level in range(3) for i, c in enumerate(concepts)]  # fmt: skip
        columns = ["arm", "seed", "level", "concept", "kind", "best_feature", "cc_f1", "basis"]
        write_parquet(Path(f"data/interpret/{arm}/concepts.parquet"), pd.DataFrame(found, columns=columns))
        places.append(pd.DataFrame({"arm": arm, "level": 1, "seed": 0, "feature": range(D_SAE), "cluster": 0,
                                    "nearest": generator.uniform(0.2, 0.5, D_SAE), "nearest_null": 0.25,
                                    "opposite": -generator.uniform(0.2, 0.5, D_SAE), "opposite_null": -0.25,
                                    "x": generator.normal(size=D_SAE), "y": generator.normal(size=D_SAE)}))  # fmt: skip
        cell = {"value": 0.2, "null": 0.1, "null_high": 0.12, "p": 0.01, "p_holm": 0.07 - 0.03 * number}
        pairs = {"value": 3 + number, "null": 0.25}
        clusters[arm] = {"n_clusters": 4, "edge": "lowest", "n_null": 199, "pair_cosine": 0.5, "silhouette": cell,
                         "nearest": cell, "opposite": cell, "close_pairs": pairs, "antipodal_pairs": pairs,
                         "stability": {"value": 0.2, "null": 0.1}}  # fmt: skip
    write_parquet(Path("data/embed/features.parquet"), pd.concat(places, ignore_index=True))
    write_json(Path("reports/embed/clusters.json"), clusters)


def write_all() -> None:
    """Everything that the report reads but what compare writes."""
    write_params(PARAMS)
    write_summaries()
    write_training()
    write_text()
    write_details()
