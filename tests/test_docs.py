"""What README and docs tell people to type works, and what they promise is what continuous integration runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "backends" / "README.md"]

ELSEWHERE = ("mpirun", "srun", "mpiexec", "pip", "git", "python3 -m venv", "ssh", "scp", ".venv/bin", "pytest")
"""Commands that need a cluster, a network or minutes; each is run by a test or a job of its own."""


def commands(page: Path) -> list[str]:
    """The lines of a page's console blocks, continuation lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


EVERY = [(page, command) for page in PAGES for command in commands(page)]
HERE = [(page, command) for page, command in EVERY if not command.startswith(ELSEWHERE)]


def test_the_pages_have_commands() -> None:
    assert len(HERE) >= 5


@pytest.mark.parametrize(("page", "command"), HERE, ids=[f"{page.name}: {command}" for page, command in HERE])
def test_a_documented_command_works(page: Path, command: str, tmp_path: Path) -> None:
    assert command.startswith("pipeinfer "), f"{page.name} shows a command that no test can run: {command}"
    arguments = [sys.executable, "-m", "pipeinfer", *shlex.split(command, comments=True)[1:]]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_continuous_integration_runs_the_readme_s_test_command() -> None:
    test_command = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]
    readme = (ROOT / "README.md").read_text()
    assert test_command in readme


def test_every_local_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
