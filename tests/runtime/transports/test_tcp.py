"""The TCP transport against its protocol, and then against strangers, liars and the dead."""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trickle import slow_link

from pipeinfer.runtime.transports import MAX_HEADER, PeerLost, TransportError, framing
from pipeinfer.runtime.transports.keys import Keys, read_keys, write_keys
from pipeinfer.runtime.transports.tcp import TcpTransport
from pipeinfer.testing.transports import TransportConformance, expect, expect_lost

KEYS = Keys.generate()
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
    a, b = make(0), make(1)
    a.connect(1, b.address)
    b.connect(0, a.address)
    chat(a, b)
    return [a, b]


def chat(a: TcpTransport, b: TcpTransport) -> None:
    """A word each way."""
    a.send(b.rank, b"ping", bytes(100_000))
    assert expect(b).header == b"ping"
    b.send(a.rank, b"pong")
    assert expect(a).header == b"pong"


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

    def close(self) -> None:
        self._context.destroy()


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


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, os.urandom(5000), b"\x00", b""])
def test_garbage_on_the_port_does_not_disturb(linked: list[TcpTransport], garbage: bytes) -> None:
    a, b = linked
    host, port = b.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(garbage)
        chat(a, b)
    chat(a, b)
    assert b.rejected == 0


def test_a_peer_with_another_key_file_is_told_what_to_look_at(make: Make) -> None:
    a, b = make(0, connect_s=0.5), make(1, keys=Keys.generate())
    a.connect(1, b.address)
    with pytest.raises(PeerLost, match="same key file"):
        a.receive(5)


# Members that do not keep to the protocol


def test_a_second_connection_for_a_rank_is_refused(linked: list[TcpTransport]) -> None:
    a, b = linked
    with closing(Dealer(b.address, KEYS.public, KEYS)) as liar:
        liar.send(framing.first_frame(0, 2, b"I am rank 0", 0))
        assert b.receive(0.2) is None
        assert b.rejected == 1
        chat(a, b)


def test_who_is_refused_hears_of_it(linked: list[TcpTransport], make: Make) -> None:
    a, b = linked
    second = make(0)
    second.connect(1, b.address)
    second.send(1, b"I am rank 0")
    assert b.receive(0.2) is None
    with pytest.raises(PeerLost, match=r"rank 1 at tcp://.* is busy with another session: it has a rank 0 already"):
        second.receive(5)
    chat(a, b)


def test_who_left_before_its_first_word_is_tried_again_and_hears_everything(make: Make) -> None:
    a = make(-1, again_s=5.0)
    with closing(TcpTransport(ANY, 0, keys=KEYS)) as leaving:
        a.connect(0, leaving.address)
        a.send(0, b"hello", b"payload")
        a.send(0, b"still there?")
        assert a.receive(0.2) is None
    with closing(TcpTransport(leaving.address, 0, keys=KEYS)) as back:
        assert a.receive(0.3) is None
        assert expect(back) == (-1, b"hello", b"payload")
        assert expect(back) == (-1, b"still there?", b"")
        back.connect(-1, a.address)
        chat(a, back)
    assert expect_lost(a) == 0  # for good: it has said a word


def test_who_left_before_its_first_word_and_stays_away_is_lost(make: Make) -> None:
    a = make(-1, again_s=0.2)
    with closing(TcpTransport(ANY, 0, keys=KEYS)) as leaving:
        a.connect(0, leaving.address)
        a.send(0, b"hello")
        assert a.receive(0.2) is None
    with pytest.raises(PeerLost, match=r"rank 0 at .* is gone: it closed its end"):
        a.receive(5)


def test_nobody_else_may_be_this_rank(linked: list[TcpTransport]) -> None:
    _, b = linked
    with closing(Dealer(b.address, KEYS.public, KEYS)) as liar:
        liar.send(framing.first_frame(1, 0, b"I am you", 0))
        assert b.receive(0.2) is None
    assert b.rejected == 1


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        ([framing.first_frame(5, 0, b"replayed", 0)], "message 0 where 1 was due"),
        ([framing.first_frame(5, 2, b"after a gap", 0)], "message 2 where 1 was due"),
        ([framing.first_frame(6, 1, b"other rank", 0)], "claim to be rank 6"),
        ([framing.first_frame(5, 1, b"", 0)[:-1]], "first frame of 23 bytes"),
        ([b""], "first frame of 0 bytes"),
        ([b"XX" + framing.first_frame(5, 1, b"", 0)[2:]], "another protocol"),
        ([b"PI\x63" + framing.first_frame(5, 1, b"", 0)[3:]], "version 99"),
        ([framing.first_frame(5, 1, bytes(MAX_HEADER + 1), 0)], "first frame of"),
        ([framing.first_frame(5, 1, b"", 100)], "too few or too many"),
        ([framing.first_frame(5, 1, b"", 0), b"payload"], "too few or too many"),
        ([framing.first_frame(5, 1, b"", 100), bytes(99)], "99 bytes that was announced as 100"),
        ([framing.first_frame(5, 1, b"", 7), b"payload", b"more"], "announced as 7"),
        ([framing.first_frame(5, 1, b"", 1 << 40)], "over the limit"),
    ],
)
def test_a_member_that_breaks_its_stream_is_lost_and_the_others_go_on(
    linked: list[TcpTransport], frames: list[bytes], fault: str
) -> None:
    a, b = linked
    with closing(Dealer(b.address, KEYS.public, KEYS)) as member:
        member.send(framing.first_frame(5, 0, b"hello", 0))
        assert expect(b) == (5, b"hello", b"")
        member.send(*frames)
        with pytest.raises(PeerLost, match=f"the stream of rank 5 is broken: .*{fault}"):
            b.receive(5)
        member.send(framing.first_frame(5, 1, b"as if nothing had happened", 0))
        assert b.receive(0.1) is None
        assert b.rejected == 1
        chat(a, b)


