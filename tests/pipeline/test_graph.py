"""`dvc.yaml` says what the code does: the files a stage imports, the settings it reads, what a change re-runs."""

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
from tests.closure import ROOT, closure


@cache
def stages() -> dict[str, Any]:
    """DVC's own stages, with all templates resolved, by name."""
    return {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages}


def of_python() -> list[str]:
    """The stages that run a module of ours."""
    return [name for name, stage in stages().items() if stage.cmd.startswith("python -m stages.")]


def module_and_arguments(name: str) -> tuple[str, list[str]]:
    _, _, module, *arguments = stages()[name].cmd.split()
    return module.removeprefix("stages."), arguments


def dependencies(name: str) -> set[str]:
    return {dep.def_path for dep in stages()[name].deps if not hasattr(dep, "params")}


def declared(name: str) -> set[str]:
    """The paths of params.yaml that a stage lists."""
    return {path for dep in stages()[name].deps if hasattr(dep, "params") for path in dep.params}


def chosen(folder: str) -> str:
    return {"sources": params.value("corpus.source"), "models": params.value("model.source")}[folder]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params._document.cache_clear()


@pytest.mark.parametrize("name", of_python())
def test_a_stage_depends_on_exactly_the_files_it_imports(name: str) -> None:
    module, _ = module_and_arguments(name)
    listed = {path for path in dependencies(name) if path.endswith(".py") and path.startswith("stages/")}
    if module == "check":  # it runs every stage's settings, so it depends on the whole folder
        assert dependencies(name) == {"stages"}
        return
    imported = {path.relative_to(ROOT).as_posix() for path in closure(ROOT / "stages" / f"{module}.py")}
    for folder in ("sources", "models"):
        others = {f"stages/{folder}/{other}.py" for other in plugins.names(folder) if other != chosen(folder)}
        if any(path.startswith(f"stages/{folder}/") for path in imported):
            alone = {
                path.relative_to(ROOT).as_posix() for path in closure(ROOT / f"stages/{folder}/{chosen(folder)}.py")
            }
            rest = closure_without(module, folder)
            imported = (imported - others) & (alone | rest)
    # An arm's own file reaches its training through the stage `method`; what the files share is listed.
    methods = {path for path in imported if path.startswith("stages/saes/")}
    if methods:
        assert f"data/method/{module_and_arguments(name)[1][0]}.py" in dependencies(name)
    assert listed == imported - methods


def closure_without(module: str, folder: str) -> set[str]:
    """What a stage imports, apart from the plug-ins of a folder and what only they import."""
    seen: set[Path] = set()
    todo = [ROOT / "stages" / f"{module}.py"]
    from tests.closure import imports

    while todo:
        file = todo.pop()
        if file not in seen and file.parent.name != folder:
            seen.add(file)
            todo.extend(imports(file))
    return {path.relative_to(ROOT).as_posix() for path in seen}


def test_packages_are_empty_so_that_importing_one_imports_nothing_else() -> None:
    for path in (ROOT / "stages").rglob("__init__.py"):
        assert path.read_text() == ""


def test_each_arm_depends_on_the_file_of_its_own_method() -> None:
    for arm, section in params.value("saes").items():
        assert dependencies(f"method@{arm}") == {f"stages/saes/{section['variant']}.py"}


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
    import_module(f"stages.{module}").settings(*arguments)
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
