"""Figures for print: colours that the colour-blind can tell apart, markers and line styles that do without colour,
units on the axes, and a caption that says fidelity, cluster and workload.

matplotlib is loaded when the first figure is drawn. The same data gives the same SVG, byte for byte.
"""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.results import Trial
from pipeinfer.spans import Span

# The palette of Okabe and Ito.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#999999"

STYLES: dict[str, tuple[str, str]] = {
    "iterative": (BLACK, "s"),
    "speculative": (VERMILLION, "^"),
    "pipeinfer": (BLUE, "o"),
}
"""Colour and marker of the project's own strategies; others take what is left."""
SPARE = [(GREEN, "D"), (PURPLE, "v"), (ORANGE, "P"), (SKY, "X")]

WIDTH_IN = 7.2
CAPTION_CHARACTERS = 122


class Series(msgspec.Struct, frozen=True):
    """One line: `bands` are (low, median, high) per x. `dashed`: theory, drawn without markers."""

    name: str
    strategy: str
    x: list[float]
    bands: list[tuple[float, float, float]]
    dashed: bool = False


class Panel(msgspec.Struct, frozen=True):
    """One pair of axes."""

    title: str
    series: list[Series]


class Strip(msgspec.Struct, frozen=True):
    """One row of dots: every trial's value, and `note` beside the median."""

    name: str
    strategy: str
    values: list[float]
    note: str = ""


class Lane(msgspec.Struct, frozen=True):
    """One timeline: a trial, and the spans of its ranks."""

    title: str
    trial: Trial
    spans: list[Span]


def style(strategy: str) -> tuple[str, str]:
    """Colour and marker of a strategy."""
    return STYLES.get(strategy) or SPARE[sum(map(ord, strategy)) % len(SPARE)]