def test_a_frame_over_the_payload_limit_is_not_even_read(make: Make) -> None:
    b = make(1, max_payload=1000)
    with closing(Dealer(b.address, KEYS.public, KEYS)) as member:
        member.send(framing.first_frame(5, 0, b"hello", 0))
        assert expect(b).header == b"hello"
        member.send(framing.first_frame(5, 1, b"", 10_000_000), bytes(10_000_000))
        assert expect_lost(b) == 5


def test_the_rest_of_a_stream_to_who_listened_here_before_is_nobodys(make: Make) -> None:
    b = make(1)
    with closing(Dealer(b.address, KEYS.public, KEYS)) as before, closing(Dealer(b.address, KEYS.public, KEYS)) as now:
        before.send(framing.first_frame(5, 3, b"the first three went to another endpoint", 0))
        assert b.receive(0.2) is None
        assert b.rejected == 1
        now.send(framing.first_frame(5, 0, b"hello", 0))
        assert expect(b) == (5, b"hello", b"")


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
    with closing(Dealer(b.address, KEYS.public, KEYS)) as member:
        for frames in messages:
            member.send(*frames)
    a.send(1, b"still here?")
    deadline = time.monotonic() + 10
    while (heard := listen(b)) is None or heard[0] != a.rank:
        assert time.monotonic() < deadline
    assert heard == (0, b"still here?", b"")


def listen(endpoint: TcpTransport) -> tuple[int, bytes, bytes] | None:
    """What comes next; losing anyone but rank 0 is fine here."""
    try:
        envelope = endpoint.receive(0.01)
    except PeerLost as lost:
        if lost.rank == 0:
            raise
        return None
    return None if envelope is None else (envelope.sender, envelope.header, bytes(envelope.payload))


# The dead and the silent


CHILD = """
import sys
from pipeinfer.runtime.transports.keys import read_keys
from pipeinfer.runtime.transports.tcp import TcpTransport
me = TcpTransport("tcp://127.0.0.1:0", 1, keys=read_keys(sys.argv[1]))
print(me.address, flush=True)
if len(sys.argv) > 2:
    me.connect(0, sys.argv[2])
    me.send(0, b"hello")
while True:
    me.receive(60)
"""


