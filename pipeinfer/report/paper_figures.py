"""The paper's own three figures, as bars of Sequential, Speculative and PipeInfer over Dolphin, Goliath and Falcon. The
published values could not be obtained (docs/fairness.md): these are ours."""

from pathlib import Path

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.axes import Quantity, Y
from pipeinfer.report.drawn import Drawings
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.style import legend_above, load_seaborn, new_figure, panels, style
from pipeinfer.results.analysis import band

TARGETS = {"dolphin-tinyllama": "Dolphin", "goliath-xwin7b": "Goliath", "falcon-7b": "Falcon"}
"""Each target with the smallest draft that the authors name for it."""

NAMES = {"iterative": "Sequential", "speculative": "Speculative", "pipeinfer": "PipeInfer"}

FIGURES = {
    "generation-speed": ("tokens_per_s", Y["speed"], ""),
    "inter-token-latency": ("itl_mean_s", Y["gap"], ""),
    "time-to-first-token": (
        "ttft_decode_s",
        Y["first"],
        "Counted as the artifact does: from the end of the prompt, one decode traversal.",
    ),
}
"""By file name: a column, what it is called, and what has to be said of it."""


def paper_figures(drawings: Drawings, experiment: Experiment | None, folder: Path) -> list[str]:
    """Have them drawn, from the experiment over all pairs; their names, or none where it was not simulated or lacks the
    paper's targets."""
    if experiment is None or experiment.recipe.fidelity != "sim":
        return []
    rows = experiment.best[experiment.best.pair.isin(TARGETS) & experiment.best.contender.isin(NAMES)]
    if set(rows.pair) != set(TARGETS):
        return []
    rows = rows.assign(target=rows.pair.map(TARGETS), strategy=rows.contender.map(NAMES))
    for name, shown in FIGURES.items():
        drawings.draw(folder / name, experiment.mark(name), _bars, experiment, rows, *shown)
    return list(FIGURES)


def _bars(experiment: Experiment, rows: pd.DataFrame, column: str, shown: Quantity, about: str, path: Path) -> None:
    sns = load_seaborn()

    caption = (
        f"{captions.setting(experiment, list(TARGETS))} Median of {captions.draws(experiment)}, {captions.BAND}. "
        f"K and micro-batch swept, the best shown. {about}"
    )
    palette = {called: style(name)[0] for name, called in NAMES.items()}
    levels = list(rows.groupby("acceptance"))
    with new_figure(path, f"{shown.words.capitalize()} of the paper's pairs", caption.strip(), 2.8) as figure:
        axes = panels(figure, len(levels), sharey=True)
        for axis, (acceptance, some) in zip(axes, levels, strict=True):
            sns.barplot(
                some, x="target", y=column, hue="strategy", order=list(TARGETS.values()), palette=palette,
                hue_order=list(NAMES.values()), estimator="median", errorbar=band, err_kws={"linewidth": 1}, ax=axis,
                legend=axis is axes[0],
            )  # fmt: skip
            axis.set(title=f"acceptance {acceptance:.2g}, assumed", xlabel="", ylabel=shown.title)
            axis.grid(visible=False, axis="x")
        legend_above(figure, axes[0])
