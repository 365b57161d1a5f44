"""A rank's side of its links, and what a role is.

Compute runs where it can be interrupted: the backend asks between layers whether to abort, and asking is what empties
the inbox, so a cancellation acts in the middle of a forward. MPI has no file descriptor to wait on, hence polling; how
to wait without burning a core is the transport's business.
"""

import gc
import resource
import time
from collections import deque
from collections.abc import Callable
from threading import current_thread, main_thread
from typing import Any, NoReturn, Protocol

from pipeinfer.runtime import control
from pipeinfer.runtime.control import AskReport, Begin, Report, Setup, Shutdown
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD, Envelope, Transport

IDLE_S = 0.5
"""A rank with nothing to do wakes this often, which costs nothing and keeps it open to signals."""

BLOCK_S = 2e-3
NAP_S = 5e-4
"""Transports block by the millisecond: the last BLOCK_S of a wait are naps of NAP_S with a look at what has come."""


class Worker(Protocol):
    """One role: takes messages, computes, sends."""

    busy: bool

    def take(self, message: Any, payload: bytes | memoryview) -> None:
        """Act on one message. Called again from inside a computation, while `busy`."""

    def next_wake(self) -> float:
        """When `wake_up` wants to be called, on the monotonic clock."""

    def wake_up(self) -> None:
        """Called when the time that `next_wake` gave has come."""


class Endpoint:
    """A rank's side of its links: where its output goes, what it measured, and the flag that stops a computation."""

    def __init__(self, transport: Transport, setup: Setup) -> None:
        self.transport = transport
        self.setup = setup
        self.spans: list[Span] = []
        self.leaving = False
        self.over = False
        """Whether the rank is between two trials: runs that are still to be computed are not wanted then."""
        self.abort_requested = False
        self.worker: Worker
        self._slowed = setup.cpu_share < 1
        self._used_before = 0.0
        self._looked_just_now = False
        self._busy_s = 0.0
        self._processor_s = processor_s()
        self._later: deque[Envelope] = deque()

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Send to the next rank."""
        self.send_to(self.setup.next_rank, message, payload)

    def send_to(
        self, rank: int, message: Any, payload: bytes | memoryview = b"", *, urgent: bool = False
    ) -> None:  # fmt: skip
        """Send to a rank that is linked."""
        self.transport.send(rank, control.encode(message), payload, urgent=urgent)

    def serve(self) -> None:
        """Take messages until told to leave. Raises PeerLost."""
        while not self.leaving:
            now = time.monotonic()
            wake = float("inf") if self.over else self.worker.next_wake()
            if wake <= now:
                self.worker.wake_up()
                continue
            envelope = self._next(min(IDLE_S, wake - now))
            if envelope is not None:
                self._looked_just_now = True
                self._dispatch(envelope)

    def poll(self) -> bool:
        """For the backend, between layers: act on what has come meanwhile; true if the computation is to stop."""
        if self._looked_just_now:  # and took the message that began this computation: looking is a good part of a hop
            self._looked_just_now = False
            return self.abort_requested
        while (envelope := self._next(0)) is not None:
            self._dispatch(envelope)
        return self.abort_requested

    def wait(self, done: Callable[[], bool]) -> bool:
        """Act on what comes until it is `done`; false if what is waited for is not wanted any more."""
        while not done() and not self.abort_requested:
            envelope = self._next(IDLE_S)
            if envelope is not None:
                self._dispatch(envelope)
        self.abort_requested = False
        return done()

    def start(self) -> float:
        """Start the clock of a computation. Gives the time, on the monotonic clock."""
        if self._slowed:
            self._used_before = time.thread_time()
        return time.monotonic()

    def finish(self, name: Callable[[], str], start: float, *, aborted: bool) -> tuple[float, bool]:
        """Note a computation that began at `start` and ends now, or once it has waited as long as a slower node would
        have computed: its seconds, and whether it was aborted, also in that wait. On a timeline it stands as `name`."""
        if self._slowed and not aborted:
            # By processor time: what else this machine does is no part of the node that is emulated.
            used = time.thread_time() - self._used_before
            aborted = not self._wait(start + used / self.setup.cpu_share)
        end = time.monotonic()
        if self.setup.trace:
            self.spans.append(Span(self.setup.rank, name(), start, end, aborted))
        self.abort_requested = False
        self._busy_s += end - start
        return end - start, aborted

    def _wait(self, until: float) -> bool:
        """Handle messages until that time; false as soon as the computation is to stop."""
        while not self.poll():
            left = until - time.monotonic()
            if left <= 0:
                return True
            if left <= BLOCK_S:
                time.sleep(min(left, NAP_S))
            elif (envelope := self._next(left - BLOCK_S)) is not None:
                self._dispatch(envelope)
        return False

    def _next(self, timeout: float) -> Envelope | None:
        """The next message: what was put off first, once the computation that it ends has ended."""
        if self._later and not (self.worker.busy and self.over):
            return self._later.popleft()
        return self.transport.receive(timeout)

    def _dispatch(self, envelope: Envelope) -> None:
        message = control.decode(envelope.header)
        kind = type(message)
        between = kind is AskReport or kind is Begin
        if kind is Shutdown:
            self.leaving = self.over = self.abort_requested = True
        elif self.worker.busy and (self.over or between):
            # It comes between trials, but a draft rank may still be at work on the trial that has ended.
            self.abort_requested |= between
            self.over = True
            self._later.append(envelope)
        elif kind is AskReport:
            self.over = True
            self._report()
        else:
            self.over &= not between
            if between:
                self._processor_s = processor_s()
            self.worker.take(message, envelope.payload)

    def _report(self) -> None:
        used = processor_s() - self._processor_s
        if has_own_process():
            gc.collect()  # Of threads the head does it, for all at once.
        traffic = self.transport.traffic.items()
        sent = {rank: (t.sent_bytes, t.sent_messages) for rank, t in traffic if t.sent_messages}
        spans = tuple([(s.rank, s.name, s.start, s.end, s.aborted) for s in self.spans])
        self.spans.clear()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.transport.send(HEAD, control.encode(Report(self.setup.rank, peak, sent, self._busy_s, spans, used)))
        self._busy_s = 0.0


def processor_s() -> float:
    """Seconds of processors that a rank has used: those of its process, or of its thread where it is one of several."""
    return time.process_time() if has_own_process() else time.thread_time()


def has_own_process() -> bool:
    """Whether this rank is a process, and not one thread of several."""
    return current_thread() is main_thread()


def unexpected(message: Any, who: str) -> NoReturn:
    """Refuse a message that is not for this role."""
    raise ValueError(f"a {type(message).__name__} came to {who}")
