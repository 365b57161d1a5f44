"""Ranks in real time: a stage or a drafter over a transport and a compute backend, in one thread that polls.

Compute runs where it can be interrupted: the backend asks between layers whether to abort, and asking is what empties
the inbox, so a cancellation acts in the middle of a forward. MPI has no file descriptor to wait on, hence polling; how
to wait without burning a core is the transport's business.
"""

import gc
import os
import resource
import socket
import time
from collections import deque
from typing import Any, NoReturn, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer.backend import Batch, ModelStage
from pipeinfer.core import messages
from pipeinfer.core.drafter import Drafter, DraftOptions
from pipeinfer.core.effects import Abort, Apply, Compute, Computed, ComputeDraft, Drafted, Forward, Wake, Woken
from pipeinfer.core.messages import (
    AskReport,
    Begin,
    CancelRun,
    Decode,
    DraftFrom,
    Failure,
    KvOp,
    Ready,
    Report,
    Sampling,
    Setup,
    Shutdown,
)
from pipeinfer.core.sampling import candidates, margin, sample
from pipeinfer.core.stage import Stage
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_backend
from pipeinfer.spans import Span
from pipeinfer.transports import HEAD, Envelope, PeerLost, Transport

IDLE_S = 0.5
"""A rank with nothing to do wakes this often, which costs nothing and keeps it open to signals."""


class Worker(Protocol):
    """One role: takes messages, computes, sends."""

    busy: bool

    def take(self, message: Any, payload: bytes | memoryview) -> None:
        """Act on one message. Called again from inside a computation, while `busy`."""

    def next_wake(self) -> float:
        """When `wake` wants to be called, on the monotonic clock."""

    def wake(self) -> None:
        """The time asked for has come."""


