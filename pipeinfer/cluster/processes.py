"""Ranks as processes that are started on this machine."""

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from pipeinfer.cluster.memory_layout import same_memory_layout
from pipeinfer.cluster.rank_processes import RankProcesses
from pipeinfer.cluster.ranks import UNKNOWN, Loads, say_farewell
from pipeinfer.cluster.stopped_processes import StoppedProcesses
from pipeinfer.plugins import BACKENDS, load
from pipeinfer.runtime.processor_quota import bound_cores, usable_cores
from pipeinfer.runtime.transports import HEAD, open_member
from pipeinfer.runtime.transports.keys import write_keys

LEAVE_S = 1.0
"""How long a rank may take to leave before it is ended."""

NOTICE_S = 0.2
"""A process that was killed closes its connections this much before it can be seen to have ended."""


def kind_of(local: str, count: int, loads: Loads) -> tuple[object, ...]:
    """What the process from which ranks are forked was started with; `count` of them share the cores, or do not."""
    return local, loads, count >= bound_cores(), count >= usable_cores()


class Processes:
    """Ranks as processes on this machine, that listen at `local`, with keys made for them. They are forked from one
    that is started here, and which outlives a session, so that the next one begins soon."""

    def __init__(self, local: str, count: int, loads: Loads = UNKNOWN) -> None:
        self._local = local
        self._loads = loads
        self.kind = kind_of(local, count, loads)
        self._folder = tempfile.TemporaryDirectory(prefix="pipeinfer-")
        self._key = Path(self._folder.name) / "key.json"
        write_keys(self._key, certificate=not local.startswith("tcp:"))  # It takes a tenth of a second to make.
        self._ranks: RankProcesses | None = None
        self.open(count)

    def open(self, count: int) -> None:
        """Begin a session, also another one after `leave`. Raises LaunchError."""
        self.transport = open_member(self._local, HEAD, keys=self._key)
        try:
            if self._ranks is None or not self._ranks.can_start:
                self._start_parent(count)
            assert self._ranks is not None
            self._ranks.start(count)
            self.addresses = self._ranks.addresses()
            self._stopped = StoppedProcesses(self._ranks.pids)
        except BaseException:
            self.close(b"")
            raise

    def _start_parent(self, count: int) -> None:
        if self._ranks is not None:
            self._ranks.close(0)
        backend = self._loads.backend
        prepared = self._loads if backend and hasattr(load(BACKENDS, backend), "prepare") else UNKNOWN
        with same_memory_layout() if count >= bound_cores() else nullcontext():  # This process takes a core too.
            self._ranks = RankProcesses(self._local, self._key, Path(self._folder.name), prepared, count)

    @property
    def can_open(self) -> bool:
        """Whether there may be another session."""
        return self._ranks is not None

    def dead(self) -> tuple[int, str] | None:
        assert self._ranks is not None
        codes = self._ranks.ended()
        if not codes:
            return None
        rank = next((rank for rank, code in codes.items() if code), next(iter(codes)))
        return rank, self._ranks.last_words(rank)

    def hung(self) -> tuple[int, str] | None:
        return self._stopped.found()

    def met(self, rank: int, host: str, process: int) -> None:
        """It is known already."""

    def culprit(self, rank: int) -> tuple[int, str] | None:
        assert self._ranks is not None
        deadline = time.monotonic() + NOTICE_S
        while True:
            dead = self.dead()
            if dead is not None and (dead[0] == rank or self._ranks.ended()[dead[0]]):
                return dead
            if time.monotonic() >= deadline:
                return None
            time.sleep(NOTICE_S / 10)

    def leave(self, farewell: bytes) -> None:
        if self._ranks is not None:
            self._ranks.end()
        self.transport.close()

    def close(self, farewell: bytes) -> None:
        if farewell and self._ranks is not None:
            say_farewell(self.transport, farewell, self._ranks.count)
        self.transport.close()
        if self._ranks is not None:
            self._ranks.close(LEAVE_S if farewell else 0)
            self._ranks = None
        self._folder.cleanup()
