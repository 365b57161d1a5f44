"""Sessions that follow one another and begin sooner: the process from which the ranks of one were forked is kept for
the next whose ranks load the same, on other links or however many."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeinfer.cluster.processes import Processes, kind_of
from pipeinfer.cluster.ranks import Loads, Ranks

_kept: list[Processes] | None = None
"""Those that no session has; None where none are kept."""


@contextmanager
def kept_processes() -> Iterator[None]:
    """Keep them meanwhile. Not for ranks that are to inherit what this process changes between sessions."""
    global _kept
    _kept = []
    try:
        yield
    finally:
        left, _kept = _kept, None
        for processes in left:
            processes.close(b"")


def open_processes(local: str, count: int, loads: Loads) -> Processes:
    """A session of `count` ranks that listen at `local` and are to load `loads`. Raises LaunchError."""
    kind = kind_of(local, count, loads)
    for processes in _kept or []:
        if processes.kind == kind:
            assert _kept is not None
            _kept.remove(processes)
            processes.open(count)
            return processes
    return Processes(local, count, loads)


def close_ranks(ranks: Ranks, farewell: bytes) -> None:
    """End a session for good."""
    if _kept is None or not isinstance(ranks, Processes) or not ranks.can_open:
        ranks.close(farewell)
    elif ranks not in _kept:
        ranks.leave(farewell)
        _kept.append(ranks)
