"""Ranks by the plan's word: started here, in this process or as others, joined in an MPI world, or reached."""

from pipeinfer.cluster.processes import Processes
from pipeinfer.cluster.ranks import Ranks
from pipeinfer.cluster.reached_workers import Workers
from pipeinfer.cluster.threads import Threads
from pipeinfer.errors import LaunchError


def open_ranks(transport: str, count: int, workers: tuple[str, ...], key: str | None) -> Ranks:
    """Start `count` ranks, or reach the ones at `workers`. Raises LaunchError, UnknownPlugin, TransportError."""
    if workers:
        return Workers(workers, count, key)
    if transport == "inproc":
        return Threads(count)
    if transport == "tcp":
        return Processes(count)
    if transport == "mpi":
        from pipeinfer.cluster.mpi_world import MpiProcesses

        return MpiProcesses(count)
    from pipeinfer.plugins import TRANSPORTS, load

    load(TRANSPORTS, transport)
    raise LaunchError(f'ranks over "{transport}" are not started from here: start workers and give their addresses')
