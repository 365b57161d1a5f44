"""A sweep as jobs: every cell a command of its own, whose record is a file of its own; scripts of these commands; and
the records collected.

A cell whose record lies there is skipped, and a record appears whole or not at all: any job may be killed and started
again.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeinfer.results.records import Record, Store, decode, encode
from pipeinfer.study.identity import config_hash
from pipeinfer.study.recipes import Cell, Recipe, cells
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

LARGEST_ARRAY = 1000
"""Slurm takes no more unless it is told to (MaxArraySize): of a longer list, each job runs several cells."""

OF_ARRAY = """awk -v job="$%s" 'NR %% %d == job %% %d' %s | {
  failed=0
  while IFS= read -r command; do sh -c "$command" < /dev/null || failed=1; done
  exit $failed
}
"""
"""Every so many commands of the list, one after another."""


def run_cell(recipe: Recipe, index: int, out: Path) -> bool:
    """Run one cell, counted from 0 in the order of `cells`, and write its record. False: it lay there already. Raises
    WorkloadError: there is no such cell, or it failed."""
    every = cells(recipe)
    if not 0 <= index < len(every):
        raise WorkloadError(f"--index {index}: {recipe.name} has {len(every)} cells, counted from 0")
    path = _path(out, every[index])
    if path.exists():
        return False
    (record,) = records_of([every[index]], 1, None)
    if record.error:
        raise WorkloadError(f"{recipe.name}, cell {index}: {record.error}")
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_suffix(f".{os.getpid()}")
    begun.write_bytes(encode(record))
    begun.replace(path)
    return True


def emit(kind: str, recipes: Sequence[Recipe], store: Store, out: Path, options: Sequence[str]) -> tuple[Path, int]:
    """Write a script with a command per cell that has no record yet; its path, and how many there are. `options` are
    those that chose the recipes. An array takes its commands from a list beside the script. Raises WorkloadError."""
    if kind not in HEADS:
        raise WorkloadError(f'--emit "{kind}": expected one of {", ".join(HEADS)}')
    ends = ["--out", str(out.resolve()), *options]
    lines = [
        shlex.join(["pipeinfer", "cell", recipe.file or recipe.name, "--index", str(index), *ends])
        for recipe in recipes
        for index, cell in enumerate(cells(recipe))
        if not store.records.done(config_hash(cell)) and not _path(out, cell).exists()
    ]
    if any("\n" in line for line in lines):
        raise WorkloadError(f"--out {str(out)!r}: expected folders and files without line breaks in their names, which"
                            " end a command in a script")  # fmt: skip
    script, commands = out / f"cells.{kind}", out / "cells.txt"
    commands.write_text("".join(f"{line}\n" for line in lines))
    if kind == "shell":
        script.write_text(HEADS[kind] % shlex.quote(str(commands.resolve())) + commands.read_text())
    else:
        size = max(1, min(len(lines), LARGEST_ARRAY))
        taken = OF_ARRAY % (TASKS[kind], size, size, shlex.quote(str(commands.resolve())))
        script.write_text(HEADS[kind] % size + taken)
    return script, len(lines)


def collect(recipes: Sequence[Recipe], store: Store, out: Path) -> int:
    """Add what jobs wrote to the records, in the order of the cells; how many there were. Raises WorkloadError."""
    count = 0
    for record in _collected(recipes, store, out):
        store.append(record)
        count += 1
    return count


def _collected(recipes: Sequence[Recipe], store: Store, out: Path) -> Iterator[Record]:
    seen = set(filter(store.records.done, store.records))
    for recipe in recipes:
        for cell in cells(recipe):
            path = _path(out, cell)
            if path.exists() and path.stem not in seen:
                seen.add(path.stem)
                try:
                    yield decode(path.read_bytes())
                except (ValueError, TypeError) as problem:
                    text = f"{path} is not a record ({problem}): remove it, and run its cell again"
                    raise WorkloadError(text) from None


def _path(out: Path, cell: Cell) -> Path:
    return out / FOLDER / f"{config_hash(cell)}.json"
