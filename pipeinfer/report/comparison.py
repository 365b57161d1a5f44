"""The picture of a comparison: the ratio of each cell with its interval, a panel per metric."""

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from msgspec.structs import asdict

from pipeinfer.report.style import BLACK, BLUE, GREY, ORANGE, VERMILLION, legend, new_figure
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
    rows = pd.DataFrame(list(map(asdict, comparison.rows)), columns=Row.__struct_fields__)
    rows = rows.astype(dict.fromkeys(("ratio", "low", "high"), "float64")).dropna(subset=["ratio"])
    cells = rows.cell.unique()
    if len(cells) > MOST_CELLS:
        cells = rows[rows.verdict != "no change"].cell.unique()[:MOST_CELLS]
    rows = rows.assign(y=rows.cell.map({cell: y for y, cell in enumerate(cells)}))
    caption = (
        f"Ratio of the better quartiles, {comparison.head} / {comparison.base}, with {comparison.confidence * 100:g} % "
        f"percentile-bootstrap intervals. Grey band: changes below the threshold of {comparison.threshold * 100:g} %."
    )
    title = f"{comparison.head} beside {comparison.base}"
    with new_figure(path, title, caption, height=1.0 + 0.2 * max(len(cells), 3)) as figure:
        axes = figure.subplots(1, max(1, rows.metric.nunique()), sharey=True, squeeze=False)[0]
        marks: dict[str, Any] = {}
        for axis, (metric, some) in zip(axes, rows.groupby("metric", sort=False), strict=False):
            axis.set_title(textwrap.fill(str(metric), TITLE_CHARACTERS))
            marks |= _panel(axis, some, comparison.threshold)
        axes[0].set_yticks(range(len(cells)), cells)
        axes[0].set_ylim(len(cells) - 0.4, -0.6)
        legend(figure, [marks[verdict] for verdict in MARKS if verdict in marks])


def _panel(axis: Any, rows: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """What each verdict in it looks like."""
    axis.axvspan(1 - threshold, 1 + threshold, color=GREY, alpha=0.2, linewidth=0)
    axis.axvline(1, color=GREY, linewidth=1)
    axis.set_xlabel("head / base")
    axis.grid(visible=False, axis="y")
    marks = {}
    for verdict, some in rows.dropna(subset=["y"]).groupby("verdict"):
        (colour, marker), name = MARKS[str(verdict)], str(verdict)
        axis.hlines(some.y, some.low, some.high, color=colour, linewidth=1.5)
        (marks[name],) = axis.plot(some.ratio, some.y, marker=marker, color=colour, linestyle="none", label=name)
    return marks
