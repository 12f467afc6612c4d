"""The report: text that follows the numbers, and the whole stage on a made-up tree."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages import compare, report
from stages.lib.io.errors import UserError
from stages.lib.io.files import sha256
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
    return replace(report.read_results(report.settings()), **changes)


def test_sign_by_hand() -> None:
    assert sign({"mean": 1.0, "low": 0.1, "high": 2.0}) == 1
    assert sign({"mean": -1.0, "low": -2.0, "high": -0.1}) == -1
    assert sign({"mean": 1.0, "low": -0.1, "high": 2.0}) == 0
    assert sign({"mean": 1}) == 0


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
