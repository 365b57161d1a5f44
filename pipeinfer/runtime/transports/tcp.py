"""Ranks as processes on any hosts: `tcp://host:port` (IPv4 or `[IPv6]`), ZeroMQ with CURVE encryption and
authentication, always.

An endpoint binds one ROUTER, where everything arrives, and opens one DEALER per outgoing link. ZeroMQ is asked for its
framing, queues and heartbeats. It is not trusted to reconnect: a stream that broke has lost messages, so the peer is
lost for good. Two contexts, so that `close` can flush the links before it shuts the door: peers see the end last.

Large payloads go in frames of 256 KiB, each of which has to cross within `silence_s`: ZeroMQ sends no heartbeat in the
middle of a frame, and over a slow link a prompt's hidden states take longer.
"""

import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias, cast

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from pipeinfer.runtime.processor_quota import spinning_s
from pipeinfer.runtime.transports import (
    MAX_HEADER,
    MAX_PAYLOAD,
    Envelope,
    Hosting,
    PeerLost,
    TransportError,
    framing,
)
from pipeinfer.runtime.transports.addresses import bracketed, resolved
from pipeinfer.runtime.transports.keys import Keys, read_keys
from pipeinfer.runtime.transports.linked import LinkedTransport
from pipeinfer.runtime.transports.membership import Peer, Roster, Standing, check_stream

LINGER_S = 1.0
"""The longest that `close` waits for what was sent to leave."""

ZERO_COPY = 64 * 1024
"""Payloads from this many bytes on are received as a view of ZeroMQ's buffer; below it a copy is cheaper. Sending
always copies: CURVE writes into a buffer of its own anyway, and the caller may reuse its buffer at once."""

FRAME = 256 * 1024
"""The most bytes of a payload's frame."""

_GLANCE_S = 0.05
"""A caller that only looks, as between the layers of a computation, need not pay for the monitors each time: they tell
of peers that are gone, which nobody has to know within milliseconds."""

_ZAP_DOMAIN = "pipeinfer"

_REFUSED = b"refused"
"""All that ever comes back on a link: to who claims a rank that is another's."""

# Plain integers: pyzmq's flags are enums, and their operators cost more than the calls they go into.
_READABLE = int(zmq.POLLIN)
_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

Socket: TypeAlias = "zmq.Socket[bytes]"


