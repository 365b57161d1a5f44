"""What a way of decoding would take per token, from what has been measured of the pipeline.

Closed forms, in seconds per token. a: conditional acceptance; K: drafted tokens per run; t(r), T(r): of r rows the
slowest stage's time, and a whole traversal with its links; d: a forward of the draft. For the last, h: the chance that
the target's token is among the w drafted ones of its level.

    plain                T(1)
    synchronous, K       (K d + wait + T(K + 1)) (1 - a) / (1 - a^(K + 1))
    pipelined chain, K   (1 - a) (T(K) + a r(K) + p(K) a / (1 - a^K))     p(K) = max(t(K), K d)
    pipelined tree, w    h p(w) + (1 - h) (T(w) + r(w))                   p(w) = max(t(w), d)

After a miss the first drafts come later than the pipeline could take them, by r: order and answer on the way, and a
micro-batch drafted, less the time that the first stage is busy anyway.
"""

from collections.abc import Sequence
from math import ceil

from pipeinfer.core.measured import Measured

PRIOR_WIDTH = 0.2
"""What one more row costs, as a share of the first, until two widths have been measured."""

SAME_WIDTH = 0.02
"""Rows whose cost is below this share are as good as free."""


class Forecast:
    """Times of a pipeline as `measured` knows them now. Needs a measured run: see `ready`."""

    def __init__(self, measured: Measured) -> None:
        self.acceptance = min(0.99, measured.acceptance)
        self.draft_s = measured.draft_s
        self.links_s = measured.links_s
        self._one, self._more = _lines(measured)
        self.stages = len(self._one)
        self.width_cost = sum(self._more) / max(sum(self._one), 1e-12)

    @staticmethod
    def ready(measured: Measured) -> bool:
        """Whether enough has been measured to forecast anything."""
        return bool(measured.rows) and bool(measured.right)

    def slowest_s(self, rows: int) -> float:
        """The slowest stage's computation of so many rows."""
        return max(self._stage_s(stage, rows) for stage in range(self.stages))

    def traversal_s(self, rows: int) -> float:
        """From the head through every stage and back."""
        return sum(self._stage_s(stage, rows) for stage in range(self.stages)) + self.links_s

    def plain_s(self) -> float:
        return self.traversal_s(1)

    def synchronous_s(self, k: int) -> float:
        """With the order to the draft and its answer on the way as well."""
        a = self.acceptance
        return self.round_s(k) * (1 - a) / (1 - a ** (k + 1))

    def round_s(self, k: int) -> float:
        """One round of it, however much of it is right."""
        return k * self.draft_s + self.hops_s + self.traversal_s(k + 1)

    def chain_s(self, k: int) -> float:
        a, pace = self.acceptance, self.pace_s(k, k)
        return (1 - a) * (self.traversal_s(k) + a * self.restart_s(k, k) + pace * a / (1 - a**k))

    def tree_s(self, width: int, hit: float) -> float:
        """`hit` is the chance that a level of that width holds the target's token."""
        missed = self.traversal_s(width) + self.restart_s(width, 1)
        return hit * self.pace_s(width, 1) + (1 - hit) * missed

    @property
    def hops_s(self) -> float:
        """An order on its way to the draft, and the answer."""
        return 2 * self.links_s / (self.stages + 1)

    def pace_s(self, rows: int, forwards: int) -> float:
        """Between two runs of so many rows, for each of which the draft is run so often, in a full pipeline."""
        return max(self.slowest_s(rows), forwards * self.draft_s)

    def restart_s(self, rows: int, forwards: int) -> float:
        """By how much the first run after a miss comes later than the pipeline could take it."""
        return max(0.0, self.hops_s + forwards * self.draft_s - self.pace_s(rows, forwards))

    def window(self, rows: int, forwards: int) -> int:
        """Runs that keep every stage busy: the bandwidth-delay product, and one to spare at each end."""
        return ceil(self.traversal_s(rows) / max(self.pace_s(rows, forwards), 1e-9)) + 2

    def _stage_s(self, stage: int, rows: int) -> float:
        return self._one[stage] + self._more[stage] * (rows - 1)


def _lines(measured: Measured) -> tuple[Sequence[float], Sequence[float]]:
    """Per stage: the time of one row, and of each further one."""
    stages = range(len(next(iter(measured.rows.values())).seconds))
    known = sorted(measured.rows.items())
    lines = [_line([(rows, min(times.counts[stage], 20), times.seconds[stage]) for rows, times in known])
             for stage in stages]  # fmt: skip
    return [one for one, _ in lines], [more for _, more in lines]


def _line(measured: Sequence[tuple[int, int, float]]) -> tuple[float, float]:
    """Through what was measured of one stage: rows, how often, and seconds."""
    points = [point for point in measured if point[1]]
    weight = sum(number for _, number, _ in points)
    middle = sum(number * rows for rows, number, _ in points) / weight
    mean = sum(number * seconds for _, number, seconds in points) / weight
    spread = sum(number * (rows - middle) ** 2 for rows, number, _ in points)
    if not spread:
        one = mean / (1 + PRIOR_WIDTH * (middle - 1))
        return one, PRIOR_WIDTH * one
    slope = max(0.0, sum(number * (rows - middle) * seconds for rows, number, seconds in points) / spread)
    return max(1e-9, mean - slope * (middle - 1)), slope
