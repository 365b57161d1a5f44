"""The head's side of ranks that are up: sending, receiving, and a name for whatever goes wrong."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

from pipeinfer.cluster.kept_processes import close_ranks
from pipeinfer.cluster.open_ranks import open_ranks
from pipeinfer.cluster.ranks import UNKNOWN, Loads, Ranks
from pipeinfer.errors import RankLost, RankRefuses
from pipeinfer.runtime import control
from pipeinfer.runtime.control import Failure, LinkLimit, Shutdown
from pipeinfer.runtime.cpu_latency import without_deep_idle
from pipeinfer.runtime.live import shaped
from pipeinfer.runtime.timer_slack import without_timer_slack
from pipeinfer.runtime.transports import HEAD, Envelope, PeerLost, Transport

CHECK_S = 0.1
"""How often a waiting head looks at the processes it started."""

NOTE_S = 60.0
"""After so long without a message from ranks that live, and again after as long, a line says what is waited for."""

_log = logging.getLogger(__name__)


class Contact:
    """Opens `count` ranks that are to load `loads`. A context manager: leaving it ends every rank that
    it started and lets go of the others.

    Raises LaunchError, UnknownPlugin or TransportError while they come up, and RankLost when one is lost.
    """

    def __init__(
        self, transport: str, count: int, workers: tuple[str, ...], key: str | None, loads: Loads = UNKNOWN
    ) -> None:
        self.hosts: dict[int, str] = {}
        """What a rank said of where it is: `HOST (pid N)`."""
        self._last_message: dict[int, str] = {}
        self._idle_states = ExitStack()
        self._looked_at_ranks = 0.0
        self._before: Ranks | None = None
        self._loads = loads
        self._open(transport, count, workers, key)

    def _open(self, transport: str, count: int, workers: tuple[str, ...], key: str | None) -> None:
        self._ranks: Ranks = open_ranks(transport, count, workers, key, self._loads, self._before)
        self._closed = False
        self._idle_states.enter_context(without_deep_idle())
        self._idle_states.enter_context(without_timer_slack())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def rank_names(self) -> dict[int, str]:
        """What each rank is, for people."""
        return {HEAD: "head"}

    @property
    def transport(self) -> Transport:
        """The head's own endpoint."""
        return self._ranks.transport

    @property
    def addresses(self) -> list[str]:
        """Where the ranks are, in rank order."""
        return self._ranks.addresses

    def shape(self, bandwidth_bps: float, latency_s: float, links: Sequence[LinkLimit] = ()) -> None:
        """From here on every message is stamped, and so has to be the farewell."""
        self._ranks.transport = shaped(self._ranks.transport, bandwidth_bps, latency_s, links)

    def leave(self) -> None:
        """End the session, to open another one: what makes that quick stays until that is closed."""
        self._idle_states.close()
        self._ranks.leave(control.encode(Shutdown()))
        self._before = self._ranks

    def close(self) -> None:
        """End every rank that was started here and let go of the others. Idempotent."""
        self._idle_states.close()
        if not self._closed:
            close_ranks(self._ranks, control.encode(Shutdown()))
            self._closed = True

    def send(self, rank: int, message: Any, *, urgent: bool = False) -> None:
        """Send to a rank that the transport is connected to. Raises RankLost."""
        try:
            self.transport.send(rank, control.encode(message), urgent=urgent)
        except PeerLost as lost:
            raise self.lost(lost.rank, str(lost)) from lost

    def receive(self, timeout: float) -> Any:
        """The next message, or None after `timeout` seconds. Raises RankLost or LaunchError."""
        found = self.receive_from(timeout)
        return None if found is None else found[1]

    def receive_from(self, timeout: float) -> tuple[Envelope, Any] | None:
        """The same with the envelope that it came in."""
        try:
            envelope = self.transport.receive(timeout)
        except PeerLost as lost:
            raise self.lost(lost.rank, str(lost)) from lost
        self._find_hung()
        if envelope is None:
            dead = self._ranks.dead()
            if dead is not None:
                raise self.lost(*dead)
            return None
        message = control.decode(envelope.header)
        self._last_message[envelope.sender] = type(message).__name__
        if isinstance(message, Failure):
            if message.user_error:
                raise RankRefuses(message.rank, message.text)
            raise self.lost(message.rank, message.text)
        return envelope, message

    def _find_hung(self) -> None:
        """Now and then, also where others go on without it. Raises RankLost."""
        now = time.monotonic()
        if now - self._looked_at_ranks >= CHECK_S:
            self._looked_at_ranks = now
            hung = self._ranks.hung()
            if hung is not None:
                raise self.lost(*hung)

    def wake(self) -> None:
        """For any thread: who waits for a message here looks around soon."""
        self.transport.wake()

    def wait(self, what: Callable[[], str]) -> tuple[Envelope, Any]:
        """The next message in its envelope, however long it takes: whether ranks live is the transport's to say, by
        their heartbeats. `what` says what is waited for. Raises RankLost or LaunchError."""
        last = noted = time.monotonic()
        while (found := self.receive_from(CHECK_S)) is None:
            now = time.monotonic()
            if now - noted >= NOTE_S:
                _log.warning("the ranks live and have sent nothing for %.0f s; waiting for %s", now - last, what())
                noted = now
        return found

    def never_came(self, lost: RankLost) -> bool:
        """Whether the rank that was lost has not said a word."""
        return lost.rank not in self._last_message

    def lost(self, rank: int, why: str) -> RankLost:
        """The error that names the rank behind it, its host and its last message."""
        rank, why = self._ranks.culprit(rank) or (rank, why)
        name = self.rank_names.get(rank, f"rank {rank}")
        host = f" on {self.hosts[rank]}" if rank in self.hosts else ""
        last = self._last_message.get(rank)
        heard = f"; its last message: {last}" if last else "; it never sent a message"
        return RankLost(rank, f"lost {name}{host}: {why}{heard}")
