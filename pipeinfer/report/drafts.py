"""Figures of the drafts themselves: recorded traces beside the models of acceptance with the same mean."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from pipeinfer.modelling.acceptance import acceptance, is_recorded, recorded, trace_title
from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.style import GREY, height_of, legend_above, load_seaborn, looks, new_figure, panels
from pipeinfer.results.analysis import interval
from pipeinfer.runtime.oracle import Trace
from pipeinfer.study.recipes import Figure

MODELLED = 20_000
"""Positions drawn from a model."""

BINS = 10
FEWEST = 20
LONGEST = 8


def calibration(experiment: Experiment, figure: Figure, path: Path) -> None:
    """How often a draft is right, by its confidence."""
    _draw(
        experiment, figure, path, _by_confidence, xlabel="confidence of the draft",
        ylabel="share of drafts that are right",
        caption=f"Confidence in {BINS} bins, those with fewer than {FEWEST} drafts left out; band: 95 % bootstrap "
        "interval of the recorded share; grey: confidence that says how often it is right.", diagonal=True,
    )  # fmt: skip


def stretches(experiment: Experiment, figure: Figure, path: Path) -> None:
    """How often several drafts in a row are right."""
    _draw(
        experiment, figure, path, _in_a_row, xlabel="drafts in a row", ylabel="share of stretches all right",
        caption="Band: 95 % bootstrap interval over the recorded texts.",
    )  # fmt: skip


def _draw(
    experiment: Experiment, figure: Figure, path: Path, rows_of: Callable[[Trace], pd.DataFrame], *, xlabel: str,
    ylabel: str, caption: str, diagonal: bool = False,
) -> None:  # fmt: skip
    """A panel per recorded trace: the trace, and its models, by rows of x, and y with what it is the mean of."""
    sns = load_seaborn()

    traces = list(
        dict.fromkeys(place.drafts for place in experiment.places.values() if is_recorded(place.drafts))
    )
    title = captions.title(experiment.recipe, figure)
    with new_figure(path, title, f"{_caption(traces)} {caption}", height_of(len(traces), 2.2)) as drawing:
        axes = panels(drawing, len(traces), sharex=True, sharey=True)
        for axis, name in zip(axes, traces, strict=True):
            rate = recorded(name).acceptance
            kinds = {"recorded": recorded(name), "varied": _model(f"varied {rate}"), "independent": _model(f"{rate}")}
            data = pd.concat([rows_of(trace).assign(drafts=kind) for kind, trace in kinds.items()], ignore_index=True)
            if diagonal:
                axis.plot([0, 1], [0, 1], color=GREY, linewidth=1)
            sns.lineplot(
                data, x="x", y="y", errorbar=_band, ax=axis, legend=axis is axes[0],
                err_kws={"alpha": 0.15, "linewidth": 0}, **looks("drafts", {kind: kind for kind in kinds}),
            )  # fmt: skip
            axis.set(title=trace_title(name), xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.05))
        legend_above(drawing, axes[0])


def _band(values: Iterable[float]) -> tuple[float, float]:
    """Of the mean of what was recorded; what a model was drawn has as good as none."""
    known = list(values)
    if len(known) > MODELLED // BINS or len(known) < 2:
        return (float(np.mean(known)),) * 2
    return interval(known, statistic=np.mean)


def _model(word: str) -> Trace:
    oracle = acceptance(word).oracle(seed=0, start=0, length=MODELLED)
    assert isinstance(oracle, Trace)
    return oracle


def _caption(traces: list[str]) -> str:
    counts = {len(recorded(name).lengths) for name in traces}
    tokens = {len(recorded(name).ranks) for name in traces}
    return (
        f"Fidelity: recorded from real models; no cluster. Built-in pair, {', '.join(map(str, counts))} prompts, "
        f"{', '.join(map(str, tokens))} tokens in all. "
        "Varied and independent: the models of acceptance that simulations use, at the recorded mean."
    )


def _by_confidence(trace: Trace) -> pd.DataFrame:
    """Each draft, in the middle of its bin."""
    bins = np.minimum((np.asarray(trace.confidences)[:, 0] * BINS).astype(int), BINS - 1)
    found = pd.DataFrame({"x": (bins + 0.5) / BINS, "y": (np.asarray(trace.ranks) == 0).astype(float)})
    if found.x.nunique() == 1:  # Confidence tells nothing: the share is that everywhere.
        return pd.concat([found.assign(x=(at + 0.5) / BINS) for at in range(BINS)])
    return found[found.groupby("x").y.transform("size") >= FEWEST]


def _in_a_row(trace: Trace) -> pd.DataFrame:
    """For 1, 2, ... drafts, each text's share."""
    right = np.asarray(trace.ranks) == 0
    texts = np.split(right, np.cumsum(trace.lengths)[:-1]) if trace.lengths else [right]
    windows = np.lib.stride_tricks.sliding_window_view
    rows = [(n, windows(text, n).all(axis=1).mean()) for text in texts for n in range(1, LONGEST + 1)]
    return pd.DataFrame(rows, columns=["x", "y"])
