"""Question 2: what drives the emergence of concepts?"""

from collections.abc import Mapping, Sequence

import pandas as pd

from stages.lib.report.answers.pooled import pooled
from stages.lib.report.answers.words import absent, listed
from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import SIGNIFICANT, Cell, Results
from stages.lib.stats.equal_l0 import as_text
from stages.lib.stats.intervals import holm

Numbers = Mapping[str, Cell]
MAX_VIF = 5
"""Variance inflation from which a coefficient of the joint model is not told from those of the other properties."""
MAX_NAMES = 12


def drivers(results: Results, times: Mapping[str, pd.DataFrame]) -> list[Block]:
    """Question 2: what drives the emergence of concepts? `times` has a row for each concept and seed, by arm."""
    found = pooled(results, "emergence")
    own = found.get(results.reference, {})
    if "n_emerged" not in own:
        return [absent(f"Emergence of concepts in `{results.reference}`")]
    blocks: list[Block] = [Text(f"**In `{results.reference}`, {_agreement(own)}; {_verdict(own)}**.")]
    if declared(own):
        blocks += [Text(_joint_text(own)), _joint_table(results, found)]
    blocks.append(Text(_count_text(results, times)))
    if any(name.startswith("driver_") for name in own):
        blocks.append(_marginal_table(results, found))
    blocks.append(Note("Control", _control(results, found)))
    caveat = (
        "This is an observation: nothing was intervened on, so a property that goes with the order need not be what "
        "makes it. Ends of the warm-up of the learning rate and of the sparsity lie among the times of emergence, and "
        "a half-rise is told from the end of the same curve. " + _sparsity(results)
    )
    return [*blocks, Note("Caveat", caveat)]


def declared(own: Numbers) -> list[str]:
    """The properties of the joint model."""
    return [name.removeprefix("joint_vif_") for name in own if name.startswith("joint_vif_")]


def clear(own: Numbers, model: str) -> list[str]:
    """The properties whose coefficient in a model differs from 0, Holm-corrected over the properties.

    None unless the model as a whole predicts better than permuted predictors.
    """
    if own.get(f"{model}_p", {"mean": 1.0})["mean"] >= SIGNIFICANT:
        return []
    p = {name: own[f"{model}_{name}_p"]["mean"] for name in declared(own) if f"{model}_{name}_p" in own}
    return [name for name, adjusted in holm(p).items() if adjusted < SIGNIFICANT and f"{model}_{name}" in own]


def established(own: Numbers) -> list[str]:
    """The properties that go with the order of all concepts, and with that of the concepts that emerge."""
    both = {*clear(own, "joint")} & {*clear(own, "joint_emerged")}
    return [name for name in declared(own) if name in both]


def spaced(names: Sequence[str]) -> list[str]:
    """Names of properties as words."""
    return [name.replace("_", " ") for name in names]


def _agreement(own: Numbers) -> str:
    w, p = own.get("kendall_w"), own.get("kendall_w_p")
    if not w or not p:
        return "whether seeds agree on the order in which concepts emerge was not measured"
    word = "agree" if p["mean"] < SIGNIFICANT else "cannot be said to agree"
    return (
        f"seeds {word} on the order in which concepts emerge (Kendall's W {w['mean']:.2f} over the "
        f"{w.get('n', '?')} of {own['n_emerged']['n']} concepts that emerge in each of them, permutation p "
        f"{p['mean']:.2g})"
    )


def _verdict(own: Numbers) -> str:
    if not declared(own):
        return "what goes with that order was not measured"
    names = established(own)
    if not names:
        return (
            f"jointly, of {len(declared(own))} declared properties, no driver is established by this observation, in "
            "which nothing was intervened on"
        )
    return f"jointly, the order goes with {listed(spaced(names))}, an observation in which nothing was intervened on"


def _joint_text(own: Numbers) -> str:
    parts = []
    for model, what in (
        ("joint", "all {n} concepts, those that do not emerge last"),
        ("joint_emerged", "the {n} that emerge in every seed"),
    ):
        if f"{model}_c_index" not in own:
            parts.append(f"{what.format(n='')}: too few families".replace("  ", " "))
            continue
        names = clear(own, model)
        n = own[f"{model}_vif_{declared(own)[0]}"]["n"]
        index = own[f"{model}_c_index"]
        parts.append(
            f"{what.format(n=n)}, {index.get('n', '?')} families: C-index of families left out "
            f"{index['mean']:.2f} (permuted: 95 % below {own[f'{model}_c_index_null']['mean']:.2f}; p "
            f"{own[f'{model}_p']['mean']:.2g}), coefficient other than 0 for {listed(spaced(names))}"
        )
    inflation = {
        name: max(own[f"{m}_vif_{name}"]["mean"] for m in ("joint", "joint_emerged") if f"{m}_vif_{name}" in own)
        for name in declared(own)
    }
    inflated, worst = [name for name, value in inflation.items() if value >= MAX_VIF], max(inflation.values())
    told = f"The largest variance inflation is {worst:.1f}" + (
        f": the effects of {listed(spaced(inflated))} cannot be told apart." if inflated else "."
    )
    return (
        "Rank regression of the place in the order (mean over seeds) on the properties, measured before any SAE was "
        f"trained. Over {'; over '.join(parts)}. A property counts as established if it is there in both, since the "
        f"first also asks whether a concept can be found at all and the second looks at survivors only. {told}"
    )


