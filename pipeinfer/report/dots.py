"""Figures with a row per contender and place: every trial as a dot, or percentiles."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.axes import Y
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.page import rounded
from pipeinfer.report.panelled import panelled, sheet
from pipeinfer.report.style import legend_above, load_seaborn, new_figure, panels, style
from pipeinfer.results.analysis import band
from pipeinfer.study.recipes import Figure


def percentiles(experiment: Experiment, figure: Figure, path: Path) -> None:
    sns = load_seaborn()

    markers = {"p50": "|", "mean": "o", "p95": ">", "p99": "D"}
    names = [f"itl_{name}_s" for name in markers]
    rows = experiment.best.assign(row=_rows(experiment, figure))
    long = rows.melt(["place", "row"], names, "statistic", "s").replace(
        {"statistic": dict(zip(names, markers, strict=True))}
    )
    by_panel = panelled(experiment, figure, long)
    caption = (
        f"{captions.setting(experiment)} {captions.swept(experiment.recipe, figure)} Gaps of zero, within tokens "
        f"committed together, count. Median of {captions.draws(experiment)}; lines: 95 % bootstrap interval."
    )
    title = captions.title(experiment.recipe, figure)
    with new_figure(path, title, caption, height=1.15 + 0.4 * rows.row.nunique()) as drawing:
        axes = panels(drawing, len(by_panel), columns=len(by_panel), sharex=True, sharey=True)
        for axis, (title, shown) in zip(axes, by_panel.items(), strict=True):
            sns.pointplot(
                shown, x="s", y="row", hue="statistic", estimator="median", errorbar=band, markers=[*markers.values()],
                linestyle="none", dodge=0.4, palette="colorblind", markersize=5, err_kws={"linewidth": 1}, ax=axis,
                legend=axis is axes[0],
            )  # fmt: skip
            axis.set(title=title, xlabel=Y["gaps"].title, ylabel="", xlim=(0, None))
            axis.grid(visible=False, axis="y")
        legend_above(drawing, axes[0])


def _rows(experiment: Experiment, figure: Figure) -> list[str]:
    """For each of the best trials, what its row is called."""
    names = {}
    for number, place in experiment.places.items():
        drafts = {"": "i.i.d.", "varied": "varied"}.get(place.drafts, "recorded") if "rate" in figure.panels else ""
        names[number] = [drafts, experiment.where(number, (*figure.panels, "temperature"))]
    best = experiment.best
    return [
        ", ".join(filter(None, [*names[place], who])) for place, who in zip(best.place, best.contender, strict=True)
    ]


def dots(experiment: Experiment, figure: Figure, path: Path, *, card: str = "") -> None:
    sns, small = load_seaborn(), bool(card)

    recipe, y = experiment.recipe, Y[figure.y]
    rows = experiment.best.assign(
        row=_rows(experiment, figure), style=experiment.best.contender.map(experiment.style_of)
    )
    by_panel = panelled(experiment, figure, rows, small=small)
    rows = pd.concat(by_panel.values())
    order = list(dict.fromkeys(rows.row))
    palette = {name: style(name)[0] for name in dict.fromkeys(rows["style"])}
    repeated = f"one of {captions.draws(experiment)}" if recipe.simulated else "a trial"
    caption = (
        f"{captions.setting(experiment)} {captions.swept(recipe, figure)} Each dot is {repeated}; bar: median, "
        f"{captions.BAND}."
    )
    high = 0.75 + min(0.36, 2.4 / len(order) ** 0.5) * len(order)
    with sheet(path, experiment, figure, card, caption, (high, 0.3 + (high - 0.3) * len(by_panel))) as drawing:
        axes = panels(drawing, len(by_panel), columns=1 if small else len(by_panel), sharex=True, sharey=True)
        for axis, (title, shown) in zip(axes, by_panel.items(), strict=True):
            shared: dict[str, Any] = {"x": y.column, "y": "row", "order": order, "hue": "style", "palette": palette,
                                      "legend": False, "ax": axis}  # fmt: skip
            sns.stripplot(shown, **shared, size=3, alpha=0.6, jitter=0.22)
            sns.pointplot(shown, **shared, estimator="median", errorbar=band, linestyle="none", marker="|",
                          markersize=11, err_kws={"linewidth": 5, "alpha": 0.3})  # fmt: skip
            _notes(axis, experiment, shown, y.column, order)
            last = axis is axes[-1]
            axis.set(title=title, xlabel=y.title if not small else y.label if last else "", ylabel="")
            axis.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
            axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(visible=False, axis="y")
        beside = 1 if small else len(by_panel)
        room = (drawing.get_figwidth() - 0.1 - CHARACTER_IN * max(map(len, order))) / beside
        share = (2 + _longest(experiment, rows)) * CHARACTER_IN / room
        axes[0].set_xlim(0, rows[y.column].max() / max(0.3, 1 - share))


CHARACTER_IN = 0.053
"""About the width of a character beside a row (inches)."""


def _longest(experiment: Experiment, rows: pd.DataFrame) -> int:
    """Characters of the longest note."""
    variants = rows.drop_duplicates(["contender", "variant"])
    return 6 + max(len(experiment.chosen(row.contender, row.variant)) for row in variants.itertuples())


def _notes(axis: Any, experiment: Experiment, rows: pd.DataFrame, column: str, order: list[str]) -> None:
    """Beside each row its median, and the options that were found best."""
    for name, some in rows.groupby("row", sort=False):
        chosen = experiment.chosen(some.contender.iloc[0], some.variant.iloc[0])
        text = rounded(some[column].median()) + f" ({chosen})" * bool(chosen)
        axis.annotate(text, (some[column].max(), order.index(name)), xytext=(6, 0), textcoords="offset points",
                      va="center", fontsize=7.5)  # fmt: skip
