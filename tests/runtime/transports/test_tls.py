"""The TLS transport against its protocol, and then against strangers, liars and the dead."""

import json
import os
import queue
import resource
import select
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyed_transport import (
    KEYS,
    OTHER_KEYS,
    KeyedTransport,
    acquainted,
    attend_until,
    chat,
    child,
    listen,
    look_until,
    port_of,
)

from pipeinfer.runtime.transports import Envelope, PeerLost, TransportError, framing
from pipeinfer.runtime.transports.certificates import Members
from pipeinfer.runtime.transports.keys import write_keys
from pipeinfer.runtime.transports.message_reader import start_of_message
from pipeinfer.runtime.transports.tls import LINGER_S, TlsTransport
from pipeinfer.runtime.transports.tls_streams import STRANGERS
from pipeinfer.testing.transports import PATIENCE_S, TransportConformance, expect, expect_lost

ANY = "tls://127.0.0.1:0"
GLANCE_S = 0.05

Make = Callable[..., "Attended"]


class Attended(TlsTransport):
    """An endpoint among `others` of this process: while one waits all of them move their bytes, as ranks do, each of
    which has a process and waits or looks around in it."""

    others: "list[Attended]" = []  # noqa: RUF012 - of all of them
    rung = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.others.append(self)

    def receive(self, timeout: float) -> Envelope | None:
        deadline = time.monotonic() + timeout
        while (heard := super().receive(0)) is None and not self.rung and (left := deadline - time.monotonic()) > 0:
            self.attend_all(min(left, GLANCE_S))
        self.rung &= heard is not None
        return heard

    def wake(self) -> None:
        self.rung = True
        super().wake()

    def attend_all(self, seconds: float) -> None:
        select.select([each._readiness.fileno() for each in self.others], [], [], seconds)
        for each in self.others:
            each._attend(0.0)

    def close(self) -> None:
        deadline = time.monotonic() + LINGER_S
        while not self._closed and any(link.unsent for link in self._links.values()) and time.monotonic() < deadline:
            self.attend_all(GLANCE_S)
        if self in self.others:
            self.others.remove(self)
        super().close()


class TestTls(TransportConformance):
    def endpoint(self, rank: int) -> Attended:
        return Attended(ANY, rank, keys=KEYS)

    def endpoint_at(self, address: str, rank: int) -> Attended:
        return Attended(address, rank, keys=KEYS)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
class TestTlsOverIpv6(TestTls):
    def endpoint(self, rank: int) -> Attended:
        endpoint = Attended("tls://[::1]:0", rank, keys=KEYS)
        assert endpoint.address.startswith("tls://[::1]:")
        return endpoint


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens endpoints and closes them afterwards."""
    with ExitStack() as stack:
        yield lambda rank, **options: stack.enter_context(closing(Attended(ANY, rank, **{"keys": KEYS, **options})))


@pytest.fixture
def linked(make: Make) -> list[Attended]:
    """Ranks 0 and 1, linked both ways and acquainted."""
    return acquainted(make(0), make(1))


def message(first: bytes, *payload: bytes) -> bytes:
    """As it stands in the stream."""
    return start_of_message(first) + b"".join(payload)


class Outsider:
    """A connection in nobody's service, with a thread of its own: says anything, with any context."""

    def __init__(self, endpoint: TlsTransport, context: ssl.SSLContext | None = None) -> None:
        self.refusal = ""
        self._where, self._context = port_of(endpoint), context or Members(KEYS).connecting
        self._says: queue.Queue[bytes] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def say(self, first: bytes, *payload: bytes) -> None:
        self.send(message(first, *payload))

    def send(self, *pieces: bytes) -> None:
        self._says.put(b"".join(pieces))

    @property
    def is_through(self) -> bool:
        """It has said all, or was refused."""
        return not (self._says.unfinished_tasks and self._thread.is_alive())

    def is_heard_in_vain(self, endpoint: Attended) -> bool:
        """All that it says comes to nothing."""
        attend_until(endpoint, lambda: self.is_through)
        return endpoint.receive(0.2) is None

    def _run(self) -> None:
        try:
            with socket.create_connection(self._where, 10) as raw, self._context.wrap_socket(raw) as secured:
                while said := self._says.get():
                    secured.sendall(said)
                    self._says.task_done()
        except OSError as problem:
            self.refusal = str(problem)

    def close(self) -> None:
        self._says.put(b"")
        self._thread.join(10)
        assert not self._thread.is_alive()


