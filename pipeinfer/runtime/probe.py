"""A rank without a model: it measures itself and its links for the head, until it is set up or may leave."""

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeinfer.engine.exact import exact_stage
from pipeinfer.errors import LaunchError
from pipeinfer.runtime import control
from pipeinfer.runtime.control import (
    ForwardTimes,
    Inspect,
    Inspected,
    LinkMeasured,
    Load,
    Loaded,
    Measure,
    MeasureHandling,
    MeasureLink,
    Ping,
    Pong,
    Setup,
    Shutdown,
)
from pipeinfer.runtime.loading import free_here, load_stage
from pipeinfer.runtime.message_overhead import run_handling_s
from pipeinfer.runtime.rank_links import IDLE_S, unexpected
from pipeinfer.runtime.stage_timing import Bench, Interrupted
from pipeinfer.runtime.transports import HEAD, Envelope, PeerLost, Transport

PINGS = 25
PAUSE_S = 2e-3
"""Between pings and between forwards, as long as other stages may compute: all have gone to sleep by then."""

FIRST_BALLAST, MOST_BALLAST = 1 << 16, 1 << 24
LARGE_PINGS = 4
LARGE_S = 10e-3
"""Bandwidth is taken from messages that take this much longer than small ones."""

FINEST_S = 1e-6
"""The least that a large message is said to take longer: threads of a process hand on references."""

ANSWER_S = 60.0
"""The longest wait for a Pong."""

MEASURED_SEQUENCES = 4


def probe(transport: Transport, first: Inspect) -> Setup | None:
    """Answer the head, beginning with its `first` message, until it sends the Setup; None: this rank may leave.

    Raises LaunchError for what the user can put right, PeerLost when the head is gone.
    """
    prober = _Prober(transport)
    try:
        return prober.serve(first)
    finally:
        prober.drop()


class _Prober:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._later: deque[Envelope] = deque()
        self._bench: Bench | None = None
        self._leaving = False

    def serve(self, first: Inspect) -> Setup | None:
        message: Any = first
        while not isinstance(message, Setup | Shutdown):
            try:
                self._answer(message)
            except Interrupted:
                return None
            message = self._next(self._later.popleft() if self._later else None)
        self.drop()
        return message if isinstance(message, Setup) else None

    def drop(self) -> None:
        """Let go of what is held."""
        if self._bench is not None:
            self._bench.close()
        self._bench = None

    def _next(self, envelope: Envelope | None) -> Any:
        """The next message. Whom its own link leads to no more is for the head to find out, which has one too: at the
        end of it all, the others may leave before this rank is told to."""
        while envelope is None:
            try:
                envelope = self._transport.receive(IDLE_S)
            except PeerLost as lost:
                if lost.rank == HEAD:
                    raise
        return control.decode(envelope.header)

    def _answer(self, message: Any) -> None:
        rank = self._transport.rank
        if isinstance(message, Ping):
            answer_ping(self._transport, message)
        elif isinstance(message, Inspect):
            self._tell(self._inspected(message))
        elif isinstance(message, Load):
            self.drop()
            stage = load_stage(rank, message.backend, message.options, message.model, message.layers,
                               cells=message.cells, sequences=MEASURED_SEQUENCES)  # fmt: skip
            if message.exact:
                stage = exact_stage(stage, cells=message.cells, sequences=MEASURED_SEQUENCES,
                                    hidden_size=message.hidden_size if message.layers[0] else 0,
                                    gives_logits=message.outputs)  # fmt: skip
            self._bench = Bench(stage, message, self._abort, self._rest)
            self._tell(Loaded(rank))
        elif isinstance(message, Measure) and self._bench is not None:
            self._tell(ForwardTimes(rank, self._bench.measure(message)))
        elif isinstance(message, MeasureHandling):
            self._tell(ForwardTimes(rank, ((run_handling_s(),),)))
        elif isinstance(message, MeasureLink):
            self._transport.connect(message.target, message.address)
            self._tell(time_link(self._transport, message.target, message.reply_to, self._receive))
        else:
            unexpected(message, "a rank that has not been set up")

    def _inspected(self, message: Inspect) -> Inspected:
        rank = self._transport.rank
        if message.rank != rank:
            raise wrong_rank(message.rank, rank)
        free = free_here(rank, message.backend, message.options)
        return Inspected(rank, socket.gethostname(), os.getpid(), os.cpu_count() or 1, *free)

    def _tell(self, answer: Any) -> None:
        self._transport.send(HEAD, control.encode(answer))

    def _receive(self, timeout: float) -> Any:
        """What comes while a link is measured: anything but a Pong is for later."""
        envelope = self._transport.receive(timeout)
        if envelope is None:
            return None
        message = control.decode(envelope.header)
        if isinstance(message, Shutdown):
            raise Interrupted
        if not isinstance(message, Pong):
            self._later.append(envelope)
        return message

    def _abort(self) -> bool:
        """For the backend, between layers, as in a generation."""
        while (envelope := self._transport.receive(0)) is not None:
            self._keep(envelope)
        return self._leaving

    def _rest(self) -> None:
        """Wait for a message that does not come, as between two runs of a generation."""
        envelope = self._transport.receive(PAUSE_S)
        if envelope is not None:
            self._keep(envelope)

    def _keep(self, envelope: Envelope) -> None:
        self._leaving = self._leaving or isinstance(control.decode(envelope.header), Shutdown)
        self._later.append(envelope)


def wrong_rank(wanted: int, started_as: int) -> LaunchError:
    """The head wants another rank than the one that this worker was told to be."""
    return LaunchError(f"the head takes this worker for rank {wanted}, but it was started as {started_as}: start it"
                       " without --rank to be any")  # fmt: skip


def answer_ping(transport: Transport, ping: Ping) -> None:
    """Send the Pong."""
    transport.connect(ping.sender, ping.address)
    transport.send(ping.sender, control.encode(Pong()))


def time_link(
    transport: Transport, target: int, reply_to: str, receive: Callable[[float], Any]
) -> LinkMeasured:  # fmt: skip
    """Ping rank `target`, which `transport` is connected to and which answers at `reply_to`. `receive` gives the next
    message, as the transport does but decoded. Latency is half of a small round trip."""
    header = control.encode(Ping(transport.rank, reply_to))

    def trip(ballast: bytes) -> float:
        time.sleep(PAUSE_S)
        start = time.monotonic()
        transport.send(target, header, ballast)
        while not isinstance(receive(ANSWER_S), Pong):
            if time.monotonic() - start > ANSWER_S:
                raise PeerLost(target, f"rank {target} does not answer rank {transport.rank}")
        return time.monotonic() - start

    def typical(ballast: bytes, count: int) -> float:
        trip(ballast)  # The first one finds nothing ready.
        return float(np.median([trip(ballast) for _ in range(count)]))

    small = typical(b"", PINGS)
    size = FIRST_BALLAST
    while (longer := typical(bytes(size), LARGE_PINGS) - small) < LARGE_S and size < MOST_BALLAST:
        size *= 4
    return LinkMeasured(transport.rank, target, small / 2, 8 * size / max(longer, FINEST_S))
