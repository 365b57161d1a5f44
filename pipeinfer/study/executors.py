"""On what simulated cells are run: processes of this machine, an MPI world, or jobs of Slurm. Each is an executor as
`concurrent.futures` has them, of which `map` is used: the same function, the same cells, the same records.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pipeinfer.cluster.mpi_world import find_mpiexec, in_mpi_world
from pipeinfer.errors import LaunchError

KINDS = ("local", "mpi", "slurm")

BACKOFF_S = 0.005
"""How long processes of an MPI world sleep between two looks: a cell takes some ten times as long."""

BATCH = 64
"""Cells of a job of Slurm: what starts a job costs as much as dozens of cells."""


@contextmanager
def executor(kind: str, jobs: int, folder: Path) -> Iterator[int | Executor]:
    """An executor of `jobs` workers, or their number for this machine's own; what Slurm's jobs say lies in `folder`.
    Raises LaunchError where there is none of that kind, ValueError where there is no such kind."""
    if kind not in KINDS:
        raise ValueError(f'--executor "{kind}": expected one of {", ".join(KINDS)}')
    if kind == "local":
        yield jobs
        return
    with _mpi(jobs) if kind == "mpi" else _slurm(jobs, folder, "slurm") as found:
        yield found


@cache
def local(jobs: int) -> ProcessPoolExecutor:
    """One for all recipes of a command: starting processes takes longer than many a sweep. It ends with this process.

    Not forked: the parent has threads (the progress display), and a fork copies their locks. The processes start with
    an import, and files in the working directory must not be taken for what is imported.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _leave_with_parent)


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
        "python_exe": sys.executable, "env": {"PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}, "main": False,
        "backoff": BACKOFF_S,
    }  # fmt: skip
    return MPIPoolExecutor(max_workers=jobs or None, **settings)


# Slurm


class _Jobs(Executor):
    """submitit's executor, which is none of `concurrent.futures`: a job array of batches of cells."""

    def __init__(self, submitting: Any) -> None:
        self._submitting = submitting

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **_: Any) -> Iterator[Any]:
        """In order. Closing the generator cancels what is not over."""
        cells = list(zip(*iterables, strict=True))
        batches = [cells[at : at + BATCH] for at in range(0, len(cells), BATCH)]
        under_way = self._submitting.map_array(_batch, [fn] * len(batches), batches) if batches else []
        try:
            for job in under_way:
                yield from job.result()
        finally:
            for job in under_way:
                if not job.done():
                    job.cancel()


def _batch(fn: Callable[..., Any], cells: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*cell) for cell in cells]


@contextmanager
def _slurm(jobs: int, folder: Path, cluster: str) -> Iterator[Executor]:
    """Partition, account and time are what sbatch's own SBATCH_... variables say; `jobs` arrays' tasks run at once."""
    try:
        import submitit
    except ImportError:
        raise LaunchError("--executor slurm needs submitit: pip install 'pipeinfer[slurm]'") from None
    try:
        found = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
    except RuntimeError as problem:
        raise LaunchError(f"--executor slurm: {problem}") from None
    found.update_parameters(name="pipeinfer", **({"slurm_array_parallelism": jobs} if jobs else {}))
    yield _Jobs(found)