class Endpoint:
    """A rank's side of its links: where its output goes, what it measured, and the flag that stops a computation."""

    def __init__(self, transport: Transport, setup: Setup) -> None:
        self.transport = transport
        self.setup = setup
        self.spans: list[Span] = []
        self.leaving = False
        self.abort_requested = False
        self.worker: Worker
        self._later: deque[Envelope] = deque()

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Send to the next rank."""
        self.transport.send(self.setup.next_rank, messages.encode(message), payload)

    def serve(self) -> None:
        """Take messages until told to leave. Raises PeerLost."""
        while not self.leaving:
            now = time.monotonic()
            wake = self.worker.next_wake()
            if wake <= now:
                self.worker.wake()
                continue
            envelope = self._later.popleft() if self._later else self.transport.receive(min(IDLE_S, wake - now))
            if envelope is not None:
                self._dispatch(envelope)

    def poll(self) -> bool:
        """For the backend, between layers: act on what has come meanwhile; true if the computation is to stop."""
        while (envelope := self.transport.receive(0)) is not None:
            self._dispatch(envelope)
        return self.abort_requested

    def timed(self, name: str, start: float, *, aborted: bool) -> float:
        """Note a computation that began at `start` and ends now; seconds."""
        end = time.monotonic()
        if self.setup.trace:
            self.spans.append(Span(self.setup.rank, name, start, end, aborted))
        self.abort_requested = False
        return end - start

    def _dispatch(self, envelope: Envelope) -> None:
        message = messages.decode(envelope.header)
        if isinstance(message, Shutdown):
            self.leaving = self.abort_requested = True
        elif self.worker.busy and (self._later or isinstance(message, AskReport | Begin)):
            # These come between trials, but a draft rank may still be at work on the trial that has ended.
            self.abort_requested = True
            self._later.append(envelope)
        elif isinstance(message, AskReport):
            self._report()
        else:
            self.worker.take(message, envelope.payload)

    def _report(self) -> None:
        gc.collect()
        traffic = self.transport.traffic.items()
        sent = {rank: (t.sent_bytes, t.sent_messages) for rank, t in traffic if t.sent_messages}
        spans = tuple([(s.rank, s.name, s.start, s.end, s.aborted) for s in self.spans])
        self.spans.clear()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.transport.send(HEAD, messages.encode(Report(self.setup.rank, peak, sent, spans)))


class StageWorker:
    """Performs a Stage's effects with a model's layers."""

    def __init__(self, endpoint: Endpoint, model: ModelStage) -> None:
        self.busy = False
        self._endpoint = endpoint
        self._model = model
        self._stage = Stage(endpoint.setup.stage, endpoint.setup.stages)
        self._begin = Begin(Sampling())
        self._work: Compute | None = None

    def take(self, message: Any, payload: bytes | memoryview) -> None:
        """A Decode, a CancelRun or a Begin."""
        if isinstance(message, Decode | CancelRun):
            self._perform(self._stage.handle(message, payload))
            while self._work is not None and not self.busy:
                self._compute(self._work)
        elif isinstance(message, Begin):
            self._begin = message
            self._model.clear()
            if not self._stage.is_last:
                self._endpoint.send(message)
        else:
            unexpected(message, "a target stage")

    def next_wake(self) -> float:
        return float("inf")

    def wake(self) -> None:
        """Never asked for."""

    def _perform(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Forward):
                self._endpoint.send(effect.message, b"" if effect.payload is None else effect.payload)
            elif isinstance(effect, Apply):
                apply(self._model, effect.ops)
            elif isinstance(effect, Compute):
                self._work = effect
            elif isinstance(effect, Abort):
                self._endpoint.abort_requested = True

    def _compute(self, work: Compute) -> None:
        decode = work.decode
        self._work, self.busy = None, True
        start = time.monotonic()
        batch = Batch(decode.tokens, decode.positions, decode.sequences, decode.outputs)
        hidden = self._hidden(work.payload, len(decode.tokens))
        output = self._model.forward(batch, hidden, self._endpoint.poll)
        ids, margins, payload = self._results(decode, output)
        seconds = self._endpoint.timed(f"{decode.kind.name.lower()} {decode.run}", start, aborted=output is None)
        self.busy = False
        if not self._endpoint.leaving:
            done = Computed(decode.run, seconds, output is None, payload, ids, margins)
            self._perform(self._stage.handle(done))

    def _hidden(self, payload: Any, rows: int) -> NDArray[np.float32] | None:
        if self._stage.index == 0:
            return None
        return np.frombuffer(payload, np.float32).reshape(rows, -1)

    def _results(
        self, decode: Decode, output: NDArray[np.float32] | None
    ) -> tuple[tuple[int, ...], tuple[float, ...], memoryview | None]:
        """What the output becomes: hidden states travel on, logits are sampled here."""
        if output is None:
            return (), (), None
        if not self._stage.is_last:
            return (), (), as_bytes(output)
        how = self._begin.sampling
        positions = decode.positions[len(decode.positions) - decode.outputs :]
        rows = list(zip(output, positions, strict=True))
        ids = tuple([sample(row, position + 1, how) for row, position in rows])
        margins = tuple([margin(row, position + 1, how) for row, position in rows]) if self._begin.margins else ()
        return ids, margins, as_bytes(output) if self._begin.logits_on_wire else None


class DraftWorker:
    """Performs a Drafter's effects with the draft model."""

    def __init__(self, endpoint: Endpoint, model: ModelStage) -> None:
        self.busy = False
        self._endpoint = endpoint
        self._model = model
        self._sampling = Sampling()
        self._drafter: Drafter | None = None
        self._work: ComputeDraft | None = None
        self._wake_at = float("inf")

    def take(self, message: Any, payload: bytes | memoryview) -> None:
        """A DraftFrom or a Begin."""
        if isinstance(message, DraftFrom):
            self._handle(message)
        elif isinstance(message, Begin):
            setup = self._endpoint.setup
            options = DraftOptions(**message.draft)  # type: ignore[arg-type]
            self._sampling = message.sampling
            self._drafter = Drafter(setup.cells, setup.sequences, message.context, options)
            self._wake_at = float("inf")
            self._model.clear()
        else:
            unexpected(message, "the draft rank")

    def next_wake(self) -> float:
        return self._wake_at

    def wake(self) -> None:
        self._wake_at = float("inf")
        self._handle(Woken())

    def _handle(self, event: Any) -> None:
        assert self._drafter is not None
        self._perform(self._drafter.handle(event))
        while self._work is not None and not self.busy and not self._endpoint.leaving:
            done = self._compute(self._work)
            self._perform(self._drafter.handle(done))

    def _perform(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, ComputeDraft):
                self._work = effect
            elif isinstance(effect, Apply):
                apply(self._model, effect.ops)
            elif isinstance(effect, Forward):
                self._endpoint.send(effect.message)
            elif isinstance(effect, Abort):
                self._endpoint.abort_requested = True
            elif isinstance(effect, Wake):
                self._wake_at = time.monotonic() + effect.delay

    def _compute(self, work: ComputeDraft) -> Drafted:
        self._work, self.busy = None, True
        start = time.monotonic()
        batch = Batch(work.tokens, work.positions, work.sequences, work.outputs)
        output = self._model.forward(batch, None, self._endpoint.poll)
        found: tuple[tuple[tuple[int, float], ...], ...] = ()
        if output is not None:
            positions = work.positions[len(work.positions) - work.outputs :]
            found = tuple(
                [
                    tuple(candidates(row, position + 1, self._sampling, work.count))
                    for row, position in zip(output, positions, strict=True)
                ]
            )
        seconds = self._endpoint.timed("draft", start, aborted=output is None)
        self.busy = False
        return Drafted(found, seconds, output is None)


