"""`generate` in an MPI world: what it says, how it ends, and that nothing is left of it."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import msgspec
import pytest
from processes import parent_of, piped

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.mpi_world import (
    LAUNCHERS,
    OVERSUBSCRIBE,
    STARTED,
    find_mpiexec,
    in_mpi_world,
    join_world,
    place,
    world_environment,
)
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError
from pipeinfer.modelling.profile import read_profile

pytestmark = pytest.mark.timeout(120)

PROMPT = "def read_lines(path):\n"
TOKENS = 24
END_S = 60.0
PIPEINFER = [sys.executable, "-m", "pipeinfer"]


@pytest.fixture(scope="module")
def mpiexec() -> str:
    """The path of mpiexec."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    try:
        return find_mpiexec()
    except LaunchError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def expected() -> dict[float, list[int]]:
    """What one thread per rank says, by temperature."""
    with Cluster(transport="inproc", stages=1, draft=None) as cluster:
        prompt = cluster.tokenizer.encode(PROMPT)
        return {
            t: list(cluster.generate(prompt, Iterative(), max_tokens=TOKENS, sampling=Sampling(t, 0, 1.0, 5)).token_ids)
            for t in (0.0, 0.8)
        }


def run(*command: str, within: float = END_S) -> subprocess.CompletedProcess[str]:
    environment = {**OVERSUBSCRIBE, **os.environ}
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=within, check=False)


def pids(errors: str) -> dict[int, int]:
    """Rank to process id, from the layout on standard error."""
    return {int(rank): int(pid) for rank, pid in re.findall(r"^rank (\d+):.* \(pid (\d+)\)$", errors, re.MULTILINE)}


def wait_until_gone(processes: dict[int, int]) -> None:
    deadline = time.monotonic() + END_S
    while any(Path(f"/proc/{pid}").exists() for pid in processes.values()):
        assert time.monotonic() < deadline, f"still running: {processes}"
        time.sleep(0.02)


def test_the_same_tokens(mpiexec: str, expected: dict[float, list[int]]) -> None:
    options = ["--strategy", "pipeinfer", "--temperature", "0.8", "--seed", "5", "--tokens", str(TOKENS)]
    done = run(mpiexec, "-n", "4", *PIPEINFER, "generate", PROMPT, "--json", *options)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["token_ids"] == expected[0.8]
    assert len(pids(done.stderr)) == 3
    wait_until_gone(pids(done.stderr))


FROM_PYTHON = f"""
from pipeinfer import Pipeline
for strategy, temperature in (("iterative", 0.8), ("speculative", 0.0)):
    with Pipeline() as pipeline:
        said = pipeline.generate({PROMPT!r}, strategy=strategy, temperature=temperature, seed=5, tokens={TOKENS})
        print(list(said.trial.token_ids))
"""


def test_one_session_after_another_from_python(mpiexec: str, expected: dict[float, list[int]]) -> None:
    done = run(mpiexec, "-n", "4", sys.executable, "-c", FROM_PYTHON)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(map(msgspec.json.decode, done.stdout.splitlines())) == [expected[0.8], expected[0.0]]


@pytest.mark.usefixtures("mpiexec")
def test_the_launcher_starts_a_world_here(expected: dict[float, list[int]]) -> None:
    done = run(*PIPEINFER, "generate", PROMPT, "--json", "--tokens", str(TOKENS), "--nodes", "2", "--launcher", "mpi")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["token_ids"] == expected[0.0]
    assert len(pids(done.stderr)) == 2


@pytest.mark.usefixtures("mpiexec")
def test_a_draft_on_two_ranks(expected: dict[float, list[int]]) -> None:
    options = ["--layers", "1/1,1", "--temperature", "0.8", "--seed", "5", "--tokens", str(TOKENS)]
    done = run(*PIPEINFER, "generate", PROMPT, "--json", "--launcher", "mpi", *options)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["token_ids"] == expected[0.8]
    assert len(pids(done.stderr)) == 3


