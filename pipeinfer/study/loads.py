"""Cells that are requests of a load: several at once in one pipeline. A load is run whole, whichever of its requests
lack a record.
"""

import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import Any

import msgspec

from pipeinfer.errors import RankLost
from pipeinfer.modelling.load import as_one, simulate_load
from pipeinfer.modelling.platform import platform_of
from pipeinfer.results.records import Record
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.transports import HEAD
from pipeinfer.study.cells import in_nanoseconds, live_plan, prompt_of, sampling_of, warm_up, with_config
from pipeinfer.study.executors import local
from pipeinfer.study.identity import record_of
from pipeinfer.study.mpi_cells import needs_world
from pipeinfer.study.points import LiveLoadCell, LoadCell, whole
from pipeinfer.study.session import on_ranks
from pipeinfer.workload import WorkloadError

PATIENCE_S = 600.0
"""A load whose ranks are silent for so long has come to a stop."""

CELLS = 8192
"""As many as `pipeinfer serve` has, so that no request waits for others' to be free."""

def loads(cells: Iterable[LoadCell]) -> list[list[LoadCell]]:
    """The cells by the load that they are requests of, in order."""
    found: dict[bytes, list[LoadCell]] = {}
    for cell in cells:
        found.setdefault(msgspec.json.encode(whole(cell)[0]), []).append(cell)
    return list(found.values())


# Simulated


def check_loads(cells: Iterable[LoadCell]) -> None:
    """Raise WorkloadError if one of them cannot be simulated."""
    for some in loads(cells):
        together = as_one([cell.setting for cell in whole(some[0])])
        platform_of(some[0].cluster, some[0].pair).check(together)


def run_simulated_loads(cells: list[LoadCell], jobs: int | Executor) -> Iterator[Record]:
    """Their records, in order, from so many processes, or from a pool."""
    found = loads(cells)
    if isinstance(jobs, int) and (jobs == 1 or len(found) < 2):
        parts: Iterable[list[Record]] = map(simulated, found)
    else:
        parts = (local(jobs) if isinstance(jobs, int) else jobs).map(simulated, found)
    for part in parts:
        yield from part


def simulated(some: list[LoadCell]) -> list[Record]:
    """Simulate the load of these cells, and record them."""
    start = time.perf_counter()
    settings = [cell.setting for cell in whole(some[0])]
    trials = simulate_load(platform_of(some[0].cluster, some[0].pair).prepare, settings)
    share = (time.perf_counter() - start) / len(some)
    return [record_of(cell, in_nanoseconds(trials[cell.number]), share) for cell in some]


# Real


def check_served(cells: Iterable[LiveLoadCell]) -> None:
    """Raise WorkloadError where a world would have to be started for them."""
    for cell in cells:
        if needs_world([cell]):
            raise WorkloadError(f"several requests at once over {cell.live.transport}: start it in an MPI world, as"
                                " `mpirun -n 5 pipeinfer reproduce load-live`, or take --workers over tcp")  # fmt: skip


def run_live_loads(cells: Iterable[LiveLoadCell], key: str | None) -> Iterator[Record]:
    """Their records, in order; what fails has an error for a trial."""

    def plan(cell: LiveLoadCell) -> Any:
        return msgspec.structs.replace(live_plan(cell.live, key), cells=CELLS)

    yield from on_ranks(cells, plan, _Served().trial, warm_up)


class _Served:
    """The load that was served last, request by request."""

    def __init__(self) -> None:
        self._cells: list[LiveLoadCell] = []
        self._trials: list[Trial] = []
        self._failed: RankLost | None = None

    def trial(self, cluster: Any, cell: LiveLoadCell) -> Trial:
        """Of one request, whose load is served when the first of its requests is asked for. Raises RankLost for all of
        them where it failed."""
        load = whole(cell)
        if load != self._cells:
            self._cells, self._failed = load, None
            try:
                self._trials = serve(cluster, load)
            except RankLost as failed:
                self._failed = failed
        if self._failed is not None:
            raise self._failed
        return self._trials[cell.number]


def serve(cluster: Any, cells: list[LiveLoadCell]) -> list[Trial]:
    """Hand in all requests at once and wait for the last token. Raises RankLost."""
    from pipeinfer.serve.service import Service

    with Service(cluster, keeps_texts=False, recovers=False, waiting=len(cells)) as service:
        ended = _hand_in(cluster, service, cells)
    ranks = tuple(cluster.collect())
    return [
        with_config(cluster, Trial(
            cell.strategy, "emulated" if cell.live.backend == "emulated" else "real", record.prompt_tokens, ids,
            record.emit_s, record.reason, record.runs, ranks, precision=cluster.precision,
        ), cell, prompt_of(cluster, cell))
        for cell, (ids, record) in zip(cells, ended, strict=True)
    ]  # fmt: skip


def _hand_in(cluster: Any, service: Any, cells: list[LiveLoadCell]) -> list[tuple[tuple[int, ...], Any]]:
    """For each of the requests its tokens and its record."""
    from pipeinfer.serve.events import Ended, Failed, Tokens

    events: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for number, cell in enumerate(cells):
        service.submit(
            prompt_of(cluster, cell), max_tokens=cell.live.tokens, stop_ids=(),
            sampling=sampling_of(cell.live, cell.temperature), strategy=cell.strategy, options=cell.options,
            on_event=lambda event, number=number: events.put((number, event)),
        )  # fmt: skip
    ids: list[tuple[int, ...]] = [()] * len(cells)
    records: dict[int, Any] = {}
    while len(records) < len(cells):
        try:
            number, event = events.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise RankLost(HEAD, f"nothing came from the ranks for {PATIENCE_S:.0f} s") from None
        if isinstance(event, Failed):
            raise RankLost(HEAD, event.text)
        if isinstance(event, Tokens):
            ids[number] += event.ids
        elif isinstance(event, Ended):
            records[number] = event.record
    return [(ids[number], records[number]) for number in range(len(cells))]
