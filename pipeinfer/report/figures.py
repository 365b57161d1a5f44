"""The figures of a recipe, drawn by seaborn from its rows of the table of trials, with a caption that says what was run
on what."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.at_once import at_once
from pipeinfer.report.axes import OPTIONS, X, Y
from pipeinfer.report.categories import categories
from pipeinfer.report.dots import dots, percentiles
from pipeinfer.report.drafts import calibration, stretches
from pipeinfer.report.drawn import Drawings
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.league import league
from pipeinfer.report.panelled import panelled, sheet
from pipeinfer.report.prediction import scatter
from pipeinfer.report.published import published_claims
from pipeinfer.report.style import (
    BROKEN,
    GREY,
    THIN,
    decade_ticks,
    height_of,
    legend_above,
    load_seaborn,
    looks,
    panels,
    ticked,
)
from pipeinfer.report.timeline import timeline
from pipeinfer.results.analysis import BASELINE, REFERENCE, SPEED, band
from pipeinfer.study.recipes import Figure, Recipe

WORDS = {
    "speed": "generation-speed", "gain": "speedup", "gap": "inter-token-latency", "tail": "inter-token-latency-p95",
    "gaps": "inter-token-latency-percentiles", "first": "time-to-first-token", "processor": "processor-time",
    "memory": "memory-of-largest-rank", "per_memory": "speed-per-gigabyte",
    "bandwidth_gbps": "bandwidth", "latency_us": "latency",
    "width_cost": "row-cost", "draft_cost": "draft-cost", "size": "run-size", "calibration": "draft-calibration",
    "stretches": "drafts-right-in-a-row", "scatter": "simulated-over-measured", "league": "who-wins-where",
    "requests": "speed-of-all-by-requests",
}  # fmt: skip
"""What quantities, axes and kinds of figures are called in the names of files."""


def figure_name(recipe: Recipe, figure: Figure) -> str:
    """File name without suffix: the recipe, its fidelity where it is emulated, and what is drawn."""
    what = figure.y if figure.kind in ("lines", "dots", "percentiles") else figure.kind
    along = ["by", WORDS.get(figure.x, figure.x)] if figure.kind == "lines" else []
    drawn = [WORDS.get(what, what)] if what != recipe.name else []
    return "-".join([recipe.name, *["emulated"] * (recipe.emulation is not None), *drawn, *along])


def draw(drawings: Drawings, experiment: Experiment, figure: Figure, folder: Path) -> Path:
    """Have a figure of an experiment that has trials drawn, as SVG and PNG; its path, without suffix."""
    path = folder / figure_name(experiment.recipe, figure)
    drawings.draw(path, experiment.mark(figure), _DRAWN[figure.kind], experiment, figure)
    return path


def draw_card(drawings: Drawings, experiment: Experiment, figure: Figure, path: Path, claim: str) -> None:
    """The same, small: for a claim's card."""
    small = partial(_DRAWN[figure.kind], card=f"{claim}: {Y[figure.y].label}")
    drawings.draw(path, experiment.mark((figure, claim)), small, experiment, figure)


# Lines


