"""Opens the ranks of a plan: as threads or processes on this machine, in an MPI world, or by connecting to workers."""

from pipeinfer.cluster.kept_processes import open_processes
from pipeinfer.cluster.processes import Processes
from pipeinfer.cluster.ranks import Loads, Ranks
from pipeinfer.cluster.remote_workers import Workers
from pipeinfer.cluster.threads import Threads
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.transports import hosting_of


def open_ranks(
    transport: str, count: int, workers: tuple[str, ...], key: str | None, loads: Loads, before: Ranks | None
) -> Ranks:
    """Start `count` ranks that are to load `loads`, or reach the ones at `workers`; `before` are those of a session
    that was left. Raises LaunchError, UnknownPlugin, TransportError."""
    if workers:
        return Workers(workers, count, key)
    hosting = hosting_of(transport)
    if hosting.start == "threads":
        return Threads(hosting.local, count)
    if hosting.start == "processes":
        if isinstance(before, Processes) and before.can_open:
            before.open(count)
            return before
        return open_processes(hosting.local, count, loads)
    if hosting.start == "world":
        from pipeinfer.cluster.mpi_world import MpiProcesses

        return MpiProcesses(count)
    raise LaunchError(f'ranks over "{transport}" are not started from here: start workers and give their addresses')
