"""Ranks as processes that are started on this machine."""

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from pipeinfer.cluster.memory_layout import same_memory_layout
from pipeinfer.cluster.rank_processes import RankProcesses
from pipeinfer.cluster.ranks import say_farewell
from pipeinfer.cluster.stopped_processes import StoppedProcesses
from pipeinfer.runtime.processor_quota import bound_cores
from pipeinfer.runtime.transports import HEAD, open_member
from pipeinfer.runtime.transports.keys import write_keys

LEAVE_S = 1.0
"""How long a rank may take to leave before it is ended."""

NOTICE_S = 0.2
"""A process that was killed closes its connections this much before it can be seen to have ended."""


class Processes:
    """Ranks as processes on this machine, that listen at `local`, with keys made for this session. They are forked from
    one that is started here, and ended by their own id."""

    def __init__(self, local: str, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pipeinfer-")
        key = Path(self._folder.name) / "key.json"
        write_keys(key, certificate=not local.startswith("tcp:"))  # It takes a tenth of a second to make.
        self.transport = open_member(local, HEAD, keys=key)
        self._ranks: RankProcesses | None = None
        self._stopped = StoppedProcesses()
        try:
            with same_memory_layout() if count >= bound_cores() else nullcontext():  # This process takes a core too.
                self._ranks = RankProcesses(local, count, key, Path(self._folder.name))
            self.addresses = self._ranks.addresses()
            self._stopped.processes = self._ranks.pids
        except BaseException:
            self.close(b"")
            raise

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
            if dead is not None and (dead[0] == rank or self._ranks.codes[dead[0]]):
                return dead
            if time.monotonic() >= deadline:
                return None
            time.sleep(NOTICE_S / 10)

    def close(self, farewell: bytes) -> None:
        deadline = time.monotonic() + (LEAVE_S if farewell else 0)
        if farewell and self._ranks is not None:
            say_farewell(self.transport, farewell, self._ranks.count)
        self.transport.close()
        if self._ranks is not None:
            self._ranks.end(deadline)
        self._folder.cleanup()