def lines(
    panels: Sequence[Panel], path: Path, *, xlabel: str, ylabel: str, caption: str, base: int | None = None
) -> None:
    """Panels of lines with markers and bands, on shared axes, x logarithmic to `base`; writes path.svg, .png."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with new_figure(path, caption, height=0.4 + 2.2 * rows) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            axis.set_title(panel.title)
            for series in panel.series:
                _line(axis, series)
            _ticks(axis, panel, base)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel(xlabel)
        for axis in axes[:, 0]:
            axis.set_ylabel(ylabel)
        # The axes are shared, so the limit has to leave room for the highest line of them all.
        axes[0, 0].set_ylim(0, 1.06 * max(band[2] for panel in panels for line in panel.series for band in line.bands))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), columnspacing=1.4)


def _line(axis: Any, series: Series) -> None:
    colour, marker = style(series.strategy)
    low, middle, high = zip(*series.bands, strict=True)
    if series.dashed:
        axis.plot(series.x, middle, color=colour, linestyle=(0, (4, 2)), linewidth=1, label=series.name)
        return
    axis.plot(series.x, middle, color=colour, marker=marker, label=series.name)
    axis.fill_between(series.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _ticks(axis: Any, panel: Panel, base: int | None) -> None:
    ticks = sorted({x for series in panel.series for x in series.x})
    if base is not None:
        axis.set_xscale("log", base=base)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def dots(groups: Mapping[str, Sequence[Strip]], path: Path, *, xlabel: str, caption: str) -> None:
    """A panel per group; in it a row per strip: each trial as a dot, the median as a bar. Writes path.svg, .png."""
    rows = max(len(strips) for strips in groups.values())
    with new_figure(path, caption, height=0.75 + min(0.36, 2.4 / rows**0.5) * rows) as figure:
        axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, strips) in zip(axes, groups.items(), strict=True):
            axis.set_title(title)
            for row, strip in enumerate(strips):
                _strip(axis, row, strip)
            axis.set_xlabel(xlabel)
            axis.grid(visible=False, axis="y")
            axis.tick_params(axis="y", length=0)
        first = next(iter(groups.values()))
        axes[0].set_yticks(range(rows), [strip.name for strip in first])
        axes[0].set_ylim(rows - 0.45, -0.6)
        axes[0].set_xlim(0, 1.12 * max(max(strip.values) for strips in groups.values() for strip in strips))


def _strip(axis: Any, row: int, strip: Strip) -> None:
    from pipeinfer.metrics import median_band

    colour, marker = style(strip.strategy)
    low, middle, high = median_band(strip.values)
    count = len(strip.values)
    # Spread up and down in the order of the trials, so that dots of one value are all seen.
    y = [row + 0.4 * ((i + 0.5) / count - 0.5) for i in range(count)]
    axis.add_patch(_rectangle(low, row - 0.28, high - low, 0.56, facecolor=colour, alpha=0.15, linewidth=0))
    axis.vlines(middle, row - 0.28, row + 0.28, color=colour, linewidth=2)
    axis.plot(strip.values, y, linestyle="", marker=marker, markersize=3.5, markerfacecolor="white", color=colour)
    note = f"{middle:.3g}" + f" ({strip.note})" * bool(strip.note)
    axis.annotate(note, (max(high, *strip.values, middle), row), xytext=(5, 0), textcoords="offset points", va="center",
                  fontsize=7.5)  # fmt: skip


# Timelines

FILLS: dict[str, dict[str, Any]] = {
    "prompt": {"facecolor": GREY, "edgecolor": "white"},
    "single token": {"facecolor": SKY, "edgecolor": "white"},
    "speculative, accepted": {"facecolor": BLUE, "edgecolor": "white"},
    "speculative, rejected": {"facecolor": ORANGE, "edgecolor": "white", "hatch": "//////"},
    "cut short by cancellation": {"facecolor": "white", "edgecolor": VERMILLION, "hatch": "xxxxxx"},
    "draft": {"facecolor": GREEN, "edgecolor": "white"},
}
"""What a box stands for: its colour, and hatching where grey tones alone would not tell."""


def timeline(lanes: Sequence[Lane], path: Path, *, until: float, caption: str) -> None:
    """Ranks as rows, runs as boxes, committed tokens as ticks, for each lane; seconds 0 to `until`."""
    heights = [len(lane.trial.ranks) + 1.6 for lane in lanes]
    with new_figure(path, caption, height=0.8 + 0.2 * sum(heights)) as figure:
        axes = figure.subplots(len(lanes), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axis, lane in zip(axes, lanes, strict=True):
            _lane(axis, lane, until)
        axes[-1].set_xlabel("time since the request (s)")
        figure.legend(handles=_fills(), loc="outside upper center", ncols=4, columnspacing=1.4)


def _lane(axis: Any, lane: Lane, until: float) -> None:
    rows = _rows(lane.trial)
    for span in lane.spans:
        if span.start < until:
            width = min(span.end, until) - span.start
            fill = FILLS[_fill(span, lane.trial)]
            axis.add_patch(_rectangle(span.start, rows[span.rank] - 0.41, width, 0.82, linewidth=0.4, **fill))
    bottom = len(rows)
    for when, count in sorted(Counter(when for when in lane.trial.emit_s if when <= until).items()):
        axis.vlines(when, bottom - 0.45, bottom + 0.35, color=BLACK, linewidth=1)
        if count > 1:
            axis.annotate(f"{count}", (when, bottom + 0.4), ha="center", va="top", fontsize=6.5)
    names = {row: f"stage {rank}" if role == "target" else "draft" for rank, role, row in _named(lane.trial, rows)}
    axis.set_yticks([*names, bottom], [*names.values(), "committed"])
    axis.set_xlim(0, until)
    axis.set_ylim(bottom + 1.1, -0.6)
    axis.set_title(lane.title, loc="left")
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def _rows(trial: Trial) -> dict[int, int]:
    """Row of each rank: the draft above the stages, where there is one."""
    ordered = sorted(trial.ranks, key=lambda rank: (rank.role != "draft", rank.rank))
    return {rank.rank: row for row, rank in enumerate(ordered)}


def _named(trial: Trial, rows: Mapping[int, int]) -> Iterator[tuple[int, str, int]]:
    for rank in trial.ranks:
        yield rank.rank, rank.role, rows[rank.rank]


def _fill(span: Span, trial: Trial) -> str:
    if span.aborted:
        return "cut short by cancellation"
    kind, _, number = span.name.partition(" ")
    if kind != "speculative":
        return {"single": "single token"}.get(kind, kind)
    return "speculative, accepted" if trial.runs[int(number)].accepted else "speculative, rejected"


def _fills() -> list[Any]:
    patches = [_rectangle(0, 0, 1, 1, label=name, **fill) for name, fill in FILLS.items()]
    from matplotlib.lines import Line2D

    tick = Line2D([], [], color=BLACK, linestyle="", marker="|", markersize=8, label="commit (tokens, if several)")
    return [*patches, tick]


# What all figures share


@contextmanager
def new_figure(path: Path, caption: str, height: float) -> Iterator[Any]:
    """A figure in the house style; on leaving, the caption is set below it and both files are written."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines_of_caption = textwrap.wrap(caption, CAPTION_CHARACTERS)
    below = 0.15 + 0.145 * len(lines_of_caption)
    with matplotlib.rc_context(_rc()):
        above_caption = ConstrainedLayoutEngine(rect=(0, below / (height + below), 1, height / (height + below)))
        figure = Figure(figsize=(WIDTH_IN, height + below), layout=above_caption)
        yield figure
        figure.text(
            0.01, 0.05 / (height + below), "\n".join(lines_of_caption), fontsize=7.5, va="bottom", color="#333333"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=200)


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


def _rectangle(x: float, y: float, width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, **style)