@contextmanager
def child(
    make: Make, tmp_path: Path, mute: bool = False, silence_s: float = 2.0
) -> Iterator[tuple[TcpTransport, int]]:
    """Rank 0 here, linked with rank 1 in a process of its own, both ways unless it is mute; and its process id."""
    keys = write_keys(tmp_path / "keys")
    here = make(0, keys=keys, silence_s=silence_s)
    command = [sys.executable, "-c", CHILD, str(keys.file), *([] if mute else [here.address])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            here.connect(1, process.stdout.readline().strip())
            if not mute:
                assert expect(here).header == b"hello"
            assert here.receive(0.3) is None
            yield here, process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("mute", [False, True])
def test_a_killed_peer_is_lost_at_once(make: Make, tmp_path: Path, mute: bool) -> None:
    with child(make, tmp_path, mute, silence_s=600) as (here, pid):  # so it is not its silence that tells
        os.kill(pid, signal.SIGKILL)
        assert expect_lost(here) == 1


@pytest.mark.parametrize(("mute", "stuck_bytes"), [(False, 0), (True, 0), (True, 20_000_000)])
def test_a_stopped_peer_is_lost_soon(make: Make, tmp_path: Path, mute: bool, stuck_bytes: int) -> None:
    with child(make, tmp_path, mute) as (here, pid):
        os.kill(pid, signal.SIGSTOP)
        here.send(1, b"unheard", bytes(stuck_bytes))
        with pytest.raises(PeerLost, match=r"rank 1 at .* silent for 2 s"):
            here.receive(60)


def test_a_peer_that_computes_without_receiving_is_not_lost(make: Make) -> None:
    a, b = make(0, silence_s=0.5), make(1, silence_s=0.5)
    a.connect(1, b.address)
    b.connect(0, a.address)
    chat(a, b)
    assert a.receive(1.2) is None
    chat(a, b)


def test_a_message_may_take_longer_than_silence_over_a_slow_link(make: Make) -> None:
    a, b = make(0, silence_s=0.75), make(1, silence_s=0.75)
    payload = random.Random(0).randbytes(4_000_000)
    with slow_link("tcp", b.address, 2e6) as address, closing(a):
        b.connect(0, a.address)
        a.connect(1, address)
        start = time.monotonic()
        a.send(1, b"large", payload)
        received = expect(b)
        assert (received.header, bytes(received.payload)) == (b"large", payload)
        assert time.monotonic() - start > 2 * 0.75


def test_a_peer_that_never_answers_is_lost_and_stays_lost(make: Make) -> None:
    a = make(0, connect_s=0.2)
    with closing(TcpTransport(ANY, 1, keys=KEYS)) as probe:
        address = probe.address
    a.connect(1, address)
    with pytest.raises(PeerLost, match=r"rank 1 at tcp://127\.0\.0\.1:.* never answered"):
        a.receive(5)
    with pytest.raises(PeerLost, match="never answered"):
        a.connect(1, address)


def test_a_lost_peer_cannot_come_back(make: Make) -> None:
    b = make(1)
    for attempt in range(2):
        with closing(TcpTransport(ANY, 0, keys=KEYS)) as a:
            a.connect(1, b.address)
            a.send(1, b"hello")
            if attempt == 0:
                assert expect(b).header == b"hello"
                a.close()
                assert expect_lost(b) == 0
            else:
                assert b.receive(0.2) is None
    assert b.rejected == 1


# Addresses, keys and tidiness


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:0", "tcp://node7:5000"])
def test_an_address_that_is_not_loopback_needs_a_key_file(make: Make, address: str) -> None:
    with pytest.raises(TransportError, match=f"{address} is not loopback: give every rank the same key file"):
        TcpTransport(address, 0, keys=Keys.generate())
    with pytest.raises(TransportError, match="not loopback"):
        make(0).connect(1, address)


@pytest.mark.parametrize("address", ["tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:many", "udp://127.0.0.1:0", "x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(TransportError, match="is not a TCP address; expected one like"):
        TcpTransport(address, 0, keys=KEYS)


SLIPS = [
    " tcp://127.0.0.1:9", "tcp://127.0.0.1:9/", "tcp://127.0.0.1:9/x", "tcp://user@127.0.0.1:9", "tcp://127.0.0.1:9?x",
    "tcp://127.0.0.1:9#x", "tcp://::1:9", "tcp://127.0.0.1:99999",
]  # fmt: skip


@pytest.mark.parametrize("address", SLIPS)
def test_a_slip_in_a_peers_address_is_one_line_and_nothing_waits(make: Make, address: str) -> None:
    endpoint = make(0)
    with pytest.raises(TransportError, match="is not a TCP address; expected one like"):
        endpoint.connect(1, address)
    endpoint.close()


def test_a_host_that_nobody_knows_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    write_keys(key)
    with closing(TcpTransport(ANY, 0, keys=key)) as endpoint:
        for host in ("no-such-host.invalid", "\u00fcn\u00ef..invalid"):
            with pytest.raises(TransportError, match=f'no host "{host}" is known here'):
                endpoint.connect(1, f"tcp://{host}:9")


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


def test_a_wildcard_is_refused() -> None:
    with pytest.raises(TransportError, match="names no host"):
        TcpTransport("tcp://*:0", 0, keys=KEYS)


def test_a_busy_port_is_named(make: Make) -> None:
    taken = make(0).address
    with pytest.raises(TransportError, match=f"^{taken} is in use by another program; choose another port"):
        TcpTransport(taken, 1, keys=KEYS)


def test_an_address_of_another_host_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"cannot listen at tcp://192\.0\.2\.1:0"):
        TcpTransport("tcp://192.0.2.1:0", 0, keys=write_keys(tmp_path / "keys"))


def test_keys_are_required() -> None:
    with pytest.raises(TypeError, match="keys"):
        TcpTransport(ANY, 0)  # type: ignore[call-arg]


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


def test_close_flushes_frees_the_address_and_leaves_no_thread() -> None:
    before = threading.enumerate()
    with closing(TcpTransport(ANY, 0, keys=KEYS)) as a:
        a.connect(1, "tcp://127.0.0.1:9")
        a.send(1, b"never read")
        start = time.monotonic()
    assert time.monotonic() - start < 1.5
    assert threading.enumerate() == before
    TcpTransport(a.address, 0, keys=KEYS).close()


def test_who_only_looks_finds_a_loss_too(linked: list[TcpTransport]) -> None:
    a, b = linked
    assert all(a.receive(0) is None for _ in range(1000))
    b.close()
    with pytest.raises(PeerLost):
        look_until(a, time.monotonic() + 10)


def look_until(endpoint: TcpTransport, deadline: float) -> None:
    while time.monotonic() < deadline:
        endpoint.receive(0)
