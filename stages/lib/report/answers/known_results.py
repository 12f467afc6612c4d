"""Whether this run shows what the literature says: one row a published claim, our number, a verdict by a test.

A claim about two arms is decided by the test of that pair (`stages.lib.stats.contrasts.all_pairs`), one about an arm
and a control, or about two numbers of one arm, by their intervals: apart, or not told apart. What this run has no data
for is said to be not testable here, with the reason.
"""

from collections.abc import Callable
from typing import NamedTuple

from stages.lib.report.answers.words import p_text
from stages.lib.report.page import Block, Table, Text
from stages.lib.report.results import SIGNIFICANT, Cell, Results
from stages.lib.stats.equal_l0 import as_text, key

AGREES, DIFFERS, UNDECIDED, UNTESTED = "agrees", "differs", "undecided", "not testable here"
BEYOND, BEYOND_TOKEN = "cc_beyond_ngrams", "cc_beyond_token"
LEAST_SHARE = 0.45
"""Of contextual candidates, which are found to hang on a few tokens (arXiv:2601.05679: 45 to 90 %)."""


class Verdict(NamedTuple):
    """What this run has to say about a claim."""

    here: str
    verdict: str


class Claim(NamedTuple):
    """A published result."""

    number: str
    """In the order of the literature that the project started from, or a letter for what came later."""
    text: str
    source: str
    test: Callable[[Results], Verdict]


def untested(why: str) -> Callable[[Results], Verdict]:
    """The verdict where there are no data."""
    return lambda results: Verdict(why, UNTESTED)  # noqa: ARG005


def lower(metric: str, arm: str, *others: str) -> Callable[[Results], Verdict]:
    """That an arm has a lower value than each of the others at the middle L0."""

    def test(results: Results) -> Verdict:
        pairs = results.compare.get("contrasts", {}).get(key(results.l0), {}).get(metric, {}).get("pairs", {})
        found = []
        for other in others:
            direct, reverse = pairs.get(arm, {}).get(other), pairs.get(other, {}).get(arm)
            if direct is None and reverse is None:
                return Verdict(f"`{arm}` and `{other}` are not both arms of this run", UNTESTED)
            mean, p = (direct["mean"], direct["p"]) if direct else (-reverse["mean"], reverse["p"])
            found.append((other, mean, p))
        text = "; ".join(f"{mean:+.3f} against `{other}` ({p_text(p)})" for other, mean, p in found)
        if all(mean < 0 and p < SIGNIFICANT for _, mean, p in found):
            return Verdict(text, AGREES)
        return Verdict(text, DIFFERS if any(mean > 0 and p < SIGNIFICANT for _, mean, p in found) else UNDECIDED)

    return test


def above(high: Cell | None, low: Cell | None, names: tuple[str, str], digits: int = 3) -> Verdict:
    """That the first number is above the second one: agrees or differs where their intervals do not meet."""
    if high is None or low is None:
        return Verdict(f"{names[0] if high is None else names[1]}: not measured", UNTESTED)
    text = f"{names[0]} {as_text(high, digits)}; {names[1]} {as_text(low, digits)}"
    first, second = ((cell.get("low", cell["mean"]), cell.get("high", cell["mean"])) for cell in (high, low))
    if "low" not in high and "low" not in low:
        return Verdict(text, UNDECIDED)
    return Verdict(text, AGREES if first[0] > second[1] else DIFFERS if first[1] < second[0] else UNDECIDED)


def shrinkage(results: Results) -> Verdict:
    """That ReLU shrinks what it finds, and Gated by less than a tenth of that."""
    found = results.near("evaluate", "relative_bias")
    relu, gated = found.get("relu"), found.get("gated")
    if relu is None or gated is None or "low" not in relu:
        return Verdict("`relu` and `gated` are not both arms of this run, with an interval", UNTESTED)
    text = f"γ: `relu` {as_text(relu)}, `gated` {as_text(gated)}"
    if relu["high"] >= 1:
        return Verdict(text, UNDECIDED)
    return Verdict(text, AGREES if abs(1 - gated["mean"]) < 0.1 * (1 - relu["mean"]) else DIFFERS)


