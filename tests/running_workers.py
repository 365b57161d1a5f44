"""Processes of `pipeinfer worker` that tests point heads at, kill and start again."""

import copy
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked_commands import ForkedCommand
from processes import start

from pipeinfer.cluster.plan import Plan
from pipeinfer.runtime.transports.keys import write_keys

EMULATED = {"layers": 2, "layer_s": 0.002}


class Workers:
    """Running workers, for one stage and the draft unless there are more; `fixed`: each is one rank alone."""

    def __init__(
        self, folder: Path, listen: str = "tcp://127.0.0.1:0", *, count: int = 2, fixed: bool = True, **environment: str
    ) -> None:
        self.key = folder / "key.json"
        write_keys(self.key)
        self.errors = [folder / f"{rank}.err" for rank in range(count)]
        self.fixed = fixed
        self.environment = {**os.environ, **environment} if environment else None
        self.processes = [self.start(rank, listen) for rank in range(count)]
        self.addresses = [self.wait_until_it_listens(rank) for rank in range(count)]
        self.held_at_first = self.held()

    def start(self, rank: int, listen: str) -> "subprocess.Popen[str] | ForkedCommand":
        with self.errors[rank].open("a") as file:
            named = ["--rank", str(rank)] if self.fixed else []
            return start("worker", *named, "--listen", listen, "--key", str(self.key),
                         env=self.environment, stderr=file)  # fmt: skip

    def kill(self, rank: int) -> None:
        self.processes[rank].kill()
        self.processes[rank].communicate()

    def start_again(self, rank: int) -> None:
        """At the same address."""
        self.processes[rank] = self.start(rank, self.addresses[rank])
        assert self.wait_until_it_listens(rank) == self.addresses[rank]

    def wait_until_it_listens(self, rank: int) -> str:
        """The address, once it is said (again)."""
        output = self.processes[rank].stdout
        assert output is not None
        words = output.readline().split()
        assert words[0] == "listening", self.said(rank)
        return words[1]

    def held(self) -> list[tuple[int, int]]:
        """Open files and threads of each."""
        proc = [Path(f"/proc/{process.pid}") for process in self.processes]
        return [(len(list((each / "fd").iterdir())), len(list((each / "task").iterdir()))) for each in proc]

    def said(self, rank: int) -> str:
        return self.errors[rank].read_text()

    def plan(self, **fields: object) -> Plan:
        known = {"backend": "emulated", "backend_options": EMULATED, "stages": 1}
        return Plan(**{**known, "workers": tuple(self.addresses), "key": str(self.key), **fields})


@contextmanager
def running(folder: Path, listen: str = "tcp://127.0.0.1:0", **options: Any) -> Iterator[Workers]:
    workers = Workers(folder, listen, **options)
    try:
        yield workers
    finally:
        for process in workers.processes:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def lent(workers: Workers, count: int) -> Workers:
    """The first `count` of workers that one test after another has: those that the last one ended are started again."""
    for rank in range(count):
        if workers.processes[rank].poll() is not None:
            workers.start_again(rank)
    some = copy.copy(workers)
    some.addresses = workers.addresses[:count]
    return some


def wait_until(done: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
