"""A sweep as jobs: cells that a command runs, each of whose records is a file of its own, and the records collected.

A cell whose record lies there is skipped, and a record appears whole or not at all: any job may be killed and started
again.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeinfer.results.records import Store, decode, encode
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import cells
from pipeinfer.study.recipes import Recipe
from pipeinfer.study.run import records_of
from pipeinfer.workload import WorkloadError

FOLDER = "cells"
"""In the results' folder: a file per record that was not collected yet."""


def run_cells(recipe: Recipe, index: int, count: int, out: Path) -> int:
    """Run `count` cells from one on, counted from 0 in the order of `cells`, and write their records; how many had none
    yet. Raises WorkloadError: there are no such cells, or some failed."""
    every = cells(recipe)
    if not 0 <= index < index + count <= len(every):
        options = f"--index {index}" + f" --count {count}" * (count != 1)
        raise WorkloadError(f"{options}: {recipe.name} has {len(every)} cells, counted from 0")
    asked = {config_hash(cell): number for number, cell in enumerate(every) if index <= number < index + count}
    missing = [every[number] for name, number in asked.items() if not path_of(out, name).exists()]
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    failed = []
    for record in records_of(missing, 1, None):
        path = path_of(out, record.config_hash)
        if record.error:
            failed.append(f"{recipe.name}, cell {asked[record.config_hash]}: {record.error}")
            continue
        begun = path.with_suffix(f".{os.getpid()}")
        begun.write_bytes(encode(record))
        begun.replace(path)
    if failed:
        raise WorkloadError(failed[0] + f"; and {len(failed) - 1} more" * (len(failed) > 1))
    return len(missing)


def collect(recipes: Sequence[Recipe], store: Store, out: Path) -> int:
    """Add what jobs wrote to the records, in the order of the cells; how many there were. Raises WorkloadError."""
    names = dict.fromkeys(config_hash(cell) for recipe in recipes for cell in cells(recipe))
    paths = [path for name in names if not store.records.done(name) and (path := path_of(out, name)).exists()]
    for path in paths:
        try:
            record = decode(path.read_bytes())
        except (ValueError, TypeError) as problem:
            raise WorkloadError(f"{path} is not a record ({problem}): remove it, and run its cell again") from None
        store.append(record)
    return len(paths)


def path_of(out: Path, name: str) -> Path:
    """Where the record of a cell of this hash is written, or lies."""
    return out / FOLDER / f"{name}.json"
