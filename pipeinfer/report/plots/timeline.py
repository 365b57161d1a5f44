"""Ranks as rows, runs as boxes: what each rank computes when."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeinfer.report.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, new_figure, rectangle
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.spans import Span

FILLS: dict[str, dict[str, Any]] = {
    "prompt": {"facecolor": GREY, "edgecolor": "white"},
    "single token": {"facecolor": SKY, "edgecolor": "white"},
    "speculative, accepted": {"facecolor": BLUE, "edgecolor": "white"},
    "speculative, rejected": {"facecolor": ORANGE, "edgecolor": "white", "hatch": "//////"},
    "cut short by cancellation": {"facecolor": "white", "edgecolor": VERMILLION, "hatch": "xxxxxx"},
    "draft": {"facecolor": GREEN, "edgecolor": "white"},
}
"""What a box stands for: its colour, and hatching where grey tones alone would not tell."""


class Lane(msgspec.Struct, frozen=True):
    """One timeline: a trial, and the spans of its ranks."""

    title: str
    trial: Trial
    spans: list[Span]


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
            axis.add_patch(rectangle(span.start, rows[span.rank] - 0.41, width, 0.82, linewidth=0.4, **fill))
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
    patches = [rectangle(0, 0, 1, 1, label=name, **fill) for name, fill in FILLS.items()]
    from matplotlib.lines import Line2D

    tick = Line2D([], [], color=BLACK, linestyle="", marker="|", markersize=8, label="commit (tokens, if several)")
    return [*patches, tick]
