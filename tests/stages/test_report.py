"""The report: text that follows the numbers, and the whole stage on a made-up tree."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from stages import compare, report
from stages.lib.io.errors import UserError
from stages.lib.io.files import sha256
from stages.lib.report.answers import (
    activation_functions,
    emergence,
    frequency,
    interpretability,
    setting,
    structure,
    training,
)
from stages.lib.report.answers.words import listed
from stages.lib.report.contexts import strongest_rows
from stages.lib.report.results import Results, sign
from stages.lib.sae.saved import load_sae
from tests import fake_tree
from tests.settings import working_directory, write_params


@pytest.fixture(scope="module")
def inside(shared_project: Path) -> Path:
    """The made-up tree, with what compare and report made of it, as the working directory; no test changes it."""
    fake_tree.write_all()
    compare.main()
    report.main()
    return shared_project


@pytest.fixture
def copy(inside: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it as the working directory, for a test that changes files or runs the stage again."""
    with working_directory(shutil.copytree(inside, tmp_path / "copy")) as directory:
        yield directory


def test_page_answers_the_five_questions_in_order_and_needs_nothing_else(inside: Path) -> None:
    html = Path("reports/report.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert [heading[0] for heading in headings[:5]] == list("12345")
    assert "http" not in html
    assert html.count("data:image/png;base64,") == html.count("<img") == 11
    for block in ("<b>Control:</b>", "<b>Caveat:</b>"):
        assert html.count(block) >= 5
    assert "95 % over 3 SAE seeds, one LM" in html


def test_markdown_refers_to_figures_that_exist(inside: Path) -> None:
    text = Path("reports/report.md").read_text()
    pictures = re.findall(r"\((figures/\w+\.png)\)", text)
    assert len(pictures) == 11
    assert all((Path("reports") / picture).read_bytes()[:4] == b"\x89PNG" for picture in pictures)


def test_metrics_are_grouped_by_metric(inside: Path) -> None:
    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert set(metrics) == {"fvu", "cc_coverage", "delta_ce"}
    assert metrics["fvu"]["topk"] == pytest.approx(fake_tree.fvu("topk", 1, 1), rel=0.01)


def test_same_bytes_twice(copy: Path) -> None:
    def everything() -> dict[str, str]:
        return {str(path): sha256(path) for path in sorted(Path("reports").rglob("*.*"))}

    first = everything()
    report.main()
    assert everything() == first


def test_contexts_are_shaded_where_the_feature_fires(inside: Path) -> None:
    html = Path("reports/report.html").read_text()
    assert html.count('<div class="passage">') == 3 * 2
    assert "rgba(230,120,20,1.00)" in html


def results(**changes: object) -> Results:
    return report.read_results(report.settings())._replace(**changes)


def text_of(blocks: list[object]) -> str:
    return " ".join(getattr(block, "text", "") for block in blocks)


def test_words_follow_the_numbers(inside: Path) -> None:
    own = results()
    assert "lowest for `topk`" in text_of(activation_functions.fidelity(own))
    swapped = json.loads(json.dumps(own.compare))
    cells = swapped["matched"]["l0-8"]["fvu"]
    cells["topk"], cells["relu"] = cells["relu"], cells["topk"]
    assert "lowest for `relu`" in text_of(activation_functions.fidelity(own._replace(compare=swapped)))
    contrast = swapped["agreement"]["contrast"]
    contrast["p"] = 0.01
    contrast["difference"] = 0.1
    swapped["agreement"]["arms"] = {"relu": {"relu": 0.6, "topk": 0.5}, "topk": {"topk": 0.55}}
    assert "the arm does change which features" in text_of(activation_functions.fidelity(own._replace(compare=swapped)))
    swapped["agreement"]["arms"] = {"relu": {"relu": 0.6, "topk": 0.58}, "topk": {"topk": 0.5}}
    text = text_of(activation_functions.fidelity(own._replace(compare=swapped)))
    assert "`topk` agrees with itself (0.500) less than with `relu` (0.580): arms differ in how reproducible" in text
    contrast["p"] = 0.6
    assert "no more, as far as can be told" in text_of(activation_functions.fidelity(own._replace(compare=swapped)))


def test_drivers_are_established_only_by_their_intervals(inside: Path) -> None:
    own = results()
    assert "the interval excludes 0 for `separability`" in text_of(emergence.drivers(own))
    rows = own.rows["emergence"].copy()
    rows.loc[rows["metric"] == "driver_separability", "high"] = 0.2
    own = own._replace(rows=own.rows | {"emergence": rows})
    assert "no driver is established" in text_of(emergence.drivers(own))


def test_frequency_verdict_uses_the_thresholds_of_reliability(inside: Path) -> None:
    own = results()
    rows = own.rows["frequency"]
    icc = rows.assign(metric="split_half_icc", value=0.95)
    with_icc = own._replace(rows=own.rows | {"frequency": pd.concat([rows, icc])})
    text = text_of(frequency.frequency(with_icc))
    assert "the firing rate is reliable (split-half ICC 0.950" in text
    assert "frequent features are the more specialised" in text
    assert "the relation is also present, with the same sign, in `frozen_decoder` and `untrained`" in text
    poor = own._replace(rows=own.rows | {"frequency": pd.concat([rows, icc.assign(value=0.5)])})
    assert "is not reliable (split-half" in text_of(frequency.frequency(poor))


def test_what_was_not_measured_is_said(inside: Path) -> None:
    nothing = {name: rows.iloc[:0] for name, rows in results().rows.items()}
    own = results(rows=nothing)
    for blocks in (
        emergence.drivers(own),
        frequency.frequency(own),
        training.training(own),
        structure.attribution(own),
    ):
        assert "not measured in this run" in text_of(blocks)
    assert "Clusters of decoder directions: not measured" in text_of(structure.clusters(own, {}))
    empty = {name: {} for name in own.compare} | {"agreement": {"arms": {}, "random": {"mean": 0.3, "n": 3}}}
    assert "FVU at L0 8: not measured" in text_of(activation_functions.fidelity(own._replace(compare=empty)))
    assert "Concept coverage at L0 8: not measured" in text_of(
        interpretability.interpretability(own._replace(compare=empty))
    )


def test_sign_by_hand() -> None:
    assert sign({"mean": 1.0, "low": 0.1, "high": 2.0}) == 1
    assert sign({"mean": -1.0, "low": -2.0, "high": -0.1}) == -1
    assert sign({"mean": 1.0, "low": -0.1, "high": 2.0}) == 0
    assert sign({"mean": 1}) == 0


def test_names_in_a_sentence() -> None:
    assert listed([]) == "none"
    assert listed(["a"]) == "`a`"
    assert listed(["a", "b", "c"]) == "`a`, `b` and `c`"


def test_model_of_unknown_loss(inside: Path) -> None:
    corpus, tokens = (json.loads(Path(f"data/{n}/{n}.json").read_text()) for n in ("corpus", "tokens"))
    blocks = setting.setting({"source": "pretrained", "name": "gpt2"}, corpus, tokens)
    assert "Language model: pretrained gpt2; its held-out loss is not recorded." in text_of(blocks)


def test_what_was_left_out_is_said(inside: Path) -> None:
    corpus, tokens = (json.loads(Path(f"data/{n}/{n}.json").read_text()) for n in ("corpus", "tokens"))
    corpus["dropped"] = {"short": 1145, "near_copy": 2}
    tokens["splits"]["test"]["dropped"] = {"empty": 0, "not_drawn": 7}
    said = text_of(setting.setting({"source": "pretrained", "name": "gpt2"}, corpus, tokens))
    assert "Documents left out: 2 near copy, 1,145 short, 7 not drawn (test)." in said


def test_summary_box_names_every_arm(inside: Path) -> None:
    box = report.summary_box(results())
    assert len(box) == 2 + 1 + 4
    assert re.search(r"topk +0\.2\d\d +8\.\d +2\.0%", "\n".join(box))


def test_settings_refuse_what_is_unknown(project: Path) -> None:
    write_params(fake_tree.PARAMS.replace("arm: topk", "arm: tokp"))
    with pytest.raises(UserError, match=r"report.arm is 'tokp', which is no arm of saes; did you mean 'topk'"):
        report.settings()
    write_params(fake_tree.PARAMS.replace("headline: [fvu", "headline: [fuv"))
    with pytest.raises(
        UserError, match=r"report.headline has 'fuv', which is not in compare.metrics; did you mean 'fvu'"
    ):
        report.settings()


def test_a_missing_table_names_the_remedy(copy: Path) -> None:
    Path("data/compare/shared.parquet").unlink()
    with pytest.raises(UserError, match=r"data/compare/shared.parquet is missing; `dvc checkout`"):
        report.main()


def test_strongest_rows_agree_with_a_full_sort(inside: Path) -> None:
    sae = load_sae(Path("data/train/topk/seed-0/level-1"))
    x = torch.randn(50, fake_tree.D_IN, generator=torch.Generator().manual_seed(0))
    features = torch.tensor([3, 5])
    values, rows = strongest_rows(x.split(7), sae, features, 6)
    acts = sae.encode(x)[:, features].T
    assert torch.allclose(values, acts.topk(6, dim=1).values, atol=1e-6)
    assert torch.allclose(acts.gather(1, rows), values, atol=1e-6)
