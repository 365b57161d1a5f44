"""The simulator held against what was measured: figure and tables."""

from pathlib import Path

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.page import Table, rounded
from pipeinfer.report.style import BLACK, GREY, legend, load_seaborn, new_figure, style
from pipeinfer.study.recipes import Figure

BAND = 0.15
"""The band that is drawn: errors up to this are what real runs should have in the median."""


def predictions(experiment: Experiment) -> pd.DataFrame:
    """The medians of what was predicted, with `measured`, `predicted` (tokens/s) and `error`, of what was measured."""
    found = experiment.medians.dropna(subset=["predicted_tokens_per_s", "tokens_per_s"])
    found = found.assign(measured=found.tokens_per_s, predicted=found.predicted_tokens_per_s)
    return found.assign(error=found.predicted / found.measured - 1)


def scatter(experiment: Experiment, path: Path) -> None:
    """Predicted over measured speed, log-log, a marker per backend and a colour per strategy."""
    sns = load_seaborn()
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    check, found = experiment.recipe.checked, predictions(experiment)
    assert check is not None
    both = found[["measured", "predicted"]]
    low, high = both.min().min() / 1.25, both.max().max() * 1.25
    errors = found.error.abs().groupby(found.backend, sort=False).median()
    titles = {name: f"{name}: median error {error:.1%}" for name, error in errors.items()}
    links = " and ".join(f"{link.bandwidth_gbps:g} Gbit/s with {link.latency_us:g} us" for link in check.links)
    first = experiment.best.iloc[0]
    caption = (
        f"Fidelity: sim over real and emulated (processes that wait). {', '.join(map(str, check.stages))} target "
        f"stages and 1 draft over {check.transport} on one machine with {first.cores} cores ({first.processor}), links "
        f"shaped to {links}; {check.tokens} tokens, greedy; median of {check.repeats} trials. The simulator was "
        f"calibrated and fitted on 2 stages with links as they are. Line: equal; band: within {BAND:.0%}."
    )
    with new_figure(path, captions.title(experiment.recipe, Figure("scatter")), caption, height=4.2) as figure:
        axis = figure.subplots()
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
            one.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            one.set_major_formatter(ScalarFormatter())
            one.set_minor_formatter(NullFormatter())
        handles, _ = axis.get_legend_handles_labels()
        axis.get_legend().remove()
        legend(figure, [one for one in handles if one.get_label() not in found])  # without the columns' names


def error_summary(found: pd.DataFrame) -> Table:
    """Errors per backend, of all strategies and of each."""
    everywhere = [found.assign(strategy="all"), found.sort_values("strategy", kind="stable")]
    rows = [
        [backend, some.fidelity.iloc[0], strategy, str(len(some)), f"{some.error.abs().median():.1%}",
         f"{some.error.abs().max():.1%}", f"{some.error.abs().le(BAND).mean():.0%}", f"{some.error.median():+.1%}"]
        for (backend, strategy), some in pd.concat(everywhere).groupby(["backend", "strategy"], sort=False)
    ]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    head = ["backend", "fidelity", "strategy", "cells", "median error", "largest", f"within {BAND:.0%}", "bias"]
    return Table(head, rows, range(3, 8), "Errors of the simulated speed, as a share of the measured")


def every_cell(found: pd.DataFrame, experiment: Experiment) -> Table:
    """What was measured and predicted, place by place."""
    rows = [
        [experiment.places[row.place].text, f"{row.contender} {row.variant}".strip(), rounded(row.measured),
         rounded(row.predicted), f"{row.error:+.1%}"]
        for row in found.itertuples()
    ]  # fmt: skip
    head = ["where", "strategy", "measured (tokens/s)", "simulated (tokens/s)", "error"]
    return Table(head, rows, range(2, 5), "Place by place: simulated speed, and its error as a share of the measured")
