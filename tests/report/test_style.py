"""Figures do not depend on what display a user has, or on their matplotlibrc; what they name is no formula."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeinfer.plugins import STRATEGIES, names
from pipeinfer.report.inline import inline
from pipeinfer.report.style import (
    CAPTION_CHARACTERS,
    CARD_IN,
    LEGEND_IN,
    TITLE_CHARACTERS,
    WIDTH_IN,
    legend_above,
    new_figure,
    strips,
    style,
)

DRAW = """
import os, sys
from pathlib import Path
import numpy, pandas, scipy.stats  # once for all: they know nothing of displays and styles

def draw():
    from pipeinfer.report.style import load_seaborn, new_figure
    sns = load_seaborn()
    with new_figure(Path("figure"), "of $x", "in a$b$ c_$", 2.0) as figure:
        spots = {"x": [1, 2, 3, 4], "y": [2, 2.5, 1, 3], "kind": ["a$b", "c", "a$b", "c"]}
        sns.stripplot(spots, x="x", y="kind", hue="kind", jitter=0.3, ax=figure.subplots())

for folder, *variables in [line.split() for line in sys.stdin]:
    assert "matplotlib" not in sys.modules
    process = os.fork()
    if not process:
        os.chdir(folder)
        os.environ.update(variable.split("=", 1) for variable in variables)
        draw()
        sys.exit()
    assert os.waitpid(process, 0)[1] == 0, folder
"""
NOTEBOOK = "module://matplotlib_inline.backend_inline"
BACKENDS = {"notebook": NOTEBOOK, "windows": "TkAgg", "none": "nonsense"}
SETTINGS = ["text.usetex: True", "lines.linewidth: 9", "backend: TkAgg", "axes.grid: False"]
"""Whichever of them did matter would show."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The SVG that processes draw that have not loaded matplotlib yet: as it is where nobody has set anything, with
    display backends, and with a matplotlibrc where they work or where $MPLCONFIGDIR says."""
    folder = tmp_path_factory.mktemp("drawn")
    variables = {"plain": "", **{name: f"MPLBACKEND={backend}" for name, backend in BACKENDS.items()}, "here": "",
                 "elsewhere": f"MPLCONFIGDIR={folder / 'here'}"}  # fmt: skip
    for name in variables:
        (folder / name).mkdir()
    (folder / "here" / "matplotlibrc").write_text("\n".join(SETTINGS) + "\n")
    asked = "".join(f"{folder / name} {variable}\n" for name, variable in variables.items())
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", DRAW], input=asked, env=environment, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return {name: (folder / name / "figure.svg").read_bytes() for name in variables}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_display_backend_does_not_matter(drawn: dict[str, bytes], backend: str) -> None:
    assert drawn[backend] == drawn["plain"]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_matplotlibrc_does_not_matter(drawn: dict[str, bytes], where: str) -> None:
    assert drawn[where] == drawn["plain"]


def test_what_shares_the_process_keeps_its_backend() -> None:
    show = "import matplotlib, os; print(matplotlib.rcParams['backend'], os.environ['MPLBACKEND'])"
    code = f"from pipeinfer.report.style import load_matplotlib; load_matplotlib(); {show}"
    for backend in ("TkAgg", "svg"):
        command = [sys.executable, "-c", code]
        environment = os.environ | {"MPLBACKEND": backend}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
        assert said.lower().split() == [backend.lower()] * 2


def test_a_dollar_begins_no_formula(tmp_path: Path) -> None:
    with new_figure(tmp_path / "figure", "title $y_{", "caption $x_{$", height=2.0) as figure:
        axis = figure.subplots()
        axis.plot([1, 100], [1, 100], label="a $b_{$")
        axis.set_xscale("log")
        axis.set_yticks([1, 100], ["$one", "h$alf_{"])
        axis.legend()
    assert (tmp_path / "figure.svg").exists()


def test_lines_that_lie_on_one_another_show_around_one_another(tmp_path: Path) -> None:
    with new_figure(tmp_path / "figure", "", "", height=2.0) as figure:
        axis = figure.subplots()
        for values in ([1, 2], [2, 1], [1, 2], [1, 2], [1]):
            axis.plot(range(len(values)), values, marker="o")
    lines = axis.lines
    for sizes in ([line.get_linewidth() for line in lines], [line.get_markersize() for line in lines]):
        assert sizes[0] > sizes[2] > sizes[3] == sizes[1] == sizes[4]


def test_no_two_strategies_look_alike() -> None:
    looks = [style(name) for name in names(STRATEGIES)]
    assert len(set(looks)) == len(looks)


def test_a_legend_is_no_wider_than_what_a_phone_shows_of_a_figure(tmp_path: Path) -> None:
    with new_figure(tmp_path / "figure", "title", "", height=3.0) as figure:
        axis = figure.subplots()
        for at in range(7):
            axis.plot([0, 1], [at, at], label=f"strategy {at} with an option")
        axis.legend()
        legend_above(figure, axis)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x1 <= LEGEND_IN * figure.dpi < 0.7 * figure.bbox.width
    assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == 2, "columns"
    assert axis.get_window_extent().y1 < box.y0


@pytest.mark.parametrize("width", [WIDTH_IN, 4.6, CARD_IN])
def test_a_page_cuts_off_no_more_than_title_and_caption_took(tmp_path: Path, width: float) -> None:
    """Of a title and a caption that fill a line to its last character."""
    lengths = (int(most * width / WIDTH_IN) for most in (TITLE_CHARACTERS, CAPTION_CHARACTERS))
    title, caption = ("first " + "x" * (length - len("first ")) for length in lengths)
    with new_figure(tmp_path / "figure", title, caption, height=2.0, width=width, png=False) as figure:
        figure.subplots().set_xlabel("label")
    above, below = strips(title, caption, width)
    drawn = (tmp_path / "figure.svg").read_text()
    (high,) = (float(points) for points in re.findall(r'height="([\d.]+)pt"', drawn))
    (box,) = re.findall(r'viewBox="0 ([\d.]+) [\d.]+ ([\d.]+)"', inline(tmp_path / "figure.svg").svg)
    assert [float(points) for points in box] == pytest.approx([72 * above, high - 72 * (above + below)], abs=0.01)
