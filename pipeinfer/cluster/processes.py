"""Ranks as processes that are started on this machine."""

import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from pipeinfer.cluster.memory_layout import same_memory_layout
from pipeinfer.cluster.process_end import how_it_ended
from pipeinfer.cluster.python_process import python_command, python_environment
from pipeinfer.cluster.ranks import say_farewell
from pipeinfer.cluster.stopped_processes import StoppedProcesses
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.processor_quota import bound_cores
from pipeinfer.runtime.transports import HEAD, open_member
from pipeinfer.runtime.transports.keys import write_keys

LEAVE_S = 1.0
"""How long a rank may take to leave before it is ended."""

NOTICE_S = 0.2
"""A process that was killed closes its connections this much before it can be seen to have ended."""


class Processes:
    """Ranks as processes on this machine, that listen at `local`, with keys made for this session. Ended by their own
    id."""

    def __init__(self, local: str, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pipeinfer-")
        key = Path(self._folder.name) / "key.json"
        write_keys(key, certificate=not local.startswith("tcp:"))  # It takes a tenth of a second to make.
        self.transport = open_member(local, HEAD, keys=key)
        self._logs = [Path(self._folder.name) / f"rank-{rank}.err" for rank in range(count)]
        self._processes: list[subprocess.Popen[str]] = []
        self._stopped = StoppedProcesses()
        try:
            with same_memory_layout() if count >= bound_cores() else nullcontext():  # This process takes a core too.
                self._processes += [_start(local, rank, key, log) for rank, log in enumerate(self._logs)]
            self._stopped.processes = {rank: process.pid for rank, process in enumerate(self._processes)}
            self.addresses = [self._address(rank) for rank in range(count)]
        except BaseException:
            self.close(b"")
            raise

    def dead(self) -> tuple[int, str] | None:
        ended = [rank for rank, process in enumerate(self._processes) if process.poll() is not None]
        if not ended:
            return None
        rank = next((rank for rank in ended if self._processes[rank].returncode), ended[0])
        return rank, self._last_words(rank)

    def hung(self) -> tuple[int, str] | None:
        return self._stopped.found()

    def met(self, rank: int, host: str, process: int) -> None:
        """It is known already."""

    def culprit(self, rank: int) -> tuple[int, str] | None:
        deadline = time.monotonic() + NOTICE_S
        while True:
            dead = self.dead()
            if dead is not None and (dead[0] == rank or self._processes[dead[0]].returncode):
                return dead
            if time.monotonic() >= deadline:
                return None
            time.sleep(NOTICE_S / 10)

    def _last_words(self, rank: int) -> str:
        how = how_it_ended(self._processes[rank].returncode)
        said = self._logs[rank].read_text(errors="replace").strip().splitlines()
        return f"{how}: {said[-1]}" if said else how

    def close(self, farewell: bytes) -> None:
        deadline = time.monotonic() + (LEAVE_S if farewell else 0)
        if farewell:
            say_farewell(self.transport, farewell, len(self._processes))
        self.transport.close()
        for process in self._processes:
            _end(process, deadline)
        self._folder.cleanup()

    def _address(self, rank: int) -> str:
        """What the process says it listens at."""
        output = self._processes[rank].stdout
        assert output is not None
        line = output.readline()  # Or its end: importing everything from a disk far away takes as long as it takes.
        if not line.startswith("listening "):
            self._processes[rank].wait(LEAVE_S)
            raise LaunchError(f"rank {rank} did not start: {self._last_words(rank)}")
        return line.split()[1]


def _start(local: str, rank: int, key: Path, log: Path) -> "subprocess.Popen[str]":
    command = python_command("pipeinfer.cluster.worker", "--listen", local, "--rank", str(rank),
                             "--key", str(key))  # fmt: skip
    with log.open("w") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=python_environment(),
        )  # fmt: skip


def _end(process: "subprocess.Popen[str]", deadline: float) -> None:
    """Wait until it leaves, then make it: a rank has nothing to lose, and one that hangs would not be asked."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
