"""Figures for print, one file per kind of drawing; each writes path.svg and path.png."""

from pipeinfer.report.plots.curves import layer_times
from pipeinfer.report.plots.panels import Panel, Series, lines
from pipeinfer.report.plots.predicted_measured import Spot, scatter
from pipeinfer.report.plots.spreads import Spread, percentiles
from pipeinfer.report.plots.strips import Strip, dots
from pipeinfer.report.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    new_figure,
    style,
)
from pipeinfer.report.plots.timeline import Lane, timeline

__all__ = [
    "BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY", "VERMILLION", "YELLOW", "Lane", "Panel", "Series",
    "Spot", "Spread", "Strip", "dots", "layer_times", "lines", "new_figure", "percentiles", "scatter", "style",
    "timeline",
]  # fmt: skip
