"""Ranks as processes of one MPI world: the head is `mpi://0`, and rank r is `mpi://<r + 1>`.

MPI's blocking calls burn a core while they wait, and it has no file descriptor to sleep on. So a receiver looks,
yields, and then naps, longer the longer it has waited: where ranks outnumber cores, the ones with work get them.

A message is one buffer: payload, header, length of the header. The payload comes first for its alignment. Urgent
messages go over a communicator of their own, where nothing is ahead of them.

A process has one endpoint at a time, but may have one after another. Each is a session; ranks count them in step, and
the count is the tag of a session's messages, so that what an earlier session left under way is dropped. An empty
buffer is a goodbye: from the session, or (tag LEAVING) from the world. MPI itself says nothing of a process that has
gone: its launcher ends all the others.
"""

import atexit
import os
import struct
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import mpi4py

from pipeinfer.errors import one_line
from pipeinfer.runtime.transports import (
    HEAD,
    MAX_HEADER,
    MAX_PAYLOAD,
    Envelope,
    Hosting,
    PeerLost,
    Traffic,
    TransportError,
    message_size,
)

if TYPE_CHECKING:
    from mpi4py import MPI

LINGER_S = 1.0
"""The longest that `close` waits for what was sent to leave."""

LEAVE_S = 2.0
"""The longest that the head waits at its end for the others to leave. Then it ends them."""

LEAVING = 0
"""The tag of a goodbye from the world. Sessions count from 1."""

_TAGS = 32767
"""MPI promises tags up to here."""

_HEADER_LENGTH = struct.Struct("<I")

_YIELD_S = 50e-6
_NAP_SHARE = 1 / 8
_LONGEST_NAP_S = 500e-6
_IDLE_SHARE = 1 / 64
_LONGEST_IDLE_NAP_S = 5e-3
"""Who has waited for long naps for longer, by no more than this share of the wait: looking costs some 10 us."""


class MpiTransport:
    """One endpoint: this process's, in its next session. `mpi://` is its own address, whatever its number.

    Raises TransportError when MPI cannot be loaded or the address is another process's.
    """

    hosting = Hosting("world", workers=False)

    def __init__(self, address: str, rank: int, *, max_payload: int = MAX_PAYLOAD) -> None:
        self._world = open_world()
        self.rank = rank
        self.address = f"mpi://{self._world.rank}"
        if address not in ("mpi://", self.address) or rank != self._world.rank + HEAD:
            raise TransportError(
                f"process {self._world.rank} of the MPI world is rank {self._world.rank + HEAD} at {self.address}, "
                f"not rank {rank} at {address}"
            )
        self.traffic: dict[int, Traffic] = {}
        self._max_payload = max_payload
        self._session = self._world.next_session()
        self._links: set[int] = set()
        self._lost: dict[int, str] = {}
        self._closed = self._woken = False

    def connect(self, rank: int, address: str) -> None:
        """See Transport. Raises PeerLost when it was lost, TransportError when it has another address."""
        if rank in self._lost:
            raise PeerLost(rank, self._lost[rank])
        if rank == self.rank or not HEAD <= rank < self._world.size + HEAD or address != f"mpi://{rank - HEAD}":
            raise TransportError(f"rank {rank} is not at {address} in an MPI world of {self._world.size} processes")
        self._links.add(rank)

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        """See Transport. Copies, so that the caller may reuse its buffer at once; urgent messages overtake."""
        if rank in self._lost:
            raise PeerLost(rank, self._lost[rank])
        if rank not in self._links:
            raise ValueError(f"rank {self.rank} has no link to rank {rank}; connect first")
        size = message_size(header, payload, self._max_payload)
        frame = b"".join((payload, header, _HEADER_LENGTH.pack(len(header))))
        self._world.send(frame, rank - HEAD, self._session, urgent=urgent)
        self._traffic_of(rank).sent(len(header) + size)

    def receive(self, timeout: float) -> Envelope | None:
        """See Transport. What is urgent comes first."""
        start = time.monotonic()
        while True:
            arrival = self._world.look()
            if arrival is not None:
                envelope = self._open(arrival)
                if envelope is not None:
                    return envelope
                continue
            waited = time.monotonic() - start
            if self._woken or waited >= timeout:
                self._woken = False
                return None
            _rest(waited, timeout - waited)

    def wake(self) -> None:
        """See Transport."""
        self._woken = True

    def close(self) -> None:
        """See Transport. The process stays in the world."""
        if self._closed:
            return
        self._closed = True
        self._world.say_goodbye(self._session)
        _wait_until(self._world.all_sent, LINGER_S)

    def _open(self, arrival: "ReceivedFrame") -> Envelope | None:
        """The message that has arrived; None when it is of another session. Raises PeerLost on a goodbye."""
        sender = arrival.source + HEAD
        if arrival.tag not in (self._session, LEAVING) or sender in self._lost:
            return None
        if not arrival.frame:
            self._lose(sender, "left the MPI world" if arrival.tag == LEAVING else "closed its end")
            return None
        envelope = self._parse(sender, arrival.frame)
        self._traffic_of(sender).received(len(arrival.frame) - _HEADER_LENGTH.size)
        return envelope

    def _parse(self, sender: int, frame: bytearray) -> Envelope:
        end = len(frame) - _HEADER_LENGTH.size
        (length,) = _HEADER_LENGTH.unpack_from(frame, end) if end >= 0 else (MAX_HEADER + 1,)
        if length > min(end, MAX_HEADER) or end - length > self._max_payload:
            self._lose(sender, f"sent {len(frame)} bytes that are no message; install the same release on every host")
        view = memoryview(frame)
        return Envelope(sender, bytes(view[end - length : end]), view[: end - length])

    def _lose(self, rank: int, how: str) -> None:
        """Raises PeerLost if the rank is a peer of this one. The head is everyone's."""
        self._lost[rank] = f"rank {rank} {how}"
        if rank == HEAD or rank in self._links or rank in self.traffic:
            raise PeerLost(rank, self._lost[rank])

    def _traffic_of(self, rank: int) -> Traffic:
        return self.traffic.setdefault(rank, Traffic())