class TcpTransport(LinkedTransport[Socket]):
    """One endpoint. Port 0 takes a free one.

    `keys`: the cluster's pair or the path of its key file; addresses that are not loopback require a file. Times in
    seconds: `connect_s` for a peer's first answer; `silence_s` without a sign of life until a peer is lost; `again_s`
    for which a peer is tried again that left or refused us before its first word, as one does that is still leaving
    another session; `spin_s` of busy looking before `receive` blocks (default: as `processor_quota` says).
    Raises TransportError when the address cannot be had.
    """

    scheme = "tcp"
    hosting = Hosting("processes", "tcp://127.0.0.1:0")

    def __init__(
        self,
        address: str,
        rank: int,
        *,
        keys: Keys | str | Path,
        max_payload: int = MAX_PAYLOAD,
        connect_s: float = 10.0,
        silence_s: float = 2.5,
        again_s: float = 0.0,
        spin_s: float | None = None,
    ) -> None:
        self.rejected = 0
        """Messages dropped because no peer could be held to account for them."""
        self._keys = keys if isinstance(keys, Keys) else read_keys(keys)
        self._max_payload = max_payload
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._spin_s = spinning_s() if spin_s is None else spin_s
        self._again_s = again_s
        self._roster = Roster(rank, silence_s, again_s)
        self._senders: dict[bytes, Peer] = {}
        self._links: dict[int, Socket] = {}
        self._monitors: dict[Socket, Peer] = {}
        self._next_glance = 0.0
        host, port = self._check(address)
        self._outgoing = self._context()
        self._incoming = self._context()
        self._authenticator = ThreadAuthenticator(self._incoming)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(_ZAP_DOMAIN, _Members(self._keys))
        self._router = self._open_router()
        self._router_monitor: Socket = self._router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._router_monitor, zmq.POLLIN)
        self._bell, self._ringing = socket.socketpair()
        self._ringing.setblocking(False)
        self._poller.register(self._bell, zmq.POLLIN)
        self._woken = False
        try:
            self.address = self._bind(host, port)
        except TransportError:
            self.close()
            raise

    def receive(self, timeout: float) -> Envelope | None:
        """See Transport. Looks, spins where that pays, then sleeps until a message or a monitor's event comes."""
        start = time.monotonic()
        spin_until = start + min(timeout, self._spin_s) if self._comes_soon else start
        while True:
            if _readable(self._router):
                envelope = self._take()
                if envelope is not None:
                    return envelope
            if time.monotonic() >= spin_until:
                break
            os.sched_yield()
        envelope = self._wait(start + timeout)
        if timeout > 0:
            self._comes_soon = time.monotonic() - start < self._spin_s
        return envelope

    def close(self) -> None:
        """See Transport."""
        if self._outgoing.closed:
            return
        for peer in self._roster.peers.values():
            self._close_link(peer, LINGER_S)
        # These close what was not closed above, however that came to be: a context waits for its sockets for ever.
        self._outgoing.destroy()
        self._authenticator.stop()
        self._incoming.destroy()
        self._bell.close()
        self._ringing.close()

    # Arriving messages: from a known connection, or from one whose first message says whose it is.

    def _take(self) -> Envelope | None:
        """Read the message that waits. None: it was rejected. Raises PeerLost when it breaks its sender's stream."""
        identity = self._router.recv()
        peer = self._senders.get(identity)
        frame = self._router.recv(copy=peer is not None)
        first = frame if isinstance(frame, bytes) else frame.bytes
        try:
            rank, number, size = framing.parse_prefix(first, self._max_payload)
            payload = self._take_payload(size)
            if peer is None:
                peer = self._introduce(identity, frame, rank, number)
            check_stream(peer, rank, number)
        except framing.BadFrame as offence:
            self._reject(peer, offence)
            return None
        peer.received += 1
        peer.traffic.received(len(first) - framing.PREFIX_SIZE + size)
        return Envelope(peer.rank, first[framing.PREFIX_SIZE :], payload)

    def _take_payload(self, size: int) -> bytes | memoryview:
        if bool(self._router.get(zmq.RCVMORE)) != (size > 0):
            raise framing.BadFrame("a message with a frame too few or too many")
        if size == 0:
            return b""
        payload = self._router.recv() if size < ZERO_COPY else self._router.recv(copy=False).buffer
        parts, came = [payload], len(payload)
        while came < size and self._router.get(zmq.RCVMORE):
            parts.append(self._router.recv(copy=False).buffer)
            came += len(parts[-1])
        if came != size or self._router.get(zmq.RCVMORE):
            raise framing.BadFrame(f"a payload of {came} bytes that was announced as {size}")
        return payload if len(parts) == 1 else b"".join(parts)

    def _introduce(self, identity: bytes, frame: "zmq.Frame | bytes", rank: int, number: int) -> Peer:
        """Hold the connection to the rank that its first message claims."""
        assert isinstance(frame, zmq.Frame)
        if number:
            raise framing.BadFrame("the rest of a stream to an endpoint that was here before")
        self._read_router_monitor()
        peer = self._roster.bind(int(frame.get(zmq.SRCFD)), rank)
        if peer is None:
            self._router.send_multipart([identity, _REFUSED], _NOW)
            raise framing.BadFrame(f"a claim to be rank {rank}, which is another's")
        self._senders[identity] = peer
        return peer

    def _reject(self, peer: Peer | None, offence: framing.BadFrame) -> None:
        """Skip a bad message. A peer known by its connection is lost by it; anything else is only counted."""
        while self._router.get(zmq.RCVMORE):
            self._router.recv(copy=False)
        if peer is None or peer.standing is Standing.LOST:
            self.rejected += 1
            return
        self._roster.end(peer, f"the stream of rank {peer.rank} is broken: {offence}")
        raise self._lose(peer)

    # Waiting, and minding who is still there.

    def _wait(self, deadline: float) -> Envelope | None:
        now = time.monotonic()
        if deadline <= now < self._next_glance and not self._roster.ended:
            return None
        while True:
            self._mind_peers(0.0 if self._roster.ended else min(deadline, self._roster.next_deadline()) - now)
            now = time.monotonic()
            self._next_glance = now + _GLANCE_S
            if _readable(self._router):
                envelope = self._take()
                if envelope is not None:
                    return envelope
            elif self._roster.ended:
                raise self._lose(self._roster.ended[0])
            if self._woken or now >= deadline:
                self._woken = False
                return None

    def _mind_peers(self, seconds: float) -> None:
        """Sleep until something comes, at most `seconds`, and follow what the monitors say."""
        milliseconds = math.ceil(1000 * min(max(seconds, 0.0), 60.0))
        for ready, _ in self._poller.poll(milliseconds):
            if ready is self._router_monitor:
                self._read_router_monitor()
            elif isinstance(ready, zmq.Socket) and ready in self._monitors:
                self._read_link_monitor(ready, self._monitors[ready])
            elif ready == self._bell.fileno():
                self._woken = bool(self._bell.recv(4096))
            else:
                self._read_answer(ready)
        for peer in self._roster.expire(time.monotonic()):
            self._open_link(peer, peer.address)
            for first, payload in peer.unheard:
                self._put(self._links[peer.rank], first, payload, len(payload))

    def _read_router_monitor(self) -> None:
        for event, fd in _events(self._router_monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._roster.accepted(fd)
            else:
                self._roster.disconnected(fd)

    def _read_link_monitor(self, monitor: Socket, peer: Peer) -> None:
        for event, _ in _events(monitor):
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._roster.link_up(peer)
            else:
                self._roster.link_down(peer, time.monotonic())
                if peer.answered:  # now, before ZeroMQ connects again
                    self._close_link(peer, 0.0)
                    return

    def _read_answer(self, link: object) -> None:
        """Something came back on our link, unless it was closed just now."""
        for rank, dealer in self._links.items():
            if dealer is link:
                if dealer.recv() == _REFUSED:
                    peer = self._roster.peers[rank]
                    self._roster.refused(peer, time.monotonic())
                    self._close_link(peer, 0.0)
                return

    def _lose(self, peer: Peer) -> PeerLost:
        self._roster.lose(peer)
        self._close_link(peer, 0.0)
        return PeerLost(peer.rank, peer.fate)

    def _put(self, link: Socket, first: bytes, payload: bytes | memoryview, size: int) -> None:
        if not size:
            link.send(first, _NOW)
            return
        link.send(first, _NOW_AND_MORE)
        rest = memoryview(payload).cast("B")
        while len(rest) > FRAME:
            link.send(rest[:FRAME], _NOW_AND_MORE)
            rest = rest[FRAME:]
        link.send(rest, _NOW)

    def _open_link(self, peer: Peer, address: str) -> None:
        dealer = self._open_dealer(address)
        monitor: Socket = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            dealer.connect(address)
        except zmq.ZMQError as problem:
            dealer.disable_monitor()
            monitor.close()
            dealer.close(0)
            raise TransportError(f'cannot connect to "{address}": {problem.strerror}') from problem
        self._links[peer.rank] = dealer
        self._monitors[monitor] = peer
        self._poller.register(monitor, zmq.POLLIN)
        self._poller.register(dealer, zmq.POLLIN)
        self._roster.connecting(peer, address, time.monotonic() + self._connect_s)

    def _close_link(self, peer: Peer, linger_s: float) -> None:
        dealer = self._links.pop(peer.rank, None)
        if dealer is None:
            return
        monitor = dealer.get_monitor_socket()
        self._poller.unregister(dealer)
        self._poller.unregister(monitor)
        del self._monitors[monitor]
        dealer.disable_monitor()
        monitor.close()
        dealer.close(int(1000 * linger_s))

    # Sockets and addresses.

    def _context(self) -> "zmq.Context[Socket]":
        """A context whose sockets queue without bound and notice silence; heartbeats are its I/O thread's."""
        context: zmq.Context[Socket] = zmq.Context()
        milliseconds = int(1000 * self._silence_s)
        for option, value in {
            zmq.SNDHWM: 0,
            zmq.RCVHWM: 0,
            zmq.LINGER: 0,
            zmq.HEARTBEAT_IVL: milliseconds // 5,
            zmq.HEARTBEAT_TIMEOUT: milliseconds * 4 // 5,
            zmq.HEARTBEAT_TTL: milliseconds,
            zmq.RECONNECT_IVL: 50,
            zmq.TCP_MAXRT: milliseconds * 4 // 5,  # no heartbeat is sent while a big message is stuck
        }.items():
            context.setsockopt(option, value)
        return context

    def _open_router(self) -> Socket:
        router = self._incoming.socket(zmq.ROUTER)
        router.curve_server = True
        router.curve_secretkey = self._keys.secret
        router.zap_domain = _ZAP_DOMAIN.encode()
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        # ZeroMQ drops the connection before it allocates a longer frame; CURVE adds some bytes to each.
        router.setsockopt(zmq.MAXMSGSIZE, max(self._max_payload, MAX_HEADER + framing.PREFIX_SIZE) + 256)
        return router

    def _open_dealer(self, address: str) -> Socket:
        host, _ = resolved(address, self.scheme)
        dealer = self._outgoing.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IPV6, int(":" in host))
        dealer.curve_serverkey = self._keys.public
        dealer.curve_publickey = self._keys.public
        dealer.curve_secretkey = self._keys.secret
        # Hardly anything comes back on this socket: keep a peer that sends here anyway from filling memory.
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.setsockopt(zmq.MAXMSGSIZE, 4096)
        return dealer

    def _bind(self, host: str, port: int) -> str:
        where = f"tcp://{bracketed(host)}:{port}"
        try:
            own, _ = resolved(where, self.scheme)
            self._router.setsockopt(zmq.IPV6, int(":" in own))
            self._router.bind(f"tcp://{bracketed(own)}:{port}")
        except (zmq.ZMQError, OSError) as problem:
            if problem.errno == zmq.EADDRINUSE:
                text = f"{where} is in use by another program; choose another port, or 0 for a free one"
            else:
                text = f"cannot listen at {where}: {problem.strerror}; choose an address of this host"
            raise TransportError(text) from problem
        return self._router.getsockopt_string(zmq.LAST_ENDPOINT)


class _Members:
    """For the authenticator: who holds the cluster's pair is a member."""

    def __init__(self, keys: Keys) -> None:
        self._public = keys.public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether `key` may connect."""
        return domain == _ZAP_DOMAIN and key == self._public


def _events(monitor: Socket) -> Iterator[tuple[int, int]]:
    """The monitor's unread events, each with its value (the file descriptor, where there is one)."""
    while _readable(monitor):
        message = recv_monitor_message(monitor)
        yield int(message["event"]), int(message["value"])


def _readable(socket: Socket) -> bool:
    return bool(cast(int, socket.get(zmq.EVENTS)) & _READABLE)