class TestTlsAmongStrangers(KeyedTransport):
    scheme, transport, open, member = "tls", TlsTransport, Attended, Outsider
    notices_s = {"still_s": 2.0, "answer_s": 2.0}  # noqa: RUF012 - nobody changes it

    def computing(self, endpoint: Attended) -> AbstractContextManager[None]:
        return computing(endpoint)


# Strangers


def test_a_stranger_with_other_keys_gives_up(linked: list[Attended]) -> None:
    a, b = linked
    with closing(Outsider(b, Members(OTHER_KEYS).connecting)) as stranger:
        stranger.send(message(framing.first_frame(5, 0, b"let me in", 0)))
        assert stranger.is_heard_in_vain(b)
        chat(a, b)
    assert "CERTIFICATE_VERIFY_FAILED" in stranger.refusal
    assert b.rejected == 0
    assert 5 not in b.traffic


@pytest.mark.parametrize("shows", ["no certificate", "its own"])
def test_a_stranger_that_trusts_anybody_never_gets_through(linked: list[Attended], tmp_path: Path, shows: str) -> None:
    a, b = linked
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if shows == "its own":
        (tmp_path / "pem").write_text(OTHER_KEYS.certificate + OTHER_KEYS.private_key)
        context.load_cert_chain(tmp_path / "pem")
    with closing(Outsider(b, context)) as stranger:
        stranger.send(message(framing.first_frame(5, 0, b"let me in", 0)))
        assert stranger.is_heard_in_vain(b)
        chat(a, b)
    assert len(b._streams) == 1
    assert b.rejected == 0
    assert 5 not in b.traffic


def test_older_versions_of_the_protocol_are_refused(linked: list[Attended]) -> None:
    a, b = linked
    context = Members(KEYS).connecting
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with closing(Outsider(b, context)) as stranger:
        stranger.send(b"hello?")
        assert stranger.is_heard_in_vain(b)
        chat(a, b)
    assert "version" in stranger.refusal.lower()


def test_handshakes_that_nobody_finishes_stall_nobody_and_are_bounded(linked: list[Attended], make: Make) -> None:
    a, b = linked
    with ExitStack() as stack:
        for _ in range(2 * STRANGERS):
            stack.enter_context(socket.create_connection(port_of(b))).sendall(b"\x16\x03\x01")
            assert b.receive(0) is None
        chat(a, b)
        assert len(b._streams) <= STRANGERS + 1
        newcomer = make(2)
        newcomer.connect(1, b.address)
        newcomer.send(1, b"hello")
        assert expect(b) == (2, b"hello", b"")


def test_without_descriptors_it_sleeps_and_later_takes_who_waits(
    linked: list[Attended], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = linked
    sleeps = []
    attend = b._readiness.attend

    def counted(seconds: float) -> None:
        if seconds > 0:
            sleeps.append(seconds)
        attend(seconds)

    monkeypatch.setattr(b._readiness, "attend", counted)
    with socket.socket() as waits:
        with no_descriptors():
            waits.connect(port_of(b))
            assert TlsTransport.receive(b, 0.5) is None
            assert len(sleeps) < 100, "each ends at once where it looks for who cannot be taken"
            chat(a, b)
        attend_until(b, lambda: len(b._streams) == 2)
    attend_until(b, lambda: len(b._streams) == 1)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []
    highest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        with suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Members that do not keep to the protocol


def test_a_first_frame_with_more_than_it_announced_is_the_end_of_a_stream(linked: list[Attended]) -> None:
    a, b = linked
    with closing(Outsider(b)) as member:
        member.say(framing.first_frame(5, 0, b"hello", 0))
        assert expect(b) == (5, b"hello", b"")
        member.say(framing.first_frame(5, 1, b"", 7), b"payload", b"more")
        with pytest.raises(PeerLost, match=r"the stream of rank 5 is broken: .*first frame of"):
            look_until(b, time.monotonic() + PATIENCE_S)
        chat(a, b)


def test_who_leaves_in_the_middle_of_a_message_is_lost_without_it(linked: list[Attended]) -> None:
    a, b = linked
    with closing(Outsider(b)) as member:
        member.send(message(framing.first_frame(5, 0, b"hello", 0)))
        assert expect(b) == (5, b"hello", b"")
        member.send(message(framing.first_frame(5, 1, b"half", 200_000), bytes(100_000)))
    assert expect_lost(b) == 5
    chat(a, b)


stream_bytes = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda rank, number, header, size: message(framing.first_frame(rank, number, header, size), bytes(size)),
        st.integers(-3, 9), st.integers(0, 3), st.binary(max_size=20), st.integers(0, 70_000),
    ),
    st.builds(lambda cut: message(framing.first_frame(7, 0, b"truncated", 5))[:cut], st.integers(0, 32)),
    st.builds(lambda *fields: message(struct.pack("<2sBxiQQ", *fields)), st.just(b"PI"), st.just(1), st.just(7),
              st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(stream_bytes, min_size=1, max_size=8))
