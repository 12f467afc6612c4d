"""Activations that a team shares by `dvc push` and `dvc pull`, over S3 and SSH, also when transfers break and data rot.

All of it is the `dvc` command in small projects that are git clones of one another, and real servers on 127.0.0.1. That
nothing is torn is read from the servers themselves: the name of an object is the MD5 of what it holds.
"""

import hashlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from stages.lib.activations.store import open_store
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, sha256
from tests import servers, toy, worlds
from tests.worlds import Rows

pytestmark = pytest.mark.slow
Remote = servers.S3 | servers.SSH
DEADLINE = 300
"""Seconds that a command may take."""
N_SHARDS = {"train": 8, "test": 1}
ROWS, D_IN = 2000, 64
SHARD_BYTES = ROWS * (8 + 4 * D_IN)
CUT = 2 * SHARD_BYTES
"""Bytes after which a transfer is cut: several shards are on their way then, and most are still to go."""
WAYS = {"s3": ["cut", "client killed"], "ssh": ["cut", "client killed", "server killed"]}
"""How a transfer ends; moto would come back without its memory."""
STORE = Path("data/activations")
SHARD, OTHER = "main/train-00001.safetensors", "main/train-00004.safetensors"
PIPELINE = """
stages:
  tokens:
    cmd: mkdir -p data && cp -r {made}/tokens data/tokens
    outs: [data/tokens]
  activations:
    cmd: cp -r {made}/activations data/activations
    deps: [data/tokens]
    outs: [data/activations]
"""
SETUP = {
    "s3": """
        dvc remote add -d store s3://{root}/{name}
        dvc remote modify store endpointurl http://{host}:{port}
        dvc remote modify store verify true
        dvc remote modify --local store access_key_id team
        dvc remote modify --local store secret_access_key {secret}
    """,
    "ssh": """
        dvc remote add -d store ssh://user@{host}:{port}{root}/{name}
        dvc remote modify store verify true
        dvc remote modify --local store keyfile {root}/user
    """,
}
"""The commands of README."""
SMALLER = {"model.scratch.steps": 20, "activations.revisions": ["main"], "activations.n_tokens": 3000}
SMALLER |= {"activations.shard_rows": 1000, "train.epochs": 1}
"""Settings that the toy is made quicker with, since its numbers do not matter here."""
SAE = "data/train/topk/seed-0"
READER = """
import json, sys
from hashlib import sha256

from dvc.api import DVCFileSystem
from safetensors.numpy import load

project = DVCFileSystem(sys.argv[1], rev="main", remote_config=json.loads(sys.argv[2]))
index = json.loads(project.read_text("data/activations/main/index.json"))
shard = index["splits"]["train"]["shards"][1]
content = project.read_bytes(f"data/activations/main/{shard['file']}")
assert sha256(content).hexdigest() == shard["sha256"]
rows = load(content)
x = (rows["activations"] - index["mean"]) / index["scale"]
print(json.dumps([shard["file"], x.shape, float(x.sum()), int(rows["position"].sum())]))
"""
"""The example of README; which project and which secrets are arguments."""


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The status and output of a command that was started."""
    try:
        stdout, stderr = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()  # if it has not ended
    return process.returncode, stdout + stderr


def run(directory: Path, *words: str) -> tuple[int, str]:
    """The status and output of a command."""
    return finish(toy.start(directory, *words))


def ok(directory: Path, *words: str) -> str:
    """The output of a command that must succeed."""
    status, output = run(directory, *words)
    assert status == 0, f"{words}: {output}"
    return output


@pytest.fixture(scope="module", autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user without settings, keys or secrets of their own, of whom DVC leaves nothing outside of the test."""
    home = tmp_path_factory.mktemp("home")
    variables = {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "DVC_SITE_CACHE_DIR": str(home / "site")}
    variables |= {f"GIT_{who}_NAME": "toy" for who in ("AUTHOR", "COMMITTER")}
    variables |= {f"GIT_{who}_EMAIL": "toy@example.org" for who in ("AUTHOR", "COMMITTER")}
    variables |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}  # asks nobody, and gives up soon
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "SSH_AUTH_SOCK"):
            patch.delenv(name, raising=False)
        patch.delenv("EXPLORING_SAES_VERIFY", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module", params=["s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with servers.serve(request.param, tmp_path_factory.mktemp(request.param)) as remote:
        yield remote


def write_store(directory: Path) -> None:
    """Shards of random rows, each of the same positions."""
    generator = torch.Generator().manual_seed(0)
    splits = {
        split: Rows(torch.randn(n_shards * ROWS, D_IN, generator=generator), np.tile(np.arange(1, ROWS + 1), n_shards))
        for split, n_shards in N_SHARDS.items()
    }
    worlds.write_store(splits, hook_name="blocks.2.hook_resid_post", n_ctx=8, shard_rows=ROWS, root=directory)


def set_up(directory: Path, remote: Remote, name: str) -> None:
    """Give a project its remote, and commit."""
    fields = {"host": servers.HOST, "port": remote.proxy.port, "root": remote.root, "secret": servers.SECRET}
    for line in SETUP[remote.kind].format(name=name, **fields).strip().splitlines():
        ok(directory, *line.split())
    ok(directory, "git", "add", "-A")
    ok(directory, "git", "commit", "-q", "-m", "Run, and share")


@pytest.fixture(scope="module")
def shared(remote: Remote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose two stages have run, after `dvc push`; tests leave it and its remote as they are."""
    made, directory = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("shared")
    write_store(made / "activations")
    (made / "tokens").mkdir()
    (made / "tokens/tokens.txt").write_text("tokens")
    (directory / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore"):
        shutil.copyfile(toy.ROOT / name, directory / name)
    (directory / "dvc.yaml").write_text(PIPELINE.format(made=made))
    ok(directory, "git", "init", "-q", "-b", "main")
    ok(directory, "dvc", "repro")
    set_up(directory, remote, "shared")
    assert "13 files pushed" in ok(directory, "dvc", "push")  # with the manifests of the two directories
    return directory


@pytest.fixture
def owner(shared: Path, remote: Remote, tmp_path: Path) -> Path:
    """A copy of the project whose remote is empty."""
    directory = tmp_path / "owner"
    shutil.copytree(shared, directory)
    config = directory / ".dvc/config"
    config.write_text(config.read_text().replace("/shared\n", f"/{tmp_path.name}\n"))
    ok(directory, "git", "commit", "-q", "-a", "-m", "Another remote")
    assert not remote.names(tmp_path.name)
    return directory


def clone(project: Path, directory: Path) -> Path:
    """A clone of a project by somebody who has the same secrets."""
    ok(project, "git", "clone", "-q", str(project), str(directory))
    shutil.copyfile(project / ".dvc/config.local", directory / ".dvc/config.local")
    return directory


def hashes(project: Path) -> dict[str, str]:
    """The hash of each file of the activations."""
    root = project / STORE
    return {path.relative_to(root).as_posix(): sha256(path) for path in root.rglob("*") if path.is_file()}


def verify(project: Path) -> None:
    """The reader's own check of every byte."""
    open_store("main", verify=N_SHARDS, root=project / STORE)


def digest(content: bytes, name: str) -> str:
    """The name that an object of this content has, given the one it has."""
    return hashlib.md5(content).hexdigest() + (".dir" if name.endswith(".dir") else "")


def objects(names: list[str], read: Callable[[str], bytes]) -> set[str]:
    """The objects of a remote or a cache, of which none is torn; temporary files of broken transfers are no objects."""
    found = {name.removeprefix("files/md5/").replace("/", ""): name for name in names if not name.endswith(".tmp")}
    torn = [name for name, path in found.items() if digest(read(path), name) != name]
    assert not torn
    return set(found)


def remote_objects(remote: Remote, name: str) -> set[str]:
    return objects(remote.names(name), lambda path: remote.read(f"{name}/{path}"))


def cached_objects(project: Path) -> set[str]:
    cache = project / ".dvc/cache"
    names = [path.relative_to(cache).as_posix() for path in cache.rglob("files/md5/*/*")]
    return objects(names, lambda path: (cache / path).read_bytes())


def manifest(project: Path) -> tuple[str, dict[str, str]]:
    """The object that lists the activations, and the object of each of their files."""
    stages = YAML(typ="safe").load((project / "dvc.lock").read_text())["stages"]
    name = stages["activations"]["outs"][0]["md5"]
    entries = read_json(project / f".dvc/cache/files/md5/{name[:2]}/{name[2:]}")
    return name, {entry["relpath"]: entry["md5"] for entry in entries}


def needed(project: Path) -> set[str]:
    """All objects of the activations."""
    name, files = manifest(project)
    return {name, *files.values()}


def test_a_clone_pulls_the_activations_alone(shared: Path, tmp_path: Path) -> None:
    colleague = clone(shared, tmp_path / "colleague")
    assert "11 files fetched and 10 files added" in ok(colleague, "dvc", "pull", "activations")
    assert hashes(colleague) == hashes(shared)
    verify(colleague)
    assert cached_objects(colleague) == needed(shared) < cached_objects(shared)
    assert not (colleague / "data/tokens").exists()


def test_secrets_stay_out_of_git(shared: Path) -> None:
    secret = {"access_key_id", "secret_access_key", "keyfile"}
    assert any(word in (shared / ".dvc/config.local").read_text() for word in secret)
    assert not any(word in ok(shared, "git", "show", "HEAD:.dvc/config") for word in secret)
    assert "config.local" not in ok(shared, "git", "ls-files", ".dvc")


def test_one_shard_is_pulled_without_the_others(shared: Path, tmp_path: Path) -> None:
    colleague = clone(shared, tmp_path / "colleague")
    ok(colleague, "dvc", "pull", str(STORE / SHARD))
    assert hashes(colleague) == {SHARD: hashes(shared)[SHARD]}
    name, files = manifest(shared)
    assert cached_objects(colleague) == {name, files[SHARD]}
    ok(colleague, "dvc", "pull", "activations")
    assert hashes(colleague) == hashes(shared)


def test_a_shard_of_another_project_is_read_in_place(shared: Path, remote: Remote, tmp_path: Path) -> None:
    secrets = ok(shared, "dvc", "config", "--local", "--list").replace("remote.store.", "").split()
    settings = json.dumps(dict(line.split("=") for line in secrets))
    before = remote.proxy.passed["down"]
    output = ok(tmp_path, "python", "-c", READER, f"file://{shared}", settings)
    file, shape, total, positions = json.loads(output.splitlines()[-1])
    store = open_store("main", root=shared / STORE)
    rows = store.rows("train", ROWS, 2 * ROWS).double().numpy()
    assert (file, shape, positions) == (Path(SHARD).name, [ROWS, D_IN], ROWS * (ROWS + 1) // 2)
    assert total == pytest.approx(((rows - store.index["mean"]) / store.index["scale"]).sum(), rel=1e-4)
    assert SHARD_BYTES < remote.proxy.passed["down"] - before < 2 * SHARD_BYTES  # of nine
    assert not list(tmp_path.iterdir())


def interrupt(directory: Path, remote: Remote, how: str, direction: servers.Direction, *words: str) -> None:
    """Start a command whose transfer is cut; server and connection are there again afterwards."""
    started: list[subprocess.Popen[str]] = []
    ends = {"cut": None, "server killed": remote.server.kill, "client killed": lambda: started[0].kill()}
    remote.proxy.cut_after(direction, CUT, ends[how])
    started.append(toy.start(directory, *words))
    status, output = finish(started[0])
    assert remote.proxy.is_cut, output
    assert remote.server.killed == (how == "server killed")
    if how == "client killed":
        assert status == -signal.SIGKILL, output
    else:
        assert status > 0
        assert "ERROR: failed to transfer '" in output
    if remote.server.killed:
        remote.server.start()
    remote.proxy.mend()


def test_a_broken_push_leaves_nothing_torn_and_is_taken_up(owner: Path, remote: Remote, tmp_path: Path) -> None:
    whole = needed(owner)
    for how in WAYS[remote.kind]:
        interrupt(owner, remote, how, "up", "dvc", "push", "activations")
        assert remote_objects(remote, tmp_path.name) < {name for name in whole if not name.endswith(".dir")}
    ok(owner, "dvc", "push", "activations")
    assert remote_objects(remote, tmp_path.name) == whole
    assert "Everything is up to date." in ok(owner, "dvc", "push", "activations")


def test_a_broken_pull_leaves_nothing_torn_and_is_taken_up(shared: Path, remote: Remote, tmp_path: Path) -> None:
    colleague, whole = clone(shared, tmp_path / "colleague"), needed(shared)
    for how in WAYS[remote.kind]:
        interrupt(colleague, remote, how, "down", "dvc", "pull", "activations")
        assert cached_objects(colleague) < whole
        assert not hashes(colleague)
    ok(colleague, "dvc", "pull", "activations")
    assert cached_objects(colleague) == whole
    assert hashes(colleague) == hashes(shared)
    verify(colleague)


def flip(content: bytes) -> bytes:
    """Another bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def refused(project: Path, message: str) -> None:
    """The reader names what is damaged."""
    with pytest.raises(UserError, match=message):
        verify(project)


def located(project: Path, remote: Remote, path: Path) -> str:
    """Where the remote has a file or a directory's manifest, as `dvc get` tells it."""
    url = ok(project, "dvc", "get", ".", str(path), "--show-url").split()[-1]
    return url.partition(f"{remote.root}/")[2]


def test_damage_on_the_remote_is_found_and_repaired(owner: Path, remote: Remote, tmp_path: Path) -> None:
    ok(owner, "dvc", "push", "activations")
    place = {path: located(owner, remote, STORE / path) for path in (SHARD, OTHER)}
    good = {path: remote.read(place[path]) for path in place}
    remote.write(place[SHARD], good[SHARD][:1000])
    remote.write(place[OTHER], flip(good[OTHER]))

    trusting = clone(owner, tmp_path / "trusting")
    ok(trusting, "dvc", "remote", "modify", "--local", "store", "verify", "false")
    ok(trusting, "dvc", "pull", "activations")
    assert str(STORE) not in ok(trusting, "dvc", "data", "status")  # of what differs or is missing
    refused(trusting, rf"{SHARD} has 1,000 bytes instead of {len(good[SHARD]):,}, so it is cut off or foreign")

    careful = clone(owner, tmp_path / "careful")
    status, output = run(careful, "dvc", "pull", "activations")
    assert status == 1
    assert "Checkout failed for following targets:\ndata/activations\n" in output
    assert not hashes(careful)
    named = ok(careful, "dvc", "data", "status", "--granular").partition("\n\n")[0]
    assert re.findall(r"\S+safetensors", named) == [str(STORE / SHARD), str(STORE / OTHER)]

    # DVC asks the remote for the manifest alone, and takes the rest for granted.
    assert "Everything is up to date." in ok(owner, "dvc", "push", "activations")
    remote.delete(place[SHARD])
    assert "Everything is up to date." in ok(owner, "dvc", "push", "activations")
    assert "are in sync" in ok(owner, "dvc", "status", "-c", "activations")

    remote.delete(place[OTHER])
    remote.delete(located(owner, remote, STORE))
    assert "3 files pushed" in ok(owner, "dvc", "push", "activations")
    assert remote_objects(remote, tmp_path.name) == needed(owner)
    ok(careful, "dvc", "pull", "activations")
    assert hashes(careful) == hashes(owner)

    # A clone that has the damage keeps it until both names of the file are gone, here and in the cache.
    assert "Everything is up to date." in ok(trusting, "dvc", "pull", "activations")
    ok(trusting, "dvc", "checkout", "--force", "activations")
    for path, message in ((SHARD, "has 1,000 bytes"), (OTHER, r"is damaged \(its SHA-256")):
        refused(trusting, f"{path} {message}")
        ok(trusting, "find", ".dvc/cache", "data", "-samefile", str(STORE / path), "-delete")
        ok(trusting, "dvc", "pull", "activations")
    verify(trusting)
    assert hashes(trusting) == hashes(owner)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small copy of this project after `dvc push` to S3, up to the activations and without any SAE."""
    with servers.serve("s3", tmp_path_factory.mktemp("server")) as remote:
        directory = toy.make(tmp_path_factory.mktemp("laboratory"), ["topk"], [0])
        toy.edit(directory, SMALLER)
        ok(directory, "dvc", "repro", "activations")
        set_up(directory, remote, "laboratory")
        ok(directory, "dvc", "push", "corpus", "tokens", "activations")
        yield directory


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(.*)':", output)


def outs(project: Path) -> dict[str, str]:
    """The object of each output of the pipeline."""
    stages = YAML(typ="safe").load((project / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_a_colleague_trains_on_pulled_activations_without_a_model(laboratory: Path, tmp_path: Path) -> None:
    colleague, made = clone(laboratory, tmp_path / "colleague"), outs(laboratory)
    absent = ["data/corpus", "data/tokens", "data/model"]
    shutil.rmtree(colleague / "data/model")  # which is in git
    toy.edit(colleague, {"train.lr": 0.004})
    ok(colleague, "dvc", "pull", "activations")
    output = ok(colleague, "dvc", "repro", "--pull", "--allow-missing", "train@topk-0")
    assert ran(output) == ["check", "train@topk-0"]
    assert made.items() < outs(colleague).items()
    assert set(outs(colleague)) - set(made) == {SAE}
    assert not any((colleague / path).exists() for path in absent)
    assert not cached_objects(colleague) & {made[path] for path in absent}

    ok(colleague, "dvc", "push", "train@topk-0")
    ok(colleague, "git", "commit", "-q", "-m", "Another learning rate", "params.yaml", "dvc.lock")
    ok(laboratory, "git", "pull", "-q", str(colleague), "HEAD")
    ok(laboratory, "dvc", "pull", "train@topk-0")
    assert (laboratory / SAE / "level-0/sae_weights.safetensors").is_file()
    assert ran(ok(laboratory, "dvc", "repro", "--force", "--single-item", "train@topk-0")) == ["train@topk-0"]
    assert outs(laboratory) == outs(colleague)


def test_machines_of_an_array_job_train_a_cell_each_and_one_takes_them_all(laboratory: Path, tmp_path: Path) -> None:
    text = (toy.ROOT / "README.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```bash\n") if "SLURM_ARRAY_TASK_ID" in part.partition("```")[0])
    cell, train, rest = block.partition("```")[0].splitlines()
    for task in ("0", "1"):
        machine = clone(laboratory, tmp_path / f"machine-{task}")
        toy.edit(machine, {"train.lr": 0.002})  # which nobody has trained with
        done = toy.run(machine, "bash", "-euc", f"{cell}\n{train}", SLURM_ARRAY_TASK_ID=task)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ran(done.stdout) == [["train@topk-0", "train_more@topk"][int(task)]]
    head = clone(laboratory, tmp_path / "head")
    toy.edit(head, {"train.lr": 0.002})
    output = ok(head, *rest.split("#")[0].split(), "train", "train_more")
    assert ran(output) == ["check"]  # of the other setting
    taken = re.findall(r"Stage '(train.*)' is cached - skipping run", output)
    assert sorted(taken) == ["train@topk-0", "train_more@topk"]
    assert (head / "data/train/topk/more/seeds.json").is_file() and (head / SAE / "level-0/cfg.json").is_file()
