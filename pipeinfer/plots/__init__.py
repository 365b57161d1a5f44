"""Figures for print, one file per kind of drawing; each writes path.svg and path.png."""

from pipeinfer.plots.curves import layer_times
from pipeinfer.plots.house import (
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
from pipeinfer.plots.lanes import Lane, timeline
from pipeinfer.plots.panels import Panel, Series, lines
from pipeinfer.plots.spots import Spot, scatter
from pipeinfer.plots.spreads import Spread, percentiles
from pipeinfer.plots.strips import Strip, dots

__all__ = [
    "BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY", "VERMILLION", "YELLOW", "Lane", "Panel", "Series",
    "Spot", "Spread", "Strip", "dots", "layer_times", "lines", "new_figure", "percentiles", "scatter", "style",
    "timeline",
]  # fmt: skip
