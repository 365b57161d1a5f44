"""What transports over TCP have to do whose members hold one key file: against strangers, liars and the dead. Subclass
in a test module that has fixtures `make`, which opens endpoints and closes them afterwards, and `linked`, two that know
each other:

    class TestAmongStrangers(KeyedTransport):
        scheme, transport, member, open = "mine", MyTransport, MyMember, MyTransport
        notices_s = {"silence_s": 2.0, "connect_s": 2.0}
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytest
from trickle import slow_link

from pipeinfer.runtime.transports import MAX_HEADER, PeerLost, TransportError, framing
from pipeinfer.runtime.transports.keys import Keys, write_keys
from pipeinfer.runtime.transports.linked import LinkedTransport
from pipeinfer.testing.transports import PATIENCE_S, expect, expect_lost

KEYS = Keys.generate()
OTHER_KEYS = Keys.generate()

Endpoint = LinkedTransport[Any]
Make = Callable[..., Any]

COMPUTES_S = 4.0

CHILD = """
import sys, time
from pathlib import Path
from pipeinfer.runtime.transports import open_member
me = open_member(sys.argv[1] + "://127.0.0.1:0", 1, keys=Path(sys.argv[2]), pulse=True)
print(me.address, flush=True)
if len(sys.argv) > 3:
    me.connect(0, sys.argv[3])
    me.send(0, b"hello")
while True:
    envelope = me.receive(60)
    if envelope is not None and envelope.header == b"compute":
        end = time.monotonic() + COMPUTES_S
        while time.monotonic() < end:
            pass
        me.send(0, b"computed")
""".replace("COMPUTES_S", str(COMPUTES_S))

FAULTS = {
    "message 0 where 1 was due": framing.first_frame(5, 0, b"replayed", 0),
    "message 2 where 1 was due": framing.first_frame(5, 2, b"after a gap", 0),
    "claim to be rank 6": framing.first_frame(6, 1, b"other rank", 0),
    "first frame of 23 bytes": framing.first_frame(5, 1, b"", 0)[:-1],
    "first frame of 0 bytes": b"",
    "another protocol": b"XX" + framing.first_frame(5, 1, b"", 0)[2:],
    "version 99": b"PI\x63" + framing.first_frame(5, 1, b"", 0)[3:],
    "first frame of": framing.first_frame(5, 1, bytes(MAX_HEADER + 1), 0),
    "over the limit": framing.first_frame(5, 1, b"", 1 << 40),
}

SLIPS = ["{0}://", "{0}://127.0.0.1", "{0}://127.0.0.1:many", " {0}://127.0.0.1:9", "{0}://127.0.0.1:9/",
         "{0}://127.0.0.1:9/x", "{0}://user@127.0.0.1:9", "{0}://127.0.0.1:9?x", "{0}://127.0.0.1:9#x", "{0}://::1:9",
         "{0}://127.0.0.1:99999", "udp://127.0.0.1:0", "x"]  # fmt: skip


class Member(Protocol):
    """A connection in nobody's service: says anything that who holds the keys may say."""

    def say(self, first: bytes, *payload: bytes) -> None:
        """A message with this first frame."""

    def is_heard_in_vain(self, endpoint: Any) -> bool:
        """All that it says comes to nothing."""

    def close(self) -> None: ...