def _joint_table(results: Results, found: Mapping[str, Numbers]) -> Table:
    names = declared(found[results.reference])
    body = []
    for arm, own in found.items():
        for model, label in (("joint", "all"), ("joint_emerged", "emerged")):
            if f"{model}_p" not in own:
                continue
            marks = clear(own, model)
            cells = [as_text(own.get(f"{model}_{name}"), 2) + ("*" if name in marks else "") for name in names]
            index = f"{own[f'{model}_c_index']['mean']:.2f} (p {own[f'{model}_p']['mean']:.2g})"
            n = f"{own[f'{model}_vif_{names[0]}']['n']} in {own[f'{model}_p'].get('n', '?')}"
            body.append([f"`{arm}`" + (" (control)" if arm in results.controls else ""), label, *cells, index, n])
    caption = (
        "Joint rank regression: standard deviations of place in the order per standard deviation of the property, "
        "below 0 is earlier; 95 % over families of concepts (jackknife); *: p < "
        f"{SIGNIFICANT}, Holm-corrected over the properties of a row. The declared endpoint is `{results.reference}`; "
        "other arms are description."
    )
    return Table(["arm", "concepts", *spaced(names), "C-index", "concepts in families"], body, caption)


def _count_text(results: Results, times: Mapping[str, pd.DataFrame]) -> str:
    """How many concepts emerge, and which of them tell little about learning."""
    reference = results.reference
    counts, total = results.near("emergence", "n_emerged")[reference], pooled(results, "emergence")[reference]
    step = total.get("emergence_step")
    when = f", half of them by step {as_text(step, 0)}" if step else ""
    text = (
        f"{as_text(counts, 1)} of {total['n_emerged']['n']} concepts emerge (persistent half-rise of the "
        f"chance-corrected F1; {results.over}){when}; the others are censored."
    )
    emerged = _in_every_seed(times.get(reference))
    at_start = _at_start(times.get(reference))
    text += f" At half of their final score at step 0 already, in a seed or more: {len(at_start)}, {_names(at_start)}."
    for arm in [arm for arm in results.controls if arm in times]:
        too = {*_in_every_seed(times[arm])}
        shared = [name for name in emerged if name in too]
        text += (
            f" Of the {len(emerged)} that emerge in every seed, {len(shared)} do so in `{arm}` too: {_names(shared)}."
        )
    return text


def _in_every_seed(times: pd.DataFrame | None) -> list[str]:
    if times is None or times.empty:
        return []
    never = times.groupby("concept", sort=False)["censored"].any()
    return [str(name) for name in never.index[~never]]


def _at_start(times: pd.DataFrame | None) -> list[str]:
    if times is None or times.empty:
        return []
    return [str(name) for name in times.loc[times["at_start"], "concept"].drop_duplicates()]


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return listed(names) if not more else ", ".join(f"`{name}`" for name in names[:MAX_NAMES]) + more


def _marginal_table(results: Results, found: Mapping[str, Numbers]) -> Table:
    metrics = list(dict.fromkeys(
        name for own in found.values() for name in own if name.startswith("driver_") and not name.endswith("_p")
    ))  # fmt: skip
    p = {f"{arm} {name}": own[f"{name}_p"]["mean"]
         for arm, own in found.items() for name in metrics if f"{name}_p" in own}  # fmt: skip
    adjusted = holm(p)
    body = []
    for arm, own in found.items():
        cells = [
            as_text(own.get(name), 2) + ("*" if adjusted.get(f"{arm} {name}", 1.0) < SIGNIFICANT else "")
            for name in metrics
        ]
        if any(name in own for name in metrics):
            body.append([f"`{arm}`" + (" (control)" if arm in results.controls else ""), *cells])
    caption = (
        "One property at a time, as description: Spearman's ρ of place in the order (all concepts, those that do not "
        "emerge last) and property; 95 % over families of concepts (jackknife). *: p < "
        f"{SIGNIFICANT}, Holm-corrected over the {len(p)} cells (arms × properties). Properties go together, so a mark "
        "here establishes no driver."
    )
    return Table(["arm", *spaced([name.removeprefix("driver_") for name in metrics])], body, caption)


def _control(results: Results, found: Mapping[str, Numbers]) -> str:
    counts = results.near("emergence", "n_emerged")
    parts = []
    for arm in [arm for arm in results.controls if arm in counts]:
        names = clear(found[arm], "joint") if arm in found else []
        parts.append(f"`{arm}` {as_text(counts[arm], 1)} (all concepts, jointly: {listed(spaced(names))})")
    return (
        f"concepts that emerge in the controls, and what goes with their order: {'; '.join(parts) or 'not measured'}. "
        "A property that orders the concepts of a control as well says how easily a concept is detected, not how an "
        "SAE learns it."
    )


def _sparsity(results: Results) -> str:
    outside = results.near("emergence", "l0_outside_fraction")
    off = [arm for arm in results.arms if arm in outside and outside[arm]["mean"] > 0]
    if not outside:
        return "Whether L0 is constant over training was not measured."
    if not off:
        return "At every checkpoint of every arm L0 is that of the last one, within the tolerance."
    shares = ", ".join(f"`{arm}` {outside[arm]['mean']:.0%}" for arm in off)
    return f"Checkpoints whose L0 is not that of the last one, so that their scores are not comparable: {shares}."