QUICKLY = """
from pipeinfer.cli import main
from pipeinfer.modelling import calibrate
calibrate.PART_S = calibrate.CONTENTION_S = 0.05
main()
"""


def test_a_world_is_calibrated(mpiexec: str, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    emulated = ["--backend", "emulated", "--backend-option", "layers=1", "--backend-option", "draft_s=0.0005"]
    done = run(mpiexec, "-n", "3", sys.executable, "-c", QUICKLY, "calibrate", "--out", str(out), *emulated, within=100)
    assert done.returncode == 0, done.stderr
    profile = read_profile(out)
    assert len(profile.ranks) == 2
    assert profile.draft.at(1, 100) >= 5e-4
    assert all(link.latency_s > 0 for link in profile.links)


def test_ranks_that_the_plan_has_no_use_for_leave_with_the_others(mpiexec: str) -> None:
    done = run(mpiexec, "-n", "3", *PIPEINFER, "generate", "--strategy", "iterative", "--nodes", "1", "--tokens", "2")
    assert done.returncode == 0, done.stderr
    assert len(pids(done.stderr)) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--nodes", "4"], "the plan has 4 ranks, the MPI world 1 beside the head: start 5 processes"),
        (["--strategy", "nonsense"], "no strategy"),
        (["--strategy", "iterative", "--target", "/nowhere"], "/nowhere"),
        (["--file", "/nowhere"], "/nowhere"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(mpiexec: str, options: list[str], line: str) -> None:
    done = run(mpiexec, "-n", "2", *PIPEINFER, "generate", *options)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(re.findall("^error", done.stderr, re.MULTILINE)) == 1
    assert done.stdout == ""


def breaking(mpiexec: str, tmp_path: Path, fault: str) -> subprocess.CompletedProcess[str]:
    """A generation in a world, whose rank 1 comes to a fault after a while."""
    (tmp_path / "sitecustomize.py").write_text(BREAKS_AFTER_A_WHILE % fault)
    environment = f"PYTHONPATH={tmp_path}"
    options = ["--tokens", "50", "--strategy", "iterative"]
    done = run("env", environment, mpiexec, "-n", "3", *PIPEINFER, "generate", *options)
    assert done.returncode not in (0, 2)
    assert done.stdout.strip() != ""
    wait_until_gone(pids(done.stderr))
    return done


def lost_ranks(errors: str) -> list[str]:
    """What is said of them. A launcher passes on what processes write as it comes, not by lines."""
    return re.findall(r"error: lost .*", errors)


def test_a_rank_that_cannot_go_on_is_named_by_the_head(mpiexec: str, tmp_path: Path) -> None:
    done = breaking(mpiexec, tmp_path, 'raise RuntimeError("the memory is on fire")')
    assert done.returncode == 1
    (line,) = lost_ranks(done.stderr)
    assert "lost rank 1: target layers" in line
    assert "the memory is on fire" in line


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("os.abort()", "killed by SIGABRT (usually an engine found a fault of its own and stopped)"),
        ("os._exit(3)", "ended with exit code 3"),
    ],
)
def test_a_rank_that_ends_without_a_word_is_named_with_how_it_ended(
    mpiexec: str, tmp_path: Path, fault: str, how: str
) -> None:
    done = breaking(mpiexec, tmp_path, fault)
    name = re.findall(r"^rank 1: target layers .* \(pid \d+\)$", done.stderr, re.MULTILINE)[0]
    assert lost_ranks(done.stderr) == [f"error: lost {name}: {how}"]


