"""What a hop through the transports tcp and tls costs beside a bare echo of the same bytes, also encrypted: of pyzmq,
and of a blocking TLS socket.

    pytest tests/benchmarks/test_transport_hop.py --benchmark-only --benchmark-group-by=param:size

One round is a round trip between two processes, two hops; the ratio to the fastest stands behind each figure. Half a
round trip is also printed per case, as microseconds one way.
"""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from pipeinfer.runtime.transports import PeerLost, Transport, open_transport
from pipeinfer.runtime.transports.certificates import Members
from pipeinfer.runtime.transports.framing import PREFIX_SIZE
from pipeinfer.runtime.transports.keys import Keys, read_keys, write_keys

HEADER = bytes(64)
FIRST_FRAME = bytes(PREFIX_SIZE + len(HEADER))
ANY = "tcp://127.0.0.1:0"
KINDS = ["bare-blocking", "bare-spinning", "socket-tls", "tcp-blocking", "tcp", "tls-blocking", "tls"]
PIECE = 64 * 1024

Socket = zmq.Socket[bytes]


@pytest.mark.parametrize("size", [0, 4096, 16 * 1024, 128 * 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, size: int) -> None:
    keys = write_keys(tmp_path / "keys")
    with subprocess.Popen(
        [sys.executable, __file__, kind, str(keys.file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with round_trips(kind, keys, child.stdout.readline().strip()) as (address, round_trip):
                child.stdin.write(f"{address}\n")
                child.stdin.flush()
                benchmark.pedantic(round_trip, (bytes(size),), rounds=2000, warmup_rounds=200)
        finally:
            child.kill()
    with capsys.disabled():
        print(f"\n{kind:14} {size:7} B  {1e6 * benchmark.stats.stats.median / 2:7.1f} us one way", end="")


@contextmanager
def round_trips(kind: str, keys: Keys, peer: str) -> Iterator[tuple[str, Callable[[bytes], None]]]:
    """This end's address, and what sends a payload to `peer` and waits for it to come back."""
    if kind == "socket-tls":
        host, port = peer.split(":")
        with secured(socket.create_connection((host, int(port))), keys) as there:

            def socket_round_trip(payload: bytes) -> None:
                there.sendall(FIRST_FRAME + payload)
                read(there, len(FIRST_FRAME) + len(payload))

            yield "", socket_round_trip
        return
    if kind.startswith("bare"):
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.curve_serverkey = keys.public
            dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
            dealer.connect(peer)
            receive = receiver(dealer, kind)

            def bare_round_trip(payload: bytes) -> None:
                dealer.send_multipart([FIRST_FRAME, payload])
                receive()

            yield "", bare_round_trip
        return
    transport = opened(kind, 0, keys)
    transport.connect(1, peer)

    def round_trip(payload: bytes) -> None:
        transport.send(1, HEADER, payload)
        assert transport.receive(10) is not None

    yield transport.address, round_trip
    transport.close()


def opened(kind: str, rank: int, keys: Keys) -> Transport:
    """An endpoint that sleeps at once, or as it does by default."""
    scheme, _, blocking = kind.partition("-")
    return open_transport(f"{scheme}://127.0.0.1:0", rank, keys=keys, spin_s=0.0 if blocking else None)


def secured(connection: socket.socket, keys: Keys, *, accepted: bool = False) -> ssl.SSLSocket:
    """Blocking, as plain as can be."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    members = Members(keys)
    return (members.accepting if accepted else members.connecting).wrap_socket(connection, server_side=accepted)


def read(connection: ssl.SSLSocket, size: int) -> bytes:
    """So many bytes."""
    data = connection.recv(PIECE)
    while len(data) < size:
        data += connection.recv(PIECE)
    return data


def receiver(bare: Socket, kind: str) -> Callable[[], list[bytes]]:
    """How bare pyzmq waits for a message: asleep, or looking all the time."""
    if kind == "bare-blocking":
        return bare.recv_multipart

    def spin() -> list[bytes]:
        while True:
            try:
                return bare.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                os.sched_yield()

    return spin


def echo(kind: str, keys: Keys) -> None:
    """The other process: prints its address, reads the peer's, and sends everything back."""
    if kind == "socket-tls":
        listener = socket.create_server(("127.0.0.1", 0))
        print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
        there = secured(listener.accept()[0], keys, accepted=True)
        while data := there.recv(PIECE):
            there.sendall(data)
        return
    if kind.startswith("bare"):
        router = zmq.Context().socket(zmq.ROUTER)
        router.curve_server, router.curve_secretkey = True, keys.secret
        router.bind(ANY)
        print(router.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
        receive = receiver(router, kind)
        while True:
            router.send_multipart(receive())
    transport = opened(kind, 1, keys)
    print(transport.address, flush=True)
    transport.connect(0, sys.stdin.readline().strip())
    with closing(transport), suppress(PeerLost):
        while (envelope := transport.receive(10)) is not None:
            transport.send(0, envelope.header, envelope.payload)


if __name__ == "__main__":
    echo(sys.argv[1], read_keys(sys.argv[2]))
