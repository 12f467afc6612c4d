"""`dvc.yaml` says what the code does: the record of code and the settings of a stage, and what a change re-runs."""

import inspect
import shutil
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from stages import check
from stages.lib.io import params, plugins
from stages.lib.run.closure import records
from stages.lib.run.code import RECORDS, ROOT
from tests.settings import forget_params


@cache
def stages() -> dict[str, Any]:
    """DVC's own stages, with all templates resolved, by name."""
    return {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages}


def of_python() -> list[str]:
    """The stages that run a module of ours."""
    return [name for name, stage in stages().items() if stage.cmd.startswith("python -m stages ")]


def module_and_arguments(name: str) -> tuple[str, list[str]]:
    _, _, _, module, *arguments = stages()[name].cmd.split()
    return module, arguments


def dependencies(name: str) -> set[str]:
    return {dep.def_path for dep in stages()[name].deps if not hasattr(dep, "params")}


def declared(name: str) -> set[str]:
    """The paths of params.yaml that a stage lists."""
    return {path for dep in stages()[name].deps if hasattr(dep, "params") for path in dep.params}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    forget_params()


@cache
def recorded() -> dict[str, Any]:
    """The record of code of every stage, as `check` would write it."""
    methods = {arm: section["variant"] for arm, section in params.value("saes").items()}
    chosen = {"sources": params.value("corpus.source"), "models": params.value("model.source")}
    return records([f"stages.{stage}" for stage in check.stage_names()], chosen, methods)


@pytest.mark.parametrize("name", of_python())
def test_a_stage_depends_on_its_record_of_code_and_lists_no_code(name: str) -> None:
    module, arguments = module_and_arguments(name)
    paths = dependencies(name)
    if module == "check":  # it runs every stage's settings and reads every file, so it depends on the whole folder
        assert paths == {"params.yaml", "requirements.txt", "stages"}
        return
    own = {path for path in paths if path.startswith(RECORDS.as_posix())}
    record = f"{module}-{arguments[0]}" if module == "train" else module
    assert own == {f"{RECORDS.as_posix()}/{record}.json"}
    assert record in recorded()
    assert not [path for path in paths if path.endswith(".py") or path.startswith("stages")]


def test_every_record_is_some_stage_s() -> None:
    listed = {Path(path).stem for name in of_python() for path in dependencies(name) if path.endswith(".json")}
    assert listed == set(recorded())


def test_an_arm_s_record_has_its_own_method_and_no_other() -> None:
    for arm, section in params.value("saes").items():
        files = recorded()[f"train-{arm}"]["files"]
        assert [file for file in files if file.startswith("stages/saes/")] == [f"stages/saes/{section['variant']}.py"]


@pytest.mark.parametrize("source", plugins.names("sources"))
@pytest.mark.parametrize("model", plugins.names("models"))
def test_every_choice_of_plug_ins_can_be_recorded(source: str, model: str) -> None:
    made = records(["stages.corpus", "stages.model"], {"sources": source, "models": model}, {})
    assert f"stages/sources/{source}.py" in made["corpus"]["files"]
    assert f"stages/models/{model}.py" in made["model"]["files"]


@pytest.mark.parametrize("method", plugins.names("saes"))
def test_every_method_can_be_recorded(method: str) -> None:
    assert f"stages/saes/{method}.py" in records(["stages.train"], {}, {"arm": method})["train-arm"]["files"]


def test_plotting_packages_are_the_report_s_alone() -> None:
    for name, record in recorded().items():
        assert ("matplotlib" in record["packages"]) == (name == "report")


def test_packages_are_empty_so_that_importing_one_imports_nothing_else() -> None:
    for path in (ROOT / "stages").rglob("__init__.py"):
        assert path.read_text() == ""


@pytest.mark.parametrize("name", of_python())
def test_a_stage_reads_exactly_the_settings_it_declares(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, arguments = module_and_arguments(name)
    if module == "check":
        assert declared(name) == set()
        return
    real, read = params.value, set()

    def value(path: str) -> Any:
        read.add(path)
        return real(path)

    for loaded in [params, *(import_module(f"stages.{stage}") for stage in check.stage_names())]:
        if getattr(loaded, "value", None) is real:
            monkeypatch.setattr(loaded, "value", value)
    function = import_module(f"stages.{module}").settings
    function(*arguments[: len(inspect.signature(function).parameters)])
    assert read == declared(name)


def test_every_stage_of_the_folder_is_in_the_graph_and_takes_what_it_is_given() -> None:
    run = {module_and_arguments(name)[0] for name in of_python()}
    assert run == {*check.stage_names(), "check"}
    for name in of_python():
        module, arguments = module_and_arguments(name)
        assert len(inspect.signature(import_module(f"stages.{module}").main).parameters) == len(arguments)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with its lock file, as a fresh clone has it: without cached data."""
    target = tmp_path_factory.mktemp("clone")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    return target


def test_the_lock_file_is_what_the_committed_code_gives(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    with Repo() as repo:
        assert not repo.reproduce(dry=True, allow_missing=True)
