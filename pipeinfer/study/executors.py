"""On what simulated cells are run: processes of this machine, an MPI world, or jobs of Slurm. Each is an executor as
`concurrent.futures` has them, of which `map` is used: the same function, the same cells, the same records.
"""

import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pipeinfer.cluster.mpi_world import find_mpiexec, in_mpi_world
from pipeinfer.errors import LaunchError

KINDS = ("local", "mpi", "slurm")

BATCH = 64
"""Simulated cells of a job: starting one takes as long as dozens of them."""

BACKOFF_S = 0.001
"""How long processes of an MPI world sleep between two looks. Both ends of a large message look several times until it
is there, while one of them spins: with 5 ms a sweep of cells of some milliseconds took half as long again."""

COLLECTIONS = (20000, 10, 10)
"""When a process looks for garbage (`gc.set_threshold`): hardly anything of a simulated cell is, before its end."""

ENVIRONMENT = {"PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Of processes elsewhere: files in the working directory are not taken for what is imported; a thread for each."""


@contextmanager
def executor(kind: str, jobs: int, folder: Path) -> Iterator[int | Executor]:
    """An executor of `jobs` workers, or their number for this machine's own; 0: of as many as Slurm runs at once. What
    Slurm's jobs say lies in `folder`. Raises LaunchError where there is none of that kind, ValueError where there is no
    such kind."""
    if kind not in KINDS:
        raise ValueError(f'--executor "{kind}": expected one of {", ".join(KINDS)}')
    if kind == "local":
        yield jobs
        return
    with _mpi(jobs) if kind == "mpi" else _slurm(jobs, folder / "slurm") as found:
        yield found


@cache
def local(jobs: int) -> ProcessPoolExecutor:
    """One for all recipes of a command: starting processes takes longer than many a sweep. It ends with this process.

    Not forked: the parent has threads (the progress display), and a fork copies their locks. The processes start with
    an import, and files in the working directory must not be taken for what is imported.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin)


def started() -> bool:
    """Whether this process has one."""
    return local.cache_info().currsize > 0


def _begin() -> None:
    collect_seldom()
    _leave_with_parent()


def collect_seldom() -> None:
    """Nearly all that a simulation makes ends by itself."""
    gc.set_threshold(*COLLECTIONS)


def _leave_with_parent() -> None:
    """A pool's processes wait for work for ever when their parent is killed; these notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _mpi(jobs: int) -> AbstractContextManager[Executor]:
    """The other processes of `mpiexec -n N python -m mpi4py.futures -m pipeinfer`, or `jobs` that are spawned. While
    they wait they look now and then and do not spin."""
    try:
        from mpi4py.futures import MPIPoolExecutor
    except (ImportError, RuntimeError) as problem:
        raise LaunchError(f"--executor mpi needs mpi4py and an MPI library ({problem}); pipeinfer[mpi]") from None
    if not in_mpi_world():  # MPICH spawns by the mpiexec that it finds, and hangs where there is none.
        os.environ["PATH"] = os.pathsep.join([str(Path(find_mpiexec()).parent), os.environ.get("PATH", "")])
    settings: dict[str, Any] = {
        "python_exe": sys.executable, "env": ENVIRONMENT, "main": False, "backoff": BACKOFF_S,
        "initializer": collect_seldom,
    }  # fmt: skip
    return MPIPoolExecutor(max_workers=jobs or None, **settings)


def _slurm(jobs: int, folder: Path) -> AbstractContextManager[Executor]:
    try:
        from pipeinfer.study.slurm import jobs_of_slurm
    except ImportError:
        raise LaunchError("--executor slurm needs submitit: pip install 'pipeinfer[slurm]'") from None
    return jobs_of_slurm(jobs, folder, ENVIRONMENT)
