"""A sweep as jobs gives the records of a sweep that is run."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import msgspec
import pytest
from test_reproduce import comparable
from test_reproduce_emulated import CLUSTER

from pipeinfer.assets import asset
from pipeinfer.cli import run as run_command
from pipeinfer.cluster.mpi_world import find_mpiexec
from pipeinfer.errors import LaunchError
from pipeinfer.results.records import FILE, Store
from pipeinfer.study import job_scripts
from pipeinfer.study.executors import BATCH
from pipeinfer.study.identity import config_hash
from pipeinfer.study.job_scripts import COMMANDS, MANIFEST, Job, emit
from pipeinfer.study.jobs import FOLDER, collect, run_cells
from pipeinfer.study.points import EmulatedCell, cells
from pipeinfer.study.recipes import Recipe
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
    """With `pipeinfer` and `mpiexec` on the path, as where they are installed."""
    folder = script.parent / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "pipeinfer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeinfer "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(folder), sysconfig.get_path("scripts"), os.environ["PATH"]])
    subprocess.run(["sh", str(script)], env=os.environ | {"PATH": path} | environment, check=True, timeout=240)


def put(commands: list[str], script: Path) -> None:
    """In the place of those that an array has."""
    head, _, rest = script.read_text().partition("<<'END OF COMMANDS' | {\n")
    rest = rest.partition("END OF COMMANDS\n")[2]
    lines = "".join(f"{command}\n" for command in commands)
    script.write_text(f"{head}<<'END OF COMMANDS' | {{\n{lines}END OF COMMANDS\n{rest}")


def commands(folder: Path) -> list[str]:
    """What the jobs are told of which cells to run."""
    words = map(shlex.split, (folder / COMMANDS).read_text().splitlines())
    return [" ".join(line[line.index("--index") : line.index("--out")]) for line in words]


def test_a_script_run_and_collected_is_the_sweep(whole: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert run_cells(TIMELINE, 2, 1, tmp_path) == 1
    assert run_cells(TIMELINE, 1, 2, tmp_path) == 1, "one's record lies there"
    (script,), count = emit("shell", [TIMELINE], store, tmp_path, ["--fidelity", "sim"])
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
    (script,), _ = emit(kind, [TIMELINE], Store(tmp_path), tmp_path, [])
    assert "1-2\n" in script.read_text()
    run_script(script, **{variable: "1"})
    assert {path.stem for path in (tmp_path / FOLDER).iterdir()} == {*map(hash_of, range(4))}


@pytest.mark.parametrize(("job", "indices"), [("1", [0, 3, 6]), ("2", [1, 4]), ("3", [2, 5])])
def test_of_a_list_longer_than_an_array_a_job_runs_several(
    job: str, indices: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_scripts, "LARGEST_ARRAY", 3)
    monkeypatch.setattr(job_scripts, "BATCH", 1)
    (script,), count = emit("slurm", [TIMELINE], Store(tmp_path), tmp_path, [])
    assert count == COUNT == 7
    assert f"--time={3 * job_scripts.LEAST_MINUTES}\n" in script.read_text(), "up to three, one after another"
    assert "--array=1-3\n" in script.read_text()
    put([f"cat; touch {tmp_path}/{index}; exit {index}" for index in range(7)], script)
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
    (script,), _ = emit(kind, [TIMELINE], Store(tmp_path), tmp_path, [])
    assert f"{array}\n" in script.read_text()
    put(["touch here"], script)
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
    (script,), _ = emit("shell", [TIMELINE], Store(folder), folder, [])
    (line,) = (folder / COMMANDS).read_text().splitlines()
    assert shlex.split(line)[-1] == str(folder)
    (folder / COMMANDS).write_text("".join(f"touch {shlex.quote(str(folder / name))}\n" for name in ("a b", "c'd")))
    (_, told) = script.read_text().splitlines()[1].split(": ", 1)
    assert script.read_text().splitlines()[2] == f"cd {shlex.quote(str(Path.cwd()))} || exit 1"
    subprocess.run(["sh", "-c", told], check=True, timeout=60)
    assert {"a b", "c'd"} <= {path.name for path in folder.iterdir()}


def test_a_line_break_in_a_folder_s_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    with pytest.raises(WorkloadError, match="--emit: expected folders, files and models without line breaks"):
        emit("slurm", [TIMELINE], Store(folder), folder, [])


@pytest.mark.parametrize(("kind", "head"), [
    ("slurm", "#SBATCH --nodes={nodes} --ntasks={processes} --exclusive\n#SBATCH --time="),
    ("pbs", "#PBS -l select={select}\n"),
])  # fmt: skip
def test_there_is_an_array_for_each_number_of_nodes_and_time(kind: str, head: str, tmp_path: Path) -> None:
    (speed,) = select(["speed"], Wish("emulated", live={"transport": "mpi"})).recipes
    earlier = tmp_path / f"cells-3-nodes-8-minutes.{kind}"
    earlier.write_text("")
    scripts, count = emit(kind, [speed], Store(tmp_path), tmp_path, ["--fidelity", "emulated", "--mpi"])
    every = cells(speed)
    manifest = msgspec.json.decode((tmp_path / MANIFEST).read_bytes(), type=list[Job])
    assert [name for job in manifest for name in job.config_hashes] == list(map(config_hash, every))
    assert count == sum(job.count for job in manifest) == len(every)
    listed = [line for script in scripts for line in script.read_text().splitlines() if " cell " in line]
    assert sorted(listed) == sorted(job.command for job in manifest)
    assert sorted(listed) == sorted((tmp_path / COMMANDS).read_text().splitlines())
    for job in manifest:
        first = every[job.index]
        if isinstance(first, EmulatedCell):
            assert job.nodes == first.setting.nodes + (first.setting.accounting == "as-published")
            assert job.command.startswith(f"mpiexec -n {job.nodes + 1} pipeinfer cell speed --index {job.index} --out ")
        else:
            assert (job.nodes, job.processes) == (1, 1)
        (script,) = tmp_path.glob(f"cells-{job.nodes}-nodes-{job.limit_minutes}-minutes.{kind}")
        chunks = f"1:mpiprocs=2+{job.nodes - 1}:mpiprocs=1" if job.nodes > 1 else "1"  # the head beside a rank
        assert head.format(nodes=job.nodes, processes=job.processes, select=chunks) in script.read_text()
    assert len({job.nodes for job in manifest}) == len(scripts) > 2
    assert not earlier.exists()


def test_a_longer_cell_gets_more_time(tmp_path: Path) -> None:
    (live,) = select(["live"], Wish("real")).recipes
    long = msgspec.structs.replace(live, minutes=0.9 * 64 / job_scripts.SPARE * len(cells(live)))
    emit("slurm", [live, long], Store(tmp_path), tmp_path, [])
    manifest = msgspec.json.decode((tmp_path / MANIFEST).read_bytes(), type=list[Job])
    assert {job.limit_minutes for job in manifest} == {job_scripts.LEAST_MINUTES, 64}


@pytest.mark.parametrize("asked", [
    ["timeline", "live", "--cluster", "genoa-ndr"],
    ["live", "load-live", "calibration", "--mpi", "--backend", "emulated", "--backend-option", 'name="a b"'],
    ["timeline", "slow", "--prompts", "written:3"],
    ["timeline", "speed", "--fidelity", "emulated", "--mpi"],
])  # fmt: skip
def test_a_command_runs_the_cells_that_the_manifest_says(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command(["reproduce", *asked, "--emit", "slurm", "--out", str(tmp_path)]) == 0
    ran: list[list[str]] = []

    def run_cells(recipe: Recipe, index: int, count: int, out: Path) -> int:
        ran.append([config_hash(cell) for cell in cells(recipe)[index : index + count]])
        assert out == tmp_path
        return count

    monkeypatch.setattr("pipeinfer.study.jobs.run_cells", run_cells)
    manifest = msgspec.json.decode((tmp_path / MANIFEST).read_bytes(), type=list[Job])
    some = [job for job in manifest if job.index % 7 == 0 or job.count > 1]
    for job in some:
        words = shlex.split(job.command)
        assert run_command(words[words.index("pipeinfer") + 1 :]) == 0
    assert ran == [job.config_hashes for job in some]
    assert {job.recipe for job in some} >= {word for word in asked if word in {"timeline", "live", "slow", "speed"}}


def test_a_world_emits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "3")
    assert run_command(["reproduce", "timeline", "--emit", "shell", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_where_nothing_is_left_that_is_said(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["reproduce", "timeline", "--fidelity", "sim", "--out", str(whole)]
    assert run_command([*asked, "--emit", "pbs"]) == 0
    assert capsys.readouterr().out.startswith("every cell has its record already\n0 cells; ")
    assert not list(whole.glob("*.pbs"))
    assert run_command([*asked, "--emit", "pbs", "--mpi"]) == 2
    assert "--mpi: nothing of these recipes is emulated" in capsys.readouterr().err


def test_cells_of_jobs_run_over_mpi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a world of its own; and what is to be done then is told."""
    pytest.importorskip("mpi4py")
    try:
        find_mpiexec()
    except LaunchError as missing:
        pytest.skip(str(missing))
    (tmp_path / "quick.toml").write_text(CLUSTER)
    small = (asset("reproduce") / "timeline.toml").read_text()
    small = small.replace("k = [2]", "k = []").replace("nodes = [5]", "nodes = [3]").replace("iterative = {}\n", "", 1)
    (tmp_path / "small.toml").write_text(small)
    asked = [str(tmp_path / "small.toml"), "--cluster", str(tmp_path / "quick.toml"), "--fidelity", "emulated"]
    out = ["--out", str(tmp_path / "out"), "--mpi"]
    assert run_command(["reproduce", *asked, *out, "--emit", "shell"]) == 0
    (script, then) = capsys.readouterr().out.splitlines()
    run_script(Path(script))
    program, *told = shlex.split(then.partition("when they have run: ")[2])
    assert program == "pipeinfer"
    assert run_command(told) == 0
    found = list(Store(tmp_path / "out").records.values())
    assert [record.fidelity for record in found] == ["sim", "emulated"]
    assert found[0].trial is not None
    assert found[1].trial is not None
    assert found[0].trial.token_ids == found[1].trial.token_ids
    assert found[1].config["emulation"]["transport"] == "mpi"


def hash_of(index: int) -> str:
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
