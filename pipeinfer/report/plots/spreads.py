"""Rows of a distribution's mean and percentiles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.report.plots.style import new_figure, style

MARKERS = {"p50": "|", "mean": "o", "p95": ">", "p99": "D"}


class Spread(msgspec.Struct, frozen=True):
    """One row: (low, median, high) over trials of the p50, the mean, the p95 and the p99."""

    name: str
    strategy: str
    points: dict[str, tuple[float, float, float]]


def percentiles(groups: Mapping[str, Sequence[Spread]], path: Path, *, xlabel: str, caption: str) -> None:
    """A panel per group; in it a row per strategy, each statistic as a marker of its own with its band as a line."""
    rows = max(len(spreads) for spreads in groups.values())
    with new_figure(path, caption, height=1.15 + 0.4 * rows) as figure:
        axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, spreads) in zip(axes, groups.items(), strict=True):
            axis.set_title(title)
            for row, spread in enumerate(spreads):
                _spread(axis, row, spread)
            axis.set_xlabel(xlabel)
            axis.grid(visible=False, axis="y")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(rows), [spread.name for spread in next(iter(groups.values()))])
        axes[0].set_ylim(rows - 0.4, -0.6)
        highest = max(point[2] for spreads in groups.values() for spread in spreads for point in spread.points.values())
        axes[0].set_xlim(-0.015 * highest, 1.06 * highest)
        figure.legend(handles=_keys(), loc="outside upper center", ncols=len(MARKERS), columnspacing=1.4)


def _spread(axis: Any, row: int, spread: Spread) -> None:
    colour, _ = style(spread.strategy)
    # A little apart, so that statistics that coincide are both seen.
    for offset, (name, (low, middle, high)) in zip((-0.21, -0.07, 0.07, 0.21), spread.points.items(), strict=True):
        axis.plot([low, high], [row + offset] * 2, color=colour, linewidth=1)
        axis.plot([middle], [row + offset], linestyle="", **_marker(name, colour))


def _marker(name: str, colour: str) -> dict[str, Any]:
    face = "white" if name in ("p95", "p99") else colour
    size = {"p50": 8, "mean": 5}.get(name, 4.5)
    return {
        "marker": MARKERS[name],
        "markersize": size,
        "markeredgewidth": 1.2,
        "markerfacecolor": face,
        "color": colour,
    }


def _keys() -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], linestyle="", label=name, **_marker(name, "#000000")) for name in MARKERS]
