"""The MPI transport against its protocol: a world of processes that do what the tests ask of them.

Run by mpiexec, this file is one of those processes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, ClassVar

import pytest

from pipeinfer.cluster.mpi_world import OVERSUBSCRIBE, find_mpiexec
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.transports import HEAD, Envelope, PeerLost, Traffic, TransportError, mpi
from pipeinfer.testing.transports import TransportConformance, expect

pytestmark = pytest.mark.timeout(120)

RANKS = 3
END_S = 20.0
HUGE = 1 << 29
RAISED: dict[str, type[Exception]] = {"ValueError": ValueError, "TransportError": TransportError}


def need_mpi() -> str:
    """The path of mpiexec; skips the module where there is no MPI."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    try:
        return find_mpiexec()
    except LaunchError as problem:
        pytest.skip(str(problem), allow_module_level=True)


def test_a_rank_that_waits_for_long_looks_seldom(monkeypatch):
    """A look costs some 10 us: less than 1 % of a core after a tenth of a second, and no wait is a tenth longer."""
    waited = [0.0]
    naps: list[tuple[float, float]] = []

    def sleep(seconds: float) -> None:
        naps.append((waited[0], seconds))
        waited[0] += seconds

    monkeypatch.setattr(mpi.time, "sleep", sleep)
    waited[0] = 100e-6
    while waited[0] < 2.0:
        mpi._rest(waited[0], 10.0)
    assert sum(1 for at, _ in naps if at > 0.1) < 0.01 * (2.0 - 0.1) / 10e-6
    assert all(nap <= max(at / 8, 1e-9) for at, nap in naps)
    assert max(nap for at, nap in naps if at < 0.03) <= 500e-6


class Remote:
    """The endpoint of another process, as a Transport."""

    def __init__(self, process: Connection, rank: int, address: str = "mpi://") -> None:
        self._process = process
        self.rank = rank
        self.address: str = self.call("open", address, rank)

    def call(self, name: str, *arguments: Any) -> Any:
        self.ask(name, *arguments)
        return self.answer()

    def ask(self, name: str, *arguments: Any) -> None:
        self._process.send((name, arguments))

    def answer(self) -> Any:
        kind, *found = self._process.recv()
        if kind == "PeerLost":
            raise PeerLost(*found)
        if kind in RAISED:
            raise RAISED[kind](*found)
        return found[0]

    @property
    def traffic(self) -> dict[int, Traffic]:
        found: dict[int, Traffic] = self.call("traffic")
        return found

    def connect(self, rank: int, address: str) -> None:
        self.call("connect", rank, address)

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        # What is huge is made where it is used: it would take seconds on its way there.
        self.call("send", rank, header, len(payload) if len(payload) > HUGE else bytes(payload), urgent)

    def receive(self, timeout: float) -> Envelope | None:
        found = self.call("receive", timeout)
        return None if found is None else Envelope(*found)

    def wake(self) -> None:
        self.call("wake")

    def close(self) -> None:
        self.call("close")


class World:
    """One process per rank, and the head's."""

    def __init__(self, folder: str) -> None:
        address = f"{folder}/world"
        with Listener(address) as listener:
            command = [MPIEXEC, "-n", str(RANKS + 1), sys.executable, __file__, address]
            self._mpiexec = subprocess.Popen(command, env={**OVERSUBSCRIBE, **os.environ})
            try:
                processes = [listener.accept() for _ in range(RANKS + 1)]
                self._processes: dict[int, Connection] = {process.recv(): process for process in processes}
            except BaseException:
                self._mpiexec.kill()
                raise
        self._opened = dict.fromkeys(self._processes, 0)

    def endpoint(self, rank: int, address: str = "mpi://") -> Remote:
        made = Remote(self._processes[rank], rank, address)
        self._opened[rank] += 1
        return made

    def fall_in_step(self) -> None:
        """Processes have to have had the same number of sessions."""
        while len(set(self._opened.values())) > 1:
            self.endpoint(min(self._opened, key=lambda rank: self._opened[rank])).close()

    def end(self) -> int:
        """Let all processes end; mpiexec's exit code."""
        for process in self._processes.values():
            process.send(("end", ()))
        try:
            return self._mpiexec.wait(END_S)
        finally:
            self._mpiexec.kill()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(str(tmp_path_factory.mktemp("mpi")))
    yield made
    assert made.end() == 0


@pytest.fixture(autouse=True)
def in_step(world: World) -> Iterator[None]:
    yield
    world.fall_in_step()


class TestMpi(TransportConformance):
    world: ClassVar[World]

    @pytest.fixture(autouse=True)
    def use_world(self, world: World) -> None:
        type(self).world = world

    def endpoint(self, rank: int) -> Remote:
        return self.world.endpoint(rank)

    def test_connect_and_send_before_the_peer_listens(self) -> None:
        with closing(self.endpoint(0)) as a:
            a.connect(1, "mpi://2")
            a.send(1, b"early", b"bird")
            assert a.receive(0.1) is None
            with closing(self.endpoint(1)) as b:
                assert expect(b) == (0, b"early", b"bird")


@pytest.fixture
def pair(world: World) -> Iterator[list[Remote]]:
    """Ranks 0 and 1, linked both ways."""
    with closing(world.endpoint(0)) as a, closing(world.endpoint(1)) as b:
        a.connect(1, b.address)
        b.connect(0, a.address)
        yield [a, b]


