"""The workflows of continuous integration are YAML, and what they run exists."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeinfer.cli import app

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def scripts() -> Iterator[tuple[str, str]]:
    """Each step's script, under a name."""
    for path in FILES:
        for name, job in read(path)["jobs"].items():
            for number, step in enumerate(job["steps"]):
                if "run" in step:
                    yield f"{path.stem} {name} {number}", re.sub(r"\$\{\{.*?\}\}", "x", step["run"])


SCRIPTS = dict(scripts())


def test_there_is_a_workflow_for_each_purpose() -> None:
    assert {path.stem for path in FILES} == {"tests", "gate", "wallclock", "nightly", "newest"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_is_complete(path: Path) -> None:
    workflow = read(path)
    assert workflow["name"] == path.stem
    assert workflow[True], "YAML reads the key `on` as true"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] > 0
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_bash_and_runs_what_exists(name: str) -> None:
    script = SCRIPTS[name]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"bin/pipeinfer (\w+)", script)) <= commands
    for path in re.findall(r"(?<![\w/])(?:tests/[\w/.]+|\.ci/\w+)", script):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\.ci/\w+", script):
        assert os.access(ROOT / path, os.X_OK), path


def test_every_python_that_the_project_names_is_tested() -> None:
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()
    assert read(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == [
        "3.11", "3.12", "3.13",
    ]  # fmt: skip


def test_what_runs_before_a_commit_is_what_continuous_integration_runs() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in local["hooks"]]
    lint = (ROOT / ".ci" / "lint").read_text()
    assert [tool for tool in ("ruff", "mypy") if any(f"-m {tool}" in entry for entry in entries)] == ["ruff", "mypy"]
    for entry in entries:
        _, module, *arguments = entry.removeprefix(".venv/bin/python ").split()
        assert f"-m {module}" in lint or all((ROOT / path).exists() for path in arguments), entry
