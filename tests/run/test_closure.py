"""The import closure in a small tree of files, and what is recorded of it."""

import json
from pathlib import Path

import numpy
import pytest

from stages.lib.io.errors import UserError
from stages.lib.run import closure, code

FILES = {
    "stages/first.py": "import json\nfrom stages.lib.room import used\nfrom stages.lib.io import plugins\n"
    "def main():\n    import numpy.linalg\n    return plugins.load('saes', 'x', 'setting')\n",
    "stages/second.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import httpx2, stages.first\n"
    "else:\n    import sklearn.cluster\n",
    "stages/lib/room/used.py": "from stages.lib.room.deeper import value\n",
    "stages/lib/room/deeper.py": "value = 1\n",
    "stages/lib/room/unused.py": "import pandas\n",
    "stages/lib/room/__init__.py": "",
    "stages/lib/io/plugins.py": "def load(folder, name, setting):\n    ...\n",
    "stages/saes/one.py": "import stages.lib.room.unused\n",
    "stages/saes/two.py": "import torch\n",
    "requirements.txt": "# exact\nnumpy==NUMPY\nscikit-learn==1.9.1   # as sklearn\n-r other.txt\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace("NUMPY", numpy.__version__))
    for module in (code, closure):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(code, "relative", lambda path: path.relative_to(tmp_path).as_posix())
    monkeypatch.setattr(closure, "relative", code.relative)
    monkeypatch.setattr(closure, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.chdir(tmp_path)
    clear()
    yield tmp_path
    clear()


READERS = (code.tree, code.syntax_hash, closure._named, closure._modules)
"""What keeps files in memory."""


def clear() -> None:
    for function in (*READERS, closure.imports, closure.pins, closure.pinned):
        function.cache_clear()


def names(files: set[Path]) -> set[str]:
    return {code.relative(path) for path in files}


OF_FIRST = {"stages/first.py", "stages/lib/room/used.py", "stages/lib/room/deeper.py", "stages/lib/io/plugins.py"}


def test_a_closure_has_what_is_imported_wherever_it_stands_and_the_chosen_plug_in(tree: Path) -> None:
    assert names(closure.closure("stages.first", {})) == OF_FIRST
    one = closure.closure("stages.first", {"saes": "one", "models": "none"})
    assert names(one) == OF_FIRST | {"stages/saes/one.py", "stages/lib/room/unused.py"}
    assert names(closure.closure("stages.first", {"saes": "two"})) == OF_FIRST | {"stages/saes/two.py"}
    assert closure.plugin_folders("stages.first") == {"saes"}
    assert closure.plugin_folders("stages.second") == set()


def test_a_package_with_something_in_it_counts(tree: Path) -> None:
    (tree / "stages/lib/room/__init__.py").write_text("import stages.lib.room.unused\n")
    more = {"stages/lib/room/__init__.py", "stages/lib/room/unused.py"}
    assert names(closure.closure("stages.first", {})) == OF_FIRST | more


def test_records_name_hashes_and_pinned_versions(tree: Path) -> None:
    record = closure.record("stages.first", {})
    assert set(record["files"]) == OF_FIRST
    assert record["files"]["stages/first.py"] == code.syntax_hash(tree / "stages/first.py")
    assert record["packages"] == {"numpy": numpy.__version__}


def test_a_stage_that_loads_a_method_has_a_record_per_arm(tree: Path) -> None:
    (tree / "stages/lib/room/unused.py").write_text("")
    (tree / "stages/saes/two.py").write_text("X = 2\n")
    made = closure.records(["stages.first", "stages.lib.room.used"], {}, {"a": "one", "b": "two"})
    assert set(made) == {"first-a", "first-b", "used"}
    assert "stages/saes/one.py" in made["first-a"]["files"] and "stages/saes/one.py" not in made["first-b"]["files"]
    (code.RECORDS).mkdir(parents=True)
    (code.RECORDS / "gone.json").write_text("{}")
    closure.write_records(made)
    assert {path.stem for path in code.RECORDS.iterdir()} == set(made)
    assert json.loads((code.RECORDS / "used.json").read_text()) == made["used"]


def test_a_package_that_is_not_pinned_or_installed_otherwise_is_one_line(tree: Path) -> None:
    with pytest.raises(UserError, match=r"pandas is imported, but requirements.txt pins no .* add a line pandas==<ver"):
        closure.record("stages.lib.room.unused", {})
    (tree / "requirements.txt").write_text("numpy==0.1\n")
    clear()
    message = rf"requirements.txt pins numpy==0.1, but {numpy.__version__} is installed: `pip install -r requirements"
    with pytest.raises(UserError, match=message):
        closure.record("stages.first", {})


def test_what_only_type_checkers_import_does_not_count(tree: Path) -> None:
    assert set(closure.record("stages.second", {})["files"]) == {"stages/second.py"}


def test_names_to_import_find_the_distribution_that_is_pinned(tree: Path) -> None:
    assert closure.record("stages.second", {})["packages"] == {"scikit-learn": "1.9.1"}


def test_what_is_kept_of_files_is_right_wherever_they_are_and_damage_is_ignored(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memo(name: str) -> code.Memo:
        return code.Memo(name, code.__file__)

    one, two = tree / "stages/saes/one.py", tree / "stages/saes/two.py"
    memo("kept").keep({one: "first", two: "second"})
    assert (memo("kept").get(one), memo("kept").get(two)) == ("first", "second")
    moved = two.rename(two.with_name("moved.py"))
    assert memo("kept").get(moved) == "second"
    moved.write_text(moved.read_text() + "\n")
    assert memo("kept").get(moved) is None
    assert code.Memo("kept", closure.__file__).get(one) is None  # another version of the module found it
    memo("kept").path.write_text('{"version"')
    assert memo("kept").get(one) is None


def test_files_that_are_known_are_not_parsed_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("HASHES", code.__file__), ("NAMES", closure.__file__)):
        memo = code.Memo(name.lower(), module)
        monkeypatch.setattr(closure, name, memo)
        if name == "HASHES":
            monkeypatch.setattr(code, name, memo)
    made = closure.records(["stages.lib.room.used"], {}, {})
    closure.write_records(made)
    clear()
    for module in (code, closure):
        monkeypatch.setattr(module, "tree", None)  # which parses
    assert closure.records(["stages.lib.room.used"], {}, {}) == made