def apply(model: ModelStage, ops: tuple[KvOp, ...]) -> None:
    """Apply KV operations in order."""
    for op in ops:
        model.apply(op)


def as_bytes(array: NDArray[np.float32]) -> memoryview:
    """The array's own bytes, without a copy where it is contiguous float32."""
    return np.ascontiguousarray(array, np.float32).data.cast("B")


def unexpected(message: Any, who: str) -> NoReturn:
    """Refuse a message that is not for this role."""
    raise ValueError(f"a {type(message).__name__} came to {who}")


def wait_for_setup(transport: Transport, patience_s: float) -> Setup | None:
    """The head's Setup, or None when none comes in time or the head has thought better of it."""
    deadline = time.monotonic() + patience_s
    while (left := deadline - time.monotonic()) > 0:
        envelope = transport.receive(min(IDLE_S, left))
        if envelope is not None:
            message = messages.decode(envelope.header)
            if isinstance(message, Setup):
                return message
            if isinstance(message, Shutdown):
                return None
            unexpected(message, "a rank that has not been set up")
    return None


def run_rank(transport: Transport, patience_s: float) -> bool:
    """Be one rank for one session: set up by the head, load, serve, leave. False if nobody came in time.

    What goes wrong is told to the head as a Failure. Raises PeerLost when the head itself is gone.
    """
    setup = wait_for_setup(transport, patience_s)
    if setup is None:
        return False
    transport.connect(HEAD, setup.head_address)
    transport = shaped(transport, setup.bandwidth_bps, setup.latency_s)
    try:
        _session(transport, setup)
    except PeerLost as lost:
        if lost.rank == HEAD:
            raise
        _tell(transport, Failure(lost.rank, str(lost)))
    except Exception as problem:
        user_error = isinstance(problem, LaunchError)
        _tell(transport, Failure(setup.rank, _one_line(problem), user_error))
        if not user_error:
            raise
    return True


def _session(transport: Transport, setup: Setup) -> None:
    start = time.monotonic()
    if setup.rank != transport.rank:
        raise LaunchError(f"the head takes this worker for rank {setup.rank}, but it was started as {transport.rank}")
    transport.connect(setup.next_rank, setup.next_address)
    model = _load(setup)
    endpoint = Endpoint(transport, setup)
    endpoint.worker = (DraftWorker if setup.role == "draft" else StageWorker)(endpoint, model)
    now = time.monotonic()
    transport.send(HEAD, messages.encode(Ready(setup.rank, socket.gethostname(), os.getpid(), now - start, now)))
    try:
        endpoint.serve()
    finally:
        model.close()


def _load(setup: Setup) -> ModelStage:
    """The rank's share of the model. Raises LaunchError with what is in the way."""
    try:
        backend = open_backend(setup.backend, msgspec.json.decode(setup.options))
        model: ModelStage = backend.load(setup.model, setup.layers, cells=setup.cells, sequences=setup.sequences)
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as problem:
        raise LaunchError(f"rank {setup.rank} cannot load {setup.model}: {_one_line(problem)}") from problem
    return model


def shaped(transport: Transport, bandwidth_bps: float, latency_s: float) -> Transport:
    """The transport with its links limited, where there is a limit."""
    if latency_s <= 0 and bandwidth_bps == float("inf"):
        return transport
    from pipeinfer.transports.shaped import ShapedTransport

    return ShapedTransport(transport, bandwidth_bps, latency_s)


def _tell(transport: Transport, failure: Failure) -> None:
    transport.send(HEAD, messages.encode(failure))


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text if isinstance(problem, ValueError | LaunchError) and text else f"{type(problem).__name__}: {text}"
