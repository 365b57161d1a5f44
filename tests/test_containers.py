"""The recipes of containers, as far as can be said without an engine: what they copy suffices to build the package, and
what they install and start is what there is."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "containers"
INSTALL = "pip install --no-cache-dir -c constraints.txt"


def copied(recipe: str) -> list[str]:
    """Files and folders of the checkout that a recipe takes."""
    text = (FOLDER / recipe).read_text()
    if recipe == "Containerfile":
        lines = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    else:
        lines = re.findall(r"^    (\S+) /opt/pipeinfer/\1$", text.partition("%files")[2], re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_both_take_the_same_and_install_with_the_pins() -> None:
    assert sorted(copied("Containerfile")) == sorted(copied("pipeinfer.def"))
    assert f"RUN {INSTALL} .\n" in (FOLDER / "Containerfile").read_text()
    assert f"    {INSTALL} '.[mpi]' mpich\n" in (FOLDER / "pipeinfer.def").read_text()
    assert 'ENTRYPOINT ["pipeinfer"]' in (FOLDER / "Containerfile").read_text()
    assert "STOPSIGNAL SIGINT" in (FOLDER / "Containerfile").read_text(), "a first process ignores SIGTERM"
    assert 'pipeinfer = "pipeinfer.cli:main"' in (ROOT / "pyproject.toml").read_text()


def test_what_they_take_is_enough_for_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    source.mkdir()
    for name in copied("Containerfile"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "rendered"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "pipeinfer/cli.py", "pipeinfer_numpy/__init__.py", "pipeinfer/report/templates/report.html.jinja",
        "pipeinfer/_data/reproduce/speed.toml", "pipeinfer/_data/workloads/prompts/written.toml",
        "pipeinfer/_data/workloads/builtin/target/model.safetensors",
        "pipeinfer/_data/paper_figures/reference/claims.toml",
    ):  # fmt: skip
        assert wanted in names
