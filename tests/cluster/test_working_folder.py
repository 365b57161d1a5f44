"""What lies in the folder in which the user works is not what ranks are made of."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeinfer

HERE = [sys.executable, "-P", "-m", "pipeinfer"]
"""As the console script: without the working directory among the places for modules."""

SHADOWS = ("random", "select", "types", "numpy", "tokenizers", "zmq", "multiprocessing", "pickle")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with another version of the package: every process that runs it says so."""
    shutil.copytree(Path(pipeinfer.__file__).parent, tmp_path / "pipeinfer", ignore=lambda _, names: [
        name for name in names if name == "__pycache__"])  # fmt: skip
    with (tmp_path / "pipeinfer/__init__.py").open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'imported')!r}, 'a').write('the copy ')\n")
    return tmp_path


@pytest.fixture
def folder(copied: Path) -> Path:
    """And with files named like modules, each of which says so when it is imported."""
    for name in SHADOWS:
        (copied / f"{name}.py").write_text(f"open({str(copied / 'imported')!r}, 'a').write('{name} ')")
    return copied


GENERATE = ["generate", "1 2", "--backend", "emulated", "--backend-option", "layer_s=0.0001", "--tokens", "4", "--json"]

POOL = """
from pipeinfer.study.executors import local
from pipeinfer.units import size

if __name__ == "__main__":
    print(*local(1).map(size, [1]))
"""


@pytest.mark.parametrize("launcher", ["processes", "mpi"])
def test_ranks_run_what_the_head_runs(folder: Path, launcher: str) -> None:
    if launcher == "mpi":
        pytest.importorskip("mpi4py")
    more = ["--launcher", "mpi"] if launcher == "mpi" else []
    done = run(folder, *GENERATE, "--nodes", "2", *more)
    assert len(json.loads(done.stdout)["text"].split()) == 4
    assert not (folder / "imported").exists()


def test_simulations_are_made_of_what_the_command_is_made_of(folder: Path) -> None:
    script = folder / "bin/script"  # as the console script lies: elsewhere, and with no word on safe paths
    script.parent.mkdir()
    script.write_text(POOL)
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not (folder / "imported").exists()


def test_an_uninstalled_checkout_runs_itself(copied: Path) -> None:
    """Where the head is the copy, so is what the ranks are forked from."""
    command = [sys.executable, "-m", "pipeinfer", *GENERATE, "--nodes", "2"]
    done = subprocess.run(command, cwd=copied, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (copied / "imported").read_text() == 2 * "the copy "


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([*HERE, *arguments], cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done