def test_urgent_messages_overtake(pair: list[Remote]) -> None:
    a, b = pair
    for n in range(50):
        a.send(1, b"%d" % n, bytes(500_000))
    a.send(1, b"cancel", urgent=True)
    heard = [expect(b).header for _ in range(51)]
    # It was sent last. How many it overtakes is the library's affair: over shared memory even announcements queue.
    assert heard.index(b"cancel") < 50
    heard.remove(b"cancel")
    assert heard == [b"%d" % n for n in range(50)]


def test_a_buffer_may_be_changed_once_it_is_sent(pair: list[Remote]) -> None:
    pair[0].call("send_and_spoil", 1, 1_000_000)
    assert set(expect(pair[1]).payload) == {7}


def test_what_a_session_left_under_way_is_dropped(world: World) -> None:
    for n in range(3):
        with closing(world.endpoint(0)) as a, closing(world.endpoint(1)) as b:
            a.connect(1, b.address)
            a.send(1, b"read %d" % n)
            a.send(1, b"left", bytes(1_000_000))
            assert expect(b).header == b"read %d" % n


def test_a_receiver_that_waits_does_not_burn_its_core(pair: list[Remote]) -> None:
    before = pair[0].call("cpu_s")
    assert pair[0].receive(1.0) is None
    assert pair[0].call("cpu_s") - before < 0.25


def test_a_message_ends_a_long_wait_within_milliseconds(pair: list[Remote]) -> None:
    a, b = pair
    late = []
    for _ in range(20):
        start = time.monotonic()
        b.ask("reply_after", 0, 0.05)
        expect(a)
        late.append(time.monotonic() - start - 0.05)
        b.answer()
    assert sorted(late)[10] < 0.01


@pytest.mark.parametrize(("address", "rank"), [("mpi://1", 1), ("mpi://3", 1), ("tcp://127.0.0.1:0", 1)])
def test_an_address_is_its_own_process_s(world: World, address: str, rank: int) -> None:
    with pytest.raises(TransportError, match="process 2 of the MPI world is rank 1 at mpi://2"):
        world.endpoint(rank, address)
    world.endpoint(rank).close()


@pytest.mark.parametrize(
    ("rank", "address"), [(1, "mpi://1"), (7, "mpi://8"), (0, "mpi://1"), (1, "tcp://127.0.0.1:1")]
)
def test_a_peer_is_of_the_world_and_another(pair: list[Remote], rank: int, address: str) -> None:
    with pytest.raises(TransportError, match=f"rank {rank} is not at {address}"):
        pair[0].connect(rank, address)


def test_a_world_of_one_process_ends_by_itself() -> None:
    code = (
        "from pipeinfer.runtime.transports.mpi import MpiTransport as T; "
        "t = T('mpi://', -1); assert t.receive(0.1) is None"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=END_S, check=False).returncode == 0


def test_the_head_ends_a_rank_that_does_not_leave() -> None:
    code = (
        "import time; from pipeinfer.runtime.transports.mpi import open_world\n"
        "if open_world().rank == 1: print('stuck', flush=True); time.sleep(60)"
    )
    command = [MPIEXEC, "-n", "3", sys.executable, "-c", code]
    done = subprocess.run(
        command, env={**OVERSUBSCRIBE, **os.environ}, capture_output=True, text=True, timeout=END_S, check=False
    )
    assert done.returncode != 0
    assert "stuck" in done.stdout


# One process of the world.


def obey(process: Connection, rank: int) -> None:
    """Do what the tests ask, one call after another."""
    from mpi4py import MPI

    process.send(rank)
    endpoint: Any = None
    while True:
        while not process.poll(0.001):
            MPI.COMM_WORLD.Iprobe()  # MPI moves nothing between calls, and a rank at work calls it all the time
        name, arguments = process.recv()
        if name == "end":
            return
        try:
            if name == "open":
                endpoint = MpiTransport(*arguments)
            process.send(("", perform(endpoint, name, arguments)))
        except PeerLost as lost:
            process.send(("PeerLost", lost.rank, str(lost)))
        except (ValueError, TransportError) as problem:
            process.send((type(problem).__name__, str(problem)))


def perform(endpoint: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "open":
        return endpoint.address
    if name == "traffic":
        return endpoint.traffic
    if name == "cpu_s":
        return time.process_time()
    if name == "reply_after":
        rank, delay = arguments
        time.sleep(delay)
        return endpoint.send(rank, b"reply")
    if name == "send_and_spoil":
        rank, size = arguments
        buffer = bytearray([7]) * size
        endpoint.send(rank, b"", memoryview(buffer))
        buffer[:] = bytes(size)
        return None
    if name == "send":
        rank, header, payload, urgent = arguments
        return endpoint.send(rank, header, payload if isinstance(payload, bytes) else bytes(payload), urgent=urgent)
    found = getattr(endpoint, name)(*arguments)
    return (found.sender, found.header, bytes(found.payload)) if name == "receive" and found else found


if __name__ == "__main__":
    from pipeinfer.runtime.transports.mpi import MpiTransport, open_world

    this_rank = open_world().rank + HEAD
    with Client(sys.argv[1]) as connection:
        obey(connection, this_rank)
else:
    MPIEXEC = need_mpi()
