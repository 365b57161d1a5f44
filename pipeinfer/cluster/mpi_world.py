"""Ranks as the processes of an MPI world. `mpirun` or `srun` started every one with the same command line: process 0 is
the head and runs it, and process r + 1 is rank r.
"""

import gc
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from pipeinfer.cluster.garbage_collection import look_at_trials_alone
from pipeinfer.cluster.python_process import python_command, python_environment
from pipeinfer.cluster.ranks import UnmonitoredRanks
from pipeinfer.cluster.watched_rank import watched_rank
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import TRANSPORTS, BrokenPlugin, load
from pipeinfer.runtime.control import Setup
from pipeinfer.runtime.live import run_rank
from pipeinfer.runtime.transports import HEAD, PeerLost, Transport, TransportError, hosting_of, open_transport

if TYPE_CHECKING:
    from pipeinfer.runtime.transports.mpi import MpiProcess

NODES = 4
"""Ranks, unless the user or the MPI world says how many."""

LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, MVAPICH
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun; a batch script that is no step has only the first
)
"""What MPI launchers tell a process, before MPI is loaded: its number in the world, and the world's size."""

FIRST_SAYS_S = 1.0
"""How long the others wait where there is no world. Some launchers end all at the first failure: process 0 has a line
to say."""

STARTED = "PIPEINFER_WORLD"
"""Set in processes that `start_world` started."""

SRUN_MPI = {"MPICH": "pmi2", "Open MPI": "pmix"}
"""What `srun --mpi=` has to be for a library. Those that are not named here differ from build to build."""

