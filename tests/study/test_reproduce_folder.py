"""What happens to a results folder: killed writers, full disks, folders that cannot be written. Nothing that was
written before is lost, and the next run makes up for the rest."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import alive
from test_reproduce import BESIDE, SIMULATED, comparable, quiet, reproduced

from pipeinfer.cli import run as command_line
from pipeinfer.results.records import FILE, Record, Store, decode
from pipeinfer.study.points import cells
from pipeinfer.study.run import run

TESTS = Path(__file__).parent
TOTAL = len(cells(SIMULATED))
TIMELINE = ["reproduce", "timeline", "--jobs", "1", "--out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to which nothing happened."""
    folder = tmp_path_factory.mktemp("whole")
    run(SIMULATED, Store(folder), 1, quiet)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command leaves."""
    folder = tmp_path_factory.mktemp("drawn")
    assert command_line([*TIMELINE, str(folder)]) == 0
    return folder


def by_cell(folder: Path) -> dict[str, object]:
    return {line["config_hash"]: line for line in comparable(folder)}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_kill_loses_the_trials_under_way_at_most(whole: Path, tmp_path: Path, jobs: int) -> None:
    script = f"import test_reproduce_folder as t; t.reproduced_in_part(t.Path({str(tmp_path)!r}), {jobs})"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=TESTS, env=BESIDE)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    seen = (tmp_path / FILE).read_bytes().count(b"\n")
    assert seen == 3
    helpers = children(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until_gone(helpers)
    kept = Store(tmp_path).records
    assert seen <= len(kept) < TOTAL
    run(SIMULATED, Store(tmp_path), 1, quiet)
    assert by_cell(tmp_path) == by_cell(whole)
    assert len(comparable(tmp_path)) == TOTAL  # nothing was run twice


def reproduced_in_part(folder: Path, jobs: int) -> None:
    """Reproduce into the folder until three records lie there, then stop this process as SIGSTOP does: whoever waits
    for that kills it where it is, however fast the machine."""
    append = Store.append

    def append_until_three(store: Store, record: Record) -> None:
        append(store, record)
        if len(store.records) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)

    Store.append = append_until_three  # type: ignore[method-assign]
    reproduced(folder, SIMULATED, jobs=jobs)


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def command(out: Path, limit: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with its own limits; Python would leave half of what it compiles there, for all."""
    words = [sys.executable, "-B", "-m", "pipeinfer", *TIMELINE, str(out)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, preexec_fn=limit)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def full_at(size: int) -> Callable[[], None]:
    """No file may grow beyond that many bytes, which is what a full disk looks like."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_one_line_and_keeps_what_was_written(tmp_path: Path) -> None:
    line = one_line(command(tmp_path, full_at(12_000)))
    assert f"{tmp_path / FILE}: cannot be written: File too large; nothing before is lost" in line
    kept = [decode(line) for line in (tmp_path / FILE).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert kept
    assert command_line([*TIMELINE, str(tmp_path)]) == 0
    lines = (tmp_path / FILE).read_bytes().splitlines()
    assert [decode(line) for line in lines[: len(kept)]] == kept


def test_a_disk_that_is_full_when_the_report_is_written(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    records = (tmp_path / FILE).read_bytes()
    line = one_line(command(tmp_path, full_at(2_000)))
    assert f"{tmp_path}: the report cannot be written: File too large" in line
    assert (tmp_path / FILE).read_bytes() == records


def test_a_folder_in_which_nothing_can_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/results")):
        assert command_line([*TIMELINE, str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "results cannot be written there" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_others_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert command_line([*TIMELINE, str(tmp_path / "results")]) == 2
    assert "results cannot be written there: Permission denied" in capsys.readouterr().err


def test_drawing_again_runs_nothing(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    records, drawing = (tmp_path / FILE).read_bytes(), (tmp_path / "figures" / "timeline.svg").read_bytes()
    (tmp_path / "figures" / "timeline.svg").unlink()
    (tmp_path / "report.md").unlink()
    assert command_line([*TIMELINE, str(tmp_path)]) == 0
    assert (tmp_path / FILE).read_bytes() == records
    assert (tmp_path / "figures" / "timeline.svg").read_bytes() == drawing
    assert (tmp_path / "report.md").exists()
