"""The exact gate tells a worse scheduler from an unchanged one, whatever else the machine does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GATE, ROOT = HERE / "gate", HERE.parents[1]
sys.path.insert(0, str(GATE))

from gate_cells import CELLS  # noqa: E402
from worse_scheduler import WAYS  # noqa: E402


def gate(*arguments: str, worse: str = "") -> subprocess.CompletedProcess[str]:
    """The documented command, with the scheduler made worse in that way."""
    command = [sys.executable, "-m", "pytest", *arguments, "tests/benchmarks/gate"]
    path = os.pathsep.join([str(HERE), str(GATE), os.environ.get("PYTHONPATH", "")])
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**alone, "PYTHONPATH": path, **({"PIPEINFER_WORSE": worse} if worse else {})}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def baseline(name: str) -> dict:
    return json.loads((GATE / name).read_text())


def test_the_baseline_has_every_cell_and_no_other() -> None:
    cells = {str(cell) for cell in CELLS}
    times = [entry["fullname"] for entry in baseline("simulated_time.json")["benchmarks"]]
    assert set(baseline("counts.json")) == cells
    assert set(times) == {f"test_cells.py::test_cell[{cell}]" for cell in cells}


def test_an_unchanged_scheduler_passes() -> None:
    done = gate()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("worse", WAYS)
def test_a_worse_scheduler_fails(worse: str) -> None:
    done = gate("-p", "worse_scheduler", "-k", "pipeinfer and wide", worse=worse)
    assert done.returncode == 1
    assert "changed; if it is meant: pytest tests/benchmarks/gate --update-baseline" in done.stdout
    assert "Performance has regressed" in done.stderr
    assert "last_token_ns" in done.stdout
