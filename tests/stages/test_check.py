"""Every section is checked before anything is computed, each mistake in one line that names the key."""

import shutil

import pytest
from ruamel.yaml import YAML

from stages import check
from stages.lib.io.errors import UserError
from stages.lib.run.code import RECORDS, ROOT
from tests.settings import forget_params

yaml = YAML()


REVISIONS = ["main", "untrained"]


@pytest.fixture
def change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)

    def change(path, value):
        document = yaml.load((ROOT / "params.yaml").read_text())
        node = document
        *parents, last = path.split(".")
        for key in parents:
            node = node[key]
        node[last] = value
        with (tmp_path / "params.yaml").open("w") as handle:
            yaml.dump(document, handle)
        forget_params()

    yield change
    forget_params()


def test_the_committed_settings_are_right(change):
    change("corpus.seed", 0)
    assert "train-topk-0" in check.settings()
    check.main()
    assert {path.stem for path in RECORDS.iterdir()} > {"corpus", "train-topk", "report"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trian", {}, "unknown section trian; did you mean 'train'"),
        ("train.d_sea", 4, "unknown key train.d_sea; did you mean 'd_sae'"),
        ("corpus.source", "python_package", "did you mean 'python_packages'"),
        ("corpus.near_copy", 2.0, r"corpus.near_copy is 2.0: input should be less than or equal to 1"),
        ("corpus.python_packages.package", "x", "unknown key corpus.python_packages.package; did you mean 'packages'"),
        ("model.seed", "0", "model.seed is '0': input should be a valid integer"),
        ("tokens.n_ctx", 1, "tokens.n_ctx is 1"),
        ("activations.site", "hook_resid_pots", "hook_resid_post"),
        ("activations.revisions", [], "activations.revisions"),
        ("activations.revisions", [*REVISIONS, "untraind"], "has 'untraind', which model.scratch.revisions lacks; did"),
        ("activations.revisions", [*REVISIONS, "main+blocks.4.hook_mlp_out"], "layer is 4 .*scratch.n_layers = 4"),
        ("saes.topk.l0", [8, 16, 9999], "saes.topk.l0 must be whole numbers between 1 and d_sae = 512, not 9999"),
        ("saes.topk.variant", "tok", "did you mean 'topk'"),
        ("saes.topk.activations", "untraind", "saes.topk.activations is 'untraind'.*did you mean 'untrained'"),
        ("saes.relu.l0", [], "saes.relu.l0"),
        ("train.seeds", [], "train.seeds"),
        ("train.seeds", [0, 0], "train.seeds"),
        ("train.more_seeds", [3, 3], "train.more_seeds is"),
        ("train.more_seeds", [0], "train.more_seeds is"),
        ("train.more_seeds", [-1], "train.more_seeds is"),
        ("train.batch_size", 10_000_000, r"train.batch_size.*activations.n_tokens = \d+"),
        ("train.follow_level", 3, "train.follow_level must be below the 3 levels"),
        ("compare.reference", "tokp", "compare.reference has 'tokp'.*did you mean 'topk'"),
        ("report.arm", "none", "report.arm"),
        ("tokens.n_ctx", 4096, "tokens.n_ctx is 4096.*model.scratch.n_ctx = 128"),
        ("activations.layer", 9, "activations.layer is 9.*model.scratch.n_layers = 4"),
    ],
)
def test_a_mistake_anywhere_is_one_line_that_names_the_key(change, path, value, message):
    change(path, value)
    with pytest.raises(UserError, match=message):
        check.settings()
