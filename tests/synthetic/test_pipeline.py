"""`synthetic/dvc.yaml` says what its code does, and a small run of it finds a dictionary that is easy to find."""

import json
import shutil
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo

from stages import train
from stages.lib.activations.store import open_store
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.run.closure import closure, records
from stages.lib.run.code import RECORDS, ROOT
from synthetic import baseline, check, generate, score
from synthetic.truth import REVISION, load_codes, load_truth
from tests import toy
from tests.settings import forget_params

SYNTHETIC = ROOT / "synthetic"
RUN = ["env", "PYTHONPATH=..", "python", "-m"]


@cache
def stages() -> dict[str, Any]:
    """DVC's own stages of this project, with all templates resolved, by name."""
    found = Repo(str(SYNTHETIC)).index.stages
    return {stage.addressing.rpartition(":")[2]: stage for stage in found}  # the file goes before it elsewhere


def module_and_arguments(name: str) -> tuple[str, list[str]]:
    module, *arguments = stages()[name].cmd.split()[len(RUN) :]
    if module == "stages":  # which starts a stage of the main pipeline
        return f"stages.{arguments[0]}", arguments[1:]
    return module, arguments


def dependencies(name: str) -> set[str]:
    """The paths that a stage lists."""
    return {dep.def_path for dep in stages()[name].deps if not hasattr(dep, "params")}


def declared(name: str) -> set[str]:
    return {path for dep in stages()[name].deps if hasattr(dep, "params") for path in dep.params}


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(SYNTHETIC)
    forget_params()
    yield
    forget_params()


def test_every_stage_runs_a_module_of_its_own_but_train() -> None:
    assert all(stage.cmd.split()[: len(RUN)] == RUN for stage in stages().values())
    assert {module_and_arguments(name)[0] for name in stages()} == {"synthetic.check", *check.STAGES}
    programs = {f"synthetic.{path.stem}" for path in SYNTHETIC.glob("*.py") if "__main__" in path.read_text()}
    assert programs == {module_and_arguments(name)[0] for name in stages()} - {"stages.train"}


@pytest.mark.parametrize("name", sorted({*stages()} - {"check"}))
def test_a_stage_depends_on_its_record_of_code_and_lists_no_code(name: str, inside: None) -> None:
    module, arguments = module_and_arguments(name)
    record = f"train-{arguments[0]}" if module == "stages.train" else module.rpartition(".")[2]
    assert {path for path in dependencies(name) if path.startswith("data/check")} == {f"{RECORDS}/{record}.json"}
    assert not [path for path in dependencies(name) if path.endswith(".py")]
    assert (SYNTHETIC / RECORDS / f"{record}.json").is_file()


def test_the_records_are_those_of_the_code(inside: None) -> None:
    methods = {arm: section["variant"] for arm, section in params.value("saes").items()}
    made = records(check.STAGES, {}, methods)
    assert made == {path.stem: json.loads(path.read_text()) for path in (SYNTHETIC / RECORDS).iterdir()}


def test_programs_import_no_other_program() -> None:
    programs = {f"synthetic.{path.stem}" for path in SYNTHETIC.glob("*.py") if "__main__" in path.read_text()}
    for name in programs - {"synthetic.check"}:
        files = {path.stem for path in closure(name, {}) if path.parent == SYNTHETIC}
        assert files & {program.rpartition(".")[2] for program in programs} == {name.rpartition(".")[2]}


