"""Panels of lines with bands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.report.plots.style import GREY, new_figure, style


class Series(msgspec.Struct, frozen=True):
    """One line: `bands` are (low, median, high) per x. `dashed`: theory, drawn without markers and narrow. `broken`: a
    variant of its strategy, drawn without markers."""

    name: str
    strategy: str
    x: list[float]
    bands: list[tuple[float, float, float]]
    dashed: bool = False
    broken: bool = False


class Panel(msgspec.Struct, frozen=True):
    """One pair of axes."""

    title: str
    series: list[Series]


DASHES = {"speculative": (0, (5, 2)), "pipeinfer": (0, (1, 1.2))}
"""Line styles of theory, to be told apart without colour; others are dash-dotted."""

MARKS = ["-", (0, (6, 3))]
"""Line styles of what is drawn across."""

LEGEND_CHARACTERS = 62
"""About what fits in one row of a legend, beside the samples."""


def lines(
    panels: Sequence[Panel],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    caption: str,
    base: int | None = None,
    logarithmic: bool = False,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Panels of lines with markers and bands, on shared axes, x logarithmic to `base`, y from 0 on or `logarithmic`;
    writes path.svg, .png. `marks` are values along y with a name, drawn across."""
    columns = 3 if len(panels) == 3 else min(2, len(panels))
    rows = -(-len(panels) // columns)
    with new_figure(path, caption, height=0.4 + 2.2 * rows) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            axis.set_title(panel.title)
            for (name, value), dashes in zip((marks or {}).items(), MARKS, strict=False):
                axis.axhline(value, color=GREY, linewidth=1, linestyle=dashes, label=name)
            for series in panel.series:
                _line(axis, series)
            _ticks(axis, panel, base)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes.flat[: len(panels)][-columns:]:
            axis.set_xlabel(xlabel)
            axis.tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel(ylabel)
        _limits(axes[0, 0], panels, [*(marks or {}).values()], logarithmic=logarithmic)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        rows_of_legend = -(-sum(map(len, labels)) // LEGEND_CHARACTERS)
        columns_of_legend = -(-len(labels) // rows_of_legend)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns_of_legend, columnspacing=1.4)


def _limits(axis: Any, panels: Sequence[Panel], marks: list[float], *, logarithmic: bool) -> None:
    """Of the axes that all panels share: with room for the highest line of them all, and the lowest."""
    bands = [band for panel in panels for line in panel.series for band in line.bands]
    highest = max([*(band[2] for band in bands), *marks])
    if logarithmic:
        axis.set_yscale("log")
        axis.set_ylim(0.8 * min(band[0] for band in bands), 1.25 * highest)
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_ylim(0, 1.06 * highest)


def _line(axis: Any, series: Series) -> None:
    colour, marker = style(series.strategy)
    low, middle, high = zip(*series.bands, strict=True)
    if series.dashed:
        dashes = DASHES.get(series.strategy, (0, (4, 1, 1, 1)))
        axis.plot(series.x, middle, color=colour, linestyle=dashes, linewidth=1, label=series.name)
        return
    # Where lines coincide, the square is seen around the triangle and the triangle around the dot.
    face, size = ("white", 6.5) if marker == "s" else (colour, 7 if marker == "^" else 4.5)
    axis.plot(
        series.x, middle, color=colour, marker="" if series.broken else marker, markersize=size, markerfacecolor=face,
        label=series.name, linestyle=(0, (4, 2)) if series.broken else "-",
    )  # fmt: skip
    axis.fill_between(series.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _ticks(axis: Any, panel: Panel, base: int | None) -> None:
    ticks = sorted({x for series in panel.series for x in series.x})
    if base is not None:
        axis.set_xscale("log", base=base)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
