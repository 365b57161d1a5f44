"""Ranks as rows, runs as boxes: what each rank computes when."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.style import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, legend, new_figure
from pipeinfer.study.recipes import Figure

FILLS: dict[str, dict[str, Any]] = {
    "prompt": {"facecolor": GREY, "edgecolor": "white"},
    "single token": {"facecolor": SKY, "edgecolor": "white"},
    "speculative, accepted": {"facecolor": BLUE, "edgecolor": "white"},
    "speculative, rejected": {"facecolor": ORANGE, "edgecolor": "white", "hatch": "//////"},
    "cut short by cancellation": {"facecolor": "white", "edgecolor": VERMILLION, "hatch": "xxxxxx"},
    "draft": {"facecolor": GREEN, "edgecolor": GREEN},
}
"""What a box stands for: its colour, and hatching where grey tones alone would not tell."""


def timeline(experiment: Experiment, figure: Figure, path: Path) -> None:
    """One draw of each contender: ranks as rows, runs as boxes, commits as ticks, until the first has ended."""
    shown = experiment.best.drop_duplicates("contender")
    until = shown.duration_s.min()
    ranks = {row.config_hash: _of(experiment.ranks, row.config_hash) for row in shown.itertuples()}
    heights = [len(found) + 1.6 for found in ranks.values()]
    caption = (
        f"{captions.setting(experiment)} Acceptance {shown.acceptance.iloc[0]:g}, one draw. K and micro-batch: the "
        "fastest that was tried."
    )
    title = captions.title(experiment.recipe, figure)
    with new_figure(path, title, caption, height=0.8 + 0.2 * sum(heights)) as drawing:
        axes = drawing.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axis, row in zip(axes, shown.itertuples(), strict=True):
            emitted = _of(experiment.gaps, row.config_hash).at_s
            commits = emitted[emitted <= until].value_counts().sort_index()
            chosen = experiment.chosen(row.contender, row.variant)
            axis.set_title(f"{row.contender}: {commits.sum()} tokens in {until:.1f} s" + f" ({chosen})" * bool(chosen),
                           loc="left")  # fmt: skip
            _draw(axis, ranks[row.config_hash], _of(experiment.spans, row.config_hash), commits, until)
        axes[-1].set_xlabel("time since the request (s)")
        legend(drawing, _handles())


def _of(table: pd.DataFrame, config_hash: str) -> pd.DataFrame:
    return table[table.config_hash == config_hash]


def _draw(axis: Any, ranks: pd.DataFrame, spans: pd.DataFrame, commits: pd.Series, until: float) -> None:
    # The draft above the stages, where there is one.
    rows = ranks.assign(stage=ranks.role != "draft").sort_values(["stage", "rank"], ignore_index=True)
    height = dict(zip(rows["rank"], rows.index, strict=True))
    for kind, fill in FILLS.items():
        some = spans[(spans.kind == kind) & (spans.start_s < until)]
        widths = some.end_s.clip(upper=until) - some.start_s
        axis.barh(some["rank"].map(height), widths, 0.82, some.start_s, linewidth=0.4, **fill)
    bottom = len(rows)
    axis.vlines(commits.index, bottom - 0.45, bottom + 0.35, color=BLACK, linewidth=1)
    for when, count in commits[commits > 1].items():
        axis.annotate(f"{count}", (when, bottom + 0.4), ha="center", va="top", fontsize=6.5)
    names = ["draft" if row.role == "draft" else f"stage {row.rank}" for row in rows.itertuples()]
    axis.set_yticks(range(bottom + 1), [*names, "committed"])
    axis.set_xlim(0, until)
    axis.set_ylim(bottom + 1.1, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    patches = [Patch(label=name, **fill) for name, fill in FILLS.items()]
    tick = Line2D([], [], color=BLACK, linestyle="", marker="|", markersize=8, label="commit (tokens, if several)")
    return [*patches, tick]
