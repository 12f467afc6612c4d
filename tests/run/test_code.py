"""Hashes of syntax: what changes them and what does not; a stage that is not the recorded code refuses to run."""

import sys
from pathlib import Path

import pytest

from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json
from stages.lib.run import code

PLAIN = '''"""What it is for."""

import numpy as np

LIMIT = 3
"""Of tries."""


class Tries:
    """Counts."""

    n: int = 0
    """How many."""


def total(a: list[int]) -> int:
    """The sum."""
    # In one call.
    return int(np.sum(a, dtype=np.int64)) + LIMIT
'''


def write(path: Path, text: str) -> Path:
    """Write a file, as if before the process that reads it."""
    path.write_text(text)
    code.tree.cache_clear()
    code.syntax_hash.cache_clear()
    return path


def hash_of(text: str, directory: Path) -> str:
    return code.syntax_hash(write(directory / "module.py", text))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""What it is for."""', '"""Something else."""'),
        ('"""What it is for."""\n', ""),
        ('"""Of tries."""', '"""Of all tries."""'),
        ('    """How many."""\n', ""),
        ('    """The sum."""\n', ""),
        ("    # In one call.\n", "    # Said otherwise.\n\n"),
        ("int(np.sum(a, dtype=np.int64)) + LIMIT", "(\n        int(np.sum(a, dtype=np.int64)) + LIMIT\n    )"),
        ("LIMIT = 3", "LIMIT   =   0x3"),
    ],
)
def test_words_and_layout_leave_the_hash_as_it_is(before: str, after: str, tmp_path: Path) -> None:
    assert before in PLAIN
    assert hash_of(PLAIN.replace(before, after), tmp_path) == hash_of(PLAIN, tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("LIMIT = 3", "LIMIT = '3'"),
        ("LIMIT = 3", "LIMIT = None"),
        ("LIMIT = 3", "LIMIT = False"),
        ("LIMIT = 3\n", "LIMIT = 3\nLIMIT = 3\n"),
        ("+ LIMIT", "- LIMIT"),
        ("np.sum(a", "np.sum(b"),
        ("np.sum(a", "np.sum(*a"),
        ("dtype=np.int64", "dtype=np.int32"),
        ("n: int = 0", "n: int"),
        ("def total(a: list[int])", "def total(a: list[int] = [])"),
        ("def total", "async def total"),
        ("class Tries:", "class Tries(Exception):"),
        ("import numpy as np", "import numpy as np, json"),
        ("    return int", "    yield int"),
        ("    return int(np.sum(a, dtype=np.int64)) + LIMIT", '    return "The sum."'),
    ],
)
def test_whatever_runs_changes_the_hash(before: str, after: str, tmp_path: Path) -> None:
    assert before in PLAIN
    assert hash_of(PLAIN.replace(before, after), tmp_path) != hash_of(PLAIN, tmp_path)


def test_the_hash_is_the_same_on_every_machine(tmp_path: Path) -> None:
    # A recorded value: a Python whose syntax trees differ would re-run every stage of a fresh clone.
    assert (
        hash_of("def f(x, *, y=1):\n    return f'{x!r:>{y}} of {y:.2f}' if x else [*x, None]\n", tmp_path) == RECORDED
    )


RECORDED = "95eeaed2ecdc1cd0ec33d52e9afdf58e"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the record of a stage of one file, which is all that is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    (tmp_path / "stages").mkdir()
    file = write(tmp_path / "stages/toy.py", PLAIN)
    monkeypatch.setattr(code, "loaded", lambda: {file})
    content = {"files": {"stages/toy.py": code.syntax_hash(file)}, "packages": {"pytest": pytest.__version__}}
    write_json(code.RECORDS / "toy.json", content)
    write_json(code.RECORDS / "toy-b.json", {**content, "files": {"stages/toy.py": "0" * 32}})
    return tmp_path


def test_the_recorded_code_runs_also_with_another_comment(project: Path) -> None:
    code.check_record("toy", [])
    code.check_record("toy", ["a"])  # an arm without a record of its own has that of the stage
    code.check_record("unknown", [])  # nothing was recorded, so there is nothing to compare
    write(project / "stages/toy.py", "# A comment.\n" + PLAIN)
    code.check_record("toy", [])


def test_other_code_is_refused_in_a_line_that_names_it(project: Path) -> None:
    with pytest.raises(UserError, match=r"^stages/toy\.py is not what data/check/code/toy-b\.json records"):
        code.check_record("toy", ["b"])
    write(project / "stages/toy.py", PLAIN.replace("LIMIT = 3", "LIMIT = 4"))
    with pytest.raises(UserError, match=r"toy\.py is not what data/check/code/toy\.json .* `dvc repro` runs `check`"):
        code.check_record("toy", [])
    (project / "stages/toy.py").unlink()
    code.syntax_hash.cache_clear()
    with pytest.raises(UserError, match=r"toy\.py is not what"):
        code.check_record("toy", [])


def test_a_file_beyond_the_record_and_another_package_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project / "stages/more.py", "X = 1\n")
    monkeypatch.setattr(code, "loaded", lambda: {project / "stages/toy.py", project / "stages/more.py"})
    with pytest.raises(UserError, match=r"^stages/more\.py is not what"):
        code.check_record("toy", [])
    monkeypatch.setattr(code, "loaded", lambda: {project / "stages/toy.py"})
    write_json(code.RECORDS / "toy.json", {"files": {}, "packages": {"pytest": "0.1", "no-such-package": "1.0"}})
    with pytest.raises(UserError, match=r"^stages/toy\.py \(and 2 more\) is not what"):
        code.check_record("toy", [])


def test_what_this_process_loaded_of_the_project_is_known() -> None:
    assert Path(code.__file__).resolve() in code.loaded()
    assert all(path.is_relative_to(code.ROOT) for path in code.loaded())
    assert not any("site-packages" in path.parts for path in code.loaded())
    assert "stages.lib.run.code" in sys.modules
