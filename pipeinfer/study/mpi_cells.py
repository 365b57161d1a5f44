"""Live cells over MPI. This module is also what `mpiexec` starts: process 0 is the head, which runs the cells it reads
from a file and writes a line per record; the others are the ranks."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from pipeinfer.cluster.mpi_world import find_mpiexec, in_mpi_world, join_world, world_environment
from pipeinfer.cluster.python_process import python_command
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import BrokenPlugin
from pipeinfer.results.records import Record, decode, encode
from pipeinfer.runtime.transports import TransportError, hosting_of
from pipeinfer.study.cells import run_live
from pipeinfer.study.identity import record_of
from pipeinfer.study.points import LiveCell

MODULE = "pipeinfer.study.mpi_cells"


def needs_world(cells: Iterable[LiveCell]) -> bool:
    """Whether they run over MPI, and this process is not in a world yet."""
    transports = {cell.live.transport for cell in cells}
    return any(hosting_of(transport).start == "world" for transport in transports) and not in_mpi_world()


def check_world(cells: Iterable[LiveCell]) -> None:
    """Raise LaunchError or BrokenPlugin where the MPI world that cells need cannot be started."""
    if needs_world(cells):
        find_mpiexec()


def run_in_world(cells: list[LiveCell]) -> Iterator[Record]:
    """Their records, in order, from a world of a head, the stages and the draft's rank on this machine."""
    processes = cells[0].live.stages + 2
    with tempfile.TemporaryDirectory(prefix="pipeinfer-world-") as folder:
        path, errors = Path(folder) / "cells.json", Path(folder) / "errors.txt"
        path.write_bytes(msgspec.json.encode(cells))
        command = [find_mpiexec(), "-n", str(processes), *python_command(MODULE, str(path))]
        count = 0
        with errors.open("wb") as log, subprocess.Popen(
            command, env=world_environment(processes - 1), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        ) as world:  # fmt: skip
            try:
                assert world.stdout is not None
                for line in world.stdout:
                    yield decode(line)
                    count += 1
            finally:
                world.terminate()  # which ends its ranks; it has left already when all went well
        said = errors.read_text(errors="replace").strip().splitlines()
        problem = f"the MPI world ended early: {said[-1] if said else f'exit code {world.returncode}'}"
        yield from (record_of(cell, None, 0.0, error=problem) for cell in cells[count:])


def main() -> None:
    """In every process of the world; returns in process 0 only."""
    try:
        join_world()
    except (BrokenPlugin, LaunchError, TransportError) as problem:
        sys.exit(str(problem))
    cells = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[LiveCell])
    for record in run_live(cells):
        sys.stdout.buffer.write(encode(record))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
