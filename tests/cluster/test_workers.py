"""`pipeinfer worker` between sessions: whatever ended one, the next head finds it ready, and nothing is left of it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Timer

import pytest
from processes import start

from pipeinfer.cluster.launch import Cluster, Plan
from pipeinfer.core import messages
from pipeinfer.core.messages import AskReport, Begin, Inspect, Sampling
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_strategy
from pipeinfer.transports import HEAD
from pipeinfer.transports.keys import write_keys
from pipeinfer.transports.tcp import TcpTransport

pytestmark = pytest.mark.timeout(120)

EMULATED = {"layers": 2, "layer_s": 0.002}

SLOW_TO_LEAVE = """
import sys, time
if "worker" in sys.argv:
    from pipeinfer.transports import tcp
    close = tcp.TcpTransport.close
    def slowly(self):
        time.sleep(0.6)
        close(self)
    tcp.TcpTransport.close = slowly
"""


class Workers:
    """Two running workers, for one stage and the draft."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.key = folder / "key.json"
        write_keys(self.key)
        self.errors = [folder / f"{rank}.err" for rank in range(2)]
        self.processes: list[subprocess.Popen[str]] = []
        for rank, errors in enumerate(self.errors):
            command = ["worker", "--rank", str(rank), "--listen", "tcp://127.0.0.1:0", "--key", str(self.key)]
            with errors.open("w") as file:
                self.processes.append(start(*command, env={**os.environ, **environment}, stderr=file))
        self.addresses = [self.wait_until_it_listens(rank) for rank in range(2)]

    def wait_until_it_listens(self, rank: int) -> str:
        """The address, once it is said (again)."""
        output = self.processes[rank].stdout
        assert output is not None
        words = output.readline().split()
        assert words[0] == "listening", self.said(rank)
        return words[1]

    def said(self, rank: int) -> str:
        return self.errors[rank].read_text()

    def plan(self, **fields: object) -> Plan:
        known = {"backend": "emulated", "backend_options": EMULATED, "stages": 1}
        return Plan(**{**known, "workers": tuple(self.addresses), "key": str(self.key), **fields})


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Workers]:
    workers = Workers(folder, **environment)
    try:
        yield workers
    finally:
        for process in workers.processes:
            process.terminate()
            process.communicate()


def wait_until(done: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def generate(cluster: Cluster, tokens: int = 8) -> tuple[int, ...]:
    return cluster.generate([1, 2], open_strategy("pipeinfer", {}), max_tokens=tokens).token_ids


def test_a_worker_that_is_still_leaving_one_session_serves_the_next(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_LEAVE)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with running(tmp_path, PYTHONPATH=path) as workers:
        said = set()
        for _ in range(3):
            with Cluster(workers.plan()) as cluster:
                said.add(generate(cluster))
    assert len(said) == 1


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Running workers, for one test after another."""
    with running(tmp_path_factory.mktemp("workers")) as found:
        yield found


def test_a_busy_worker_refuses_a_second_head(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer.cluster.ranks.AGAIN_S", 0.3)
    with Cluster(workers.plan()) as cluster:
        said = generate(cluster)
        with pytest.raises(LaunchError, match=r"rank 0 at .* is busy with another session: it has a head already"):
            Cluster(workers.plan())
        assert generate(cluster) == said


def test_a_second_head_may_wait_for_the_first(workers: Workers) -> None:
    first = Cluster(workers.plan())
    Timer(0.3, first.close).start()
    with Cluster(workers.plan()) as cluster:
        assert generate(cluster)


STRAYS = {
    "of another kind": (3, messages.encode(Begin(Sampling())), "rank 3 sent Begin, which begins no session"),
    "no message": (3, b"\xff\xff", "rank 3 sent something that is no message: "),
    "not by the head": (1, messages.encode(Inspect(0, "numpy", b"", "")), "rank 1 sent Inspect, which begins no"),
    "not for a worker": (HEAD, messages.encode(AskReport()), "the head sent AskReport, which begins no session"),
    "no way back": (HEAD, messages.encode(Inspect(0, "numpy", b"", "nowhere")), "a head that cannot be answered: "),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_message_costs_a_worker_nothing(workers: Workers, stray: str) -> None:
    sender, header, line = STRAYS[stray]
    before = workers.said(0)
    with closing(TcpTransport("tcp://127.0.0.1:0", sender, keys=workers.key)) as member:
        member.connect(0, workers.addresses[0])
        member.send(0, header)
        wait_until(lambda: workers.said(0) != before)
        with Cluster(workers.plan()) as cluster:
            assert generate(cluster)
    said = workers.said(0).removeprefix(before)
    assert said.startswith(f"ignored: {line}")
    assert len(said.splitlines()) == 1
