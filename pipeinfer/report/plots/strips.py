"""Rows of single values with their median and band."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.report.plots.style import GREY, WIDTH_IN, new_figure, rectangle, style
from pipeinfer.results.metrics import median_band


class Strip(msgspec.Struct, frozen=True):
    """One row of dots: every trial's value, and `note` beside the median. A line parts rows of different `group`."""

    name: str
    strategy: str
    values: list[float]
    note: str = ""
    group: str = ""


def dots(groups: Mapping[str, Sequence[Strip]], path: Path, *, xlabel: str, caption: str) -> None:
    """A panel per group; in it a row per strip: each trial as a dot, the median as a bar. Writes path.svg, .png."""
    rows = max(len(strips) for strips in groups.values())
    with new_figure(path, caption, height=0.75 + min(0.36, 2.4 / rows**0.5) * rows) as figure:
        axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, strips) in zip(axes, groups.items(), strict=True):
            axis.set_title(title)
            for row, strip in enumerate(strips):
                _strip(axis, row, strip)
                if row and strip.group != strips[row - 1].group:
                    axis.axhline(row - 0.5, color=GREY, linewidth=0.4)
            axis.set_xlabel(xlabel)
            axis.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
            axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(visible=False, axis="y")
            axis.tick_params(axis="y", length=0)
        first = next(iter(groups.values()))
        axes[0].set_yticks(range(rows), [strip.name for strip in first])
        axes[0].set_ylim(rows - 0.45, -0.6)
        width = (WIDTH_IN - 0.1 - CHARACTER_IN * max(len(strip.name) for strip in first)) / len(groups)
        axes[0].set_xlim(0, max(_reach(strip, width) for strips in groups.values() for strip in strips))


CHARACTER_IN = 0.053
"""About the width of a character beside a row (inches)."""


def _reach(strip: Strip, width: float) -> float:
    """How far an axis of `width` inches has to go for the row's last value and what is written beside it."""
    _, middle, high = median_band(strip.values)
    share = (2 + len(_label(middle, strip.note))) * CHARACTER_IN / width
    return max(high, *strip.values, middle) / max(0.3, 1 - share)


def _label(middle: float, note: str) -> str:
    return f"{middle:.3g}" + f" ({note})" * bool(note)


def _strip(axis: Any, row: int, strip: Strip) -> None:
    colour, marker = style(strip.strategy)
    low, middle, high = median_band(strip.values)
    # Spread up and down in the order of the trials, so that all are seen; what never differs is one dot.
    values = strip.values if max(strip.values) > 1.002 * min(strip.values) else [middle]
    y = [row + 0.4 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
    axis.add_patch(rectangle(low, row - 0.28, high - low, 0.56, facecolor=colour, alpha=0.15, linewidth=0))
    axis.vlines(middle, row - 0.28, row + 0.28, color=colour, linewidth=2)
    axis.plot(values, y, linestyle="", marker=marker, markersize=3.5, markerfacecolor="white", color=colour)
    axis.annotate(
        _label(middle, strip.note), (max(high, *strip.values, middle), row), xytext=(5, 0), textcoords="offset points",
        va="center", fontsize=7.5,
    )  # fmt: skip