def proxies(results: Results) -> Verdict:
    """That a better FVU goes with a worse coverage somewhere, both told from the reference."""
    fvu, covered = results.difference("fvu"), results.difference(BEYOND)
    both = [arm for arm in results.tested if all("p" in cells.get(arm, {}) for cells in (fvu, covered))]
    if not both:
        return Verdict("no arm was tested in both", UNTESTED)
    clear = [arm for arm in both if fvu[arm]["p"] < SIGNIFICANT and covered[arm]["p"] < SIGNIFICANT]
    against = [arm for arm in clear if fvu[arm]["mean"] * covered[arm]["mean"] > 0]  # a lower FVU is the better one
    text = ", ".join(f"`{arm}` FVU {fvu[arm]['mean']:+.3f}, coverage {covered[arm]['mean']:+.3f}" for arm in clear)
    head = f"{len(against)} of the {len(clear)} arms that differ from `{results.reference}` in both"
    return Verdict(f"{head} differ in opposite senses: {text or 'none differs in both'}",
                   AGREES if against else UNDECIDED)  # fmt: skip


def reproducibility(results: Results) -> Verdict:
    """That the seeds of ReLU agree more than those of TopK, if they were trained at one learning rate."""
    found = results.compare.get("agreement", {}).get("arms", {})
    own = {arm: found.get(arm, {}).get(arm) for arm in ("relu", "topk")}
    if None in own.values():
        return Verdict("`relu` and `topk` are not both arms of this run, with two seeds", UNTESTED)
    rates = results.compare.get("agreement", {}).get("rates", {})
    text = f"MCC of seeds: `relu` {own['relu']:.2f}, `topk` {own['topk']:.2f}"
    if rates.get("relu") != rates.get("topk"):
        return Verdict(f"{text}, at learning rates of their own: `benchmarks.agreement_over_rates` has equal ones",
                       UNTESTED)  # fmt: skip
    return Verdict(text, AGREES if own["relu"] > own["topk"] else DIFFERS)


def local_share(results: Results) -> Verdict:
    """How much of the contextual coverage a table of three tokens explains."""
    cells = results.matched(BEYOND_TOKEN).get(results.reference), results.matched(BEYOND).get(results.reference)
    if cells[0] is None or cells[1] is None or cells[0]["mean"] <= 0:
        return Verdict("contextual coverage was not measured", UNTESTED)
    share = 1 - cells[1]["mean"] / cells[0]["mean"]
    text = f"beyond the token {as_text(cells[0])}, beyond three tokens {as_text(cells[1])}: {share:.0%} is local"
    return Verdict(text, AGREES if share >= LEAST_SHARE else DIFFERS)


def control(metric: str, name: str, label: str) -> Callable[[Results], Verdict]:
    """That the reference arm is above a control in a metric at the middle L0."""

    def test(results: Results) -> Verdict:
        cells = results.matched(metric)
        names = (f"{label}: `{results.reference}`", f"`{name}`")
        return above(cells.get(results.reference), cells.get(name), names)

    return test


def opposite(test: Callable[[Results], Verdict]) -> Callable[[Results], Verdict]:
    """The verdict on the contrary of a claim."""
    turned = {AGREES: DIFFERS, DIFFERS: AGREES}

    def both(results: Results) -> Verdict:
        found = test(results)
        return found._replace(verdict=turned.get(found.verdict, found.verdict))

    return both


def of_reference(stage: str, names: tuple[str, str], labels: tuple[str, str]) -> Callable[[Results], Verdict]:
    """That one number of the reference arm is above another one."""

    def test(results: Results) -> Verdict:
        found = [results.near(stage, name).get(results.reference) for name in names]
        return above(found[0], found[1], labels)

    return test


def below_one(results: Results) -> Verdict:
    """That the best feature of a concept is a worse detector of it than a dense probe."""
    ratio = results.matched("cc_coverage_over_probe").get(results.reference)
    return above(
        {"mean": 1.0}, ratio, ("equality", f"chance-corrected F1 as a share of the probe's, `{results.reference}`")
    )


