"""Figures of the drafts themselves: recorded traces beside the models of acceptance with the same mean."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeinfer.modelling.acceptance import acceptance, recorded, trace_title
from pipeinfer.report import plots
from pipeinfer.reproduce.analysis import Analysis
from pipeinfer.results.metrics import median_band
from pipeinfer.runtime.oracle import Oracle, Trace

MODELLED = 20_000
"""Positions drawn from a model."""

BINS = 10
LONGEST = 8

Band = tuple[float, float, float]


def calibration(analysis: Analysis, path: Path) -> None:
    """How often a draft is right, by its confidence."""
    centres = [(i + 0.5) / BINS for i in range(BINS)]
    panels = []
    for name in _traces(analysis):
        trace, rate = recorded(name), recorded(name).acceptance
        series = [_by_confidence("recorded", trace), _by_confidence("varied", _model(f"varied {rate}"))]
        flat = [(rate, rate, rate)] * BINS
        ideal = [(centre, centre, centre) for centre in centres]
        series.append(plots.Series("independent (confidence tells nothing)", "independent", centres, flat))
        series.append(plots.Series("calibrated", "", centres, ideal, dashed=True))
        panels.append(plots.Panel(trace_title(name), series))
    plots.lines(
        panels, path, xlabel="confidence of the draft", ylabel="share of drafts that are right",
        caption=f"{_caption(analysis)} Confidence in {BINS} bins, those with fewer than 20 drafts left out; band: 95 % "
        "bootstrap interval of the recorded share.",
    )  # fmt: skip


def stretches(analysis: Analysis, path: Path) -> None:
    """How often several drafts in a row are right."""
    panels = []
    for name in _traces(analysis):
        trace, rate = recorded(name), recorded(name).acceptance
        counts = [float(n) for n in range(1, LONGEST + 1)]
        models = {"varied": _model(f"varied {rate}"), "independent": _model(f"{rate}")}
        series = [plots.Series("recorded", "recorded", counts, _in_a_row(trace))]
        series += [plots.Series(kind, kind, counts, _in_a_row(model)) for kind, model in models.items()]
        panels.append(plots.Panel(trace_title(name), series))
    plots.lines(
        panels, path, xlabel="drafts in a row", ylabel="share of stretches all right",
        caption=f"{_caption(analysis)} Band: 95 % bootstrap interval over the recorded texts.",
    )  # fmt: skip


def _traces(analysis: Analysis) -> list[str]:
    return list(dict.fromkeys(place.drafts for place in analysis.places if place.drafts not in ("", "varied")))


def _model(word: str) -> Trace:
    oracle: Oracle = acceptance(word).oracle(seed=0, start=0, length=MODELLED)
    assert isinstance(oracle, Trace)
    return oracle


def _caption(analysis: Analysis) -> str:
    counts = {len(recorded(name).lengths) for name in _traces(analysis)}
    tokens = {len(recorded(name).ranks) for name in _traces(analysis)}
    return (
        f"Fidelity: recorded from real models; no cluster. Built-in pair, {', '.join(map(str, counts))} prompts, "
        f"{', '.join(map(str, tokens))} tokens in all. "
        "Varied and independent: the models of acceptance that simulations use, at the recorded mean."
    )


def _by_confidence(kind: str, trace: Trace) -> plots.Series:
    right = np.asarray(trace.ranks) == 0
    confidence = np.asarray(trace.confidences)[:, 0]
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    known = [i for i in range(BINS) if (bins == i).sum() >= 20]
    return plots.Series(kind, kind, [(i + 0.5) / BINS for i in known], [_share(kind, right[bins == i]) for i in known])


def _share(kind: str, right: NDArray[np.bool_]) -> Band:
    mean = float(right.mean())
    return median_band(right.astype(float).tolist(), statistic=np.mean) if kind == "recorded" else (mean, mean, mean)


def _in_a_row(trace: Trace) -> list[Band]:
    """For 1, 2, ... drafts; over the texts, where there are several."""
    right = np.asarray(trace.ranks) == 0
    texts = np.split(right, np.cumsum(trace.lengths)[:-1]) if trace.lengths else [right]
    mean: Callable[..., float] = np.mean
    return [median_band([_all_right(text, n) for text in texts], statistic=mean) for n in range(1, LONGEST + 1)]


def _all_right(right: NDArray[np.bool_], n: int) -> float:
    windows = np.lib.stride_tricks.sliding_window_view(right, n)
    return float(windows.all(axis=1).mean())
