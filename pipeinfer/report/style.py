"""One style for all figures: colours that the colour-blind can tell apart, markers that do without colour, a title
above that says what is drawn and a caption below that says fidelity, cluster and workload. seaborn is loaded when the
first figure is drawn. The same data gives the same SVG, byte for byte, whatever display the user has and whatever their
matplotlibrc says.
"""

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeinfer.plugins import STRATEGIES, names

# The palette of Okabe and Ito, without its yellow.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#999999"

STYLES: dict[str, tuple[str, str]] = {
    "iterative": (BLACK, "s"),
    "speculative": (VERMILLION, "^"),
    "pipeinfer": (BLUE, "o"),
    "recorded": (BLACK, "s"),
    "varied": (BLUE, "o"),
    "independent": (VERMILLION, "^"),
}
"""Colour and marker of the project's own strategies, and of kinds of drafts; others take what is left."""
COLOURS, MARKERS = (GREEN, PURPLE, ORANGE, SKY, GREY), ("D", "v", "P", "X", "*", "<", "h", ">", "p", "d", "8")

THIN: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (2, 1.2))}
"""Lines of what theory or the simulator says, beside what was found."""
BROKEN = (0, (6, 3))
"""Of the line of a published value."""

WIDTH_IN, CARD_IN = 7.2, 3.7
"""Widths of a figure, and of the one on a claim's card (inches)."""
CAPTION_CHARACTERS, TITLE_CHARACTERS = 122, 84
"""Of a line below and above a figure of that width."""


def style(strategy: str) -> tuple[str, str]:
    """Colour and marker of a strategy: no two of those installed have the same."""
    if strategy in STYLES:
        return STYLES[strategy]
    others = [name for name in names(STRATEGIES) if name not in STYLES]
    at = others.index(strategy) if strategy in others else sum(map(ord, strategy))
    return COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]


def looks(column: str, strategies: Mapping[str, str]) -> dict[str, Any]:
    """What seaborn draws lines by, so that each name in a column looks as the strategy does that it stands for."""
    known = {name: style(strategy) for name, strategy in strategies.items()}
    order: dict[str, Any] = {"hue": column, "style": column, "hue_order": [*known], "style_order": [*known]}
    colours, markers = ({name: look[part] for name, look in known.items()} for part in (0, 1))
    return {**order, "palette": colours, "markers": markers, "dashes": False}


WIDER = 2.2
"""How much wider a line is than one that lies on it (points)."""


