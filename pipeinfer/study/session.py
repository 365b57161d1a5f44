"""Cells on ranks that are up: brought up for the first cell, and again where a cell needs others or after a failure."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from pipeinfer.cluster.control_groups import limited_nodes, move
from pipeinfer.cluster.garbage_collection import looking_at_trials_alone
from pipeinfer.errors import LaunchError, RankLost, one_line
from pipeinfer.results.records import Record
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD, TransportError
from pipeinfer.study.identity import record_of
from pipeinfer.study.points import EmulatedCell, LiveCell, LiveLoadCell

C = TypeVar("C", EmulatedCell, LiveCell, LiveLoadCell)


def on_ranks(
    cells: Iterable[C],
    plan_of: Callable[[C], Any],
    generate: Callable[[Any, C], Trial],
    warm_up: Callable[[Any, C], None] | None = None,
) -> Iterator[Record]:
    """Their records, in order. A generation that fails has an error for a trial; so has every cell whose ranks cannot
    be brought up. `warm_up` follows each bringing up."""
    plan, cluster, problem = None, None, ""
    with ExitStack() as stack:
        for cell in cells:
            start = time.perf_counter()
            try:
                wanted = plan_of(cell)
                if wanted != plan:
                    stack.close()
                    plan, cluster, problem = wanted, None, ""
                if cluster is None and not problem:
                    cluster = stack.enter_context(_cluster(plan))
                    if warm_up is not None:
                        warm_up(cluster, cell)
                    stack.enter_context(looking_at_trials_alone())
                    start = time.perf_counter()
            except (LaunchError, RankLost, TransportError, ValueError, OSError) as failed:
                stack.close()
                cluster, problem = None, f"the ranks did not come up: {one_line(failed)}"
            if cluster is None:
                yield record_of(cell, None, 0.0, error=problem)
                continue
            try:
                trial = generate(cluster, cell)
            except (LaunchError, RankLost, TransportError, ValueError) as failed:
                stack.close()
                cluster = None
                yield record_of(cell, None, time.perf_counter() - start, error=one_line(failed))
            else:
                spans = _spans(cluster, trial) if cluster.plan.trace else []
                yield record_of(cell, trial, time.perf_counter() - start, spans=spans)


@contextmanager
def _cluster(plan: Any) -> Iterator[Any]:
    """A cluster by the plan. On limited nodes each target rank has one of its own, and the draft one with the head,
    which is this process."""
    from pipeinfer.cluster.launch import Cluster

    with ExitStack() as stack:
        nodes = stack.enter_context(limited_nodes(plan.stages + 1, plan.node_cores)) if plan.node_cores else []
        for node in nodes[-1:]:
            move(os.getpid(), node)  # Ranks start there too, so that they see a quota.
        cluster = stack.enter_context(Cluster(plan))
        for rank, node in enumerate(nodes[:-1]):
            move(cluster.ready[rank].pid, node)
        yield cluster


def _spans(cluster: Any, trial: Trial) -> list[Span]:
    """What the ranks did since the last call, in seconds since the request; their clock is the head's. Runs are counted
    from 0."""
    spans, cluster.spans = cluster.spans, []
    noted = next(span.start for span in spans if span.rank == HEAD and span.name.startswith("commit"))
    request, first_run = noted - trial.emit_s[0], cluster.scheduler.next_run - len(trial.runs)
    return [
        Span(span.rank, _counted(span.name, first_run), span.start - request, span.end - request, span.aborted)
        for span in spans
        if span.rank != HEAD and span.start >= request
    ]


def _counted(name: str, first_run: int) -> str:
    """`speculative 57` as the run's number within its trial."""
    kind, _, run = name.partition(" ")
    return f"{kind} {int(run) - first_run}" if run else kind
