"""A session's ranks are forked from one process: what of them is heard, and that they end whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from processes import alive

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.rank_processes import RankProcesses
from pipeinfer.errors import LaunchError, RankLost
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime.transports.keys import write_keys

WITHIN_S = 40.0
OPTIONS = {"layers": 2, "layer_s": 0.005}

FORK = """
import os, sys
from pathlib import Path
from pipeinfer.cluster.forked_ranks import fork_ranks

def run(rank, say):
    print("an engine prints")
    os.write(1, b"without an end")
    print(f"rank {rank} complains", file=sys.stderr)
    say("listening somewhere")
    return [0, 3, 1 // (2 - rank)][rank]

fork_ranks(3, run, Path(sys.argv[1]))
"""


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_all_that_ranks_say_and_how_they_end_is_heard_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {(rank, what) for _, rank, what, _ in lines} == set(product("012", ("is", "listening", "ended")))
    ends = sorted((rank, code) for _, rank, what, code in lines if what == "ended")
    assert ends == [("0", "0"), ("1", "3"), ("2", "1")]
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


def test_ranks_whose_parent_is_killed_end_with_the_session() -> None:
    with Cluster(backend="emulated", backend_options=OPTIONS, draft=None, stages=2) as cluster:
        pids = [ready.pid for ready in cluster.ready.values()]
        os.kill(parent_of(pids[0]), signal.SIGKILL)
        with suppress(RankLost):  # Whether they are lost is a matter of when anybody looks: they compute on.
            cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=20)
    deadline = time.monotonic() + WITHIN_S
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("local", "said"),
    [("tls://192.0.2.1:0", "exit code 2: .*192.0.2.1"), ("pigeon://x", "exit code 1: .*no transport")],
    ids=["a rank", "their parent"],
)
def test_who_cannot_start_says_why(local: str, said: str, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    write_keys(key)
    ranks = RankProcesses(local, 2, key, tmp_path)
    try:
        with pytest.raises(LaunchError, match=f"^rank [01] did not start: ended with {said}"):
            ranks.addresses()
    finally:
        ranks.end(time.monotonic())
    assert not any(map(alive, ranks.pids.values()))
