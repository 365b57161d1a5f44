"""The examples in the docs for workflow engines, run as a reader would: an engine in an environment of its own, which
finds `pipeinfer` on the path. Skipped where the programs of the path have no such engine."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeinfer.results.records import Store
from pipeinfer.study import job_scripts
from pipeinfer.study.job_scripts import emit
from pipeinfer.study.jobs import FOLDER, collect
from pipeinfer.study.selection import Wish, select

DOCS = Path(__file__).parents[1] / "docs" / "reproduce.md"
EXAMPLES = [block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "cells.txt" in block]
(TIMELINE,) = select(["timeline"], Wish("sim")).recipes

pytestmark = pytest.mark.timeout(240)


def parsl() -> list[str]:
    python = shutil.which("python3")
    if python is None or subprocess.run([python, "-c", "import parsl"], capture_output=True, check=False).returncode:
        pytest.skip("the python3 of the path has no Parsl")
    return [python, "flow.py"]


def snakemake() -> list[str]:
    program = shutil.which("snakemake") or pytest.skip("no snakemake on the path")
    return [program, "--cores", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder, with a name that shells and formats would take apart, in which two cells are to be run."""
    folder = tmp_path / "50% of 'them' {x} $(here)"
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "pipeinfer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeinfer "$@"\n')
    program.chmod(0o755)
    out = folder / "results"
    monkeypatch.setattr(job_scripts, "BATCH", 1)
    emit("shell", [TIMELINE], Store(out), out, ["--fidelity", "sim"])
    commands = (out / "cells.txt").read_text().splitlines(keepends=True)
    (out / "cells.txt").write_text("".join(commands[:2]))
    return folder


def run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("engine", "file", "mark"), [(parsl, "flow.py", "import parsl"), (snakemake, "Snakefile", "rule all")],
    ids=["parsl", "snakemake"],
)  # fmt: skip
def test_an_example_runs_the_cells_and_tells_of_one_that_fails(
    engine: Callable[[], list[str]], file: str, mark: str, folder: Path
) -> None:
    command = engine()
    (example,) = [block for block in EXAMPLES if mark in block]
    (folder / file).write_text(example)
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "results" / FOLDER).iterdir())) == 2
    commands = folder / "results" / "cells.txt"
    commands.write_text(commands.read_text().replace("--index 1", "--index 99"))
    done = run(command, folder)
    assert done.returncode != 0
    assert "cells, counted from 0" in done.stdout + done.stderr
    assert collect([TIMELINE], Store(folder / "results"), folder / "results") == 2
