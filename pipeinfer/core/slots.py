"""How many runs a pipe has room for, and how many requests' rows one of them had best carry when it is full.

R requests on S slots, up to w of them in a run, come together to

    min(R, S w) / (S t(w) / t(1))        t: the slowest stage's time by rows

times the tokens of one row per slot: the widest run holds up those behind it. Where they have drafts that are right
with the chance a, and there are more rows than requests, it is more (`theory.shared_rows`).
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation
from pipeinfer.core.measured import Measured
from pipeinfer.core.tree import Node

AGED = 0.2
"""How much less a run is worth that continues one which is about to come back. From 0.1 to 0.3 any number
of requests comes to the closed form; at 0 up to 9 % is missing, and at 1 long chains are cut short."""

BUSY = 0.8
"""While what is under way keeps the slowest stage busy for so much of the time that the widest run takes through the
pipe, a further run would wait before the first stage."""

ENOUGH = 0.95
"""For less than the rest of what is possible nobody waits for others."""


class Most(NamedTuple):
    """What one run carries at most."""

    requests: int
    rows: int


class Slots:
    """Of one pipe, by what was `measured` of it. Looked up anew once per traversal."""

    def __init__(self, measured: Measured, stages: int) -> None:
        self._measured = measured
        self._stages = self.count = stages
        self.again_at = 0
        """Before which run to look again."""
        self._seconds: dict[int, float] = {}
        self._most: dict[tuple[int, int, int], Most] = {}

    def look(self, next_run: int) -> None:
        """Bring it up to date."""
        self.again_at = next_run + self._stages
        self.count = ceil(round(self._measured.traversal, 6))
        self._seconds = slowest_s(self._measured)
        self._most.clear()

    def busy(self, widths: Sequence[int]) -> bool:
        """Runs of so many rows keep the pipe busy. They do not where one is much wider than the others: these come back
        to wait for it, and what is sent between them costs nobody anything."""
        seconds = [seconds_of(self._seconds, rows) for rows in widths]
        return sum(seconds) >= BUSY * self.count * max(seconds)

    def most(self, requests: int, rows: int, ahead: int) -> Most:
        """What had best go as one run of so many requests, where each has so many rows now. `ahead`: rows of the runs
        that they send while others of theirs are under way; 0: they do not."""
        key = (requests, rows, ahead)
        found = self._most.get(key)
        if found is None:
            right = self._measured.acceptance
            found = self._most[key] = best_width(self._seconds, self.count, requests, rows, ahead, right)
        return found


def best_width(
    seconds: Mapping[int, float], slots: int, requests: int, rows: int, ahead: int = 0, right: float = 0.0
) -> Most:
    """The fewest in a run with which all together come to nearly as much as they can, where a draft is right with the
    chance `right`. `seconds` are those of the slowest stage for the numbers of rows that are known; where it is one,
    others are taken for free until one was measured."""
    found: dict[Most, float] = {}
    for width in range(1, (requests if ahead else -(-requests // slots)) + 1):
        drafts = ahead > 0 and requests < slots * width
        most = Most(width, width * (max(rows, ahead) if drafts else rows))
        speed = theory.shared_rows(slots, requests, width, right * drafts, max(1, ahead))
        found[most] = speed / (seconds_of(seconds, most.rows) or 1.0)
    enough = ENOUGH * max(found.values(), default=0.0)
    return next((most for most, speed in found.items() if speed >= enough), Most(1, rows))


def seconds_of(seconds: Mapping[int, float], rows: float) -> float:
    """By the line through the two nearest numbers of rows that are known, or the two widest of them; it never falls.
    What makes a number worth a try is taken for granted: fewer than any take as much less, more than the only one are
    for free."""
    known = sorted(seconds)
    least = known[0] if known else 0
    if rows < least or len(known) < 2:
        return seconds[least] * min(1.0, rows / least) if known else 0.0
    after = min(max(1, sum([some < rows for some in known])), len(known) - 1)
    left, right = known[after - 1], known[after]
    slope = max(0.0, (seconds[right] - seconds[left]) / (right - left))
    return seconds[left] + slope * (rows - left)


def slowest_s(measured: Measured) -> dict[int, float]:
    """What the slowest stage takes, by the numbers of rows that are known."""
    found = {rows: max(times.seconds) for rows, times in measured.rows.items()}
    if measured.prompt:
        found.setdefault(measured.prompt[0][0], max([seconds for _, seconds in measured.prompt]))
    return no_slower_than_wider(found)


def no_slower_than_wider(seconds: Mapping[int, float]) -> dict[int, float]:
    """Fewer rows take no longer than more. Where they were measured so, something else was computing, and nobody might
    try that number of rows again."""
    found, least = {}, float("inf")
    for rows in sorted(seconds, reverse=True):
        found[rows] = least = min(least, seconds[rows])
    return found


def worth(generation: Generation, nodes: Sequence[Node], right: float, next_run: int, slots: int) -> float:
    """Of a run: its chance to become text, and less by up to AGED the longer what it continues has been under way.
    Right behind it saves its request the most time; late, hardly more than a committed token would that waits for the
    verdict. Who has few slots uses them in pairs so, and not each a traversal after the one before."""
    first = nodes[0]
    before = first.parent.run if first.parent is not None else None
    if first.committed or before is None:
        return 1.0
    behind = min(next_run - before.id, slots) / slots
    return right ** (first.position - generation.tip.position) * (1 - AGED * behind)