CLAIMS = [
    Claim("K1", "TopK reconstructs better than ReLU with an L1 penalty at equal L0", "Gao 2024",
          lower("fvu", "topk", "relu")),
    Claim("K2", "BatchTopK reconstructs better than TopK", "Bussmann 2024", lower("fvu", "batch_topk", "topk")),
    Claim("K3", "JumpReLU reconstructs better than Gated and TopK", "Rajamanoharan 2024b",
          lower("fvu", "jump_relu", "gated", "topk")),
    Claim("K4", "Gated removes the shrinkage of ReLU", "Rajamanoharan 2024a", shrinkage),
    Claim("K5", "p-annealing reconstructs better than ReLU", "Karvonen 2024", lower("fvu", "p_anneal", "relu")),
    Claim("K6", "Matryoshka reconstructs worse than BatchTopK", "Bussmann 2025",
          lower("fvu", "batch_topk", "matryoshka")),
    Claim("K7", "A better FVU is no reliable sign of better downstream metrics", "Karvonen 2025 (SAEBench)", proxies),
    Claim("K8", "Features are right near the true L0 and mixed below it", "Chanin 2025",
          untested("the true L0 of a transformer's activations is not known; `synthetic/` has a known one")),
    Claim("K9", "Dictionaries of ReLU are more stable over seeds than those of TopK", "Paulo & Belrose 2025",
          reproducibility),
    Claim("K10", "SAEs of an untrained transformer score like those of a trained one", "Heap 2025",
          opposite(control(BEYOND_TOKEN, "untrained", "contextual F1 beyond the token"))),
    Claim("K11", "SAEs with a random decoder probe like trained ones", "Korznikov 2026",
          opposite(control("probe_k5_auroc", "frozen_decoder", "5-sparse probes, AUROC"))),
    Claim("K12", "TPP and SCR are unreliable", "Chanin 2026", untested("neither is computed")),
    Claim("K13", "Dense features are real, and no residue of training", "Sun 2025",
          untested("no SAE was trained without the space of the dense features")),
    Claim("K14", "Unigram concepts form first while the language model trains", "Ge 2025",
          untested("activations of one trained revision; `model.scratch.revisions` keeps more")),
    Claim("K15", "Integrated gradients predict single ablations better than one gradient", "Marks 2024",
          of_reference("attribution", ("spearman_ig", "spearman"), ("ρ, integrated gradients", "ρ, one gradient"))),
    Claim("K16", "Features detect concepts no better than dense probes", "Kantamneni 2025", below_one),
    Claim("K17", "The SAE's error costs more than a random one of equal norm", "Gurnee 2024",
          of_reference("evaluate", ("delta_ce", "delta_ce_random_error"), ("ΔCE (nats)", "of a random error"))),
    Claim("K18", "Expressive encoders fit superposition noise", "Chanin & Garriga-Alonso 2026",
          untested("no method with a sequential encoder")),
    Claim("a", "What passes for contextual hangs on a few tokens", "arXiv:2601.05679", local_share),
    Claim("b", "Coverage of labelled concepts tells trained from untrained models", "arXiv:2606.24716",
          control(BEYOND, "untrained", "F1 beyond three tokens")),
    Claim("c", "Reseeding the evaluation moves many metrics as much as another SAE does", "Chanin 2026",
          untested("one evaluation seed")),
    Claim("d", "Stable features carry the functional signal", "arXiv:2606.12138",
          untested("stability and effect are not related here")),
]  # fmt: skip


def known_results(results: Results) -> list[Block]:
    """The table of published claims, the verdicts counted above it."""
    found = [(claim, claim.test(results)) for claim in CLAIMS]
    counts = {name: sum(one.verdict == name for _, one in found) for name in (AGREES, DIFFERS, UNDECIDED, UNTESTED)}
    rows = [[claim.number, claim.text, claim.source, one.here, one.verdict] for claim, one in found]
    text = (
        f"Of {len(CLAIMS)} published claims this run agrees with {counts[AGREES]} and differs from {counts[DIFFERS]}; "
        f"undecided by it: {counts[UNDECIDED]}; not testable with it: {counts[UNTESTED]}."
    )
    caption = (
        f"At L0 {results.l0:g}. Two arms: test of all pairs; other numbers: 95 % intervals that do not meet. One small "
        "transformer, one kind of text and one budget: a difference says so much and no more."
    )
    return [Text(text), Table(["", "claim", "source", "here", "verdict"], rows, caption)]
