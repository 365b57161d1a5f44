"""A sweep as jobs: commands that run a cell, or a batch of simulated ones, each of whose records is a file of its own;
scripts of these commands; and the records collected.

A cell whose record lies there is skipped, and a record appears whole or not at all: any job may be killed and started
again.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from pipeinfer.results.records import Store, decode, encode
from pipeinfer.study.executors import BATCH
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import EmulatedCell, SimCell, cells
from pipeinfer.study.recipes import Recipe
from pipeinfer.study.run import records_of
from pipeinfer.workload import WorkloadError

FOLDER = "cells"
"""In the results' folder: a file per record that was not collected yet."""

HEADS = {
    "shell": "#!/bin/sh\n# Run it as it is, or several lines at a time:"
             " tr '\\n' '\\0' < %s | xargs -0 -P 8 -I {} sh -c {}\n",
    "slurm": "#!/bin/sh\n#SBATCH --job-name=pipeinfer\n#SBATCH --nodes=1\n#SBATCH --exclusive\n#SBATCH --array=1-%d\n",
    "pbs": "#!/bin/sh\n#PBS -N pipeinfer\n#PBS -l nodes=1\n#PBS -J 1-%d\n",
}  # fmt: skip
TASKS = {"slurm": "SLURM_ARRAY_TASK_ID", "pbs": "PBS_ARRAY_INDEX"}
"""What holds a job's number in its array."""

SMALLEST_ARRAY = {"slurm": 1, "pbs": 2}
"""PBS has no array of one job: the second finds nothing to do."""

LARGEST_ARRAY = 1000
"""Slurm takes no more unless it is told to (MaxArraySize): of a longer list, each job runs several cells."""

OF_ARRAY = """cd %s || exit 1
awk -v job="$%s" 'NR %% %d == job %% %d' %s | {
  failed=0
  while IFS= read -r command; do sh -c "$command" < /dev/null || failed=1; done
  exit $failed
}
"""
"""Every so many commands of the list, one after another, where they were written: PBS starts jobs at home, and a
cluster's file may be named from there on."""


def run_cells(recipe: Recipe, index: int, count: int, out: Path) -> int:
    """Run `count` cells from one on, counted from 0 in the order of `cells`, and write their records; how many had none
    yet. Raises WorkloadError: there are no such cells, or some failed."""
    every = cells(recipe)
    if not 0 <= index < index + count <= len(every):
        options = f"--index {index}" + f" --count {count}" * (count != 1)
        raise WorkloadError(f"{options}: {recipe.name} has {len(every)} cells, counted from 0")
    asked = {config_hash(cell): number for number, cell in enumerate(every) if index <= number < index + count}
    missing = [every[number] for name, number in asked.items() if not _path(out, name).exists()]
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    failed = []
    for record in records_of(missing, 1, None):
        path = _path(out, record.config_hash)
        if record.error:
            failed.append(f"{recipe.name}, cell {asked[record.config_hash]}: {record.error}")
            continue
        begun = path.with_suffix(f".{os.getpid()}")
        begun.write_bytes(encode(record))
        begun.replace(path)
    if failed:
        raise WorkloadError(failed[0] + f"; and {len(failed) - 1} more" * (len(failed) > 1))
    return len(missing)


def emit(kind: str, recipes: Sequence[Recipe], store: Store, out: Path, options: Sequence[str]) -> tuple[Path, int]:
    """Write a script of commands for the cells that have no record yet; its path, and how many they are. `options` are
    those that chose the recipes. An array takes its commands from a list beside the script. Raises WorkloadError."""
    if kind not in HEADS:
        raise WorkloadError(f'--emit "{kind}": expected one of {", ".join(HEADS)}')
    jobs = [(recipe, *job) for recipe in recipes for job in _jobs(recipe, store, out)]
    lines = [
        shlex.join(["pipeinfer", "cell", recipe.file or recipe.name, "--index", str(index),
                    *["--count", str(count)] * (count > 1), "--out", str(out.resolve()), *options])
        for recipe, index, count in jobs
    ]  # fmt: skip
    if any("\n" in line for line in lines):
        raise WorkloadError(f"--out {str(out)!r}: expected folders and files without line breaks in their names, which"
                            " end a command in a script")  # fmt: skip
    script, commands = out / f"cells.{kind}", out / "cells.txt"
    commands.write_text("".join(f"{line}\n" for line in lines))
    if kind == "shell":
        script.write_text(HEADS[kind] % shlex.quote(str(commands.resolve())) + commands.read_text())
    else:
        size = max(SMALLEST_ARRAY[kind], min(len(lines), LARGEST_ARRAY))
        here, there = (shlex.quote(str(path.resolve())) for path in (Path(), commands))
        taken = OF_ARRAY % (here, TASKS[kind], size, size, there)
        script.write_text(HEADS[kind] % size + taken)
    return script, sum(count for _, _, count in jobs)


def _jobs(recipe: Recipe, store: Store, out: Path) -> Iterator[tuple[int, int]]:
    """First cell and number of cells of each job: batches of simulated ones that follow one another, and each of the
    others, which take real time, by itself."""
    every = cells(recipe)
    simulated = [isinstance(cell, SimCell) and not isinstance(cell, EmulatedCell) for cell in every]
    lacking = [
        index for index, cell in enumerate(every)
        if not store.records.done(config_hash(cell)) and not _path(out, config_hash(cell)).exists()
    ]  # fmt: skip
    for (batched, _), some in groupby(enumerate(lacking), lambda one: (simulated[one[1]], one[1] - one[0])):
        following, size = [index for _, index in some], BATCH if batched else 1
        yield from ((following[at], len(following[at : at + size])) for at in range(0, len(following), size))


def collect(recipes: Sequence[Recipe], store: Store, out: Path) -> int:
    """Add what jobs wrote to the records, in the order of the cells; how many there were. Raises WorkloadError."""
    names = dict.fromkeys(config_hash(cell) for recipe in recipes for cell in cells(recipe))
    paths = [path for name in names if not store.records.done(name) and (path := _path(out, name)).exists()]
    for path in paths:
        try:
            record = decode(path.read_bytes())
        except (ValueError, TypeError) as problem:
            raise WorkloadError(f"{path} is not a record ({problem}): remove it, and run its cell again") from None
        store.append(record)
    return len(paths)


def _path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.json"
