"""A transport of somebody else's: ranks of one user on one machine, over Unix-domain sockets: `unix:///path/of/socket`.

Who may connect is what the file system says: a socket's folder is its owner's alone. One connection is one direction.
It begins with the sender's rank; each message is its lengths, its header and its payload. Threads read and write, so
that whoever computes blocks nobody, and all that happens lies in one queue.
"""

import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from pipeinfer.runtime.transports import (
    Envelope,
    Hosting,
    PeerLost,
    Traffic,
    TransportError,
    message_size,
)

RANK = struct.Struct("<i")
LENGTHS = struct.Struct("<IQ")
CONNECT_S = 10.0
LINGER_S = 1.0
LAST_WORDS_S = 0.25


class UnixTransport:
    """One endpoint. `unix://` alone listens at a fresh path. Raises TransportError."""

    hosting = Hosting("processes", "unix://")

    def __init__(self, address: str, rank: int) -> None:
        self.rank = rank
        self.traffic: dict[int, Traffic] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="unix-") if address == "unix://" else None
        self._path = str(Path(self._folder.name) / "socket") if self._folder else address.removeprefix("unix://")
        self.address = f"unix://{self._path}"
        self._happened: SimpleQueue[Envelope | PeerLost | None] = SimpleQueue()
        self._lost: set[int] = set()
        self._links: dict[int, Link] = {}
        self._streams: dict[int, socket.socket] = {}
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(self._path)
        except OSError as problem:
            self._listener.close()
            raise TransportError(f"cannot listen at {self.address}: {problem.strerror}") from problem
        self._listener.listen()
        _in_background(self._accept)

    def connect(self, rank: int, address: str) -> None:
        if rank in self._lost:
            raise PeerLost(rank, f"rank {rank} is gone")
        if rank not in self._links:
            self._links[rank] = Link(self.rank, address.removeprefix("unix://"), lambda: self._link_ended(rank))

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        if rank in self._lost:
            raise PeerLost(rank, f"rank {rank} is gone")
        if rank not in self._links:
            raise ValueError(f"rank {self.rank} has no link to rank {rank}; connect first")
        size = message_size(header, payload)
        self._links[rank].waiting.put(LENGTHS.pack(len(header), size) + header + bytes(payload))
        self._count(rank).sent(len(header) + size)

    def receive(self, timeout: float) -> Envelope | None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                happened = self._happened.get(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
            except Empty:
                return None
            if happened is None:
                return None
            if isinstance(happened, Envelope):
                self._count(happened.sender).received(len(happened.header) + len(happened.payload))
                return happened
            if happened.rank not in self._lost:
                self._lost.add(happened.rank)
                raise happened

    def wake(self) -> None:
        self._happened.put(None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + LINGER_S
        for link in self._links.values():
            link.close(deadline)
        for each in (self._listener, *self._streams.values()):
            _shut(each)
        Path(self._path).unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.cleanup()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                stream, _ = self._listener.accept()
                _in_background(lambda stream=stream: self._read(stream))

    def _read(self, stream: socket.socket) -> None:
        """Everything that comes from one peer, and then its end."""
        with stream, stream.makefile("rb") as file:
            first = file.read(RANK.size)
            if len(first) < RANK.size:
                return
            (rank,) = RANK.unpack(first)
            self._streams[rank] = stream
            with suppress(OSError):
                while len(lengths := file.read(LENGTHS.size)) == LENGTHS.size:
                    header, payload = (file.read(length) for length in LENGTHS.unpack(lengths))
                    self._happened.put(Envelope(rank, header, payload))
        self._gone(rank)

    def _link_ended(self, rank: int) -> None:
        """A peer that also sends here is gone when its stream is at its end: its last words come first."""
        time.sleep(LAST_WORDS_S)
        if rank not in self._streams:
            self._gone(rank)

    def _gone(self, rank: int) -> None:
        if not self._closed:
            self._happened.put(PeerLost(rank, f"rank {rank} is gone: it closed its end, or never came"))

    def _count(self, rank: int) -> Traffic:
        return self.traffic.setdefault(rank, Traffic())


class Link:
    """The way to a peer. `waiting` is what is to be sent, None at the end; `ended` is called when it closed its end."""

    def __init__(self, own: int, path: str, ended: Callable[[], None]) -> None:
        self.waiting: SimpleQueue[bytes | None] = SimpleQueue()
        self.waiting.put(RANK.pack(own))
        self._path = path
        self._ended = ended
        self._socket = socket.socket(socket.AF_UNIX)
        self._given_up = False
        self._writer = _in_background(self._write)

    def close(self, deadline: float) -> None:
        """Let go once everything has been sent, or at the deadline."""
        self._given_up = True
        self.waiting.put(None)
        self._writer.join(max(0.0, deadline - time.monotonic()))
        _shut(self._socket)

    def _write(self) -> None:
        if not self._connect():
            self._ended()
            return
        _in_background(self._watch)
        with suppress(OSError):  # which the other thread sees too
            while (message := self.waiting.get()) is not None:
                self._socket.sendall(message)

    def _connect(self) -> bool:
        """Try until the peer listens."""
        deadline = time.monotonic() + CONNECT_S
        while time.monotonic() < deadline:
            try:
                self._socket.connect(self._path)
            except OSError:
                if self._given_up:
                    return False
                time.sleep(0.01)
            else:
                return True
        return False

    def _watch(self) -> None:
        """Nothing ever comes back on a link but its end."""
        with suppress(OSError):
            self._socket.recv(1)
        self._ended()


def _in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _shut(each: socket.socket) -> None:
    """Close it so that whoever waits for it wakes."""
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