BREAKS_AFTER_A_WHILE = """
import sys, os
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "2":
    from pipeinfer.runtime import live
    compute, runs = live.StageWorker._compute, []
    def break_down(self, work):
        runs.append(work)
        if len(runs) == 10:
            %s
        compute(self, work)
    live.StageWorker._compute = break_down
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_world_is_named_and_leaves_the_text(mpiexec: str, tmp_path: Path, rank: int) -> None:
    log = tmp_path / "log"
    options = ["--backend", "emulated", "--tokens", "2000", "--log", str(log)]
    command = [mpiexec, "-n", "3", *PIPEINFER, "generate", *options]
    with subprocess.Popen(
        command, env={**OVERSUBSCRIBE, **os.environ}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as world:
        assert world.stderr is not None
        layout = "".join([world.stderr.readline() for _ in range(2)])
        while log.stat().st_size < 50_000:
            assert world.poll() is None
            time.sleep(0.02)
        os.kill(pids(layout)[rank], signal.SIGKILL)
        text, errors = world.communicate(timeout=END_S)
    assert world.returncode not in (0, 2)
    (line,) = lost_ranks(errors)
    assert line.startswith(f"error: lost {layout.splitlines()[rank]}: killed by SIGKILL ")
    assert re.match(r" \d+ \d+ ", text)
    wait_until_gone(pids(layout))


def test_ranks_whose_parents_are_killed_end_with_them(mpiexec: str) -> None:
    command = [mpiexec, "-n", "3", *PIPEINFER, "generate", "--backend", "emulated", "--tokens", "2000"]
    with subprocess.Popen(
        command, env={**OVERSUBSCRIBE, **os.environ}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as world:
        assert world.stderr is not None
        layout = "".join([world.stderr.readline() for _ in range(2)])
        os.kill(parent_of(pids(layout)[1]), signal.SIGKILL)
        _, errors = world.communicate(timeout=END_S)
    assert world.returncode not in (0, 2)
    assert lost_ranks(errors) == []
    wait_until_gone(pids(layout))


def test_a_killed_rank_of_a_server_ends_it_and_is_named(mpiexec: str) -> None:
    pytest.importorskip("uvicorn", reason="serving needs pipeinfer[serve]")
    options = ["--backend", "emulated", "--backend-option", "layer_s=0.004", "--strategy", "iterative", "--port", "0"]
    command = [mpiexec, "-n", "3", *PIPEINFER, "serve", *options]
    with subprocess.Popen(
        command, env={**OVERSUBSCRIBE, **os.environ}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as world:
        assert world.stderr is not None
        assert world.stdout is not None
        layout = "".join([world.stderr.readline() for _ in range(2)])
        assert "rank 1: target layers " in layout
        url = world.stdout.readline().split()[-1]
        body = msgspec.json.encode({"prompt": "a b", "max_tokens": 1000, "stream": True})
        asked = Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
        with urlopen(asked, timeout=END_S) as stream:
            assert stream.readline().startswith(b"data: ")
            os.kill(pids(layout)[1], signal.SIGKILL)
            with pytest.raises((IncompleteRead, ConnectionError)):
                stream.read()
        _, errors = world.communicate(timeout=END_S)
    assert world.returncode not in (0, 2)
    (line,) = lost_ranks(errors)
    assert line.startswith(f"error: lost {layout.splitlines()[1]}: killed by SIGKILL ")
    wait_until_gone(pids(layout))


@pytest.mark.usefixtures("mpiexec")
def test_without_a_world_it_says_how_to_start_one() -> None:
    done = run(*PIPEINFER, "generate", "--transport", "mpi")
    assert done.returncode == 2
    assert done.stderr == (
        "error: an MPI world of one process has no ranks: start it by `mpirun -n 5`, or give --launcher mpi\n"
    )


def test_another_launcher_is_refused() -> None:
    done = piped("generate", "--launcher", "slurm")
    assert (done.returncode, done.stderr) == (2, b'error: no launcher "slurm"; there is: mpi\n')


def test_no_mpiexec_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(LaunchError, match="no mpiexec"):
        find_mpiexec()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher started this process."""
    for name in (STARTED, "PMIX_NAMESPACE", *[name for pair in LAUNCHERS for name in pair]):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("rank", "size"), LAUNCHERS)