def test_each_arm_is_trained_on_what_is_generated(inside: None) -> None:
    assert {section["activations"] for section in params.value("saes").values()} == {REVISION}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("train", "d_sae"), 0, r"train\.d_sae is 0: input should be greater than 0"),
        (("saes", "topk", "l0"), [999], r"saes\.topk\.l0 must be whole numbers between 1 and d_sae = 256, not 999"),
        (("generate", "l0"), -1.0, r"generate\.l0 is -1\.0"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_made(
    path: tuple[str, ...], value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = toy.yaml.load((SYNTHETIC / "params.yaml").read_text())
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with (tmp_path / "params.yaml").open("w") as handle:
        toy.yaml.dump(document, handle)
    monkeypatch.chdir(tmp_path)
    forget_params()
    with pytest.raises(UserError, match=message):
        check.settings()
    forget_params()


@pytest.mark.parametrize("name", sorted({*stages()} - {"check"}))
def test_a_stage_reads_exactly_the_settings_it_declares(
    name: str, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, arguments = module_and_arguments(name)
    real, read = params.value, set()

    def value(path: str) -> Any:
        read.add(path)
        return real(path)

    monkeypatch.setattr(params, "value", value)
    import_module(module).settings(*(arguments if module == "stages.train" else ()))
    assert read == declared(name)


def test_every_setting_is_read(inside: None) -> None:
    read = {path for name in stages() for path in declared(name)}
    for section, content in params.document().items():
        if section not in read:
            assert {f"{section}.{name}" for name in content} <= read


def test_the_lock_file_is_what_the_committed_code_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in toy.files():  # without cached data, as a fresh clone is
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path / "synthetic")
    with Repo() as repo:
        assert [stage.addressing for stage in repo.reproduce(dry=True, allow_missing=True)] == ["check"]


# In 16 dimensions 16 features, two at once: almost orthogonal, so that 16 learned ones can be all of them.
EASY: dict[str, Any] = {
    "generate.d_in": 16, "generate.n_features": 16, "generate.coherence_steps": 400, "generate.l0": 2.0,
    "generate.zipf": 0.2, "generate.correlation": None, "generate.magnitudes": [0.8, 1.0],
    "generate.hierarchy": {"n_parents": 2, "n_children": 2, "p_child": 0.5}, "generate.n_train": 60000,
    "generate.n_validation": 4000, "generate.n_test": 20000, "generate.shard_rows": 9000,
    "train.seeds": [0, 1], "train.d_sae": 16, "train.epochs": 3, "train.batch_size": 256, "train.follow_level": 0,
    "train.dead_tokens": 4000, "report.l0": 2.5,
}  # fmt: skip
K = {"topk": [2, 3], "frozen_decoder": [2, 3]}


def make(directory: Path) -> Path:
    """A copy of the project whose benchmark is small and easy."""
    for name in toy.files():
        if not name.startswith(("synthetic/reports/", "synthetic/dvc.lock")):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    shutil.copy2(directory / "params.yaml", directory / "main.yaml")
    path = directory / "synthetic/params.yaml"
    document = toy.yaml.load(path.read_text())
    for dotted, value in EASY.items():
        section, key = dotted.split(".")
        document[section][key] = value
    for arm in list(document["saes"]):
        if arm not in K:
            del document["saes"][arm]
    for arm, levels in K.items():
        document["saes"][arm].pop("l0", None)
        document["saes"][arm]["k"] = levels
    with path.open("w") as handle:
        toy.yaml.dump(document, handle)
    subprocess.run(["git", "init", "-q"], cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy after one `dvc repro` in its folder `synthetic`."""
    directory = make(tmp_path_factory.mktemp("synthetic"))
    done = toy.run(directory / "synthetic", "dvc", "repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return directory


def scores(directory: Path, arm: str, metric: str, level: int = 0) -> list[float]:
    seeds = json.loads((directory / f"synthetic/reports/score/{arm}.json").read_text())[metric][f"level-{level}"]
    return [cell["value"] for cell in seeds.values()]


@pytest.mark.slow
def test_an_easy_dictionary_is_recovered_and_a_random_one_is_at_chance(finished: Path) -> None:
    levels = json.loads((finished / "synthetic/reports/baseline.json").read_text())
    random, truth = levels["random"]["mcc"], levels["truth"]
    assert truth["l0"] == pytest.approx(2.0, abs=0.05) and truth["expected_l0"] == pytest.approx(2.0)
    assert truth["fvu"] < 0.05
    assert min(scores(finished, "topk", "mcc")) > 0.75 > random["mean"] + 10 * random["sd"]
    # Parents and children are mixed up, since one feature for both costs less of the k; the others are found.
    features = pd.read_parquet(finished / "synthetic/data/score/topk/features.parquet")
    independent = features[(features["role"] == "independent") & (features["level"] == 0)]
    assert independent["best_cosine"].min() > 0.9 and independent["f1"].mean() > 0.7
    for frozen, start in zip(scores(finished, "frozen_decoder", "mcc"), scores(finished, "topk", "mcc_initial"),
                             strict=True):  # fmt: skip
        assert frozen == pytest.approx(start, abs=1e-3)  # the start is kept in half precision
        assert abs(frozen - random["mean"]) < 3 * random["sd"]
    assert max(scores(finished, "topk", "fvu")) < min(scores(finished, "frozen_decoder", "fvu"))
    assert scores(finished, "topk", "l0", 1) == pytest.approx([3, 3], abs=0.3)


@pytest.mark.slow
def test_tables_hold_a_row_a_feature_and_agree_with_the_summary(finished: Path) -> None:
    features = pd.read_parquet(finished / "synthetic/data/score/topk/features.parquet")
    assert len(features) == 2 * 2 * 16 and features["role"].value_counts().to_dict() == {
        "independent": 40, "child": 16, "parent": 8
    }  # fmt: skip
    first = features[(features["level"] == 0) & (features["seed"] == 0)]
    assert first["cosine"].mean() == pytest.approx(scores(finished, "topk", "mcc")[0], abs=1e-5)
    assert first["f1"].mean() == pytest.approx(scores(finished, "topk", "matched_f1")[0], abs=1e-5)
    children = pd.read_parquet(finished / "synthetic/data/score/topk/children.parquet")
    assert set(children["child"]) <= set(features[features["role"] == "child"]["feature"])


@pytest.mark.slow
def test_the_page_names_every_arm_and_both_levels(finished: Path) -> None:
    page = (finished / "synthetic/reports/recovery.md").read_text()
    for name in (*K, "*random directions*", "*the truth*", "as chance allows", "](./recovery.png)"):
        assert name in page
    assert (finished / "synthetic/reports/recovery.png").read_bytes()[1:4] == b"PNG"
    table = pd.read_csv(finished / "synthetic/reports/recovery.csv")
    assert set(table["arm"]) == set(K) and set(table["seed"]) == {0, 1}


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do_and_leaves_the_main_pipeline_alone(finished: Path) -> None:
    done = toy.run(finished / "synthetic", "dvc", "repro")
    assert [line for line in done.stdout.splitlines() if line.startswith("Running")] == ["Running stage 'check':"]
    assert not (finished / "data/activations").exists() and not (finished / "data/train").exists()
    assert (finished / "params.yaml").read_bytes() == (finished / "main.yaml").read_bytes()


def small(monkeypatch: pytest.MonkeyPatch, directory: Path, **changes: Any) -> None:
    """A working directory in which `synthetic.generate` makes little."""
    raw = toy.yaml.load((SYNTHETIC / "params.yaml").read_text())
    for dotted, value in EASY.items():
        section, key = dotted.split(".")
        raw[section][key] = value
    raw["generate"] |= {"n_train": 1000, "n_validation": 130, "n_test": 250, "shard_rows": 300, **changes}
    raw["saes"] = {arm: {**raw["saes"][arm], "k": levels, "l0": None} for arm, levels in K.items()}
    directory.mkdir()
    with (directory / "params.yaml").open("w") as handle:
        toy.yaml.dump(raw, handle)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("DVC_ROOT", str(directory))
    monkeypatch.setattr(generate, "BLOCK", 100)
    forget_params()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for folder in ("activations", "truth")
        for path in sorted((directory / "data" / folder).rglob("*.*"))
    }


def test_killed_and_started_again_it_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, tmp_path / "whole")
    generate.main()
    small(monkeypatch, tmp_path / "killed")
    monkeypatch.setattr(generate, "RECORD_BLOCKS", 2)
    real, calls = generate.mix, []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(generate, "mix", stops)
    with pytest.raises(KeyboardInterrupt):
        generate.main()
    n_before = len(calls)
    generate.main()
    assert len(calls) - n_before == 10 + 2 + 3 - 6  # 6 blocks were recorded, the seventh was not
    forget_params()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not [*(tmp_path / "killed/data/.resume/generate").iterdir()]


def test_store_truth_and_codes_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, tmp_path / "run")
    generate.main()
    forget_params()
    store, directory = open_store(REVISION, verify=("train", "test")), Path("data/truth") / REVISION
    truth = load_truth(directory)
    assert {split: store.n_rows(split) for split in ("train", "validation", "test")} == {
        "train": 1000, "validation": 130, "test": 250
    }  # fmt: skip
    codes = np.concatenate([load_codes(directory, block).numpy() for block in range(3)])
    error = store.rows("test", 0, 250).numpy() - codes @ truth.dictionary.numpy()
    assert error.std() == pytest.approx(0.05, rel=0.1)
    train = store.rows("train", 0, 250)
    assert not np.allclose(train.numpy(), store.rows("test", 0, 250).numpy())  # streams of their own


def test_features_without_parents_have_everything_but_absorption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, tmp_path / "run", hierarchy=None)
    monkeypatch.setattr(score, "BLOCK", 100)
    monkeypatch.setattr(baseline, "BLOCK", 100)
    generate.main()
    baseline.main()
    for seed in ("0", "1"):
        train.main("topk", seed)
    score.main("topk")
    forget_params()
    found = json.loads(Path("reports/score/topk.json").read_text())
    assert {"mcc", "fvu", "matched_f1", "recovered_decile_10_fraction"} < set(found)
    assert not {name for name in found if name.startswith(("absor", "parents", "children"))}
    assert len(pd.read_parquet("data/score/topk/children.parquet")) == 0
    assert set(pd.read_parquet("data/score/topk/features.parquet")["role"]) == {"independent"}
