"""Rings of bare processes that pass the same bytes on, encrypted, and sleep in between: the floor of a hop.

    python bare_rings.py KIND KEYS ADDRESS

is one process of a ring: it prints its address and sends what comes to the next one.
"""

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import zmq

from pipeinfer.runtime.transports.certificates import Members
from pipeinfer.runtime.transports.framing import PREFIX_SIZE
from pipeinfer.runtime.transports.keys import Keys, read_keys

ANY = "tcp://127.0.0.1:0"
PIECE = 64 * 1024

Socket = zmq.Socket[bytes]


class Ring(NamedTuple):
    """`around` sends a message around the ring of these processes and gives the seconds that took."""

    around: Callable[[], float]
    processes: list[int]


class ZeroMqNode:
    """A ROUTER where everything arrives and a DEALER to the next one, by CURVE."""

    def __init__(self, keys: Keys) -> None:
        self._context = zmq.Context()
        self._keys = keys
        self._router: Socket = self._context.socket(zmq.ROUTER)
        self._router.curve_server, self._router.curve_secretkey = True, keys.secret
        self._router.bind(ANY)
        self._dealer: Socket = self._context.socket(zmq.DEALER)
        self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def join(self, following: str, *, first: bool) -> None:
        self._dealer.linger = 0
        self._dealer.curve_serverkey = self._keys.public
        self._dealer.curve_publickey, self._dealer.curve_secretkey = self._keys.public, self._keys.secret
        self._dealer.connect(following)

    def send(self, frames: list[bytes]) -> None:
        self._dealer.send_multipart(frames)

    def receive(self) -> list[bytes]:
        return self._router.recv_multipart()[1:]

    def close(self) -> None:
        self._context.destroy()


class SocketNode:
    """Blocking TLS sockets, as plain as can be."""

    def __init__(self, keys: Keys) -> None:
        self._members = Members(keys)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._size = 0

    def join(self, following: str, *, first: bool) -> None:
        """Handshakes go around: of the first process the one with its predecessor comes first."""
        if first:
            self._accept()
        host, port = following.split(":")
        there = socket.create_connection((host, int(port)))
        self._out = self._secured(there, self._members.connecting, accepted=False)
        if not first:
            self._accept()

    def _accept(self) -> None:
        self._in = self._secured(self._listener.accept()[0], self._members.accepting, accepted=True)

    def _secured(self, connection: socket.socket, context: ssl.SSLContext, *, accepted: bool) -> ssl.SSLSocket:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(connection, server_side=accepted)

    def send(self, frames: list[bytes]) -> None:
        data = b"".join(frames)
        self._out.sendall(len(data).to_bytes(4, "little") + data)

    def receive(self) -> list[bytes]:
        data = self._in.recv(PIECE)
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
            data += self._in.recv(PIECE)
        return [data[4:]]

    def close(self) -> None:
        for each in (self._out, self._in, self._listener):
            each.close()


NODES = {"tcp": ZeroMqNode, "tls": SocketNode}
"""What each transport is held against."""


@contextmanager
def bare_ring(kind: str, processes: int, keys: Keys, header: bytes, payload: bytes) -> Iterator[Ring]:
    """A ring of so many bare processes and this one, for one message."""
    frames = [bytes(PREFIX_SIZE) + header, payload]
    node = NODES[kind](keys)
    with ExitStack() as stack:
        following = node.address
        ring = [os.getpid()]
        for _ in range(processes):
            command = [sys.executable, __file__, kind, str(keys.file), following]
            child = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(child.kill)
            ring.append(child.pid)
            assert child.stdout is not None
            following = child.stdout.readline().strip()
        node.join(following, first=True)
        stack.callback(node.close)

        def around() -> float:
            start = time.perf_counter()
            node.send(frames)
            node.receive()
            return time.perf_counter() - start

        yield Ring(around, ring)


def pass_on(kind: str, keys: Keys, following: str) -> None:
    """One process of a ring."""
    node = NODES[kind](keys)
    print(node.address, flush=True)
    node.join(following, first=False)
    while True:
        node.send(node.receive())


if __name__ == "__main__":
    pass_on(sys.argv[1], read_keys(sys.argv[2]), sys.argv[3])
