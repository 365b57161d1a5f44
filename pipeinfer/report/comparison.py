"""The picture of a comparison: the ratio of each cell with its interval, a panel per metric."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeinfer.report.style import BLACK, BLUE, GREY, ORANGE, VERMILLION, new_figure
from pipeinfer.results.compare import Comparison
from pipeinfer.results.compare.judge import Row

MOST_CELLS = 60
TITLE_CHARACTERS = 16
MARKS = {
    "regression": (VERMILLION, "v"),
    "improvement": (BLUE, "^"),
    "no change": (BLACK, "o"),
    "unclear": (ORANGE, "D"),
    "too few": (GREY, "x"),
}


def draw(comparison: Comparison, path: Path) -> None:
    """Write the picture as .svg and .png. Of many cells, those in which something changed are drawn."""
    rows = [row for row in comparison.rows if row.ratio is not None]
    cells = list(dict.fromkeys(row.cell for row in rows))
    if len(cells) > MOST_CELLS:
        changed = {row.cell for row in rows if row.verdict != "no change"}
        cells = [cell for cell in cells if cell in changed][:MOST_CELLS]
    metrics = list(dict.fromkeys(row.metric for row in rows))
    caption = (
        f"Ratio of the better quartiles, {comparison.head} / {comparison.base}, with {comparison.confidence * 100:g} % "
        f"percentile-bootstrap intervals. Grey band: changes below the threshold of {comparison.threshold * 100:g} %."
    )
    with new_figure(path, caption, height=1.0 + 0.2 * max(len(cells), 3)) as figure:
        axes = figure.subplots(1, len(metrics) or 1, sharey=True, squeeze=False)[0]
        for axis, metric in zip(axes, metrics, strict=False):
            axis.set_title(textwrap.fill(metric, TITLE_CHARACTERS))
            _panel(axis, [row for row in rows if row.metric == metric], cells, comparison.threshold)
        axes[0].set_yticks(range(len(cells)), cells)
        axes[0].set_ylim(len(cells) - 0.4, -0.6)
        figure.legend(handles=_legend(rows), loc="outside upper center", ncols=len(MARKS))


def _panel(axis: Any, rows: Sequence[Row], cells: Sequence[str], threshold: float) -> None:
    axis.axvspan(1 - threshold, 1 + threshold, color=GREY, alpha=0.2, linewidth=0)
    axis.axvline(1, color=GREY, linewidth=1)
    for row in rows:
        if row.cell in cells and row.ratio is not None and row.low is not None and row.high is not None:
            colour, marker = MARKS[row.verdict]
            y = cells.index(row.cell)
            axis.hlines(y, row.low, row.high, color=colour, linewidth=1.5)
            axis.plot(row.ratio, y, marker=marker, color=colour)
    axis.set_xlabel("head / base")
    axis.grid(visible=False, axis="y")


def _legend(rows: Sequence[Row]) -> list[Any]:
    from matplotlib.lines import Line2D

    found = {row.verdict for row in rows}
    return [
        Line2D([], [], color=colour, marker=marker, label=verdict)
        for verdict, (colour, marker) in MARKS.items()
        if verdict in found
    ]