def test_a_process_finds_its_place(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    assert (place(), in_mpi_world()) == ((0, 1), False)
    monkeypatch.setenv(rank, "2")
    assert not in_mpi_world()
    monkeypatch.setenv(size, "5")
    assert (place(), in_mpi_world()) == ((2, 5), True)
    monkeypatch.setenv(size, "1")
    assert not in_mpi_world()


class Library:
    """An MPI library that is asked about before it starts."""

    def __init__(self, vendor: str, version: str) -> None:
        self.get_vendor = lambda: (vendor, (5, 0, 0))
        self.Get_library_version = lambda: version


MPICH = Library("MPICH", "MPICH Version: 5.0\nMPICH configure: --with-device=ch4:ofi")
OPEN_MPI = Library("Open MPI", "Open MPI v5.0.11")
CRAY = Library("Cray MPI", "CRAY MPICH version 8.1")
BY_SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "5"}
BY_OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "5", "PMIX_NAMESPACE": "prterun-1"}
BY_MPICH = {"PMI_RANK": "0", "PMI_SIZE": "5"}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("launcher", "library", "cure", "started"),
    [
        (BY_SRUN, MPICH, "use `srun --mpi=pmi2` or MPICH's own mpirun", True),
        ({**BY_SRUN, "PMIX_NAMESPACE": "slurm.1"}, MPICH, "use `srun --mpi=pmi2` or MPICH's own mpirun", False),
        (BY_SRUN, OPEN_MPI, "use `srun --mpi=pmix` or Open MPI's own mpirun", True),
        (BY_SRUN, CRAY, "use another `srun --mpi=` (`srun --mpi=list`) or Cray MPI's own mpirun", True),
        (BY_OPEN_MPI, MPICH, "use MPICH's own mpirun", False),
        (BY_MPICH, OPEN_MPI, "use Open MPI's own mpirun", True),
    ],
)
def test_a_launcher_of_another_mpi_is_one_line(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str], library: Library, cure: str, started: bool
) -> None:
    mpi = pytest.importorskip("pipeinfer.runtime.transports.mpi", reason="mpi4py is not installed")
    opened: list[bool] = []
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mpi, "library", lambda: library)
    monkeypatch.setattr(mpi, "open_world", lambda: opened.append(True) or SimpleNamespace(rank=0, size=1))
    with pytest.raises(LaunchError) as found:
        join_world()
    name = library.get_vendor()[0]
    assert str(found.value) == (
        f"5 processes were started, but not in a way that puts them in one world of {name}, the MPI library that "
        f"mpi4py loads: {cure}"
    )
    assert bool(opened) == started  # MPICH would abort


@pytest.mark.usefixtures("alone")
def test_only_one_of_them_says_it_and_first(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = pytest.importorskip("pipeinfer.runtime.transports.mpi", reason="mpi4py is not installed")
    slept: list[float] = []
    for name, value in {**BY_SRUN, "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mpi, "library", lambda: MPICH)
    monkeypatch.setattr(mpi, "open_world", lambda: SimpleNamespace(rank=0, size=1))
    monkeypatch.setattr("pipeinfer.cluster.mpi_world.time.sleep", slept.append)
    monkeypatch.setattr("pipeinfer.cluster.mpi_world.watched_rank", lambda _: nullcontext())  # the tests' process stays
    with pytest.raises(SystemExit) as left:
        join_world()
    assert left.value.code == 2
    assert slept


def test_a_world_in_a_slurm_step_is_one_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_NAMESPACE", "slurm.1")
    monkeypatch.delenv("HYDRA_LAUNCHER", raising=False)
    assert "PMIX_NAMESPACE" not in world_environment()
    assert world_environment()["HYDRA_LAUNCHER"] == "fork"
    monkeypatch.setenv("HYDRA_LAUNCHER", "ssh")
    assert world_environment()["HYDRA_LAUNCHER"] == "ssh"
