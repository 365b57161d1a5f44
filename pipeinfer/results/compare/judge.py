"""Ratios, their intervals, and verdicts.

What else a machine does only ever makes a repetition slower, so repetitions are summed up by their better quartile,
which three in four of them may miss. The ratio is that of the head's to the base's; its interval is a percentile
bootstrap over pairs of repetitions. A cell has changed when the ratio crosses the threshold *and* the interval excludes
1. Simulated trials have no noise: one suffices. Of others there must be `FEWEST_PAIRS`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd

from pipeinfer.results.analysis import VALID, interval
from pipeinfer.results.compare.read import METRICS, Metric

THRESHOLD = 0.05
CONFIDENCE = 0.95
FEWEST_PAIRS = 10
"""With fewer, a percentile interval is narrower than it says."""

EVERY_CELL = "every cell"
"""The row that takes all cells of a metric together, by the geometric mean."""

Verdict = Literal["regression", "improvement", "no change", "unclear", "too few", "other tokens", "failed"]
WORSE = ("regression", "other tokens", "failed")


class Row(msgspec.Struct, frozen=True):
    """One cell and metric: better quartiles, their ratio head / base with its interval, and what follows."""

    cell: str
    metric: str
    verdict: Verdict
    pairs: int = 0
    base: float | None = None
    head: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


class Judge:
    """Makes rows: a change is one of more than `threshold`, shown by an interval of `confidence`."""

    def __init__(self, threshold: float, confidence: float) -> None:
        self._threshold = threshold
        self._confidence = confidence

    def rows(self, both: pd.DataFrame) -> list[Row]:
        """Of what `pair` gives: cells without a performance first, then every metric with a row per cell and one for
        all of them."""
        cells = both.groupby("cell", sort=False)
        names, exact = cells.name.first(), cells.exact.all()
        problems = both[both.side == "head"].groupby("cell", sort=False).status.agg(_problem)
        wrong = [Row(names[cell], "-", problem) for cell, problem in problems.items() if problem]
        sound = both[~both.cell.map(problems).astype(bool)]
        return wrong + [
            row for column in METRICS if column in both for row in self._of_metric(column, sound, names, exact)
        ]

    def _of_metric(self, column: str, sound: pd.DataFrame, names: pd.Series, exact: pd.Series) -> Iterator[Row]:
        # A repetition in which a value is not defined is left out.
        values = sound.pivot(index=["cell", "turn"], columns="side", values=column).replace(0.0, np.nan).dropna()
        every = {cell: found.to_numpy() for cell, found in values.groupby(level="cell")}
        shown = [cell for cell in names.index if cell in every]
        for cell in shown:
            yield self._row(names[cell], METRICS[column], [every[cell]], exact=exact[cell])
        if len(shown) > 1:
            yield self._row(EVERY_CELL, METRICS[column], [every[cell] for cell in shown], exact=exact[shown].all())

    def _row(self, cell: str, metric: Metric, every: Sequence[Any], *, exact: bool) -> Row:
        """`every`: base and head side by side, float64 [repetitions, 2], of one cell or of all."""
        count = min(map(len, every))
        samples = [values[:count, side] for values in every for side in (0, 1)]
        base, head = map(float, _better_quartiles(metric.higher_is_better, samples))
        low, high = interval(*samples, statistic=RATIO[metric.higher_is_better], confidence=self._confidence)
        enough = exact or count >= FEWEST_PAIRS
        verdict = self._verdict(head / base, low, high, metric) if enough else "too few"
        return Row(cell, metric.title, verdict, count, base, head, head / base, low, high)

    def _verdict(self, ratio: float, low: float, high: float, metric: Metric) -> Verdict:
        if abs(ratio - 1) < self._threshold:
            return "no change"
        if low <= 1 <= high:
            return "unclear"
        return "improvement" if (ratio > 1) == metric.higher_is_better else "regression"


def _problem(status: pd.Series) -> str:
    """A wrong run has no performance."""
    if status.eq("failed").any():
        return "failed"
    return "" if status.isin(VALID).all() else "other tokens"


def _better_quartiles(higher_is_better: bool, samples: Sequence[Any], axis: int = -1) -> tuple[Any, Any]:
    """Base and head of samples that are by turns of the one and of the other: the geometric mean over the cells."""
    quartiles = np.log(np.quantile(np.stack(samples), 0.75 if higher_is_better else 0.25, axis=axis))
    return np.exp(quartiles[0::2].mean(axis=0)), np.exp(quartiles[1::2].mean(axis=0))


def _ratio(higher_is_better: bool, *samples: Any, axis: int = -1) -> Any:
    base, head = _better_quartiles(higher_is_better, samples, axis)
    return head / base


RATIO = {better: partial(_ratio, better) for better in (False, True)}
