"""The simulator held against what was measured: figure and tables."""

from pathlib import Path

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.page import Columns, Table, rounded, table_of
from pipeinfer.report.style import BLACK, GREY, decade_ticks, legend, load_seaborn, new_figure, style, taken_legend
from pipeinfer.study.recipes import Figure

BAND = 0.15
"""The band that is drawn: errors up to this are what real runs should have in the median."""

ERRORS: Columns = {
    "backend": ("backend", ""), "fidelity": ("fidelity", ""), "strategy": ("strategy", ""), "cells": ("cells", "{:d}"),
    "median": ("median error", "{:.1%}"), "largest": ("largest", "{:.1%}"), "within": (f"within {BAND:.0%}", "{:.0%}"),
    "bias": ("bias", "{:+z.1%}"),
}  # fmt: skip
CELLS: Columns = {
    "where": ("where", ""), "who": ("strategy", ""), "measured": ("measured (tokens/s)", rounded),
    "predicted": ("simulated (tokens/s)", rounded), "error": ("error", "{:+z.1%}"),
}  # fmt: skip


def predictions(experiment: Experiment) -> pd.DataFrame:
    """The medians of what was predicted, with `measured`, `predicted` (tokens/s) and `error`, of what was measured."""
    found = experiment.medians.dropna(subset=["predicted_tokens_per_s", "tokens_per_s"])
    found = found.assign(measured=found.tokens_per_s, predicted=found.predicted_tokens_per_s)
    return found.assign(error=found.predicted / found.measured - 1)


def scatter(experiment: Experiment, figure: Figure, path: Path) -> None:
    """Predicted over measured speed, log-log, a marker per backend and a colour per strategy."""
    sns = load_seaborn()
    check, found = experiment.recipe.checked, predictions(experiment)
    assert check is not None
    both = found[["measured", "predicted"]]
    low, high = both.min().min() / 1.25, both.max().max() * 1.25
    errors = found.error.abs().groupby(found.backend, sort=False).median()
    titles = {name: f"{name}: median error {error:.1%}" for name, error in errors.items()}
    links = " and ".join(f"{link.bandwidth_gbps:g} Gbit/s with {link.latency_us / 1e3:g} ms" for link in check.links)
    first = experiment.best.iloc[0]
    caption = (
        f"Fidelity: sim over real and emulated (processes that wait). {', '.join(map(str, check.stages))} target "
        f"stages and 1 draft over {check.transport} on one machine with {first.cores} cores ({first.processor}), links "
        f"shaped to {links}; {check.tokens} tokens, greedy; median of {check.repeats} trials. The simulator was "
        f"calibrated and fitted on 2 stages with links as they are. Line: equal; band: within {BAND:.0%}."
    )
    with new_figure(path, captions.title(experiment.recipe, figure), caption, height=4.2) as drawing:
        axis = drawing.subplots()
        ends = pd.Series([low, high])
        axis.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=GREY, alpha=0.2, linewidth=0)
        axis.plot(ends, ends, color=BLACK, linewidth=0.8)
        sns.scatterplot(
            found.assign(backend=found.backend.map(titles)), x="measured", y="predicted", hue="strategy",
            style="backend", palette={name: style(name)[0] for name in found.strategy.unique()}, s=36, ax=axis,
        )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal",
                 xlabel="measured (tokens/s)", ylabel="simulated (tokens/s)")  # fmt: skip
        for one in (axis.xaxis, axis.yaxis):
            decade_ticks(one)
        handles = [one for one in taken_legend(axis) if one.get_label() not in found]  # without the columns' names
        legend(drawing, handles)


def error_summary(found: pd.DataFrame) -> Table:
    """Errors per backend, of all strategies and of each."""
    found = found.assign(size=found.error.abs(), within=found.error.abs() <= BAND)
    everywhere = pd.concat([found.assign(strategy="all"), found.sort_values("strategy", kind="stable")])
    summary = everywhere.groupby(["backend", "strategy"], sort=False).agg(
        fidelity=("fidelity", "first"), cells=("error", "size"), median=("size", "median"), largest=("size", "max"),
        within=("within", "mean"), bias=("error", "median"),
    )  # fmt: skip
    rows = summary.reset_index().sort_values("backend", kind="stable")
    return table_of(rows, ERRORS, "Errors of the simulated speed, as a share of the measured")


def every_cell(found: pd.DataFrame, experiment: Experiment) -> Table:
    """What was measured and predicted, place by place."""
    title = "Place by place: simulated speed, and its error as a share of the measured"
    return table_of(experiment.in_words(found), CELLS, title)