class ReceivedFrame(NamedTuple):
    """A buffer that has arrived in full, from a process of the world."""

    source: int
    tag: int
    frame: bytearray


class MpiProcess:
    """This process's part in the MPI world, from its first endpoint until it ends. Opening one is collective."""

    def __init__(self) -> None:
        self._mpi = _initialize()
        world = self._mpi.COMM_WORLD
        self.rank: int = world.rank
        self.size: int = world.size
        self.left: set[int] = set()
        """Processes that have left; none of them comes back."""
        self._session = 0
        self._ordinary = _Channel(self._mpi, world.Dup())
        self._urgent = _Channel(self._mpi, world.Dup())
        self._sending: deque[MPI.Request] = deque()
        atexit.register(self._leave)  # before mpi4py finalizes MPI

    def next_session(self) -> int:
        """The tag of a new session."""
        self._session = self._session % _TAGS + 1
        return self._session

    def send(self, frame: bytes, to: int, tag: int, *, urgent: bool = False) -> None:
        """Start sending. The request holds the buffer until it is known to have left."""
        self._sending.append((self._urgent if urgent else self._ordinary).send(frame, to, tag))
        self.all_sent()

    def all_sent(self) -> bool:
        """Let go of what has left, oldest first: a rank that does not read delays that for the others' buffers."""
        while self._sending and self._sending[0].Test():
            self._sending.popleft()
        return not self._sending

    def look(self) -> ReceivedFrame | None:
        """What has arrived, if anything."""
        arrival = self._urgent.look() or self._ordinary.look()
        if arrival is not None and arrival.tag == LEAVING:
            self.left.add(arrival.source)
        return arrival

    def say_goodbye(self, tag: int) -> None:
        """Tell all others that this process has ended a session, or leaves."""
        for other in set(range(self.size)) - {self.rank}:
            self.send(b"", other, tag)

    def _leave(self) -> None:
        """Leave together: MPI's own end waits for everyone, without a limit and without sleeping."""
        self.say_goodbye(LEAVING)
        if not _wait_until(self._all_left, LEAVE_S) and self.rank == 0:
            self._mpi.COMM_WORLD.Abort(1)

    def _all_left(self) -> bool:
        while self.look() is not None:
            pass
        return self.all_sent() and len(self.left) == self.size - 1


open_world = cache(MpiProcess)
"""The MPI world; joined with the first call."""


class _Channel:
    """One communicator. Its messages are taken off one after another, and a big one may take several looks."""

    def __init__(self, mpi: Any, communicator: "MPI.Intracomm") -> None:
        self._byte = mpi.BYTE
        self._status: MPI.Status = mpi.Status()
        self._communicator = communicator
        self._arriving: MPI.Request | None = None
        self._arrival = ReceivedFrame(0, 0, bytearray())

    def send(self, frame: bytes, to: int, tag: int) -> "MPI.Request":
        return self._communicator.Isend([frame, self._byte], to, tag)

    def look(self) -> ReceivedFrame | None:
        if self._arriving is None:
            message = self._communicator.Improbe(status=self._status)
            if message is None:
                return None
            frame = bytearray(self._status.Get_count(self._byte))
            self._arrival = ReceivedFrame(self._status.Get_source(), self._status.Get_tag(), frame)
            self._arriving = message.Irecv([frame, self._byte])
        if not self._arriving.Test():
            return None
        self._arriving = None
        return self._arrival


def library() -> Any:
    """mpi4py's module; MPI itself is not initialized yet. Raises TransportError."""
    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as problem:
        cure = "load your cluster's MPI module, or run `pip install mpich`"
        raise TransportError(f"mpi4py does not load: {one_line(problem)}; {cure}") from problem
    return MPI


def _initialize() -> Any:
    """SERIALIZED: a backend may ask whether to abort from a thread of its own, which looks for messages while the main
    thread computes; never two at once."""
    mpi = library()
    try:
        with warnings.catch_warnings():
            # Of a launcher that does not match, in every process; `cluster.world` says it once and with a cure.
            warnings.filterwarnings("ignore", "suspicious MPI execution environment")
            if not mpi.Is_initialized():
                mpi.Init_thread(mpi.THREAD_SERIALIZED)
    except mpi.Exception as problem:
        raise TransportError(f"MPI does not start: {one_line(problem)}") from problem
    if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
        raise TransportError("this MPI library was built or initialized without THREAD_SERIALIZED, which is needed")
    return mpi


def _rest(waited: float, left: float) -> None:
    """Give the core away: for as long as others want it at first, then for a while in proportion to the wait so far."""
    if waited < _YIELD_S:
        os.sched_yield()
    else:
        longest = min(max(_LONGEST_NAP_S, waited * _IDLE_SHARE), _LONGEST_IDLE_NAP_S)
        time.sleep(min(waited * _NAP_SHARE, longest, left))


def _wait_until(done: Callable[[], bool], limit_s: float) -> bool:
    """Whether it is done before the limit."""
    start = time.monotonic()
    while not done():
        waited = time.monotonic() - start
        if waited >= limit_s:
            return False
        _rest(waited, limit_s - waited)
    return True
