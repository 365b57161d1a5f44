"""Scripts of jobs: a command for each cell that takes real time, and for each batch of simulated ones; for a shell, or
as arrays for a cluster's scheduler, one for each number of nodes and time limit."""

import math
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from pipeinfer.results.records import Store
from pipeinfer.runtime.transports import HEAD, hosting_of
from pipeinfer.study.executors import BATCH
from pipeinfer.study.identity import config_hash, simulated_s
from pipeinfer.study.jobs import path_of
from pipeinfer.study.points import Cell, EmulatedCell, LiveCell, SimCell, cells
from pipeinfer.study.recipes import Recipe
from pipeinfer.workload import WorkloadError

MANIFEST = "cells.json"
"""In the results' folder: what each command runs, on how many nodes, and with which limit."""

COMMANDS = "cells.txt"
"""There: every command, a line each."""

SHELL = """#!/bin/sh
# Run it as it is, or several lines at a time: tr '\\n' '\\0' < %s | xargs -0 -P 8 -I {} sh -c {}
cd %s || exit 1
%s"""

HEADS = {
    "slurm": "#!/bin/sh\n#SBATCH --job-name=pipeinfer\n#SBATCH --nodes={nodes} --ntasks={processes} --exclusive\n"
             "#SBATCH --time={minutes}\n#SBATCH --array=1-{size}\n",
    "pbs": "#!/bin/sh\n#PBS -N pipeinfer\n#PBS -V\n#PBS -l select={select}\n#PBS -l place=scatter:excl\n"
           "#PBS -l walltime={seconds}\n#PBS -J 1-{size}\n",
}  # fmt: skip

TASKS = {"slurm": "SLURM_ARRAY_TASK_ID", "pbs": "PBS_ARRAY_INDEX"}
"""What holds a job's number in its array."""

SMALLEST_ARRAY = {"slurm": 1, "pbs": 2}
"""PBS has no array of one job: the second finds nothing to do."""

LARGEST_ARRAY = 1000
"""Slurm takes no more unless it is told to (MaxArraySize): of a longer list, each job runs several cells."""

OF_ARRAY = """cd %s || exit 1
awk -v job="$%s" 'NR %% %d == job %% %d' <<'END OF COMMANDS' | {
%sEND OF COMMANDS
  failed=0
  while IFS= read -r command; do sh -c "$command" < /dev/null || failed=1; done
  exit $failed
}
"""
"""Every so many commands of the list, one after another, where they were written: PBS starts jobs at home, and a
cluster's file may be named from there on. Schedulers keep a copy of the script, so the list is part of it."""

SPARE, LEAST_MINUTES = 8, 8
"""How many times as long as expected a job may take, and how long in any case: other nodes are slower."""


class Job(msgspec.Struct, frozen=True):
    """Cells that one command runs: `count` of a recipe's, from `index` on. `processes` are those of its MPI world, 1
    where it has none: the head of a pipeline shares a node with a rank."""

    recipe: str
    index: int
    count: int
    config_hashes: list[str]
    processes: int
    nodes: int
    limit_minutes: int
    command: str


def emit(
    kind: str, recipes: Sequence[Recipe], store: Store, out: Path, options: Sequence[str]
) -> tuple[list[Path], int]:
    """Write scripts of commands for the cells that have no record yet; their paths, and how many cells they run.
    `options` are those that chose the recipes. Raises WorkloadError."""
    if kind not in ("shell", *HEADS):
        raise WorkloadError(f'--emit "{kind}": expected one of shell, {", ".join(HEADS)}')
    jobs = [job for recipe in recipes for job in _jobs(recipe, store, out, options)]
    if any("\n" in job.command for job in jobs):
        raise WorkloadError("--emit: expected folders, files and models without line breaks in their names, which end a"
                            " command in a script")  # fmt: skip
    for earlier in out.glob("cells-*-minutes.*"):
        earlier.unlink()
    (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(jobs)))
    (out / COMMANDS).write_text(_lines(jobs))
    if kind == "shell":
        scripts = [out / "cells.shell"]
        scripts[0].write_text(SHELL % (_quoted(out / COMMANDS), _quoted(Path()), _lines(jobs)))
    else:
        alike = defaultdict(list)
        for job in jobs:
            alike[job.processes, job.limit_minutes].append(job)
        scripts = [_array(kind, some, out) for _, some in sorted(alike.items())]
    return scripts, sum(job.count for job in jobs)


def _jobs(recipe: Recipe, store: Store, out: Path, options: Sequence[str]) -> Iterator[Job]:
    """Batches of simulated cells that follow one another, and each of the others, which take real time, by itself."""
    every = cells(recipe)
    names, share_s = list(map(config_hash, every)), 60 * recipe.minutes / len(every)
    simulated = [isinstance(cell, SimCell) and not isinstance(cell, EmulatedCell) for cell in every]
    lacking = [
        index for index, name in enumerate(names) if not store.records.done(name) and not path_of(out, name).exists()
    ]
    for (batched, _), some in groupby(enumerate(lacking), lambda one: (simulated[one[1]], one[1] - one[0])):
        following, size = [index for _, index in some], BATCH if batched else 1
        for batch in (following[at : at + size] for at in range(0, len(following), size)):
            index, count, processes = batch[0], len(batch), _processes(every[batch[0]])
            command = [
                *["mpiexec", "-n", str(processes)] * (processes > 1),
                "pipeinfer", "cell", recipe.file or recipe.name, "--index", str(index),
                *["--count", str(count)] * (count > 1), "--out", str(out.resolve()), *options,
            ]  # fmt: skip
            # Where a cell is emulated and its simulation known, as long as that is; else its share of the recipe's.
            expected_s = sum(simulated_s(every[at], store.records) or share_s for at in batch)
            hashes, nodes = [names[at] for at in batch], max(1, processes + HEAD)
            yield Job(recipe.name, index, count, hashes, processes, nodes, _limit(expected_s), shlex.join(command))


def _processes(cell: Cell) -> int:
    """Of the MPI world that a cell is run in: the head and a rank each; 1 where it is run in none."""
    if isinstance(cell, EmulatedCell) and hosting_of(cell.emulation.transport).start == "world":
        setting = cell.setting
        return setting.nodes + (setting.accounting == "as-published") - HEAD
    if isinstance(cell, LiveCell) and hosting_of(cell.live.transport).start == "world":
        return cell.live.stages + 1 - HEAD
    return 1


def _limit(seconds: float) -> int:
    """Minutes: a power of two, so that there are few arrays."""
    return max(LEAST_MINUTES, 1 << max(0, math.ceil(math.log2(SPARE * seconds / 60 or 1))))


def _array(kind: str, jobs: Sequence[Job], out: Path) -> Path:
    """The script of jobs that are alike."""
    nodes, processes, limit = jobs[0].nodes, jobs[0].processes, jobs[0].limit_minutes
    size = max(SMALLEST_ARRAY[kind], min(len(jobs), LARGEST_ARRAY))
    minutes = limit * math.ceil(len(jobs) / size)
    script = out / f"cells-{nodes}-nodes-{limit}-minutes.{kind}"
    head = HEADS[kind].format(
        nodes=nodes, processes=processes, select=f"1:mpiprocs=2+{nodes - 1}:mpiprocs=1" if nodes > 1 else "1",
        minutes=minutes, seconds=60 * minutes, size=size,
    )  # fmt: skip
    script.write_text(head + OF_ARRAY % (_quoted(Path()), TASKS[kind], size, size, _lines(jobs)))
    return script


def _lines(jobs: Sequence[Job]) -> str:
    return "".join(f"{job.command}\n" for job in jobs)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path.resolve()))
