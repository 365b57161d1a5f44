"""A session's ranks are forked from one process: what of them is heard, and that they end whatever ends it."""

import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from processes import alive, parent_of
from running_workers import wait_until

from pipeinfer.cluster.forked_ranks import log_of
from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.python_process import ONE_THREAD
from pipeinfer.cluster.rank_processes import RankProcesses
from pipeinfer.errors import LaunchError, RankLost
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime.transports.keys import write_keys

pytestmark = pytest.mark.usefixtures("own_parents_of_ranks")

WITHIN_S = 40.0
OPTIONS = {"layers": 2, "layer_s": 0.005}

FORK = """
import os, sys
from pathlib import Path
from pipeinfer.cluster.forked_ranks import ForkedRanks

def run(rank, say):
    print("an engine prints")
    os.write(1, b"without an end")
    print(f"rank {rank} complains", file=sys.stderr)
    say("listening somewhere")
    return [0, 3, 1 // (2 - rank)][rank]

ForkedRanks(run, Path(sys.argv[1])).serve()
"""


def test_all_that_ranks_say_and_how_they_end_is_heard_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):  # Others take their places.
            process.stdin.write("start 3\n")
            process.stdin.flush()
            lines = [process.stdout.readline().split() for _ in range(9)]
            assert {(rank, what) for _, rank, what, _ in lines} == set(product("012", ("is", "listening", "ended")))
            ends = sorted((rank, code) for _, rank, what, code in lines if what == "ended")
            assert ends == [("0", "0"), ("1", "3"), ("2", "1")]
        process.stdin.close()
        assert (process.stdout.read(), process.wait(WITHIN_S)) == ("", 0)
    for rank in range(3):
        assert f"rank {rank} complains" in (tmp_path / f"rank-{rank}.err").read_text()
    assert "ZeroDivisionError" in (tmp_path / "rank-2.err").read_text()


def test_ranks_of_a_session_have_one_parent() -> None:
    with Cluster(backend="emulated", backend_options=OPTIONS, draft=None, stages=2) as cluster:
        pids = [ready.pid for ready in cluster.ready.values()]
        (parent,) = {parent_of(pid) for pid in pids}
        assert parent_of(parent) == os.getpid()
        assert [Path(f"/proc/{pid}/comm").read_text() for pid in sorted(pids)] == ["rank 0\n", "rank 1\n"]
    assert not any(map(alive, [parent, *pids]))


@pytest.mark.parametrize("stopped", [None, 1], ids=["all run", "one is stopped"])
def test_ranks_whose_parent_is_killed_end_with_it(stopped: int | None) -> None:
    with Cluster(backend="emulated", backend_options=OPTIONS, draft=None, stages=2) as cluster:
        pids = [ready.pid for ready in cluster.ready.values()]
        if stopped is not None:
            os.kill(pids[stopped], signal.SIGSTOP)
        os.kill(parent_of(pids[0]), signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)))  # The session is not over.
        with pytest.raises(RankLost, match=r"lost rank \d.* killed by SIGKILL"):
            cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=20)
        cluster.reopen()
        cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=2)
        pids += [ready.pid for ready in cluster.ready.values()]
    assert not any(map(alive, pids))


def test_where_the_parent_is_stopped_its_ranks_are_ended_all_the_same() -> None:
    with Cluster(backend="emulated", backend_options=OPTIONS, draft=None, stages=2) as cluster:
        pids = [ready.pid for ready in cluster.ready.values()]
        parent = parent_of(pids[0])
        os.kill(parent, signal.SIGSTOP)
        os.kill(pids[0], signal.SIGSTOP)
        cluster.reopen()
        assert not any(map(alive, [parent, *pids]))
        cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=2)
        parent = parent_of(cluster.ready[0].pid)
        os.kill(parent, signal.SIGSTOP)
        pids += [parent, *(ready.pid for ready in cluster.ready.values())]
    assert not any(map(alive, pids))


def test_ranks_that_take_the_places_of_lost_ones_are_forked_from_the_same_process() -> None:
    with Cluster(backend="emulated", backend_options=OPTIONS, draft=None, stages=2) as cluster:
        pids = [ready.pid for ready in cluster.ready.values()]
        parent = parent_of(pids[0])
        for _ in range(2):
            os.kill(pids[-1], signal.SIGKILL)
            cluster.reopen()
            assert not any(map(alive, pids))
            pids += [ready.pid for ready in cluster.ready.values()]
            assert {parent_of(pid) for pid in pids[-2:]} == {parent}
            cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=2)
    assert not any(map(alive, [parent, *pids]))


def test_a_rank_that_is_stopped_before_it_listens_is_not_waited_for(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    write_keys(key)
    os.mkfifo(log_of(tmp_path, 0))  # which it opens first, and waits for who reads it
    ranks = RankProcesses("tls://127.0.0.1:0", key, tmp_path)
    try:
        ranks.start(2)
        wait_until(lambda: not ranks.ended() and len(ranks.pids) == 2)
        os.kill(ranks.pids[0], signal.SIGSTOP)
        with pytest.raises(LaunchError, match=rf"^rank 0 did not start: process {ranks.pids[0]} is stopped$"):
            ranks.addresses()
    finally:
        pids = list(ranks.pids.values())
        ranks.close(0)
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("local", "said"),
    [("tls://192.0.2.1:0", "exit code 2: .*192.0.2.1"), ("pigeon://x", "exit code 1: .*no transport")],
    ids=["a rank", "their parent"],
)
def test_who_cannot_start_says_why(local: str, said: str, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    write_keys(key)
    ranks = RankProcesses(local, key, tmp_path)
    try:
        ranks.start(2)
        with pytest.raises(LaunchError, match=f"^rank [01] did not start: ended with {said}"):
            ranks.addresses()
    finally:
        ranks.close(0)
    assert not any(map(alive, ranks.pids.values()))


LOOKS_FOR_GPUS = """
import os, sys, threading
import torch
before = len(os.listdir("/proc/self/task"))

def refuse(*_):
    raise AssertionError("it looks for GPUs")

for name in ("is_available", "device_count", "init", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
from pipeinfer_torch import TorchBackend
TorchBackend.prepare(["builtin:draft"])
assert "transformers" not in sys.modules, "a plain Llama needs nothing of it"
assert len(os.listdir("/proc/self/task")) == before == 1
known = set(sys.modules)
if os.fork() == 0:
    from pipeinfer_torch.stage import load_stage
    load_stage("builtin:draft", (0, 1), torch.device("cpu"), "float32", cells=64, sequences=2)
    os._exit(len(set(sys.modules) - known) > 100)  # of thousands
assert os.wait()[1] == 0
"""


def test_what_torch_prepares_starts_no_thread_looks_for_no_gpu_and_spares_loading_its_imports() -> None:
    pytest.importorskip("torch")
    command, environment = [sys.executable, "-c", LOOKS_FOR_GPUS], {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_torch_prepares_for_a_model_of_the_hub_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from pipeinfer_torch import TorchBackend, source

    def refuse(*_: object) -> None:
        raise AssertionError("it asks the hub, in a process that is to be forked")

    monkeypatch.setattr(source, "fetch", refuse)
    TorchBackend.prepare(["someone/model@main"])
