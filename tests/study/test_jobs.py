"""A sweep as jobs gives the records of a sweep that is run."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_reproduce import comparable

from pipeinfer.results.records import FILE, Store
from pipeinfer.study import jobs
from pipeinfer.study.jobs import BATCH, FOLDER, collect, emit, run_cells
from pipeinfer.study.points import cells
from pipeinfer.study.run import run
from pipeinfer.study.selection import Wish, select
from pipeinfer.workload import WorkloadError

(TIMELINE,) = select(["timeline"], Wish("sim")).recipes
COUNT = len(cells(TIMELINE))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same sweep, run."""
    folder = tmp_path_factory.mktemp("whole")
    run(TIMELINE, Store(folder), 1, lambda *_: None)
    return folder


def run_script(script: Path, **environment: str) -> None:
    """With a `pipeinfer` on the path, as where it is installed."""
    folder = script.parent / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "pipeinfer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeinfer "$@"\n')
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", str(script)], env=os.environ | {"PATH": path} | environment, check=True, timeout=240)


def commands(folder: Path) -> list[str]:
    """What the jobs are told of which cells to run."""
    words = map(shlex.split, (folder / "cells.txt").read_text().splitlines())
    return [" ".join(line[line.index("--index") : line.index("--out")]) for line in words]


def test_a_script_run_and_collected_is_the_sweep(whole: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert run_cells(TIMELINE, 2, 1, tmp_path) == 1
    assert run_cells(TIMELINE, 1, 2, tmp_path) == 1, "one's record lies there"
    script, count = emit("shell", [TIMELINE], store, tmp_path, ["--fidelity", "sim"])
    assert count == COUNT - 2
    assert commands(tmp_path) == ["--index 0", f"--index 3 --count {COUNT - 3}"], "around those that lie there"
    run_script(script)
    assert emit("shell", [TIMELINE], store, tmp_path, [])[1] == 0
    assert collect([TIMELINE], store, tmp_path) == COUNT
    assert comparable(tmp_path) == comparable(whole)
    assert collect([TIMELINE], Store(tmp_path), tmp_path) == 0, "nothing is added twice"


def test_simulated_cells_are_run_in_batches_and_others_one_by_one(tmp_path: Path) -> None:
    (speed,) = select(["speed"], Wish("sim")).recipes
    many = len(cells(speed))
    emit("shell", [speed], Store(tmp_path), tmp_path, [])
    whole = [f"--index {at} --count {BATCH}" for at in range(0, many - BATCH, BATCH)]
    assert commands(tmp_path)[:-1] == whole
    assert len(whole) > 2
    (slow,) = select(["slow"], Wish("real")).recipes
    emit("shell", [slow], Store(tmp_path), tmp_path, [])
    assert commands(tmp_path) == [f"--index {at}" for at in range(len(cells(slow)))]


@pytest.mark.parametrize(("kind", "variable"), [("slurm", "SLURM_ARRAY_TASK_ID"), ("pbs", "PBS_ARRAY_INDEX")])
def test_an_array_s_job_runs_its_own_cells(kind: str, variable: str, tmp_path: Path) -> None:
    run_cells(TIMELINE, 2, 2, tmp_path)
    script, _ = emit(kind, [TIMELINE], Store(tmp_path), tmp_path, [])
    assert "1-2\n" in script.read_text()
    run_script(script, **{variable: "1"})
    assert {path.stem for path in (tmp_path / FOLDER).iterdir()} == {*map(hash_of, range(4))}


@pytest.mark.parametrize(("job", "indices"), [("1", [0, 3, 6]), ("2", [1, 4]), ("3", [2, 5])])
def test_of_a_list_longer_than_an_array_a_job_runs_several(
    job: str, indices: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LARGEST_ARRAY", 3)
    monkeypatch.setattr(jobs, "BATCH", 1)
    script, count = emit("slurm", [TIMELINE], Store(tmp_path), tmp_path, [])
    assert count == COUNT == 7
    assert "--array=1-3\n" in script.read_text()
    (tmp_path / "cells.txt").write_text("".join(f"cat; touch {tmp_path}/{index}; exit {index}\n" for index in range(7)))
    with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):  # of a cell that failed
        run_script(script, SLURM_ARRAY_TASK_ID=job)
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == [str(index) for index in indices]


@pytest.mark.parametrize(
    ("kind", "variable", "array"), [("slurm", "SLURM_ARRAY_TASK_ID", "=1-1"), ("pbs", "PBS_ARRAY_INDEX", " 1-2")]
)
def test_a_job_runs_where_its_command_was_written(
    kind: str, variable: str, array: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PBS starts it at home, and takes no array of one."""
    monkeypatch.chdir(tmp_path)
    script, _ = emit(kind, [TIMELINE], Store(tmp_path), tmp_path, [])
    assert f"{array}\n" in script.read_text()
    (tmp_path / "cells.txt").write_text("touch here\n")
    monkeypatch.chdir("/")
    if kind == "pbs":
        run_script(script, **{variable: "2"})
        assert not (tmp_path / "here").exists()
    run_script(script, **{variable: "1"})
    assert (tmp_path / "here").exists()


ODD = "50% of 'them' $(here)"
"""A folder's name that a shell, a format or `xargs` would take apart."""


def test_several_lines_at_a_time_run_as_the_script_says(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    script, _ = emit("shell", [TIMELINE], Store(folder), folder, [])
    (line,) = (folder / "cells.txt").read_text().splitlines()
    assert shlex.split(line)[-1] == str(folder)
    (folder / "cells.txt").write_text("".join(f"touch {shlex.quote(str(folder / name))}\n" for name in ("a b", "c'd")))
    (_, told) = script.read_text().splitlines()[1].split(": ", 1)
    subprocess.run(["sh", "-c", told], check=True, timeout=60)
    assert {"a b", "c'd"} <= {path.name for path in folder.iterdir()}


def test_a_line_break_in_a_folder_s_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    with pytest.raises(WorkloadError, match=r"--out '.*two.nlines': expected folders and files without line breaks"):
        emit("slurm", [TIMELINE], Store(folder), folder, [])


def hash_of(index: int) -> str:
    from pipeinfer.study.identity import config_hash

    return config_hash(cells(TIMELINE)[index])


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=f"--index 99: timeline has {COUNT} cells"):
        run_cells(TIMELINE, 99, 1, tmp_path)
    with pytest.raises(WorkloadError, match=f"--index 1 --count {COUNT}: timeline has {COUNT} cells"):
        run_cells(TIMELINE, 1, COUNT, tmp_path)
    with pytest.raises(WorkloadError, match='--emit "lsf": expected one of shell, slurm, pbs'):
        emit("lsf", [TIMELINE], Store(tmp_path), tmp_path, [])
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / f"{hash_of(0)}.json").write_text('{"half')
    with pytest.raises(WorkloadError, match=r"is not a record .*: remove it"):
        collect([TIMELINE], Store(tmp_path), tmp_path)
    assert (tmp_path / FILE).read_bytes() == b""
