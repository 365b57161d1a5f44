"""What was predicted over what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pipeinfer.report.plots.style import BLACK, GREY, new_figure, style

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One per engine, in the order in which they come."""


class Spot(msgspec.Struct, frozen=True):
    """A measured value and its prediction, by an engine under a strategy."""

    engine: str
    strategy: str
    measured: float
    predicted: float


def scatter(
    spots: Sequence[Spot],
    path: Path,
    engines: Mapping[str, str],
    *,
    band: float,
    xlabel: str,
    ylabel: str,
    caption: str,
) -> None:
    """Log-log, with the line of equality and a band around it; `engines` has the text of each engine's marker. Writes
    path.svg and .png."""
    values = [value for spot in spots for value in (spot.measured, spot.predicted)]
    low, high = min(values) / 1.25, max(values) * 1.25
    with new_figure(path, caption, height=4.2) as figure:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

        axis = figure.subplots()
        axis.fill_between([low, high], [low * (1 - band), high * (1 - band)], [low * (1 + band), high * (1 + band)],
                          color=GREY, alpha=0.2, linewidth=0)  # fmt: skip
        axis.plot([low, high], [low, high], color=BLACK, linewidth=0.8)
        for spot in spots:
            marker = MARKERS[list(engines).index(spot.engine) % len(MARKERS)]
            axis.plot(spot.measured, spot.predicted, linestyle="", marker=marker, markerfacecolor="none",
                      markeredgewidth=1.3, color=style(spot.strategy)[0])  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(low, high)
        axis.set_ylim(low, high)
        axis.set_aspect("equal")
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            one.set_major_formatter(ScalarFormatter())
            one.set_minor_formatter(NullFormatter())
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        shapes = [
            Line2D(
                [], [], linestyle="", marker=MARKERS[i % len(MARKERS)], markerfacecolor="none", color=BLACK, label=text
            )
            for i, text in enumerate(engines.values())
        ]
        colours = [
            Line2D([], [], linewidth=3, color=style(name)[0], label=name)
            for name in dict.fromkeys(spot.strategy for spot in spots)
        ]
        axis.legend(handles=[*shapes, *colours], loc="upper left", bbox_to_anchor=(1.02, 1.0))
