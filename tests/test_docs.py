"""What README and docs tell people to type works, and what they promise is what continuous integration runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from processes import piped

ROOT = Path(__file__).parents[1]
HOME = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "backends" / "README.md"]
PAGES = [*HOME, *sorted((ROOT / "docs").glob("*.md"))]

ELSEWHERE = (
    "curl ", "pipeinfer serve ", "PIPEINFER_API_KEY=", "mpirun ", "srun ", "mpiexec ", "pip ", "git ", "python3 -m ",
    "ssh ", "scp ", "load/bin/", ".venv/", ".ci/", "pytest ",
)  # fmt: skip
"""Commands that need a cluster, a network, a server or minutes; each is run by a test or a job of its own."""

WIDEST = 122
"""Characters of a line of prose."""

LOOKS_AT_THE_MACHINE = "doctor"
"""It finds and leaves the same on whatever page it stands: the first that has it runs it."""

AT_ONCE = {
    "calibrate": "from pipeinfer.modelling import calibrate; calibrate.PART_S = calibrate.CONTENTION_S = 0.02; "
    "calibrate.ROWS, calibrate.CONTEXTS = (1, 4, 16), (32, 128)",
    "doctor": "from pipeinfer.cluster import engines; engines.names = lambda _: ['numpy']",
}
"""What is set before commands that would measure for long, or try every engine, as tests of their own do."""

BECOMES_ANOTHER = "--launcher"
"""Of these every line has a process, which becomes the launcher of others."""


def commands(page: Path) -> list[str]:
    """The lines of a page's console blocks, continuation lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


HERE = {page: [command for command in commands(page) if not command.startswith(ELSEWHERE)] for page in PAGES}


def test_the_pages_have_commands() -> None:
    assert sum(map(len, HERE.values())) >= 10


def started_as(name: str) -> list[str]:
    """How Python is told to run that command."""
    quickly = AT_ONCE.get(name)
    return ["-c", f"{quickly}; from pipeinfer.cli import main; main()"] if quickly else ["-m", "pipeinfer"]


@pytest.fixture(scope="module")
def started() -> set[str]:
    """Commands that have been run in a process of their own, as people run them."""
    return set()


@pytest.mark.parametrize("page", [page for page in PAGES if HERE[page]], ids=lambda page: page.name)
def test_the_commands_of_a_page_work_one_after_another(
    page: Path, tmp_path: Path, started: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line with a command starts a process, which imports what it needs; others with it run in this one."""
    monkeypatch.chdir(tmp_path)
    for command in HERE[page]:
        assert command.startswith("pipeinfer "), f"{page.name} shows a command that no test can run: {command}"
        name, *arguments = shlex.split(command, comments=True)[1:]
        if name == LOOKS_AT_THE_MACHINE and name in started:
            continue
        if name in started and BECOMES_ANOTHER not in arguments:
            done = piped(name, *arguments)
        else:
            line = [sys.executable, *started_as(name), name, *arguments]
            done = subprocess.run(line, capture_output=True, timeout=240, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        assert b"Traceback" not in done.stderr
        started.add(name)


def test_continuous_integration_runs_the_readme_s_test_command() -> None:
    test_command = next(command for command in commands(ROOT / "README.md") if "-m pytest" in command)
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_local_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_prose_is_no_wider_than_code() -> None:
    """But for tables, pictures and blocks of code, which cannot be broken."""
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        wide = [line for line in prose.splitlines() if len(line) > WIDEST and not line.startswith(("|", "!"))]
        assert not wide, f"{page.name}: {wide[0]}"
