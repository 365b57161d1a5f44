"""A rank that has a parent, which an MPI launcher started: it does not outlive it."""

import os
import signal
import subprocess
import sys

import pytest
from processes import alive
from running_workers import wait_until

WATCHED = """
import os, time
from pipeinfer.cluster.watched_rank import watched_rank
with watched_rank("a rank"):
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["it runs", "it is stopped"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_rank_ends_with_its_parent(number: signal.Signals, stopped: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", WATCHED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        rank = int(parent.stdout.readline())
        if stopped:
            os.kill(rank, signal.SIGSTOP)
        parent.send_signal(number)
        wait_until(lambda: not alive(rank))