def _lines(experiment: Experiment, figure: Figure, path: Path, *, card: str = "") -> None:
    sns, small = load_seaborn(), bool(card)

    x, y = X[figure.x], Y[figure.y]
    rows, theory = _along(experiment, figure), _theory(experiment, figure)
    theory = theory[:0] if small else theory  # which only a caption can explain
    marks = _marks(experiment.recipe) if figure.y == "gain" else {}
    contenders = experiment.contenders(rows)
    # A variant of a strategy has its colour and broken lines.
    variants = [
        name for name in contenders if experiment.style_of(name) != name and experiment.recipe.strategies[name].setting
    ]
    shared = looks("contender", {name: experiment.style_of(name) if name in variants else name for name in contenders})
    shared["dashes"] = {name: (4, 2) if name in variants else "" for name in contenders}
    caption = [captions.setting(experiment), captions.swept(experiment.recipe, figure), captions.repeated(experiment)]
    caption += [] if theory.empty else ["Thin: the same cells, simulated." if experiment.recipe.emulation else _CLOSED]
    by_panel, theory_by_panel = (panelled(experiment, figure, some, small=small) for some in (rows, theory))
    heights = height_of(len(by_panel), 2.2), 0.4 + 1.6 * len(by_panel)
    with sheet(path, experiment, figure, card, " ".join(filter(None, caption)), heights) as drawing:
        axes = panels(drawing, len(by_panel), columns=1 if small else 0, sharex=True, sharey=True if small else "row")
        for axis, (title, shown) in zip(axes, by_panel.items(), strict=True):
            for (name, value), dashes in zip(marks.items(), ["-", BROKEN], strict=False):
                axis.axhline(value, color=GREY, linewidth=1, linestyle=dashes, label=name)
            sns.lineplot(
                shown, x="x", y=y.column, estimator="median", errorbar=band, ax=axis, legend=axis is axes[0],
                err_kws={"alpha": 0.15, "linewidth": 0}, **shared,
            )  # fmt: skip
            if title in theory_by_panel:
                sns.lineplot(
                    theory_by_panel[title], x="x", y="y", hue="contender", palette=shared["palette"],
                    estimator="median", errorbar=None, legend=False, ax=axis, **THIN,
                )  # fmt: skip
            ticked(axis, rows.x, x.base)
            last = axis is axes[-1]  # A card's title says what is along y.
            axis.set(title=title, xlabel=x.label if last or not small else "", ylabel="" if small else y.title)
            axis.tick_params(labelbottom=True)
        alike = len(axes) if small else axes[0].get_gridspec().ncols
        for at in range(0, len(axes), alike):
            beside = [*by_panel][at : at + alike]
            values = pd.concat([by_panel[title] for title in beside])[y.column]
            lines = pd.concat([theory[:0], *(theory_by_panel[title] for title in beside if title in theory_by_panel)]).y
            _limits(axes[at], values, [*lines, *marks.values()], logarithmic=y.logarithmic)
        legend_above(drawing, axes[0])


_CLOSED = "Thin: closed form for i.i.d. acceptance where width and links are free."


def _limits(axis: Any, values: pd.Series, others: list[float], *, logarithmic: bool) -> None:
    """Of the axis that panels beside one another share: with room for the highest line of them all, and the lowest."""
    highest = max([values.max(), *others])
    if logarithmic:
        axis.set_yscale("log")
        axis.set_ylim(0.8 * values.min(), 1.25 * highest)
        decade_ticks(axis.yaxis)
    else:
        axis.set_ylim(0, 1.06 * highest)


def _marks(recipe: Recipe) -> dict[str, float]:
    """What a gain is held against: none, and what was published where the recipe bears on it."""
    published = [published_claims()[name] for name in recipe.claims]
    return {"no gain": 1.0, **{f"published: {one.published}": one.value for one in published if one.value}}


def _along(experiment: Experiment, figure: Figure) -> pd.DataFrame:
    """Rows with `x`: of each contender's best in each place, or of the best with each value of an option. What knows no
    such option has one value all along."""
    variable = X[figure.x]
    rows = experiment.valid if figure.x in OPTIONS else experiment.best
    rows = rows.assign(x=rows[[*variable.columns]].bfill(axis=1).iloc[:, 0] / variable.unit)
    if figure.y == "gain":
        return rows[rows.contender != BASELINE]
    if figure.x not in OPTIONS:
        return rows
    group = ["place", "contender", "x"]
    speed = rows.groupby([*group, "variant"], dropna=False)[SPEED].transform("median")
    rows = rows[speed == speed.groupby([rows[name] for name in group], dropna=False).transform("max")]
    ends = [rows[rows.x.isna()].assign(x=end) for end in (rows.x.min(), rows.x.max())]
    return pd.concat([rows[rows.x.notna()], *ends])


def _theory(experiment: Experiment, figure: Figure) -> pd.DataFrame:
    """Rows with `x` and `y`: the closed forms, or the simulation of what is emulated."""
    x = X[figure.x]
    if experiment.recipe.emulation and figure.y != "gain":
        found, column = experiment.simulated[experiment.simulated.best], Y[figure.y].column
    else:
        found, column = experiment.best, "limit_tokens_per_s"
        known = figure.y == "speed" and figure.x not in OPTIONS and not experiment.recipe.emulation
        found = found[found[column].notna() & (found.contender != REFERENCE) & known]
    return found.assign(x=found[x.columns[0]] / x.unit, y=found[column])


_DRAWN: dict[str, Callable[..., None]] = {
    "lines": _lines, "dots": dots, "percentiles": percentiles, "timeline": timeline, "league": league,
    "calibration": calibration, "stretches": stretches, "scatter": scatter, "categories": categories,
    "requests": at_once,
}  # fmt: skip
"""By kind, what draws an experiment's figure into a file; of lines and dots with `card`, small and so called."""
