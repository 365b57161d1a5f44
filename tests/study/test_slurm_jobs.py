"""Sweeps as jobs of a real Slurm: they have the records of one process, and what becomes of a job is told."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm_cluster import END_S, Run, one_node_of_slurm
from test_reproduce import comparable

from pipeinfer.results.records import Store
from pipeinfer.study import job_scripts
from pipeinfer.study.jobs import collect
from pipeinfer.study.points import cells
from pipeinfer.study.recipes import Recipe
from pipeinfer.study.run import run
from pipeinfer.study.selection import Wish, select

pytestmark = pytest.mark.timeout(240)

ITL, TIMELINE = (select([name], Wish("sim")).recipes[0] for name in ("itl", "timeline"))
BY_SUBMITIT = ["pipeinfer", "reproduce", "itl", "--fidelity", "sim", "--executor", "slurm", "--out"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with one_node_of_slurm(tmp_path_factory.mktemp("slurm")) as command:
        yield command


def whole(recipe: Recipe, folder: Path) -> object:
    """What one process records."""
    run(recipe, Store(folder), 1, lambda *_: None)
    return comparable(folder)


def test_an_executor_s_jobs_have_the_records_of_one_process(slurm: Run, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    done = slurm(*BY_SUBMITIT, str(tmp_path / "jobs"))
    assert (done.returncode, done.stderr) == (0, "")
    scripts = [path.read_text() for path in (tmp_path / "jobs" / "slurm").glob("*.sh")]
    assert any("--array=0-1%" in script for script in scripts)
    assert not any("--time" in script for script in scripts), "the cluster's own, or that of SBATCH_TIMELIMIT"
    assert comparable(tmp_path / "jobs") == whole(ITL, tmp_path / "one")


def test_jobs_that_are_refused_are_one_line(slurm: Run, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    done = slurm("env", "SBATCH_PARTITION=none", *BY_SUBMITIT, str(tmp_path))
    assert done.returncode == 2
    assert re.findall("^error: .*", done.stderr, re.MULTILINE) == [
        "error: --executor slurm: sbatch: error: Batch job submission failed: Invalid partition name specified"
    ]
    assert "Traceback" not in done.stderr


def test_a_job_that_is_cancelled_is_one_line(slurm: Run, tmp_path: Path) -> None:
    """Accounting is off here, as on many a cluster: sacct knows of no job."""
    pytest.importorskip("submitit")
    slurm("scontrol", "update", "PartitionName=all", "State=DOWN")  # jobs wait
    try:
        with ThreadPoolExecutor() as pool:
            command = pool.submit(slurm, *BY_SUBMITIT, str(tmp_path))
            deadline = time.monotonic() + END_S
            while not (found := slurm("squeue", "--noheader", "--format=%F").stdout.split()):
                assert time.monotonic() < deadline
                time.sleep(0.5)
            slurm("scancel", found[0])
            done = command.result()
    finally:
        slurm("scontrol", "update", "PartitionName=all", "State=UP")
    assert done.returncode == 2
    (line,) = re.findall("^error: .*", done.stderr, re.MULTILINE)
    assert re.match(r"error: --executor slurm: job \d+_0 ended without results \(CANCELLED\): what it said", line)
    assert slurm("squeue", "--noheader").stdout == ""


def test_an_array_that_is_submitted_and_collected_is_the_sweep(
    slurm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_scripts, "BATCH", 1)
    monkeypatch.setattr(job_scripts, "LARGEST_ARRAY", 3)
    folder = tmp_path / "50% of 'them' $(here)"
    store = Store(folder)
    (script,), count = job_scripts.emit("slurm", [TIMELINE], store, folder, ["--fidelity", "sim"])
    assert count == len(cells(TIMELINE)) > 3
    done = slurm("sbatch", "--wait", "--output", f"{tmp_path}/said", str(script))
    assert done.returncode == 0, done.stderr
    assert collect([TIMELINE], store, folder) == count
    assert comparable(folder) == whole(TIMELINE, tmp_path / "one")
