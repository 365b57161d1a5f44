"""Ranks in real time: a stage or a drafter over a transport and a compute backend, in one thread that polls."""

import os
import socket
import time

from pipeinfer.core import messages
from pipeinfer.core.messages import Failure, Inspect, Ready, Setup, Shutdown
from pipeinfer.drivers.awake import cores_awake
from pipeinfer.drivers.draft_rank import DraftWorker
from pipeinfer.drivers.endpoint import IDLE_S, Endpoint, unexpected
from pipeinfer.drivers.loading import explained, load_stage
from pipeinfer.drivers.probe import probe
from pipeinfer.drivers.stage_rank import StageWorker
from pipeinfer.errors import LaunchError
from pipeinfer.transports import HEAD, PeerLost, Transport


def wait_for_head(transport: Transport, patience_s: float) -> Setup | Inspect | None:
    """The head's first message, or None when none comes in time or the head has thought better of it."""
    deadline = time.monotonic() + patience_s
    while (left := deadline - time.monotonic()) > 0:
        envelope = transport.receive(min(IDLE_S, left))
        if envelope is not None:
            message = messages.decode(envelope.header)
            if isinstance(message, Setup | Inspect):
                return message
            if isinstance(message, Shutdown):
                return None
            unexpected(message, "a rank that has not been set up")
    return None


def run_rank(transport: Transport, patience_s: float) -> bool:
    """Be one rank for one session: inspected and measured if the head wants it, then set up; load, serve, leave. False
    if nobody came in time.

    What goes wrong is told to the head as a Failure. Raises PeerLost when the head itself is gone.
    """
    first = wait_for_head(transport, patience_s)
    if first is None:
        return False
    transport.connect(HEAD, first.head_address)
    try:
        setup: Setup | None
        with cores_awake():
            if isinstance(first, Inspect):
                transport = shaped(transport, first.bandwidth_bps, first.latency_s)
                setup = probe(transport, first)
            else:
                setup = first
            if setup is not None:
                transport = shaped(transport, setup.bandwidth_bps, setup.latency_s)
                _session(transport, setup)
    except PeerLost as lost:
        if lost.rank == HEAD:
            raise
        _tell(transport, Failure(lost.rank, str(lost)))
    except Exception as problem:
        user_error = isinstance(problem, LaunchError)
        _tell(transport, Failure(transport.rank, explained(problem), user_error))
        if not user_error:
            raise
    return True


def _session(transport: Transport, setup: Setup) -> None:
    start = time.monotonic()
    if setup.rank != transport.rank:
        raise LaunchError(f"the head takes this worker for rank {setup.rank}, but it was started as {transport.rank}")
    transport.connect(setup.next_rank, setup.next_address)
    for rank, address in enumerate(setup.behind, start=setup.rank + 1):
        transport.connect(rank, address)
    model = load_stage(setup.rank, setup.backend, setup.options, setup.model, setup.layers,
                       cells=setup.cells, sequences=setup.sequences)  # fmt: skip
    endpoint = Endpoint(transport, setup)
    drafts = setup.role == "draft" and setup.stage == 0
    endpoint.worker = (DraftWorker if drafts else StageWorker)(endpoint, model)
    now = time.monotonic()
    transport.send(HEAD, messages.encode(Ready(setup.rank, socket.gethostname(), os.getpid(), now - start, now)))
    try:
        endpoint.serve()
    finally:
        model.close()


def shaped(transport: Transport, bandwidth_bps: float, latency_s: float) -> Transport:
    """The transport with its links limited, where there is a limit."""
    if latency_s <= 0 and bandwidth_bps == float("inf"):
        return transport
    from pipeinfer.transports.shaped import ShapedTransport

    return ShapedTransport(transport, bandwidth_bps, latency_s)


def _tell(transport: Transport, failure: Failure) -> None:
    transport.send(HEAD, messages.encode(failure))
