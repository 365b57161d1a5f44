"""Slurm's jobs as an executor, by submitit: job arrays of batches of cells."""

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.slurm.slurm import SlurmInfoWatcher

from pipeinfer.errors import LaunchError, one_line
from pipeinfer.study.executors import BATCH

LOOK_S = 30
"""The longest time between two looks at the queue."""

ENDS = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""States of squeue(1) that a job does not leave. It is listed with them for some minutes."""


class Queue(SlurmInfoWatcher):
    """What became of jobs, by squeue, which every cluster has. submitit asks sacct, which knows nothing where
    accounting is off: a job that was cancelled would be waited for without end."""

    def _make_command(self) -> list[str] | None:
        under_way = self._registered - self._finished
        return ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T"] if under_way else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """By job: RUNNING, an end, or GONE."""
        text = string if isinstance(string, str) else string.decode()
        listed = dict(line.split() for line in text.splitlines())
        states = {job: listed.get(job, "GONE") for job in self._registered - self._finished}
        return {job: {"State": state if state in {*ENDS, "GONE"} else "RUNNING"} for job, state in states.items()}


class Jobs(Executor):
    """One of submitit's executors, which are none of `concurrent.futures`."""

    def __init__(self, submitting: Any) -> None:
        self._submitting = submitting

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **_: Any) -> Iterator[Any]:
        """In order. Closing the generator cancels what is not over. Raises LaunchError: jobs are refused, or one ended
        without its results."""
        cells = list(zip(*iterables, strict=True))
        batches = [cells[at : at + BATCH] for at in range(0, len(cells), BATCH)]
        under_way = self._submitted(fn, batches) if batches else []
        try:
            for job in under_way:
                yield from _result(job)
        finally:
            for job in under_way:
                if not job.done():
                    job.cancel(check=False)

    def _submitted(self, fn: Callable[..., Any], batches: list[Any]) -> list[Any]:
        try:
            return list(self._submitting.map_array(_batch, [fn] * len(batches), batches))
        except FailedJobError as problem:  # What sbatch said; its last line is the reason.
            raise LaunchError(f"--executor slurm: {one_line(str(problem).strip().splitlines()[-1])}") from None


def jobs_of_slurm(at_once: int, folder: Path, environment: dict[str, str]) -> Jobs:
    """Partition, account and time are what sbatch's own SBATCH_... variables say, or the cluster's defaults; `at_once`
    tasks of an array run at the same time, 0: as many as can. What they say lies in `folder`. Raises LaunchError: there
    is no Slurm here."""
    submitit.SlurmJob.watcher = Queue(LOOK_S)
    logging.getLogger("submitit").setLevel(logging.ERROR)  # Its warnings of what it tries again spoil the progress.
    try:
        found = submitit.SlurmExecutor(folder)
    except RuntimeError as problem:
        raise LaunchError(f"--executor slurm: {problem}") from None
    setup = f"export {' '.join(f'{name}={value}' for name, value in environment.items())}"
    limit = {"array_parallelism": at_once} if at_once else {}
    found.update_parameters(job_name="pipeinfer", time=None, setup=[setup], **limit)
    return Jobs(found)


def _result(job: Any) -> list[Any]:
    try:
        return list(job.result())
    except UncompletedJobError:
        became = f"ended without results ({job.state})"
    except FailedJobError:
        became = "failed"
    raise LaunchError(f"--executor slurm: job {job.job_id} {became}: what it said is in {job.paths.stderr}; the same"
                      " command runs what is missing")  # fmt: skip


def _batch(fn: Callable[..., Any], cells: list[tuple[Any, ...]]) -> list[Any]:
    """In a job. submitit has taken the signals before its end, for functions that can be stopped and started again: it
    goes on after SIGTERM, and breaks off before the time limit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return [fn(*cell) for cell in cells]
