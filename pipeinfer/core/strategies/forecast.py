"""What a way of decoding would take per token, from what has been measured of the pipeline.

Closed forms, in seconds per token. a: conditional acceptance; K: drafted tokens per run; t(r), T(r): of r rows the
slowest stage's time, and a whole traversal with its links; d: a forward of the draft; E(n): tokens per verification of
the likeliest tree of n drafted ones (`theory.expected_tree_lengths`).

    plain             T(1)
    synchronous, K    (K d + wait + T(K + 1)) (1 - a) / (1 - a^(K + 1))
    chain up to m     runs of T(1), T(2) and so on, of what was drafted during the one before, up to a miss
    rounds of m       (T(m) + (1 - a) wait + (m - 1) d / width) / E(m - 1)
    runs of m         (T(m) + r + hits) / tokens, of a stay at a miss and what follows it up to the next one

A tree in runs of m rows, w of them on a level: while the draft's first choice is right, 1 / (1 - a) tokens long, levels
follow one another every p w / m, or where a run holds L = m / w > 1 of them, L tokens every p; p is the longer of t(m)
and what drafting m tokens takes. Where another choice is right that was drafted as well, b of the cases, its own j
levels are under way and what follows is not: 1 + a + ... + a^j tokens come while the pipe is filled anew. The w - 1
rows beside the first choices are c other choices on each level, and j more levels after each. After a miss the first
drafts come later than the pipeline could take them, by r: order and answer on the way, and what a forward takes.

Where ranks share C cores p is no less than the work of a run over C: what all stages, the draft and the handling of
messages take for it, for N stages of s seconds (N s + d m / width) / C instead of s; and as many runs are in flight as
that leaves room for. The draft, one of n + 1 ranks that compute, has C / (n + 1) of a core, at most one. Ways that take
turns have a core in any case.
"""

from functools import lru_cache
from math import ceil, inf

from pipeinfer.core import theory
from pipeinfer.core.measured import Measured
from pipeinfer.core.strategies.stage_curves import StageCurves

MOST_WIDE = 8
"""Branches that the draft reads in one forward, at most."""

WAITS = 0.05
"""For so much of a run's time the slowest stage may wait for the next one."""

MOST_ROWS = 64
"""Of a tree that is verified in one round."""

LEAST_WIDE, WIDER = 8, 8
"""Nothing is said of runs of more rows than this, and than so many times the most that were measured."""

