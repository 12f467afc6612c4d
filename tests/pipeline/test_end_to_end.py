"""The whole graph as a user runs it: `dvc repro` in a small copy of the project, again, after changes, and refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.lib.io import plugins
from stages.lib.io.errors import nearest
from stages.lib.run.code import RECORDS
from tests import toy

pytestmark = pytest.mark.slow
ARMS = ["topk", "untrained"]
ANALYSES = ["evaluate", "frequency", "emergence", "attribution", "interpret"]
RUNS = "Running stage '"
LOADED = "loaded"
SITE = f"""
import atexit, os, sys

def write():
    if sys.argv[0].startswith("stages."):
        modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "stages"]
        files = sorted({{file for module in modules if (file := getattr(module, "__file__", None))}})
        files.append(os.path.abspath(sys.argv[0].replace(".", "/") + ".py"))
        name = "-".join([sys.argv[0].rpartition(".")[2], *sys.argv[1:]])
        os.makedirs("{LOADED}", exist_ok=True)
        open(f"{LOADED}/{{name}}.txt", "w").write("\\n".join(files))

atexit.register(write)
"""
"""Imported by each Python that starts: it keeps what files a stage has loaded when it ends."""


def lock(directory: Path) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load((directory / "dvc.lock").read_text())["stages"]
    return stages


def hashes(directory: Path) -> dict[str, str]:
    """The hash of each output of `dvc.lock`."""
    return {out["path"]: out["md5"] for stage in lock(directory).values() for out in stage.get("outs", [])}


def ran(output: str) -> set[str]:
    """The stages that `dvc repro` says it ran."""
    return {line.removeprefix(RUNS).split("'")[0] for line in output.splitlines() if line.startswith(RUNS)}


def repro(directory: Path, *more: str) -> str:
    done = toy.run(directory, "dvc", "repro", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Two copies, each with an empty cache of its own, after their first run, and what that printed.

    The first is run by `dvc repro`, the second two stages at a time.
    """
    directories = [toy.make(tmp_path_factory.mktemp(name), ARMS) for name in ("toy", "again")]
    assert not any((directory / ".dvc/cache").exists() for directory in directories)
    for directory in directories:  # so that the arms have methods of their own
        toy.edit(directory, {"saes.untrained.variant": "batch_topk"})
    watch = tmp_path_factory.mktemp("watch")
    (watch / "sitecustomize.py").write_text(SITE)
    commands = (["dvc", "repro"], ["python", "-m", "stages", "--jobs", "2"])
    started = [
        toy.start(copy, *command, PYTHONPATH=str(watch)) for copy, command in zip(directories, commands, strict=True)
    ]
    finished = [toy.finish(process) for process in started]
    for done in finished:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [(copy, done.stdout + done.stderr) for copy, done in zip(directories, finished, strict=True)]


@pytest.fixture(scope="module")
def whole(both: list[tuple[Path, str]]) -> tuple[Path, str]:
    """The first of them."""
    return both[0]


