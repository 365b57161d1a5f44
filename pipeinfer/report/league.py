"""Many strategies over many places: a league table, and a picture of who is how near to the best where."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeinfer.plugins import STRATEGIES, load
from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.page import Columns, Table, table_of
from pipeinfer.report.style import load_seaborn, new_figure
from pipeinfer.results.analysis import REFERENCE, SPEED
from pipeinfer.study.recipes import Figure

SAME = 0.005
"""Strategies whose speeds differ by less than this share the win of a place."""

ABOUT = (
    "Of the best: speed, of the fastest strategy that a cluster can run in the same place, each at the best of its "
    "options. Means are geometric, over all places; * needs what no cluster has ({needs}) and is in simulation only."
)


def shares(experiment: Experiment) -> pd.DataFrame:
    """A row per strategy, the best first, and a column per place: its speed, of the fastest that can be run there."""
    speeds = experiment.medians.pivot_table(SPEED, "contender", "place", sort=False)
    runs = [name for name in speeds.index if not _simulated_only(experiment, name)]
    found = speeds / speeds.loc[runs].max()
    return found.loc[_means(found).sort_values(ascending=False, kind="stable").index]


def league_table(experiment: Experiment) -> Table:
    """Strategies by the geometric mean of their share of the best."""
    found = shares(experiment)
    rows = pd.DataFrame({
        "name": [_name(experiment, name) for name in found.index], "mean": _means(found), "lowest": found.min(axis=1),
        "where": found.idxmin(axis=1).map(experiment.where), "fastest": (found > 1 - SAME).sum(axis=1),
        "over_pipeinfer": _means(found / found.loc["pipeinfer"]),
        "over_iterative": _means(found / found.loc[REFERENCE]),
    })  # fmt: skip
    columns: Columns = {
        "name": ("strategy", ""), "mean": ("of the best, mean", "{:.2f}"), "lowest": ("lowest", "{:.2f}"),
        "where": ("where", ""), "fastest": (f"fastest, of {found.shape[1]} places", "{:d}"),
        "over_pipeinfer": ("over pipeinfer, mean", "{:.2f}x"), "over_iterative": ("over iterative, mean", "{:.2f}x"),
    }  # fmt: skip
    return table_of(rows, columns)


def about(experiment: Experiment) -> str:
    """What the table's columns are."""
    names = experiment.recipe.strategies
    needs = [f"{name}: {need}" for name in names if (need := _simulated_only(experiment, name))]
    return ABOUT.format(needs="; ".join(needs) or "none here")


def behind(experiment: Experiment) -> str:
    """Where others are faster than PipeInfer at its best, as a sentence."""
    found = shares(experiment)
    own = found.loc["pipeinfer"]
    lost = own[own <= 1 - SAME]
    if lost.empty:
        return ""
    runs = found[[not _simulated_only(experiment, name) for name in found.index]]
    wins = (runs > 1 - SAME).sum(axis=1).drop("pipeinfer")
    winners = ", ".join(f"{name} ({count})" for name, count in wins[wins > 0].sort_values(ascending=False).items())
    how = "simulated" if experiment.recipe.fidelity == "sim" else experiment.recipe.fidelity
    return (
        f"Beside the field's other schedulers ({how}): at {len(lost)} of {len(own)} points, "
        f"down to {lost.min():.2f} of the fastest there; fastest or equal are {winners}."
    )


def league(experiment: Experiment, figure: Figure, path: Path) -> None:
    """Strategies as rows, places as columns, shades for the share of the best; the winners are framed."""
    sns = load_seaborn()

    found = shares(experiment)
    places = pd.DataFrame([experiment.places[place]._asdict() for place in found], index=found.columns)
    along = ["acceptance", "nodes", "width_cost"]
    places = places.sort_values(along, kind="stable")
    found = found[places.index]
    caption = (
        f"{captions.setting(experiment)} Numbers: speed, of the fastest that can be run in the same place; framed: the "
        "fastest and its equals. Options swept, the best shown; the order is that of the geometric means. "
        "*: needs what no cluster has, in simulation only."
    )
    title = captions.title(experiment.recipe, figure)
    with new_figure(path, title, caption, height=1.3 + 0.235 * len(found)) as drawing:
        levels = list(places.groupby("acceptance", sort=False))
        axes = drawing.subplots(1, len(levels), sharey=True, squeeze=False)[0]
        for axis, (acceptance, some) in zip(axes, levels, strict=True):
            _panel(sns, axis, found[some.index], some)
            axis.set_title(f"acceptance {acceptance:.2g}")
        axes[0].set_yticklabels([_name(experiment, name) for name in found.index], rotation=0)


def _panel(sns: Any, axis: Any, found: pd.DataFrame, places: pd.DataFrame) -> None:
    from matplotlib.patches import Rectangle

    sns.heatmap(found.to_numpy(), ax=axis, vmin=0, vmax=1, cmap="Blues", cbar=False, linewidths=0.5, annot=True,
                fmt=".2f", annot_kws={"size": 6.5})  # fmt: skip
    for row, column in np.argwhere(found.to_numpy() > 1 - SAME):
        frame = Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=1.2, clip_on=False, zorder=4)
        axis.add_patch(frame)
    axis.set_xticks(np.arange(len(places)) + 0.5, [f"{cost:g}" for cost in places.width_cost], rotation=0)
    axis.set(xlabel="cost of a further row (0: free, 1: roofline)", ylabel="")
    axis.tick_params(length=0)
    above = axis.secondary_xaxis("top")
    middles = pd.Series(np.arange(len(places)) + 0.5).groupby(places.nodes.to_numpy(), sort=False).mean()
    above.set_xticks(middles, [f"{nodes} nodes" for nodes in middles.index])
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)
    starts = np.flatnonzero(np.diff(places.nodes)) + 1
    axis.vlines(starts, 0, len(found), color="white", linewidth=3)


def _simulated_only(experiment: Experiment, contender: str) -> str:
    """What its strategy needs that no cluster has, or ""."""
    found: str = load(STRATEGIES, experiment.style_of(contender)).simulated_only
    return found


def _name(experiment: Experiment, contender: Any) -> str:
    return f"{contender}*" if _simulated_only(experiment, contender) else str(contender)


def _means(shares: pd.DataFrame) -> pd.Series:
    """Geometric, of each row."""
    return np.exp(np.log(shares).mean(axis=1))
