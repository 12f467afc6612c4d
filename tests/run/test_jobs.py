"""The order in which stages are run side by side, how many at a time, and what a failure leaves out."""

import threading
import time

from stages.lib.run.jobs import Done, in_order

NEEDS = {"a": set[str](), "b": set[str](), "c": {"a"}, "d": {"a", "b"}, "e": {"c", "d"}, "f": {"b"}}


class Recorder:
    """Stands for DVC: it tells when each stage began and ended, on one clock."""

    def __init__(self, *fail: str) -> None:
        self.fail, self.now, self.most = fail, 0, 0
        self.order: list[str] = []
        self.ended: set[str] = set()
        self.before: dict[str, set[str]] = {}
        self.lock = threading.Lock()

    def __call__(self, stage: str) -> Done:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(stage)
            self.before[stage] = {*self.ended}
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
            self.ended.add(stage)
        return Done(int(stage in self.fail), f"{stage} printed this", 0.02)


def test_stages_run_after_what_they_need_and_as_many_at_a_time_as_may() -> None:
    for n_jobs in (1, 2, 5):
        recorder, lines = Recorder(), list[str]()
        assert in_order(NEEDS, n_jobs, recorder, lines.append)
        assert sorted(recorder.order) == sorted(NEEDS)
        assert recorder.most == min(n_jobs, 3)  # at most c, d and f can go together
        for stage, needs in NEEDS.items():
            assert needs <= recorder.before[stage]
        assert lines[-1].startswith("done: e, ") and lines[-1].endswith("(6 of 6)")


def test_what_needs_a_failed_stage_is_left_out_and_the_rest_goes_on() -> None:
    recorder, lines = Recorder("c"), list[str]()
    assert not in_order(NEEDS, 2, recorder, lines.append)
    assert {*recorder.order} == {"a", "b", "c", "d", "f"}
    assert any("FAILED: c" in line and "c printed this" in line for line in lines)


def test_with_nothing_to_run_all_is_well() -> None:
    assert in_order({}, 2, Recorder(), list[str]().append)
