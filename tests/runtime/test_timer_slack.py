"""The sleeps of a pipeline's ranks, and of its head, end without the slack that the system gives to others."""

import threading
from pathlib import Path

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.runtime.timer_slack import without_timer_slack

pytestmark = pytest.mark.skipif(not Path("/proc/self/timerslack_ns").exists(), reason="this system tells no slack")


def slack_ns(process: int | str = "self") -> int:
    return int(Path(f"/proc/{process}/timerslack_ns").read_text())


def test_it_is_gone_meanwhile_and_comes_back() -> None:
    before = slack_ns()
    with without_timer_slack():
        assert slack_ns() == 1
    assert slack_ns() == before


def test_one_session_within_another_leaves_it_without() -> None:
    before = slack_ns()
    with without_timer_slack():
        with without_timer_slack():
            pass
        assert slack_ns() == 1
    assert slack_ns() == before


def test_a_thread_that_is_started_meanwhile_has_none() -> None:
    found: list[int] = []
    with without_timer_slack():
        thread = threading.Thread(target=lambda: found.append(slack_ns(threading.get_native_id())))
        thread.start()
        thread.join()
    assert found == [1]


def test_ranks_have_none_during_a_session_nor_has_their_head() -> None:
    before = slack_ns()
    with Cluster(backend="emulated", backend_options={"layers": 1, "layer_s": 0.0}, draft=None, stages=1) as cluster:
        assert slack_ns(cluster.ready[0].pid) == slack_ns() == 1
    assert slack_ns() == before