@contextmanager
def new_figure(
    path: Path, title: str, caption: str, height: float, width: float = WIDTH_IN, *, png: bool = True
) -> Iterator[Any]:
    """A figure in the project's style, in inches; on leaving, the title is set above it and the caption below, and
    path.svg and, but for what is part of a page alone, path.png are written."""
    matplotlib = load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    above, below = strips(title, caption, width)
    whole = above + height + below
    with matplotlib.style.context(_rc(), after_reset=True), _seeded():
        between = ConstrainedLayoutEngine(rect=(0.006, below / whole, 0.988, height / whole))
        figure = Figure(figsize=(width, whole), layout=between, dpi=160)
        yield figure
        for axis in figure.axes:
            _tell_apart(axis)
        _set_around(figure, title, caption, width)
        _take_literally(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The place of everything is found once: text is a little wider as pixels than as outlines. With a layout
        # engine of any kind each file would be drawn twice.
        between.execute(figure)
        if _break_lines(figure, below * figure.dpi, (below + height) * figure.dpi):
            between.execute(figure)
        figure.set_layout_engine(None)
        for one in figure.legends:  # Not before: the layout makes room for those alone that are anchored nowhere.
            one.set_bbox_to_anchor((0, 0, 1, (below + height) / whole), figure.transFigure)
        if png:
            figure.savefig(path.with_suffix(".png"))
        # The layout's solver adds in the order of addresses, so its last digits are chance.
        for axis in figure.axes:
            axis.set_position(tuple(round(share, 5) for share in axis.get_position(original=True).bounds))
        about = {"Date": None, "Title": title, "Description": caption}
        figure.savefig(path.with_suffix(".svg"), metadata=about)


def strips(title: str, caption: str, width: float) -> tuple[float, float]:
    """How high title and caption are (inches)."""
    above, below = _title_lines(title, width), _caption_lines(caption, width)
    return 0.1 + 0.16 * len(above), 0.15 + 0.145 * len(below) if below else 0.0


def _title_lines(title: str, width: float) -> list[str]:
    return textwrap.wrap(title, int(TITLE_CHARACTERS * width / WIDTH_IN))


def _caption_lines(caption: str, width: float) -> list[str]:
    unbroken = caption.replace(" %", "\N{NO-BREAK SPACE}%")
    return textwrap.wrap(unbroken, int(CAPTION_CHARACTERS * width / WIDTH_IN))


def _set_around(figure: Any, title: str, caption: str, width: float) -> None:
    """Drawn last of all, so that a page that leaves them out leaves out no glyph that others use."""
    inch = 1 / figure.get_figheight()
    figure.text(0.01, 1 - 0.06 * inch, "\n".join(_title_lines(title, width)), fontsize=9.5, weight="bold", va="top",
                gid="title", zorder=9)  # fmt: skip
    figure.text(0.01, 0.05 * inch, "\n".join(_caption_lines(caption, width)), fontsize=7.5, va="bottom",
                color="#333333", gid="caption", zorder=9)  # fmt: skip


def load_seaborn() -> Any:
    """seaborn, for figures."""
    load_matplotlib()
    import seaborn

    return seaborn


def load_matplotlib() -> Any:
    """matplotlib, imported without the display backend that $MPLBACKEND names.

    A notebook names its own there, for the commands that it starts too, and the import fails where that backend is not
    installed. Figures here go to files alone. Code that shares this process still gets the backend where it exists.
    """
    wanted = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        import matplotlib.style
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
    if wanted is not None:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = wanted
    return matplotlib


def _tell_apart(axis: Any) -> None:
    """Lines that lie on one another all along: the lower ones are made wider, with larger markers, so that each shows
    around those that were drawn over it."""
    import numpy as np

    drawn = [line for line in axis.lines if "None" not in (line.get_marker(), line.get_linestyle())]
    lines = [line for line in drawn if len(line.get_xdata()) > 1]  # The legend's samples are of none.
    width = lines[0].get_linewidth() * axis.figure.dpi / 72 if lines else 0.0
    shown = [axis.transData.transform(line.get_xydata()) for line in lines]
    for at, (line, own) in enumerate(zip(lines, shown, strict=True)):
        over = [other for other in shown[at + 1 :] if other.shape == own.shape and np.abs(other - own).max() < width]
        line.set_linewidth(line.get_linewidth() + WIDER * len(over))
        line.set_markersize(line.get_markersize() + 1.5 * WIDER * len(over))


def _break_lines(figure: Any, low: float, high: float) -> bool:
    """Titles and labels that would reach into those of the next panel, off the sheet, or upwards into the legend or
    what is above and below (`low` and `high`, in pixels) get several lines; whether there are some."""
    found = False
    high -= max((legend.get_window_extent().height + GAP_PX for legend in figure.legends), default=0)
    edges = ((0, figure.bbox.width), (low, high))
    for axis in figure.axes:
        for text, across in ((axis.title, 0), (axis.xaxis.label, 0), (axis.yaxis.label, 1)):
            middle, along = _middle(axis, across), _middle(axis, 1 - across)
            # Those beside it along the text: their middles are the neighbours', and so is the room up to them.
            others = [_middle(one, across) for one in figure.axes if abs(_middle(one, 1 - across) - along) < 1]
            ends = [2 * abs(middle - edge) for edge in edges[across]]
            room = min([*(abs(other - middle) for other in others if abs(other - middle) > 1), *ends]) - GAP_PX
            whole, characters = text.get_text().splitlines(), len(text.get_text())
            while text.get_window_extent().size[across] > room and characters > SHORTEST:
                characters -= 1
                text.set_text("\n".join(textwrap.fill(line, characters) for line in whole))
                found = True
    return found


def _middle(axis: Any, across: int) -> float:
    """Of its box, in pixels from the left (0) or from below (1)."""
    return float(axis.bbox.min[across] + axis.bbox.max[across]) / 2


def _take_literally(figure: Any) -> None:
    """Captions and labels name files and strategies: a $ in one begins no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(lambda artist: isinstance(artist, Text) and "$" in artist.get_text()):
        text.set_parse_math(False)


@contextmanager
def _seeded() -> Iterator[None]:
    """seaborn's jitter is drawn from NumPy's global generator."""
    import numpy as np

    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _rc() -> dict[Any, Any]:
    return {
        "svg.hashsalt": "pipeinfer",
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.5,
        "lines.markersize": 5,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "hatch.linewidth": 0.6,
    }


def panels(figure: Any, count: int, *, columns: int = 0, **shared: Any) -> list[Any]:
    """That many axes, two or three beside one another, or in as many `columns`."""
    columns = columns or _beside(count)
    axes = figure.subplots(-(-count // columns), columns, squeeze=False, **shared)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return list(axes.flat[:count])


def _beside(count: int) -> int:
    """How many of so many panels are beside one another."""
    return 3 if count == 3 else min(2, count)


def ticked(axis: Any, values: Iterable[float], base: int | None) -> None:
    """Ticks of x at these values and nowhere else; with a `base` its scale is logarithmic."""
    ticks = sorted({value for value in values if value == value})
    if base is not None:
        axis.set_xscale("log", base=base)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def decade_ticks(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, of an x or y axis whose scale is logarithmic."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def height_of(count: int, row: float) -> float:
    """Inches of `panels`, each `row` high."""
    return 0.4 + row * -(-count // _beside(count))


GAP_PX, SHORTEST = 8, 12
"""Between titles of panels that are beside one another; and the fewest characters of a line of them."""

LEGEND_IN = 4.7
"""How wide a legend may be: as much of a figure as a phone shows at a time."""


def legend_above(figure: Any, axis: Any) -> None:
    """The legend of one of its panels for all of them, in as many rows as it takes."""
    legend(figure, taken_legend(axis))


def taken_legend(axis: Any) -> list[Any]:
    """What is in the legend of a panel, which then has none."""
    handles, _ = axis.get_legend_handles_labels()
    axis.get_legend().remove()
    return list(handles)


def legend(figure: Any, handles: Sequence[Any]) -> None:
    """Above all panels, from the left, where a page that is narrower than the figure begins to show it."""
    room = min(LEGEND_IN, figure.get_figwidth()) * figure.dpi
    for rows in range(1, len(handles) + 1):
        shown = figure.legend(handles=handles, loc="outside upper left", ncols=-(-len(handles) // rows),
                              columnspacing=1.4, handlelength=3)  # fmt: skip
        if rows == len(handles) or shown.get_window_extent().width <= room:
            return
        shown.remove()