class KeyedTransport:
    """Base class. `open` makes an endpoint like `transport`, of the same arguments, that tests can have several of;
    `member` one that connects to it."""

    scheme: str
    notices_s: dict[str, float]
    """The options that say how soon a peer is found lost whose process is stopped, and how soon one that was stopped
    before it answered."""
    transport: Callable[..., Any]
    open: Callable[..., Any]
    member: Callable[..., Member]

    @property
    def any(self) -> str:
        return f"{self.scheme}://127.0.0.1:0"

    def computing(self, endpoint: Any) -> AbstractContextManager[None]:
        """It does not look at its connections meanwhile."""
        return nullcontext()

    # Strangers

    @pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, os.urandom(5000), b"\x16\x03", b""])
    def test_garbage_on_the_port_does_not_disturb(self, linked: list[Endpoint], garbage: bytes) -> None:
        a, b = linked
        with socket.create_connection(port_of(b)) as raw:
            raw.sendall(garbage)
            chat(a, b)
        chat(a, b)
        assert b.rejected == 0

    def test_a_peer_with_another_key_file_is_told_what_to_look_at(self, make: Make) -> None:
        a, b = make(0, connect_s=0.5), make(1, keys=OTHER_KEYS)
        a.connect(1, b.address)
        with pytest.raises(PeerLost, match="same key file"):
            a.receive(PATIENCE_S)

    # Members that do not keep to the protocol

    def test_a_second_connection_for_a_rank_is_refused(self, linked: list[Endpoint]) -> None:
        a, b = linked
        with closing(self.member(b)) as liar:
            liar.say(framing.first_frame(0, 0, b"I am rank 0", 0))
            assert liar.is_heard_in_vain(b)
            assert b.rejected == 1
            chat(a, b)

    def test_who_is_refused_hears_of_it(self, linked: list[Endpoint], make: Make) -> None:
        a, b = linked
        second = make(0)
        second.connect(1, b.address)
        second.send(1, b"I am rank 0", bytes(1_000_000))
        attend_until(b, lambda: b.rejected == 1)
        with pytest.raises(PeerLost, match=r"rank 1 at .* is busy with another session: it has a rank 0 already"):
            second.receive(PATIENCE_S)
        chat(a, b)

    def test_who_left_before_its_first_word_is_tried_again_and_hears_everything(self, make: Make) -> None:
        a = make(-1, again_s=PATIENCE_S)
        with closing(self.open(self.any, 0, keys=KEYS)) as leaving:
            a.connect(0, leaving.address)
            a.send(0, b"hello", b"payload")
            a.send(0, b"still there?")
            assert a.receive(0.2) is None
        with closing(self.open(leaving.address, 0, keys=KEYS)) as back:
            assert a.receive(0.3) is None
            assert expect(back) == (-1, b"hello", b"payload")
            assert expect(back) == (-1, b"still there?", b"")
            back.connect(-1, a.address)
            chat(a, back)
        assert expect_lost(a) == 0  # for good: it has said a word

    def test_who_left_before_its_first_word_and_stays_away_is_lost(self, make: Make) -> None:
        a = make(-1, again_s=0.2)
        with closing(self.open(self.any, 0, keys=KEYS)) as leaving:
            a.connect(0, leaving.address)
            a.send(0, b"hello")
            attend_until(a, lambda: a._roster.peers[0].answered)
        with pytest.raises(PeerLost, match=r"rank 0 at .* is gone: it closed its end"):
            a.receive(PATIENCE_S)

    def test_nobody_else_may_be_this_rank(self, linked: list[Endpoint]) -> None:
        _, b = linked
        with closing(self.member(b)) as liar:
            liar.say(framing.first_frame(1, 0, b"I am you", 0))
            assert liar.is_heard_in_vain(b)
        assert b.rejected == 1

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_member_that_breaks_its_stream_is_lost_and_the_others_go_on(
        self, linked: list[Endpoint], fault: str
    ) -> None:
        a, b = linked
        with closing(self.member(b)) as member:
            member.say(framing.first_frame(5, 0, b"hello", 0))
            assert expect(b) == (5, b"hello", b"")
            member.say(FAULTS[fault])
            with pytest.raises(PeerLost, match=f"the stream of rank 5 is broken: .*{fault}"):
                look_until(b, time.monotonic() + PATIENCE_S)
            member.say(framing.first_frame(5, 1, b"as if nothing had happened", 0))
            assert b.receive(0.1) is None
            chat(a, b)

    def test_a_payload_over_the_limit_is_not_even_read(self, make: Make) -> None:
        b = make(1, max_payload=1000)
        with closing(self.member(b)) as member:
            member.say(framing.first_frame(5, 0, b"hello", 0))
            assert expect(b).header == b"hello"
            member.say(framing.first_frame(5, 1, b"", 10_000_000), bytes(10_000_000))
            assert expect_lost(b) == 5

    def test_the_rest_of_a_stream_to_who_listened_here_before_is_nobodys(self, make: Make) -> None:
        b = make(1)
        with closing(self.member(b)) as before, closing(self.member(b)) as now:
            before.say(framing.first_frame(5, 3, b"the first three went to another endpoint", 0))
            assert before.is_heard_in_vain(b)
            assert b.rejected == 1
            now.say(framing.first_frame(5, 0, b"hello", 0))
            assert expect(b) == (5, b"hello", b"")

    # The dead, the silent and the busy

    @pytest.mark.parametrize("mute", [False, True])
    def test_a_killed_peer_is_lost_at_once(self, make: Make, tmp_path: Path, mute: bool) -> None:
        with child(self.scheme, make, tmp_path, mute, silence_s=600) as (here, pid):  # which is not what tells
            os.kill(pid, signal.SIGKILL)
            assert expect_lost(here) == 1

    @pytest.mark.parametrize(("mute", "stuck_bytes"), [(False, 0), (True, 0), (True, 20_000_000)])
    def test_a_stopped_peer_is_lost_soon(self, make: Make, tmp_path: Path, mute: bool, stuck_bytes: int) -> None:
        with child(self.scheme, make, tmp_path, mute, **self.notices_s) as (here, pid):
            assert here.receive(1.5) is None
            os.kill(pid, signal.SIGSTOP)
            here.send(1, b"unheard", bytes(stuck_bytes))
            with pytest.raises(PeerLost, match=r"rank 1 at .* for 2 s"):
                here.receive(PATIENCE_S)

    def test_a_peer_that_is_stopped_when_others_connect_is_lost_soon(self, make: Make, tmp_path: Path) -> None:
        with child(self.scheme, make, tmp_path, mute=True) as (first, pid):
            os.kill(pid, signal.SIGSTOP)
            here = make(2, keys=first._keys, **self.notices_s)
            here.connect(1, first._roster.peers[1].address)
            here.send(1, b"hello")
            with pytest.raises(PeerLost, match=r"rank 1 at .* never answered"):
                here.receive(PATIENCE_S)

    def test_a_peer_that_computes_for_long_is_not_taken_for_a_stopped_one(self, make: Make, tmp_path: Path) -> None:
        with child(self.scheme, make, tmp_path, **self.notices_s) as (here, _):
            here.send(1, b"compute")
            assert here.receive(COMPUTES_S - 1) is None
            assert expect(here).header == b"computed"

    def test_a_peer_that_computes_without_receiving_is_not_lost(self, make: Make) -> None:
        a, b = make(0, silence_s=0.5), make(1, silence_s=0.5)
        a.connect(1, b.address)
        b.connect(0, a.address)
        chat(a, b)
        with self.computing(b):
            assert a.receive(1.2) is None
        chat(a, b)

    def test_a_message_may_take_longer_than_silence_over_a_slow_link(self, make: Make) -> None:
        a, b = make(0, silence_s=0.75), make(1, silence_s=0.75)
        payload = random.Random(0).randbytes(4_000_000)
        with slow_link(self.scheme, b.address, 2e6) as address, closing(a):
            b.connect(0, a.address)
            a.connect(1, address)
            start = time.monotonic()
            a.send(1, b"large", payload)
            received = expect(b)
            assert (received.header, bytes(received.payload)) == (b"large", payload)
            assert time.monotonic() - start > 2 * 0.75

    def test_a_peer_that_never_answers_is_lost_and_stays_lost(self, make: Make) -> None:
        a = make(0, connect_s=0.2)
        with closing(self.open(self.any, 1, keys=KEYS)) as probe:
            address = probe.address
        a.connect(1, address)
        with pytest.raises(PeerLost, match=rf"rank 1 at {self.scheme}://127\.0\.0\.1:.* never answered"):
            a.receive(PATIENCE_S)
        with pytest.raises(PeerLost, match="never answered"):
            a.connect(1, address)

    def test_a_lost_peer_cannot_come_back(self, make: Make) -> None:
        b = make(1)
        for attempt in range(2):
            with closing(self.open(self.any, 0, keys=KEYS)) as a:
                a.connect(1, b.address)
                a.send(1, b"hello")
                if attempt == 0:
                    assert expect(b).header == b"hello"
                    a.close()
                    assert expect_lost(b) == 0
                else:
                    attend_until(b, lambda: b.rejected > 0)
        assert b.rejected == 1

    # Addresses, keys and tidiness

    @pytest.mark.parametrize("host", ["192.0.2.1:0", "node7:5000"])
    def test_an_address_that_is_not_loopback_needs_a_key_file(self, make: Make, host: str) -> None:
        address = f"{self.scheme}://{host}"
        with pytest.raises(TransportError, match=f"{address} is not loopback: give every rank the same key file"):
            self.transport(address, 0, keys=KEYS)
        with pytest.raises(TransportError, match="not loopback"):
            make(0).connect(1, address)

    @pytest.mark.parametrize("slip", SLIPS)
    def test_what_is_no_address_is_one_line_and_nothing_waits(self, make: Make, slip: str) -> None:
        address, endpoint = slip.format(self.scheme), make(0)
        for refused in (lambda: self.transport(address, 0, keys=KEYS), lambda: endpoint.connect(1, address)):
            with pytest.raises(TransportError, match=f"is not a {self.scheme.upper()} address; expected one like"):
                refused()
        endpoint.close()

    def test_a_host_that_nobody_knows_is_named(self, tmp_path: Path) -> None:
        write_keys(tmp_path / "keys")
        with closing(self.transport(self.any, 0, keys=tmp_path / "keys")) as endpoint:
            for host in ("no-such-host.invalid", "\u00fcn\u00ef..invalid"):
                with pytest.raises(TransportError, match=f'no host "{host}" is known here'):
                    endpoint.connect(1, f"{self.scheme}://{host}:9")

    def test_a_wildcard_is_refused(self) -> None:
        with pytest.raises(TransportError, match="names no host"):
            self.transport(f"{self.scheme}://*:0", 0, keys=KEYS)

    def test_a_busy_port_is_named(self, make: Make) -> None:
        taken = make(0).address
        with pytest.raises(TransportError, match=f"^{taken} is in use by another program; choose another port"):
            self.transport(taken, 1, keys=KEYS)

    def test_an_address_of_another_host_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TransportError, match=rf"cannot listen at {self.scheme}://192\.0\.2\.1:0"):
            self.transport(f"{self.scheme}://192.0.2.1:0", 0, keys=write_keys(tmp_path / "keys"))

    def test_keys_are_required(self) -> None:
        with pytest.raises(TypeError, match="keys"):
            self.transport(self.any, 0)

    def test_close_flushes_frees_the_address_and_leaves_no_thread(self) -> None:
        before = threading.enumerate()
        with closing(self.transport(self.any, 0, keys=KEYS)) as a:
            a.connect(1, f"{self.scheme}://127.0.0.1:9")
            a.send(1, b"never read")
            start = time.monotonic()
        assert time.monotonic() - start < 5.0  # it goes on trying for 10
        assert threading.enumerate() == before
        self.transport(a.address, 0, keys=KEYS).close()

    def test_who_only_looks_finds_a_loss_too(self, linked: list[Endpoint]) -> None:
        a, b = linked
        assert all(a.receive(0) is None for _ in range(1000))
        b.close()
        with pytest.raises(PeerLost):
            look_until(a, time.monotonic() + PATIENCE_S)


