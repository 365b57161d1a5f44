"""The TCP transport against its protocol, and then against strangers, liars and the dead."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyed_transport import KEYS, KeyedTransport, acquainted, chat, listen

from pipeinfer.runtime.transports import PeerLost, TransportError, framing
from pipeinfer.runtime.transports.keys import Keys, read_keys, write_keys
from pipeinfer.runtime.transports.tcp import TcpTransport
from pipeinfer.testing.transports import PATIENCE_S, TransportConformance, expect

ANY = "tcp://127.0.0.1:0"

Make = Callable[..., TcpTransport]


class TestTcp(TransportConformance):
    def endpoint(self, rank: int) -> TcpTransport:
        return TcpTransport(ANY, rank, keys=KEYS)

    def endpoint_at(self, address: str, rank: int) -> TcpTransport:
        return TcpTransport(address, rank, keys=KEYS)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
class TestTcpOverIpv6(TestTcp):
    def endpoint(self, rank: int) -> TcpTransport:
        endpoint = TcpTransport("tcp://[::1]:0", rank, keys=KEYS)
        assert endpoint.address.startswith("tcp://[::1]:")
        return endpoint


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens endpoints and closes them afterwards."""
    with ExitStack() as stack:
        yield lambda rank, **options: stack.enter_context(
            closing(TcpTransport(ANY, rank, **{"keys": KEYS, **options}))
        )


@pytest.fixture
def linked(make: Make) -> list[TcpTransport]:
    """Ranks 0 and 1, linked both ways and acquainted."""
    return acquainted(make(0), make(1))


class Dealer:
    """A socket in nobody's service: sends any frames, with any keys."""

    def __init__(self, address: str, server: bytes, client: Keys) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.curve_serverkey = server
        self._socket.curve_publickey, self._socket.curve_secretkey = client.public, client.secret
        self._socket.linger = 200
        self._socket.connect(address)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    say = send

    def is_heard_in_vain(self, endpoint: TcpTransport) -> bool:
        return endpoint.receive(0.2) is None

    def close(self) -> None:
        self._context.destroy()


def member(endpoint: TcpTransport) -> Dealer:
    return Dealer(endpoint.address, KEYS.public, KEYS)


class TestTcpAmongStrangers(KeyedTransport):
    scheme, transport, open, member = "tcp", TcpTransport, TcpTransport, staticmethod(member)
    notices_s = {"silence_s": 2.0, "connect_s": 2.0}  # noqa: RUF012 - nobody changes it


# Strangers


@pytest.mark.parametrize("server", [KEYS, Keys.generate()], ids=["knows the public key", "knows nothing"])
def test_a_stranger_with_other_keys_never_gets_through(linked: list[TcpTransport], server: Keys) -> None:
    a, b = linked
    with closing(Dealer(b.address, server.public, Keys.generate())) as stranger:
        stranger.send(framing.first_frame(5, 0, b"let me in", 0))
        assert b.receive(0.2) is None
        chat(a, b)
    assert b.rejected == 0
    assert 5 not in b.traffic


def test_a_stranger_without_encryption_never_gets_through(linked: list[TcpTransport]) -> None:
    a, b = linked
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(b.address)
        stranger.send(framing.first_frame(5, 0, b"let me in", 0))
        assert b.receive(0.2) is None
        chat(a, b)
    assert b.rejected == 0


# Members that do not keep to the protocol


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        ([framing.first_frame(5, 1, b"", 100)], "too few or too many"),
        ([framing.first_frame(5, 1, b"", 0), b"payload"], "too few or too many"),
        ([framing.first_frame(5, 1, b"", 100), bytes(99)], "99 bytes that was announced as 100"),
        ([framing.first_frame(5, 1, b"", 7), b"payload", b"more"], "announced as 7"),
    ],
)
def test_frames_that_are_not_those_that_were_announced_are_the_end_of_a_stream(
    linked: list[TcpTransport], frames: list[bytes], fault: str
) -> None:
    a, b = linked
    with closing(member(b)) as liar:
        liar.send(framing.first_frame(5, 0, b"hello", 0))
        assert expect(b) == (5, b"hello", b"")
        liar.send(*frames)
        with pytest.raises(PeerLost, match=f"the stream of rank 5 is broken: .*{fault}"):
            b.receive(PATIENCE_S)
        liar.send(framing.first_frame(5, 1, b"as if nothing had happened", 0))
        assert b.receive(0.1) is None
        assert b.rejected == 1
        chat(a, b)


frame_bytes = st.one_of(
    st.binary(max_size=200),
    st.builds(
        framing.first_frame, st.integers(-3, 9), st.integers(0, 3), st.binary(max_size=20), st.integers(0, 300)
    ),
    st.builds(lambda cut: framing.first_frame(7, 0, b"truncated", 5)[:cut], st.integers(0, 32)),
    st.builds(struct.pack, st.just("<2sBxiQQ"), st.just(b"PI"), st.just(1), st.just(7), st.integers(0, 2**64 - 1),
              st.integers(0, 2**64 - 1)),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.lists(frame_bytes, min_size=1, max_size=4), min_size=1, max_size=5))
def test_no_frames_from_a_member_bring_an_endpoint_down(
    linked: list[TcpTransport], messages: list[list[bytes]]
) -> None:
    a, b = linked
    with closing(member(b)) as liar:
        for frames in messages:
            liar.send(*frames)
    a.send(1, b"still here?")
    deadline = time.monotonic() + 10
    while (heard := listen(b)) is None or heard[0] != a.rank:
        assert time.monotonic() < deadline
    assert heard == (0, b"still here?", b"")


# Addresses, keys and tidiness


def test_whatever_zeromq_refuses_is_one_line_and_nothing_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = zmq.Socket.connect

    def refuse(socket: "zmq.Socket[bytes]", address: str) -> None:
        if address.startswith("tcp:"):
            raise zmq.ZMQError(zmq.EINVAL)
        connect(socket, address)

    endpoint = make(0)
    monkeypatch.setattr(zmq.Socket, "connect", refuse)
    with pytest.raises(TransportError, match="cannot connect to"):
        endpoint.connect(1, "tcp://127.0.0.1:9")
    endpoint.close()


def test_close_does_not_wait_for_a_socket_that_was_never_registered(make: Make) -> None:
    endpoint = make(0)
    forgotten = [endpoint._outgoing.socket(zmq.DEALER), endpoint._incoming.socket(zmq.PAIR)]
    endpoint.close()
    assert all(socket.closed for socket in forgotten)


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    written = write_keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == written
    assert written.secret.decode() not in repr(written)
    with pytest.raises(FileExistsError):
        write_keys(path)
    path.chmod(0o640)
    with pytest.raises(TransportError, match="chmod 600"):
        read_keys(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"public": 1, "secret": 2}', '{"public": "a", "secret": "b"}'])
def test_what_is_no_key_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(TransportError, match="keys is not a key file"):
        read_keys(path)
    with pytest.raises(TransportError, match="cannot read the key file"):
        read_keys(tmp_path / "none")
