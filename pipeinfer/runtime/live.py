"""Ranks in real time: a stage or a drafter over a transport and a compute backend, in one thread that polls."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from pipeinfer.engine import last_words
from pipeinfer.engine.exact import exact_stage
from pipeinfer.engine.vocabulary import SharedVocabulary
from pipeinfer.errors import LaunchError
from pipeinfer.runtime import control
from pipeinfer.runtime.control import Failure, Inspect, LinkLimit, Ready, Setup, Shutdown
from pipeinfer.runtime.cpu_latency import without_deep_idle
from pipeinfer.runtime.draft_rank import DraftWorker
from pipeinfer.runtime.loading import explained, load_stage, weights_here
from pipeinfer.runtime.probe import probe, wrong_rank
from pipeinfer.runtime.processor_quota import bound_cores
from pipeinfer.runtime.rank_links import IDLE_S, Endpoint
from pipeinfer.runtime.stage_rank import StageWorker
from pipeinfer.runtime.timer_slack import without_timer_slack
from pipeinfer.runtime.transports import ANY_RANK, HEAD, Envelope, PeerLost, Transport, TransportError

GRACE_S = 0.25
"""How long a rank that has lost a neighbour waits for the head to end the session, as then the neighbour just left
first, before it reports the loss."""


LEAVE_S = 0.1
"""A transport may send from a thread of its own: what was said last has so long to leave before the process ends."""


class Stray(Exception):  # noqa: N818 - reads as what came
    """A rank that has no session got a message that does not begin one; the text is one line."""


def wait_for_head(transport: Transport, patience_s: float = float("inf")) -> Setup | Inspect | None:
    """The head's first message, or None when none comes in time or the head leaves again. Raises Stray:
    the endpoint then holds its sender to be of this session, so the next session needs another."""
    deadline = time.monotonic() + patience_s
    while (left := deadline - time.monotonic()) > 0:
        envelope = transport.receive(min(IDLE_S, left))
        if envelope is not None:
            message = _decoded(envelope)
            if envelope.sender == HEAD and isinstance(message, Setup | Inspect):
                return message
            if envelope.sender == HEAD and isinstance(message, Shutdown):
                return None
            raise Stray(f"{_name(envelope.sender)} sent {type(message).__name__}, which begins no session")
    return None


def _decoded(envelope: Envelope) -> Any:
    try:
        return control.decode(envelope.header)
    except msgspec.DecodeError as problem:
        raise Stray(f"{_name(envelope.sender)} sent something that is no message: {problem}") from problem


def _name(rank: int) -> str:
    return "the head" if rank == HEAD else f"rank {rank}"


def run_rank(
    transport: Transport,
    patience_s: float = float("inf"),
    *,
    told: Callable[[Setup], None] = lambda _: None,
    loaded: Callable[[], None] = lambda: None,
) -> bool:
    """Run one rank for one session: inspection and measurements if the head asks for them, set-up, loading, serving.
    An endpoint of any rank becomes the one that the head says. False if nobody came in time. `told` is
    called when the head has said what the rank is, `loaded` when the model is there.

    What goes wrong is told to the head as a Failure, and raised: LaunchError for what the user can put right, PeerLost
    when the head or a neighbour is gone, Stray when nothing has begun.
    """
    first = wait_for_head(transport, patience_s)
    if first is None:
        return False
    if transport.rank == ANY_RANK:
        transport.rank = first.rank
    try:
        transport.connect(HEAD, first.head_address)
    except PeerLost:
        raise  # It did not wait.
    except TransportError as problem:
        raise Stray(f"a head that cannot be answered: {problem}") from problem
    try:
        setup: Setup | None
        with without_deep_idle(), without_timer_slack():
            if isinstance(first, Inspect):
                transport = shaped(transport, first.bandwidth_bps, first.latency_s)
                setup = probe(transport, first)
            else:
                setup = first
            if setup is not None:
                told(setup)
                transport = shaped(transport, setup.bandwidth_bps, setup.latency_s, setup.links)
                _session(transport, setup, loaded)
    except PeerLost as lost:
        if lost.rank == HEAD:
            raise
        if not _dismissed(transport):
            _tell(transport, Failure(lost.rank, str(lost)))
            raise
    except Exception as problem:
        _tell(transport, Failure(first.rank, explained(problem), isinstance(problem, LaunchError)))
        raise
    return True


def _dismissed(transport: Transport) -> bool:
    """Whether the head ends the session now. Raises PeerLost when it is gone."""
    deadline = time.monotonic() + GRACE_S
    while (left := deadline - time.monotonic()) > 0:
        try:
            envelope = transport.receive(left)
        except PeerLost as lost:
            if lost.rank == HEAD:
                raise
        else:
            if envelope is not None and isinstance(control.decode(envelope.header), Shutdown):
                return True
    return False


def _session(transport: Transport, setup: Setup, loaded: Callable[[], None]) -> None:
    start = time.monotonic()
    if setup.rank != transport.rank:
        raise wrong_rank(setup.rank, transport.rank)
    transport.connect(setup.next_rank, setup.next_address)
    for rank, address in enumerate(setup.behind, start=setup.rank + 1):
        transport.connect(rank, address)
    model = load_stage(setup.rank, setup.backend, setup.options, setup.model, setup.layers,
                       cells=setup.cells, sequences=1 if setup.exact else setup.sequences)  # fmt: skip
    if setup.exact:
        model = exact_stage(model, cells=setup.cells, sequences=setup.sequences,
                            hidden_size=setup.hidden_size if setup.stage else 0,
                            gives_logits=setup.stage == setup.stages - 1)  # fmt: skip
    if setup.vocabulary:
        model = SharedVocabulary(model, setup.vocabulary, gives_logits=setup.stage == setup.stages - 1)
    last_words.listen(partial(_tell_last, transport, setup.rank))
    endpoint = Endpoint(transport, setup)
    drafts = setup.role == "draft" and setup.stage == 0
    endpoint.worker = (DraftWorker if drafts else StageWorker)(endpoint, model)
    weights = weights_here(setup.rank, setup.backend, setup.options, setup.model)
    loaded()
    now = time.monotonic()
    ready = Ready(setup.rank, socket.gethostname(), os.getpid(), now - start, now, weights, bound_cores())
    transport.send(HEAD, control.encode(ready))
    try:
        endpoint.serve()
    except PeerLost:
        if not endpoint.leaving:
            raise
    finally:
        model.close()


def shaped(transport: Transport, bandwidth_bps: float, latency_s: float, limits: Sequence[LinkLimit] = ()) -> Transport:
    """The transport with its links limited, where there is a limit: on all of them, or on any one of the session's."""
    if latency_s <= 0 and bandwidth_bps == float("inf") and not limits:
        return transport
    from pipeinfer.runtime.transports.shaped import LinkShape, ShapedTransport

    links = {
        limit.target: LinkShape(limit.bandwidth_bps, limit.latency_s, limit.floor_s)
        for limit in limits
        if limit.source == transport.rank
    }
    return ShapedTransport(transport, bandwidth_bps, latency_s, links)


def _tell_last(transport: Transport, rank: int, words: str) -> None:
    _tell(transport, Failure(rank, words))
    time.sleep(LEAVE_S)


def _tell(transport: Transport, failure: Failure) -> None:
    transport.send(HEAD, control.encode(failure))
