"""Ratios, their intervals, and verdicts.

What else a machine does only ever makes a repetition slower, so repetitions are summed up by their better quartile,
which three in four of them may miss. The ratio is that of the head's to the base's; its interval is a percentile
bootstrap over pairs of repetitions. A cell has changed when the ratio crosses the threshold *and* the interval excludes
1. Simulated trials have no noise: one suffices. Of others there must be `FEWEST_PAIRS`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from pipeinfer.results.compare.pair import CellPair
from pipeinfer.results.compare.read import Metric

THRESHOLD = 0.05
CONFIDENCE = 0.95
FEWEST_PAIRS = 10
"""With fewer, a percentile interval is narrower than it says."""

RESAMPLES = 2000

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


class _Series(NamedTuple):
    """Values side by side, float64 [cells, 2, pairs]: of one cell or of all, base before head."""

    cell: str
    values: Any
    exact: bool


class Judge:
    """Makes rows: a change is one of more than `threshold`, shown by an interval of `confidence`."""

    def __init__(self, threshold: float, confidence: float) -> None:
        self._threshold = threshold
        self._confidence = confidence

    def rows(self, what: Iterable[Metric], pairs: Sequence[CellPair]) -> list[Row]:
        """Cells without a performance first, then every metric with a row per cell and one for all."""
        problems = [(one, _problem(one)) for one in pairs]
        rows = [Row(one.name, "-", problem) for one, problem in problems if problem is not None]
        sound = [one for one, problem in problems if problem is None]
        return rows + [row for metric in what for row in self._of_metric(metric, sound)]

    def _of_metric(self, metric: Metric, pairs: Sequence[CellPair]) -> Iterator[Row]:
        every = [series for series in (_series(one, metric) for one in pairs) if series.values.size]
        for series in every:
            yield self._row(metric, series)
        if len(every) > 1:
            yield self._row(metric, _together(every))

    def _row(self, metric: Metric, series: _Series) -> Row:
        base, head = map(float, _better_quartile(series.values, metric))
        low, high = self._interval(metric, series.values)
        count = series.values.shape[-1]
        enough = series.exact or count >= FEWEST_PAIRS
        verdict = self._verdict(head / base, low, high, metric) if enough else "too few"
        return Row(series.cell, metric.title, verdict, count, base, head, head / base, low, high)

    def _interval(self, metric: Metric, values: Any) -> tuple[float, float]:
        """Percentile bootstrap: the same repetitions are drawn of base and head, and in every cell."""
        count = values.shape[-1]
        draws = np.random.Generator(np.random.Philox(key=[0, 0xB007])).integers(0, count, (RESAMPLES, count))
        base, head = _better_quartile(values[..., draws], metric)
        tail = (1 - self._confidence) / 2
        low, high = np.quantile(head / base, [tail, 1 - tail])
        return float(low), float(high)

    def _verdict(self, ratio: float, low: float, high: float, metric: Metric) -> Verdict:
        if abs(ratio - 1) < self._threshold:
            return "no change"
        if low <= 1 <= high:
            return "unclear"
        return "improvement" if (ratio > 1) == metric.higher_is_better else "regression"


def _better_quartile(values: Any, metric: Metric) -> Any:
    """Over the last axis; cells, the first axis, are taken together by their geometric mean."""
    quartiles = np.quantile(values, 0.75 if metric.higher_is_better else 0.25, axis=-1)
    return np.exp(np.mean(np.log(quartiles), axis=0))


def _problem(one: CellPair) -> Verdict | None:
    """A wrong run has no performance."""
    if one.head.error:
        return "failed"
    return "other tokens" if one.base.tokens != one.head.tokens else None


def _series(one: CellPair, metric: Metric) -> _Series:
    """Repetition beside repetition; one in which a value is not defined is left out."""
    both = zip(one.base.values.get(metric, []), one.head.values.get(metric, []), strict=False)
    values = np.array([pair for pair in both if all(pair)], dtype=np.float64).reshape(1, -1, 2)
    return _Series(one.name, values.swapaxes(1, 2), one.base.exact and one.head.exact)


def _together(every: Sequence[_Series]) -> _Series:
    count = min(series.values.shape[-1] for series in every)
    values = np.concatenate([series.values[..., :count] for series in every])
    return _Series(EVERY_CELL, values, all(series.exact for series in every))