OVERSUBSCRIBE = {
    "OMPI_MCA_rmaps_base_oversubscribe": "true",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
"""Open MPI 4 and 5 refuse more processes than cores unless asked."""

HERE = {"HYDRA_LAUNCHER": "fork"}
"""In a Slurm job MPICH's mpiexec would start its processes by srun, and wait forever where a step has none left."""


def place() -> tuple[int, int]:
    """This process's number among those that one launcher started, and how many they are; (0, 1) without a launcher."""
    for rank, size in LAUNCHERS:
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def settle(launcher: str | None, transport: str | None, nodes: int | None) -> tuple[str, int]:
    """The transport and the number of ranks, by the user's word or else by how this process was started.

    May not return: to start a world this process becomes its launcher, and in a world all but the head stay here.
    """
    if launcher not in (None, "mpi"):
        raise ValueError(f'no launcher "{launcher}"; there is: mpi')
    if launcher == "mpi" and not in_mpi_world():
        start_world(nodes or NODES)
    if _is_world(transport):
        there = join_world()
        return transport or "mpi", nodes or there
    return transport or "tls", nodes or NODES


def _is_world(transport: str | None) -> bool:
    """Whether ranks over it are the other processes of this one's world; None: whatever this process was started as."""
    try:
        return in_mpi_world() if transport is None else hosting_of(transport).start == "world"
    except BrokenPlugin:
        _let_the_first_say()
        raise


def _let_the_first_say() -> None:
    """One line is enough: process 0's."""
    if place()[0] > 0:
        time.sleep(FIRST_SAYS_S)
        sys.exit(2)


def in_mpi_world() -> bool:
    """Whether a launcher started this process as one of several."""
    return STARTED in os.environ or place()[1] > 1


def start_world(nodes: int) -> NoReturn:
    """Become `mpiexec` with this command line once more for the head and for each of `nodes` ranks on this machine."""
    load(TRANSPORTS, "mpi")
    mpiexec = find_mpiexec()
    command = [mpiexec, "-n", str(nodes - HEAD), *python_command("pipeinfer", *sys.argv[1:])]
    os.execve(mpiexec, command, world_environment(nodes))


def world_environment(ranks: int = 0) -> dict[str, str]:
    """For an `mpiexec` of so many ranks on this machine. A Slurm step's PMIx is not handed on: MPICH refuses to see
    two."""
    inherited = {name: value for name, value in python_environment(ranks).items() if not name.startswith("PMIX_")}
    return {**OVERSUBSCRIBE, **HERE, **inherited, STARTED: "1"}


def join_world() -> int:
    """How many ranks the head has. Any other process is a rank until the head leaves, and ends here (SystemExit).

    Raises BrokenPlugin, TransportError or LaunchError, in process 0 only: one line is enough.
    """
    number, _ = place()
    if number > 0:
        with watched_rank(f"process {number} of the MPI world") as rank:
            _serve(_joined(), rank.is_to_be)
        sys.exit(0)
    world = _joined()
    if world.rank > 0:  # Its launcher has told it nothing.
        _serve(world, lambda _: None)
        sys.exit(0)
    if world.size == 1:
        raise LaunchError("an MPI world of one process has no ranks: start it by `mpirun -n 5`, or give --launcher mpi")
    return world.size + HEAD


def _joined() -> "MpiProcess":
    try:
        return _world()
    except (BrokenPlugin, TransportError, LaunchError):
        _let_the_first_say()
        raise


def find_mpiexec() -> str:
    """The one beside this Python is of the library beside it (wheels of MPICH and Open MPI); else the system's.

    Raises LaunchError.
    """
    found = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
    if found is None:
        raise LaunchError("no mpiexec found: load your cluster's MPI module, or run `pip install mpich`")
    return found


class MpiProcesses(UnmonitoredRanks):
    """The first `count` ranks of the MPI world. They stay in it after a session, for the next.

    The launcher sees when one dies, and ends the head too.
    """

    def __init__(self, count: int) -> None:
        there = _world().size + HEAD
        if there < count:
            raise LaunchError(
                f"the plan has {count} ranks, the MPI world {there} beside the head: start {count - HEAD} processes"
            )
        self.transport: Transport = open_transport("mpi://", HEAD)
        self.addresses = [f"mpi://{rank - HEAD}" for rank in range(count)]


def _serve(world: "MpiProcess", told: Callable[[Setup], None]) -> None:
    """One session after another, each told by the head who this rank is; the head also reports what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    gc.disable()  # It is run between trials, where it is not measured.
    while 0 not in world.left:
        transport = open_transport("mpi://", world.rank + HEAD)
        try:
            run_rank(transport, told=told, loaded=look_at_trials_alone)
        except (PeerLost, LaunchError):
            continue  # The head has ended the session, or knows why it cannot begin, or leaves.
        finally:
            transport.close()
            gc.unfreeze()


def _world() -> "MpiProcess":
    load(TRANSPORTS, "mpi")  # says what to install where it does not load
    from pipeinfer.runtime.transports.mpi import library, open_world

    mpi, started = library(), place()[1]
    if started > 1 and _is_foreign(mpi.Get_library_version()):
        raise LaunchError(_foreign(mpi.get_vendor()[0]))
    world = open_world()
    if world.size < started:
        raise LaunchError(_foreign(mpi.get_vendor()[0]))
    return world


def _is_foreign(version: str) -> bool:
    """Whether this MPICH would abort with an error stack from each process: it was built without the PMIx by which
    Open MPI's launchers and `srun --mpi=pmix` start processes."""
    by_pmix = "PMIX_NAMESPACE" in os.environ and "PMI_RANK" not in os.environ
    return by_pmix and version.startswith("MPICH Version") and "pmix" not in version


def _foreign(library: str) -> str:
    """What to do when the launcher and the MPI library do not know each other."""
    srun = f"`srun --mpi={SRUN_MPI[library]}`" if library in SRUN_MPI else "another `srun --mpi=` (`srun --mpi=list`)"
    cure = f"{srun} or " if "SLURM_PROCID" in os.environ else ""
    return (
        f"{place()[1]} processes were started, but not in a way that puts them in one world of {library}, the MPI "
        f"library that mpi4py loads: use {cure}{library}'s own mpirun"
    )