def acquainted(a: Any, b: Any) -> list[Any]:
    """Two endpoints, linked both ways."""
    a.connect(b.rank, b.address)
    b.connect(a.rank, a.address)
    chat(a, b)
    return [a, b]


def chat(a: Endpoint, b: Endpoint) -> None:
    """A word each way."""
    a.send(b.rank, b"ping", bytes(100_000))
    assert expect(b).header == b"ping"
    b.send(a.rank, b"pong")
    assert expect(a).header == b"pong"


def attend_until(endpoint: Any, done: Callable[[], bool]) -> None:
    """Nothing comes meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert endpoint.receive(0.01) is None
        assert time.monotonic() < deadline


def look_until(endpoint: Any, deadline: float) -> None:
    while time.monotonic() < deadline:
        endpoint.receive(0)


def listen(endpoint: Any) -> tuple[int, bytes, bytes] | None:
    """What comes next; losing anyone but rank 0 is fine here."""
    try:
        envelope = endpoint.receive(0.01)
    except PeerLost as lost:
        if lost.rank == 0:
            raise
        return None
    return None if envelope is None else (envelope.sender, envelope.header, bytes(envelope.payload))


def port_of(endpoint: Any) -> tuple[str, int]:
    host, _, port = endpoint.address.partition("://")[2].rpartition(":")
    return host, int(port)


@contextmanager
def child(scheme: str, make: Make, tmp_path: Path, mute: bool = False, **options: Any) -> Iterator[tuple[Any, int]]:
    """Rank 0 here, linked with rank 1 in a process of its own, both ways unless it is mute; and its process id."""
    keys = write_keys(tmp_path / "keys")
    here = make(0, keys=keys, **options)
    command = [sys.executable, "-c", CHILD, scheme, str(keys.file), *([] if mute else [here.address])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            here.connect(1, process.stdout.readline().strip())
            if not mute:
                assert expect(here).header == b"hello"
            attend_until(here, lambda: here._roster.peers[1].answered)
            yield here, process.pid
        finally:
            process.kill()
