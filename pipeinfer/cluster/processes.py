"""The ranks of a session: processes or threads started here, an MPI world's, or workers that run somewhere already."""

import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pipeinfer.cluster.process_end import how_it_ended
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.live import run_rank
from pipeinfer.runtime.transports import HEAD, PeerLost, Transport, TransportError, open_transport
from pipeinfer.runtime.transports.keys import write_keys

START_S = 30.0
"""The longest that a process may take to listen."""

LEAVE_S = 1.0
"""How long a rank may take to leave before it is ended."""

NOTICE_S = 0.2
"""A process that was killed closes its connections this much before it can be seen to have ended."""

AGAIN_S = 5.0
"""How long a worker may be busy with another session, or take to come out of it, before a head gives up."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""One BLAS thread per rank unless the environment says otherwise: ranks share this machine's cores."""


class Ranks(Protocol):
    """Where the ranks are, and the head's own endpoint."""

    transport: Transport
    addresses: list[str]

    def dead(self) -> tuple[int, str] | None:
        """A rank that has ended by itself, and how."""

    def culprit(self, rank: int) -> tuple[int, str] | None:
        """Who ended and how, when `rank` was found to be gone: one that broke takes its neighbours with it. None when
        that is not known here."""

    def close(self, farewell: bytes) -> None:
        """Send every rank the farewell, and end those that were started here. Idempotent."""


def open_ranks(transport: str, count: int, workers: tuple[str, ...], key: str | None) -> Ranks:
    """Start `count` ranks, or reach the ones at `workers`. Raises LaunchError, UnknownPlugin, TransportError."""
    if workers:
        return Workers(workers, count, key)
    if transport == "inproc":
        return Threads(count)
    if transport == "tcp":
        return Processes(count)
    if transport == "mpi":
        from pipeinfer.cluster.mpi_world import MpiProcesses

        return MpiProcesses(count)
    from pipeinfer.plugins import TRANSPORTS, load

    load(TRANSPORTS, transport)
    raise LaunchError(f'ranks over "{transport}" are not started from here: start workers and give their addresses')


class Unwatched:
    """Ranks of whose end only the transport tells."""

    transport: Transport
    addresses: list[str]

    def dead(self) -> tuple[int, str] | None:
        return None

    def culprit(self, rank: int) -> tuple[int, str] | None:
        return None

    def close(self, farewell: bytes) -> None:
        say_farewell(self.transport, farewell, len(self.addresses))
        self.transport.close()


class Workers(Unwatched):
    """Ranks that run already, at the given addresses."""

    def __init__(self, addresses: tuple[str, ...], count: int, key: str | None) -> None:
        if len(addresses) != count:
            raise LaunchError(f"{len(addresses)} workers are given, and the plan has {count} ranks: stages and draft")
        if key is None:
            raise LaunchError("workers need their key file: give --key (pipeinfer worker --new-key FILE makes one)")
        self.addresses = list(addresses)
        self.transport = open_transport(_facing(addresses[0]), HEAD, keys=key, again_s=AGAIN_S)


class Threads(Unwatched):
    """Ranks as threads of this process."""

    def __init__(self, count: int) -> None:
        self.transport = open_transport("inproc://", HEAD)
        endpoints = [open_transport("inproc://", rank) for rank in range(count)]
        self.addresses = [endpoint.address for endpoint in endpoints]
        self._threads = [threading.Thread(target=_be_a_thread, args=(e,), name=f"rank {e.rank}") for e in endpoints]
        for thread in self._threads:
            thread.start()

    def close(self, farewell: bytes) -> None:
        super().close(farewell)
        for thread in self._threads:
            thread.join()


def _be_a_thread(transport: Transport) -> None:
    try:
        run_rank(transport, START_S)
    except (PeerLost, LaunchError):
        pass  # Which the head knows, or it is gone: so is this session.
    finally:
        transport.close()


class Processes:
    """Ranks as processes on this machine, over loopback with keys made for this session. Ended by their own id."""

    def __init__(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pipeinfer-")
        key = Path(self._folder.name) / "key.json"
        write_keys(key)
        self.transport = open_transport("tcp://127.0.0.1:0", HEAD, keys=key)
        self._logs = [Path(self._folder.name) / f"rank-{rank}.err" for rank in range(count)]
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self._processes += [_start(rank, key, log) for rank, log in enumerate(self._logs)]
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
        if not select.select([output], [], [], START_S)[0]:
            raise LaunchError(f"rank {rank} did not start: it does not listen after {START_S:g} s")
        line = output.readline()
        if not line.startswith("listening "):
            self._processes[rank].wait(LEAVE_S)
            raise LaunchError(f"rank {rank} did not start: {self._last_words(rank)}")
        return line.split()[1]


def _start(rank: int, key: Path, log: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipeinfer.cluster.worker", "--listen", "tcp://127.0.0.1:0"]
    command += ["--rank", str(rank), "--key", str(key)]
    with log.open("w") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**ONE_THREAD, **os.environ},
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


def say_farewell(transport: Transport, farewell: bytes, count: int) -> None:
    """Send it to every rank that is still there."""
    for rank in range(count):
        try:
            transport.send(rank, farewell)
        except (PeerLost, ValueError):
            continue  # It is gone already, or was never reached.


def _facing(address: str) -> str:
    """An address for the head that the worker at `address` can reach: of the interface that leads there."""
    parts = urlsplit(address)
    if parts.scheme != "tcp" or parts.hostname is None or parts.port is None:
        raise TransportError(f'"{address}" is not a TCP address; expected one like tcp://10.0.0.7:5555')
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((parts.hostname, parts.port))
            return f"tcp://{probe.getsockname()[0]}:0"
    except OSError as problem:
        raise TransportError(f"no way leads to {address}: {problem.strerror}") from problem
