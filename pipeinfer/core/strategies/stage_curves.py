"""What each stage takes for any number of rows, from the numbers that were measured."""

from collections.abc import Sequence

from pipeinfer.core.measured import Measured

PRIOR_DOUBLE = 0.2
"""What twice the rows cost more than the most that were measured, as a share of one row."""

PRIOR_NARROWER = 0.3
"""What fewer rows than the least that were measured cost less, in the same proportion; one row is cheaper still where
it is a product of a matrix and a vector."""


class StageCurves:
    """Seconds of each stage by rows."""

    def __init__(self, measured: Measured) -> None:
        self._points = _points(measured)
        self._prompt = measured.prompt
        self.stages = len(self._points)
        self._known: dict[int, tuple[float, float]] = {}

    def of(self, rows: int) -> tuple[float, float]:
        """Of so many rows, the slowest stage's computation, and all stages' together."""
        if rows not in self._known:
            seconds = [self.stage_s(stage, rows) for stage in range(self.stages)]
            self._known[rows] = max(seconds), sum(seconds)
        return self._known[rows]

    def stage_s(self, stage: int, rows: int) -> float:
        """Between widths that were measured in proportion. Beyond them as it rose last, as far as the prompt bears that
        out, and no less than the prompt's rows took each; beyond the prompt's, or without one, what is usual."""
        points, slope = self._points[stage], 0.0
        before = points[0]
        if rows <= before[0]:
            return before[1] * (1 - PRIOR_NARROWER * (before[0] - rows) / before[0])
        for after in points[1:]:
            slope = (after[1] - before[1]) / (after[0] - before[0])
            if rows <= after[0]:
                return before[1] + slope * (rows - before[0])
            before = after
        many, seconds = self._prompt[stage] if self._prompt else (0, 0.0)
        if many >= rows:
            slope = min(slope, max(0.0, seconds - before[1]) / (many - before[0]))
            return max(before[1] + slope * (rows - before[0]), seconds * rows / many)
        known, least = max((before, (many, seconds)))
        return max(before[1], least) + PRIOR_DOUBLE * points[0][1] * (rows - known) / known


def _points(measured: Measured) -> list[list[tuple[int, float]]]:
    """Per stage what was measured: rows and seconds, which do not fall as rows are added."""
    stages = range(len(next(iter(measured.rows.values())).seconds))
    known = sorted(measured.rows.items())
    return [_rising([(rows, min(times.counts[stage], 20), times.seconds[stage]) for rows, times in known
                     if times.counts[stage]]) for stage in stages]  # fmt: skip


def _rising(measured: Sequence[tuple[int, int, float]]) -> list[tuple[int, float]]:
    """The nearest rising line to these (rows, weight, seconds): neighbours that fall are taken together."""
    blocks: list[tuple[list[int], int, float]] = []
    for rows, weight, seconds in measured:
        blocks.append(([rows], weight, seconds))
        while len(blocks) > 1 and blocks[-2][2] > blocks[-1][2]:
            (some, first, low), (more, second, high) = blocks[-2:]
            blocks[-2:] = [([*some, *more], first + second, (first * low + second * high) / (first + second))]
    return [(rows, seconds) for several, _, seconds in blocks for rows in several]
