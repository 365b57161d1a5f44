"""What can become text no more, and the one message that says so to all stages."""

from collections.abc import Iterable, Sequence
from operator import attrgetter

from pipeinfer.core.messages import CancelRun
from pipeinfer.core.tree import Node, Run


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


def cancellation(hit: Iterable[Run], now: float, *, whole: bool = False) -> CancelRun | None:
    """Of what is in flight, give up the runs that nothing is left of (all of these, if `whole`), and the dead rows of
    those that go on; in one message, so that no stage computes a row after a gap. A run that others travel with loses
    its rows only."""
    runs: list[int] = []
    pruned: list[tuple[int, tuple[int, ...]]] = []
    for run in sorted(hit, key=attrgetter("id")):
        if run.finished_at is not None:
            continue
        if whole or not run.live:
            run.cancel_sent_at = now
            if not run.together or all(one.cancel_sent_at is not None for one in run.together):
                runs.append(run.id)
                continue
        rows = enumerate(run.nodes, run.first_row)
        lost = tuple([row for row, node in rows if (whole or not node.alive) and row not in run.pruned])
        pruned.append((run.id, lost))
        run.pruned += lost
    return CancelRun(tuple(runs), tuple(pruned)) if runs or pruned else None