LEVELS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Rows on a level of a tree for which a forecast is worked out; the best counts."""

LEAST_DRAFT_S = 1e-9
"""Of a draft that takes no time."""

LEAST_LIKELY = 1e-3
"""What comes true with a smaller chance is left out of a forecast."""

INTERRUPTS = 1 / 3
"""Where ranks share cores each token that is drafted beside a run adds so much of a hop to it: the draft sends it and
the head reads it on these cores."""

BESIDE = 2
"""Ranks that compute at once where one stage verifies and the draft goes on."""


class Forecast:
    """Times of a pipeline as `measured` knows them now, whose ranks have so many `cores` together. Needs a measured
    run: see `ready`."""

    def __init__(self, measured: Measured, cores: float = inf) -> None:
        self._cores = cores
        self.acceptance = min(0.99, measured.acceptance)
        self.other = measured.other
        self.draft_s = measured.draft_s
        self.links_s = measured.links_s
        self._links_row_s = measured.links_row_s
        self._curves = StageCurves(measured)
        self.widest = max(LEAST_WIDE, WIDER * max(measured.rows))
        self.stages = self._curves.stages
        self.width_cost = (self._curves.of(4)[1] / max(1e-12, self._curves.of(1)[1]) - 1) / 3
        row_s = measured.draft_row_s
        self._draft_row_s = self.width_cost * self.draft_s if row_s is None else row_s

    @staticmethod
    def ready(measured: Measured) -> bool:
        """Whether enough has been measured to forecast anything."""
        return bool(measured.rows)

    def slowest_s(self, rows: int) -> float:
        """The slowest stage's computation of so many rows."""
        return self._curves.of(rows)[0]

    def traversal_s(self, rows: int) -> float:
        """From the head through every stage and back."""
        return self._curves.of(rows)[1] + self.links_s + self._links_row_s * (rows - 1)

    def plain_s(self) -> float:
        return self.traversal_s(1)

    def synchronous_s(self, k: int) -> float:
        """With the order to the draft and its answer on the way as well."""
        a = self.acceptance
        return self.round_s(k) * (1 - a) / (1 - a ** (k + 1))

    def round_s(self, k: int) -> float:
        """One round of it, however much of it is right."""
        return k * self.draft_s + self.hops_s + self.traversal_s(k + 1)

    def chain_s(self, most: int) -> float:
        """One run at a time, of all that was drafted during the one before, at most so many tokens. After a miss the
        first run has none, and the draft begins when it has heard of it."""
        ahead, sent, goes_on, tokens, seconds = -self.hops_s / self.draft_time_s, 0, 1.0, 0.0, 0.0
        while goes_on > LEAST_LIKELY:
            run_s, all_right = self.chain_run_s(sent + 1), self.acceptance ** (sent + 1)
            after = min(max(0.0, ahead + run_s / self.draft_time_s - sent - 1), most)
            run_s += self._interrupted_s(after - ahead)
            alike = 1.0 if after != ahead else 1 / (1 - all_right)  # as many runs follow that are like this one
            seconds += goes_on * alike * run_s
            tokens += goes_on * alike * theory.expected_length(self.acceptance, sent)
            goes_on *= all_right if alike == 1.0 else 0.0  # The token after its drafts is drafted as well.
            ahead, sent = after, int(after)
        return seconds / tokens

    def chain_run_s(self, rows: int) -> float:
        """One run of it, as many tokens being drafted meanwhile."""
        return self.traversal_s(rows) * max(1.0, BESIDE / self._cores) + self._interrupted_s(rows)

    def _interrupted_s(self, drafted: float) -> float:
        return INTERRUPTS * drafted * self.links_s / (self.stages + 1) if self._cores < inf else 0.0

    def rounds_s(self, rows: int) -> float:
        return self.tree_round_s(rows) / tree_lengths(round(self.acceptance, 2), round(self.other, 2))[rows - 1]

    def tree_round_s(self, rows: int) -> float:
        """One round of verifying so many nodes, however many of them are right. Most are drafted after the verdict,
        which leaves little of the tree. An order and its answer are waited for where it leaves nothing."""
        drafting_s = (rows - 1) / self.width(rows) * self.draft_wide_s(self.width(rows))
        seconds = self.traversal_s(rows) + (1 - self.acceptance) * self.hops_s + drafting_s
        return seconds * max(1.0, BESIDE / self._cores)

    def runs_s(self, rows: int) -> float:
        """Of a tree in runs of so many rows."""
        a, draft_s, pace_s = self.acceptance, self._crowded_draft_s(self.width_of_runs(rows)), self.pace_s(rows)
        traversal_s, best = self.traversal_s(rows), inf
        for level, tokens in tokens_per_miss(a, self.other):
            deep = max(1.0, rows / level)
            pace = max(pace_s, deep * draft_s)
            hits_s = pace * a / (1 - a**deep) if deep > 1 else pace * level / rows * a / (1 - a)
            missed_s = traversal_s + a * max(0.0, self.hops_s + deep * draft_s - pace)
            best = min(best, (missed_s + hits_s) / tokens)
        return best

    def row_s(self, rows: int) -> float:
        """What each of so many rows beyond the first adds to a traversal."""
        return (self.traversal_s(rows) - self.traversal_s(1)) / (rows - 1)

    def node_s(self, rows: int) -> float:
        """What drafting another node for runs of so many rows takes from stages that share its cores."""
        width = self.width_of_runs(rows)
        return self.draft_wide_s(width) / width if self._cores < inf else 0.0

    def first_s(self, rows: int) -> float:
        """The first stage's computation of so many rows."""
        return self._curves.stage_s(0, rows)

    @property
    def at_once(self) -> float:
        """How many stages compute at the same time in a full pipeline."""
        return min(self.stages, self._cores)

    @property
    def handling(self) -> float:
        """What a traversal of one row takes beside computing, over that."""
        return self.links_s / max(self._curves.of(1)[1], 1e-9)

    @property
    def hops_s(self) -> float:
        """An order on its way to the draft, and the answer."""
        return 2 * self.links_s / (self.stages + 1)

    def width(self, under_way: float) -> int:
        """Branches that the draft reads in one forward where so many rows are under way: the poorer it is, the more of
        them are other choices than its first."""
        return max(2, min(MOST_WIDE, ceil((1 - self.acceptance) * under_way)))

    def width_of_runs(self, rows: int) -> int:
        """The same for a full pipeline of runs, where the draft has less time: wide forwards take it longer."""
        return min(MOST_WIDE // 2, self.width(rows * self.traversal_s(rows) / max(self.slowest_s(rows), 1e-9)))

    def pace_s(self, rows: int) -> float:
        """Between two runs of so many rows in a full pipeline."""
        link_s = rows * self._links_row_s / (self.stages + 1)
        slowest_s, stages_s = self._curves.of(rows)
        width = self.width_of_runs(rows)
        forwards, draft_s = rows / width, self.draft_wide_s(width)
        handling_s = min(self.links_s + max(1.0, forwards) * self.hops_s, stages_s)
        work_s = stages_s + handling_s + forwards * draft_s
        return max(slowest_s, forwards * self._crowded_draft_s(width), link_s, work_s / self._cores)

    def window(self, rows: int) -> int:
        """Runs that keep every stage busy: the bandwidth-delay product. What is sent later is chosen with more
        knowledge, so that one in reserve costs more than a stage that now and then waits for a moment."""
        return max(2, ceil(self.traversal_s(rows) / max(self.pace_s(rows), 1e-9) - WAITS))

    @property
    def draft_time_s(self) -> float:
        """A forward of the draft beside one other that computes."""
        return max(self.draft_s, LEAST_DRAFT_S) * max(1.0, BESIDE / self._cores)

    def draft_wide_s(self, width: int) -> float:
        """A forward of the draft over so many branches."""
        return self.draft_s + (width - 1) * self._draft_row_s

    def _crowded_draft_s(self, width: int) -> float:
        """The same beside a full pipeline: where more compute than there are cores, as much longer."""
        return self.draft_wide_s(width) * max(1.0, (self.at_once + 1) / self._cores)


@lru_cache(64)
def tree_lengths(a: float, other: float) -> list[float]:
    """E(0), E(1) and so on where the k-th choice is right as often as the second, if those before it were wrong."""
    chances = [a, *((1 - a) * other * (1 - other) ** k for k in range(7))]
    return theory.expected_tree_lengths(chances, MOST_ROWS)


@lru_cache(8)
def tokens_per_miss(a: float, other: float) -> list[tuple[int, float]]:
    """Per rows on a level of a tree in runs, the tokens from one miss to the next, with as many other choices on each
    level as give the most; the rest of the rows is for the levels after these."""
    found = []
    for rows in LEVELS:
        hits = [(1 - (1 - other) ** others) * (1 - a ** ((rows - 1) / others)) for others in range(1, min(4, rows))]
        found.append((rows, (1 + max(hits, default=0.0)) / (1 - a)))
    return found