def test_nothing_from_a_member_brings_an_endpoint_down(linked: list[Attended], said: list[bytes]) -> None:
    a, b = linked
    member = Outsider(b)
    for piece in said:
        member.send(piece or b"\x00")
    member._says.put(b"")
    a.send(1, b"still here?")
    deadline = time.monotonic() + PATIENCE_S
    while (heard := listen(b)) is None or heard[0] != a.rank:
        assert time.monotonic() < deadline
    assert heard == (0, b"still here?", b"")
    while member._thread.is_alive():
        listen(b)
        assert time.monotonic() < deadline


# The dead, the silent and the busy


def test_a_peer_that_was_stopped_for_a_moment_hears_everything(make: Make, tmp_path: Path) -> None:
    """Its kernel answers for it. It does not end its connections by being stopped, whatever is on its way to it."""
    with child("tls", make, tmp_path) as (here, pid):
        os.kill(pid, signal.SIGSTOP)
        here._silence_s = 0.5
        here.send(1, b"unheard", bytes(20_000_000))
        assert here.receive(2.0) is None
        assert here._links[1].unsent
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + PATIENCE_S
        while here._links[1].unsent:
            assert here.receive(0.05) is None
            assert time.monotonic() < deadline


def test_who_is_computing_when_others_connect_is_waited_for(make: Make) -> None:
    a, b = make(0, connect_s=0.3), make(1)
    with computing(b):
        a.connect(1, b.address)
        a.send(1, b"take your time")
        assert a.receive(0.8) is None
    assert expect(b) == (0, b"take your time", b"")


def test_who_computes_while_it_connects_blames_nobody(make: Make) -> None:
    """An attempt that failed meanwhile is made again, for as long as if nothing had been between."""
    with closing(Attended(ANY, 1, keys=KEYS)) as probe:
        address = probe.address
    a = make(0, connect_s=0.4)
    a.connect(1, address)
    a.send(1, b"early")
    with computing(a):
        time.sleep(0.6)
    with closing(Attended(address, 1, keys=KEYS)) as b:
        assert expect(b) == (0, b"early", b"")


@contextmanager
def computing(endpoint: Attended) -> Iterator[None]:
    """It does not look at its connections."""
    endpoint.others.remove(endpoint)
    yield
    endpoint.others.append(endpoint)


def test_words_that_came_while_nobody_listened_are_heard_before_the_loss(make: Make) -> None:
    a, b = make(0), make(1)
    a.connect(1, b.address)
    b.connect(0, a.address)
    chat(a, b)
    with computing(b):
        for n in range(5):
            a.send(1, b"%d" % n, bytes(20_000))
        a.close()
        time.sleep(0.5)
    assert [expect(b).header for _ in range(5)] == [b"%d" % n for n in range(5)]
    assert expect_lost(b) == 0


# Addresses, keys and tidiness


def test_a_key_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_keys(path, certificate=False)
    with pytest.raises(TransportError, match=f"{path}: no certificate in it, which tls needs; make a new file"):
        TlsTransport(ANY, 0, keys=path)


@pytest.mark.parametrize("field", ["certificate", "private_key"])
@pytest.mark.parametrize("text", ["nonsense", OTHER_KEYS.private_key])
def test_a_certificate_that_is_none_is_named(tmp_path: Path, field: str, text: str) -> None:
    path = tmp_path / "keys"
    write_keys(path)
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {field: text}))
    with pytest.raises(TransportError, match=f"the certificate in {path} is of no use"):
        TlsTransport(ANY, 0, keys=path)


def test_secrets_are_in_nobodys_words() -> None:
    assert KEYS.private_key.splitlines()[1] not in repr(KEYS)


def test_close_leaves_no_file() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with closing(TlsTransport(ANY, 0, keys=KEYS)) as a:
        a.connect(1, "tls://127.0.0.1:9")
        a.send(1, b"never read")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_lost_peer_leaves_no_file(make: Make) -> None:
    b = make(1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with closing(Attended(ANY, 0, keys=KEYS)) as a:
        a.connect(1, b.address)
        b.connect(0, a.address)
        chat(a, b)
    assert expect_lost(b) == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before
