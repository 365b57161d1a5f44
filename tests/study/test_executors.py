"""Simulated sweeps over an MPI world and over Slurm's jobs give the records of local processes, also after a kill."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from test_reproduce import comparable

from pipeinfer.cli import run as command_line
from pipeinfer.cluster.mpi_world import find_mpiexec, world_environment
from pipeinfer.errors import LaunchError
from pipeinfer.results.records import Store
from pipeinfer.study.executors import executor
from pipeinfer.study.points import cells
from pipeinfer.study.run import run
from pipeinfer.study.selection import Wish, select

(ITL,) = select(["itl"], Wish("sim")).recipes
assert ITL.simulated is not None
RECIPE = msgspec.structs.replace(ITL, simulated=msgspec.structs.replace(ITL.simulated, tokens=24, prompt=8))
"""Dozens of cells, each of them short."""

SCRIPT = """
import os, signal, sys
from pathlib import Path
import msgspec
from pipeinfer.results.records import Store
from pipeinfer.study.executors import executor
from pipeinfer.study.recipes import Recipe
from pipeinfer.study.run import run

append = Store.append

def append_until_three(store, record):
    append(store, record)
    if len(store.records) == 3:
        os.kill(os.getpid(), signal.SIGSTOP)

if __name__ == "__main__":
    out = Path(sys.argv[1])
    recipe = msgspec.json.decode((out / "recipe.json").read_bytes(), type=Recipe)
    (out / "pid").write_text(str(os.getpid()))
    if "in-part" in sys.argv:
        Store.append = append_until_three
    with executor("mpi", 2, out) as pool:
        run(recipe, Store(out), pool, lambda *_: None)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(RECIPE, Store(folder), 1, lambda *_: None)
    return folder


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(word: str) -> list[str]:
    """Processes with this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [str(path)] * (word.encode() in path.read_bytes().split(b"\0"))
    return found


def command(folder: Path, *words: str, world: bool) -> list[str]:
    """The sweep into that folder; with the word `in-part` it stops itself once three records lie there."""
    script = folder / "sweep.py"
    script.write_text(SCRIPT)
    (folder / "recipe.json").write_bytes(msgspec.json.encode(RECIPE))
    module = [find_mpiexec(), "-n", "3", sys.executable, "-m", "mpi4py.futures"] if world else [sys.executable]
    return [*module, str(script), str(folder), *words]


def is_stopped(pid: Path) -> bool:
    """Whether the process whose number is in that file was stopped by SIGSTOP."""
    return pid.exists() and Path(f"/proc/{pid.read_text()}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("world", [True, False], ids=["mpiexec", "spawned"])
def test_a_sweep_over_mpi_has_the_records_of_one_process(world: bool, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    environment = world_environment() if world else None
    subprocess.run(command(tmp_path, world=world), env=environment, check=True, timeout=120)
    assert comparable(tmp_path) == comparable(whole)


def test_a_world_that_is_killed_leaves_nobody_and_is_resumed(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    with subprocess.Popen(
        command(tmp_path, "in-part", world=True),
        env=world_environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    ) as world:  # fmt: skip
        until(lambda: is_stopped(tmp_path / "pid"))
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        world.wait(60)
    until(lambda: not running(str(tmp_path / "sweep.py")))
    assert len(Store(tmp_path).records) == 3 < len(cells(RECIPE))
    run(RECIPE, Store(tmp_path), 1, lambda *_: None)
    assert comparable(tmp_path) == comparable(whole)


def test_jobs_have_the_records_of_one_process(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By submitit's executor that starts its jobs on this machine; test_slurm_jobs.py has Slurm's."""
    submitit = pytest.importorskip("submitit")
    slurm = importlib.import_module("pipeinfer.study.slurm")
    monkeypatch.setattr(slurm, "BATCH", 30)
    assert len(cells(RECIPE)) > 2 * 30
    with slurm.Jobs(submitit.LocalExecutor(tmp_path / "slurm")) as pool:
        run(RECIPE, Store(tmp_path), pool, lambda *_: None)
    assert comparable(tmp_path) == comparable(whole)


def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='--executor "dask": expected one of local, mpi, slurm'), \
            executor("dask", 1, tmp_path):  # fmt: skip
        pass
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="--executor slurm: "), executor("slurm", 1, tmp_path):
        pass


def test_an_executor_is_for_simulated_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["reproduce", "timeline", "--executor", "mpi", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: --executor mpi simulates: give --fidelity sim (--emit is for others)\n"
    assert not (tmp_path / "out").exists()
