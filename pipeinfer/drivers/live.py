"""Ranks in real time: a stage or a drafter over a transport and a compute backend, in one thread that polls."""

import os
import socket
import time

import msgspec

from pipeinfer.backend import ModelStage
from pipeinfer.core import messages
from pipeinfer.core.messages import Failure, Ready, Setup, Shutdown
from pipeinfer.drivers.draft_rank import DraftWorker
from pipeinfer.drivers.endpoint import IDLE_S, Endpoint, unexpected
from pipeinfer.drivers.stage_rank import StageWorker
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_backend
from pipeinfer.transports import HEAD, PeerLost, Transport


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