@pytest.fixture
def copy(whole: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished copy, with its cache, for a test that changes outputs."""
    return Path(shutil.copytree(whole[0], tmp_path / "copy", symlinks=True))


@pytest.fixture
def settled(whole: tuple[Path, str]) -> Any:
    """The copy, whose settings are put back after the test."""
    directory, _ = whole
    before = {name: (directory / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    yield directory
    for name, content in before.items():
        (directory / name).write_bytes(content)


def test_one_command_makes_every_output(whole: tuple[Path, str]) -> None:
    directory, output = whole
    stages = lock(directory)
    assert {f"train@{arm}-{seed}" for arm in ARMS for seed in (0, 1)} < set(stages)
    assert {f"{stage}@{arm}" for stage in ANALYSES for arm in ARMS} < set(stages)
    assert {f"{stage}@{name}" for stage in ("ablations", "baselines") for name in ("main", "untrained")} < set(stages)
    for path in hashes(directory):
        assert (directory / path).exists(), path
    report = (directory / "reports/report.html").read_text()
    for arm in ARMS:
        assert arm in report
        assert f"│ {arm:9}  " in output  # the box at the end
    metrics = json.loads((directory / "reports/metrics.json").read_text())
    assert set(metrics) == {"fvu", "cc_coverage", "delta_ce"}


def test_a_second_run_has_nothing_to_do(whole: tuple[Path, str]) -> None:
    assert "Data and pipelines are up to date." in repro(whole[0])


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted path of every setting, and its value."""
    if isinstance(node, dict):
        for key, inner in node.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def sample(document: Any) -> Iterator[tuple[str, Any]]:
    """A setting of each section and arm, and each that shapes the graph.

    `tests/pipeline/test_graph.py` proves for every setting that the stages that list it are those that read it; here is
    shown that DVC runs the stages that list it, which takes seconds a setting.
    """
    seen = set()
    for path, value in leaves(document):
        group = tuple(path.split(".")[: 2 if path.startswith("saes.") else 1])
        if group not in seen or path.endswith((".source", ".variant", ".revisions", ".seeds", ".k", ".l0")):
            seen.add(group)
            yield path, value


def changed(path: str, value: Any) -> Any:
    """Another value of the same kind; a name that `dvc.yaml` makes a file of becomes another such file."""
    folder = {"corpus.source": "sources", "model.source": "models"}.get(
        path, "saes" if path.endswith("variant") else ""
    )
    if folder:
        return next(name for name in plugins.names(folder) if name != value)
    if isinstance(value, bool) or value is None:
        return "changed" if value is None else not value
    if isinstance(value, list):
        return [*value[:-1], changed(path, value[-1])] if value else [1]
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def declared() -> dict[str, set[str]]:
    """The paths of params.yaml that each stage lists, by the stage's name; `synthetic/` is a pipeline of its own."""
    with Repo() as repo:
        return {
            stage.addressing: {path for dep in stage.deps if hasattr(dep, "params") for path in dep.params}
            for stage in repo.index.stages
            if stage.path_in_repo == "dvc.yaml"
        }


def must_run(path: str, lists: dict[str, set[str]], before: set[str]) -> set[str]:
    """The stages that list the setting or a section it is in, those that came into being with it, and the check.

    Which method or source a stage loads changes its record of code too, but only once `check` has run.
    """
    found = {"check"} | (set(lists) - before)
    return found | {
        name for name, own in lists.items() if any(path == one or path.startswith(f"{one}.") for one in own)
    }


def test_a_changed_setting_re_runs_exactly_the_stages_that_read_it(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(settled)
    original = (settled / "params.yaml").read_bytes()
    lists, wrong, n_read = declared(), {}, 0
    for path, value in sample(YAML(typ="safe").load(original)):
        toy.edit(settled, {path: changed(path, value)})
        with Repo() as repo:
            would_run = {stage.addressing for stage in repo.reproduce(dry=True)}
        # Only another list of seeds or revisions brings stages into being.
        graph = declared() if path in ("train.seeds", "activations.revisions") else lists
        must = must_run(path, graph, set(lists))
        (settled / "params.yaml").write_bytes(original)
        n_read += len(must) > 1
        if would_run != must:
            wrong[path] = {"not run": sorted(must - would_run), "run": sorted(would_run - must)}
    assert not wrong
    assert n_read > 15


def test_a_copy_with_an_empty_cache_gives_the_same_bytes(both: list[tuple[Path, str]]) -> None:
    (first, _), (second, _) = both
    assert hashes(first) == hashes(second)
    assert len(hashes(first)) > 30


def test_stages_side_by_side_run_two_at_a_time_and_after_what_they_need(both: list[tuple[Path, str]]) -> None:
    _, (directory, output) = both
    begun, done, most = [], [], 0
    for line in output.splitlines():
        if line.startswith("begun: "):
            begun.append(line.removeprefix("begun: "))
        if line.startswith("done: "):
            done.append(line.removeprefix("done: ").split(",")[0])
        most = max(most, len(begun) - len(done))
    assert most == 2 and sorted(begun) == sorted(done) == sorted(lock(directory))
    assert begun[0] == "check" and begun[-1] == "report"
    ended = output.index("done: activations")
    assert all(output.index(f"begun: {stage}") > ended for stage in begun if stage.startswith("train"))
    assert "Data and pipelines are up to date." in repro(directory)


def test_a_stage_that_fails_stops_what_needs_it_alone(copy: Path) -> None:
    toy.edit(copy, {"frequency.seed": 1, "embed.min_firings": 10**9})
    failed = toy.run(copy, "python", "-m", "stages", "--jobs", "2")
    assert failed.returncode == 1 and "FAILED: embed" in failed.stdout
    assert "lower embed.min_firings" in failed.stdout and "the same command goes on" in failed.stderr
    assert all(f"done: frequency@{arm}," in failed.stdout for arm in ARMS) and "begun: report" not in failed.stdout
    toy.edit(copy, {"embed.min_firings": 1})
    done = toy.run(copy, "python", "-m", "stages", "--jobs", "2")
    assert done.returncode == 0 and "frequency@" not in done.stdout and "done: report" in done.stdout


def test_the_benchmark_inside_leaves_dvc_s_other_commands_alone(copy: Path) -> None:
    assert (copy / "synthetic/dvc.yaml").exists() and not (copy / "synthetic/data/train").exists()
    identity = ["-c", "user.name=toy", "-c", "user.email=toy@example.org"]
    for words in (["add", "-A"], [*identity, "commit", "-q", "-m", "Run"]):
        assert toy.run(copy, "git", *words).returncode == 0
    toy.edit(copy, {"report.n_features": 2})
    for words in (["status"], ["checkout"], ["exp", "save", "-n", "fewer"]):
        done = toy.run(copy, "dvc", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert toy.run(copy, "git", "checkout", "-q", ".").returncode == 0
    done = toy.run(copy, "dvc", "exp", "apply", "fewer")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "n_features: 2" in (copy / "params.yaml").read_text()


BAD: list[tuple[str, Any, str]] = [
    ("train.d_sea", 64, "unknown key train.d_sea"),
    ("frequency.n_shift", 5, "unknown key frequency.n_shift; did you mean 'n_shifts'?"),
    ("emergenc", {}, "unknown section emergenc; did you mean 'emergence'?"),
    ("train.lr", "3e-3 ", "train.lr is '3e-3 ': input should be a valid number"),
    ("train.batch_size", 0, "train.batch_size is 0: input should be greater than 0"),
    ("train.seeds", [0, "one"], "train.seeds.1 is 'one': input should be a valid integer"),
    ("train.follow_level", 3, "train.follow_level must be below the 3 levels of saes.topk.l0, not 3"),
    ("saes.topk.l0", [2, 4, 65], "saes.topk.l0 must be whole numbers between 1 and d_sae = 64, not 65"),
    ("saes.topk.variant", "topq", "saes.topk.variant is 'topq', but stages/saes/ has no such file; did you mean"),
    ("compare.reference", "relu", "compare.reference has 'relu', which is no arm of saes"),
    ("compare.controls", ["untraned"], "compare.controls has 'untraned', which is no arm of saes; did you mean"),
    ("report.arm", "top", "report.arm is 'top', which is no arm of saes"),
    ("report.headline", ["fuv"], "report.headline has 'fuv', which is not in compare.metrics; did you mean 'fvu'?"),
    ("activations.site", "hook_resid_pots", "hook_resid_pots"),
    ("activations.dtype", "float8", "activations.dtype is 'float8': input should be 'float32', 'bfloat16' or"),
    ("model.source", "scrach", "model.source is 'scrach'"),
    ("embed.subsample", 1.0, "embed.subsample is 1.0: input should be less than 1"),
]
"""Wrong settings that `stages.check` finds before anything runs, and a part of the line that says so."""


def refused(done: Any, message: str) -> None:
    """A failure that is one line of ours, without a traceback."""
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stdout + done.stderr


def with_setting(document: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        document = document[key]
    document[last] = value


CHECKS = """
import sys
from pathlib import Path
from stages.lib.io import params
from stages.lib.run.start import run
from stages.check import main
for name in sys.argv[1:]:
    params.PARAMS_FILE = Path(name)
    try:
        run(lambda *_: main())
        sys.stderr.write(f"{name}: no error\\n")
    except SystemExit as exit:
        sys.stderr.write(f"status {exit.code}\\n")
"""
"""What `python -m stages.check` does, for many files in one process: starting it costs more than checking."""


def test_wrong_settings_are_one_line_and_exit_status_1(settled: Path) -> None:
    before = hashes(settled)
    good = (settled / "params.yaml").read_text()
    names = []
    for number, (path, value, _) in enumerate(BAD):
        toy.rewrite(settled, lambda document, path=path, value=value: with_setting(document, path, value))
        names.append(f"wrong-{number}.yaml")
        shutil.copyfile(settled / "params.yaml", settled / names[-1])
        (settled / "params.yaml").write_text(good)
    (settled / "driver.py").write_text(CHECKS)
    done = toy.run(settled, "python", "driver.py", *names, PYTHONPATH=str(settled))
    for name in [*names, "driver.py"]:
        (settled / name).unlink()
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["status 1"] * len(BAD), done.stderr
    for (path, _, message), line in zip(BAD, lines[::2], strict=True):
        assert line.startswith("error: ") and message in line, (path, line)
    assert hashes(settled) == before


def test_a_wrong_setting_stops_the_run_before_its_first_stage(settled: Path) -> None:
    before = hashes(settled)
    toy.edit(settled, {"report.arm": "top"})
    done = toy.run(settled, "dvc", "repro")
    refused(done, f"report.arm is 'top', which is no arm of saes{nearest('top', ARMS)}")
    assert ran(done.stdout) == {"check"}
    assert hashes(settled) == before
    assert all((settled / path).exists() for path in before)


@pytest.mark.parametrize(
    ("path", "value", "stage", "message"),
    [
        ("activations.layer", 7, "activations", "layer"),
        ("activations.n_tokens", 10**7, "activations", "activations.n_tokens is 10,000,000, but"),
        ("tokens.n_ctx", 64, "tokens", "tokens.n_ctx is 64, but the model's windows have at most 32 tokens"),
    ],
)
def test_a_setting_that_the_data_refuse_is_one_line_too(
    settled: Path, path: str, value: Any, stage: str, message: str
) -> None:
    toy.edit(settled, {path: value})
    refused(toy.run(settled, "python", "-m", f"stages.{stage}"), message)


def test_an_sae_that_explains_nothing_gives_no_table(settled: Path) -> None:
    path = settled / "reports/evaluate/topk.json"
    good = path.read_text()
    summary = json.loads(good)
    summary["fvu"]["level-1"]["seed-1"]["value"] = 0.97
    path.write_text(json.dumps(summary))
    table = (settled / "reports/compare/matched.json").read_bytes()
    done = toy.run(settled, "python", "-m", "stages.compare")
    path.write_text(good)
    refused(done, "no results table: topk level 1 seed 1: test FVU 0.970 is not below 0.95")
    assert (settled / "reports/compare/matched.json").read_bytes() == table


def test_another_k_re_runs_that_arm_and_what_joins_the_arms(copy: Path) -> None:
    toy.edit(copy, {"saes.topk.l0": [2, 4, 9]})
    arm = {"train@topk-0", "train@topk-1", "train_more@topk", *(f"{stage}@topk" for stage in ANALYSES)}
    assert ran(repro(copy)) == {"check", *arm, "embed", "compare", "report"}


def test_what_a_stage_loads_is_what_is_recorded_of_it(whole: tuple[Path, str]) -> None:
    directory, _ = whole
    seen = set()
    for path in (directory / LOADED).iterdir():
        stage, *arguments = path.stem.split("-")
        files = {Path(file).resolve() for file in path.read_text().splitlines()}
        loaded = {file.relative_to(directory.resolve()).as_posix() for file in files if file.stat().st_size > 0}
        if stage != "check":
            record = directory / RECORDS / (f"train-{arguments[0]}.json" if stage == "train" else f"{stage}.json")
            assert loaded == set(json.loads(record.read_text())["files"]), path.stem
        seen.add(stage)
    assert seen == {path.stem for path in (directory / "stages").glob("[!_]*.py")}


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


CODE = "UNUSED = 1\n"
WORDS = {
    "stages/lib/run/log.py": "# A comment.\n",
    "stages/lib/sae/base.py": '"""What stands alone as a string, as docstrings do."""\n',
}
NEW = {
    "stages/saes/mine.py": "from stages.saes.topk import *\n",
    "stages/sources/mine.py": CODE,
    "stages/lib/features/mine.py": CODE,
}
EDITS: list[tuple[dict[str, str], set[str]]] = [
    (WORDS, set()),
    (NEW, set()),
    ({"stages/saes/relu.py": CODE, "stages/models/pretrained.py": CODE}, set()),  # chosen by no setting
    ({"stages/saes/topk.py": CODE}, {"train@topk-0", "train@topk-1", "train_more@topk"}),
    ({"stages/saes/batch_topk.py": CODE}, {"train@untrained-0", "train@untrained-1", "train_more@untrained"}),
    ({"stages/lib/emergence/trajectories.py": CODE}, {f"emergence@{arm}" for arm in ARMS}),
    ({"stages/lib/report/draw.py": CODE, "stages/embed.py": CODE}, {"report", "embed"}),
    ({"stages/sources/local_files.py": CODE}, {"corpus"}),
]
"""What is added to files (or what they are made of), and the stages that run because of it, besides `check`."""


def would_run() -> set[str]:
    with Repo() as repo:
        return {stage.addressing for stage in repo.reproduce(dry=True)}


def test_an_edit_re_runs_the_stages_whose_code_it_changes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    wrong = {}
    for texts, stages in EDITS:
        before = {name: (copy / name).read_bytes() if (copy / name).exists() else None for name in texts}
        for name, text in texts.items():
            (copy / name).touch()
            append(copy / name, text)
        done = toy.run(copy, "python", "-m", "stages.check")
        assert done.returncode == 0, done.stderr
        if (found := would_run()) != {"check"} | stages:
            wrong[str(list(texts))] = found
        for name, content in before.items():
            (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    assert not wrong


def test_another_version_of_a_package_re_runs_the_stages_that_import_it(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = next(
        line for line in (copy / "requirements.txt").read_text().splitlines() if line.startswith("matplotlib==")
    )
    requirements = (copy / "requirements.txt").read_text().replace(pinned, "matplotlib==99.1")
    (copy / "requirements.txt").write_text(requirements)
    done = toy.run(copy, "python", "-m", "stages.check")
    refused(done, f"requirements.txt pins matplotlib==99.1, but {pinned.partition('==')[2]} is installed")
    information = tmp_path / "matplotlib-99.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: matplotlib\nVersion: 99.1\n")
    (information / "top_level.txt").write_text("matplotlib\n")
    done = toy.run(copy, "python", "-m", "stages.check", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(copy)
    assert would_run() == {"check", "report"}


def test_a_new_analysis_re_runs_nothing_else(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    graph = (copy / "dvc.yaml").read_text()
    analysis = "from stages.lib.io import params\n\ndef settings():\n    return params.read('novel', int)\n"
    (copy / "stages/novel.py").write_text(analysis)
    (copy / "dvc.yaml").write_text(
        f"{graph}\n  novel:\n    cmd: python -m stages.novel\n    deps:\n      - {RECORDS}/novel.json\n"
        "    params:\n      - novel\n    outs:\n      - data/novel\n"
    )
    append(copy / "params.yaml", "novel: 1\n")
    done = toy.run(copy, "python", "-m", "stages.check")
    assert done.returncode == 0, done.stderr
    found = would_run()
    (copy / "dvc.yaml").write_text(graph)
    assert found == {"check", "novel"}


def test_a_stage_started_alone_after_an_edit_says_that_it_is_not_what_is_recorded(copy: Path) -> None:
    append(copy / "stages/lib/language/windows.py", CODE)
    before = hashes(copy)
    message = "stages/lib/language/windows.py is not what data/check/code/tokens.json records"
    refused(toy.run(copy, "python", "-m", "stages.tokens"), message)
    refused(toy.run(copy, "dvc", "repro", "-f", "-s", "tokens"), message)
    assert hashes(copy) == before
    append(copy / "stages/lib/io/errors.py", "# A comment is no other code.\n")
    (copy / "stages/lib/language/windows.py").write_text(
        (copy / "stages/lib/language/windows.py").read_text().removesuffix(CODE)
    )
    assert toy.run(copy, "python", "-m", "stages.tokens").returncode == 0
