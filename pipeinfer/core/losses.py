"""What can become text no more, and the one message that says so to all stages."""

from collections.abc import Iterable, Sequence
from operator import attrgetter

from pipeinfer.core.messages import CancelRun
from pipeinfer.core.tree import Node, Run

Rows = tuple[int, tuple[int, ...]]
"""A run's id, and some of its rows."""


def killed(tops: Sequence[Node]) -> set[Run]:
    """These nodes and all below them are dead from now on. Gives the runs that have rows of theirs."""
    hit: set[Run] = set()
    stack = list(tops)
    while stack:
        node = stack.pop()
        node.alive = False
        run = node.run
        if run is not None:
            run.live -= 1
            hit.add(run)
        if node.children:
            stack += node.children.values()
    return hit


def cancellation(hit: Iterable[Run], now: float) -> CancelRun | None:
    """Of what is in flight, give up the runs that nothing is left of, and the dead rows of those that go on; all in one
    message, so that no stage computes a row after a gap."""
    runs: list[int] = []
    pruned: list[Rows] = []
    for run in sorted(hit, key=attrgetter("id")):
        if run.finished_at is None and (run.live or not _given_up(run, now, runs)):
            before = run.pruned
            rows = [row for row, node in enumerate(run.nodes, run.first_row) if not node.alive and row not in before]
            pruned.append((run.id, tuple(rows)))
            run.pruned += pruned[-1][1]
    return CancelRun(tuple(runs), tuple(pruned)) if runs or pruned else None


def abandonment(abandoned: Iterable[Run], now: float) -> CancelRun | None:
    """Give up whole runs, whatever of them is alive."""
    runs: list[int] = []
    pruned: list[Rows] = []
    for run in abandoned:
        if not _given_up(run, now, runs):
            before, first = run.pruned, run.first_row
            pruned.append((run.id, tuple([row for row in range(first, first + run.rows) if row not in before])))
            run.pruned += pruned[-1][1]
    return CancelRun(tuple(runs), tuple(pruned)) if runs or pruned else None


def _given_up(run: Run, now: float, runs: list[int]) -> bool:
    """Nothing is left of a run: it is cancelled, unless runs of other requests travel with it that go on."""
    run.cancel_sent_at = now
    whole = not run.together or all(one.cancel_sent_at is not None for one in run.together)
    if whole:
        runs.append(run.id)
    return whole
