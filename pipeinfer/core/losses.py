"""What can become text no more, and the one message that says so to all stages."""

from collections.abc import Iterable, Sequence

from pipeinfer.core.messages import CancelRun
from pipeinfer.core.tree import Node, Run


def lost_rows(tops: Sequence[Node]) -> dict[Run, list[int]]:
    """These nodes and all below them are dead from now on. Gives their rows, by run."""
    lost: dict[Run, list[int]] = {}
    last: Run | None = None
    stack = list(tops)
    while stack:
        node = stack.pop()
        node.alive = False
        run = node.run
        if run is not None:
            run.live -= 1
            if run is not last:  # Rows of one run are next to one another, as a rule.
                last, rows = run, lost.setdefault(run, [])
            rows.append(node.row)
        if node.children:
            stack += node.children.values()
    return lost


def cancellation(in_flight: Iterable[Run], lost: dict[Run, list[int]], now: float) -> CancelRun | None:
    """Give up the runs that nothing is left of, and the lost rows of those that go on; all in one message, so that no
    stage computes a row after a gap."""
    runs: list[int] = []
    pruned: list[tuple[int, tuple[int, ...]]] = []
    for run in in_flight:
        rows = lost.get(run)
        if rows and run.live:
            run.pruned = run.pruned.union(rows)
            pruned.append((run.id, tuple(sorted(rows))))
        elif rows:
            _give_up(run, rows, now, runs, pruned)
    return CancelRun(tuple(runs), tuple(pruned)) if runs or pruned else None


def abandonment(abandoned: Iterable[Run], now: float) -> CancelRun | None:
    """Give up whole runs, whatever of them is alive."""
    runs: list[int] = []
    pruned: list[tuple[int, tuple[int, ...]]] = []
    for run in abandoned:
        rows = [row for row in range(run.first_row, run.first_row + run.rows) if row not in run.pruned]
        _give_up(run, rows, now, runs, pruned)
    return CancelRun(tuple(runs), tuple(pruned)) if runs or pruned else None


def _give_up(run: Run, rows: list[int], now: float, runs: list[int], pruned: list[tuple[int, tuple[int, ...]]]) -> None:
    """Nothing is left of a run: it is cancelled, unless runs of other requests travel with it that go on."""
    run.cancel_sent_at = now
    if len(run.together) == 1 or all(one.cancel_sent_at is not None for one in run.together):
        runs.append(run.id)
    else:
        _prune(run, rows, pruned)


def _prune(run: Run, rows: list[int], pruned: list[tuple[int, tuple[int, ...]]]) -> None:
    run.pruned = run.pruned.union(rows)
    pruned.append((run.id, tuple(sorted(rows))))
