import os
import subprocess
import sys

import pytest
import torch

from stages.lib.io.errors import UserError
from stages.lib.run.resume import Resume, fingerprint


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_state_comes_back_as_it_was(root):
    state = {"step": 3, "weights": {"W": torch.tensor([0.1, -2.5])}, "losses": [1.0, 0.5]}
    with Resume("train", "key") as resume:
        assert resume.load() is None
        resume.save(state)
    with Resume("train", "key") as resume:
        back = resume.load()
        assert back["step"] == 3
        assert back["losses"] == [1.0, 0.5]
        assert torch.equal(back["weights"]["W"], state["weights"]["W"])
        resume.clear()
    assert not (root / "data/.resume/train/key").exists()


def test_a_damaged_state_is_refused(root):
    with Resume("train", "key") as resume:
        resume.save({"step": 3})
        path = resume.directory / "state.resume"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(UserError, match=r"state\.resume is damaged or of another version; delete it"):
            resume.load()
        path.write_bytes(b"")
        with pytest.raises(UserError, match="is damaged"):
            resume.load()


def test_two_processes_cannot_hold_one_state(root):
    hold = "from stages.lib.run.resume import Resume\nwith Resume('train', 'key'): print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"), Resume("train", "key"):
        pass
    holder.kill()
    holder.communicate()
    with Resume("train", "key"):
        pass


def test_the_fingerprint_changes_with_settings_inputs_and_nothing_else(tmp_path):
    file = tmp_path / "index.json"
    file.write_text("1")
    first = fingerprint({"lr": 1}, [file])
    assert fingerprint({"lr": 1}, [file]) == first
    assert fingerprint({"lr": 2}, [file]) != first
    file.write_text("2")
    assert fingerprint({"lr": 1}, [file]) != first
