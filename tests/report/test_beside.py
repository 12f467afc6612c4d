"""Two calls at once give what one after the other gives, errors too."""

import os
import threading

import pytest

from stages.lib.report import beside as beside_module
from stages.lib.report.beside import WATCHER, beside
from stages.lib.run import fork_server


def test_both_results_come_back_from_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.lib.report.beside._n_cores", lambda: 2)
    monkeypatch.setattr("stages.lib.report.beside._n_threads", lambda: 1)
    there, here = beside(os.getpid, os.getpid)
    assert here == os.getpid() != there


@pytest.mark.parametrize(("n_cores", "n_threads"), [(1, 1), (2, 2)])
def test_one_core_or_other_threads_leave_it_to_one_process(
    n_cores: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.lib.report.beside._n_cores", lambda: n_cores)
    monkeypatch.setattr("stages.lib.report.beside._n_threads", lambda: n_threads)
    assert beside(os.getpid, threading.get_ident) == (os.getpid(), threading.get_ident())


def test_what_fails_there_fails_here_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.lib.report.beside._n_cores", lambda: 2)
    monkeypatch.setattr("stages.lib.report.beside._n_threads", lambda: 1)

    def failing() -> int:
        raise ValueError("no such arm")

    with pytest.raises(ValueError, match="no such arm"):
        beside(failing, os.getpid)


def test_a_thread_that_waits_for_who_asked_does_not_count() -> None:
    assert WATCHER == fork_server.WATCHER
    before, done = beside_module._n_threads(), threading.Event()
    for name, more in ((WATCHER, 0), ("another", 1)):
        thread = threading.Thread(target=done.wait, name=name)
        thread.start()
        assert beside_module._n_threads() == before + more
    done.set()
