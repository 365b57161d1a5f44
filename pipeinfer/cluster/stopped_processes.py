"""Ranks of this host whose processes are stopped: they keep their connections, and a transport may wait for them."""

import time
from pathlib import Path

from pipeinfer.cluster.process_end import is_stopped

STOPPED_S = 2.0
"""A process that is stopped for so long is lost."""


class StoppedProcesses:
    """Looks after `processes`, the ids by rank."""

    def __init__(self, processes: dict[int, int] | None = None) -> None:
        self.processes = {} if processes is None else processes
        self._since: dict[int, float] = {}

    def found(self) -> tuple[int, str] | None:
        """A rank that has been stopped for long, and how."""
        now = time.monotonic()
        stopped = [rank for rank, process in self.processes.items() if is_stopped(process)]
        self._since = {rank: self._since.get(rank, now) for rank in stopped}
        rank = next((rank for rank, since in self._since.items() if now - since >= STOPPED_S), None)
        return None if rank is None else (rank, f"process {self.processes[rank]} is stopped")


def runs_ranks(process: int) -> bool:
    """Whether that is a process of ours on this host: one of another container may have the id of anybody's here."""
    try:
        return b"pipeinfer" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
