"""Measures what handling a run costs a rank, without its computation and without a link."""

import time

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import Decode, KvOp, KvSeqCp, KvSeqRm, RunKind
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden
from pipeinfer.runtime import control
from pipeinfer.runtime.control import Begin, Setup
from pipeinfer.runtime.rank_links import Endpoint
from pipeinfer.runtime.stage_rank import StageWorker
from pipeinfer.runtime.transports import Envelope, Traffic

RUNS = 400
ROWS = 2
HIDDEN = 256


class _Nowhere:
    """A transport that discards what is sent and never receives anything."""

    rank = 0
    address = ""

    def __init__(self) -> None:
        self.traffic: dict[int, Traffic] = {}

    def connect(self, rank: int, address: str) -> None: ...

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None: ...

    def receive(self, timeout: float) -> Envelope | None:
        return None

    def wake(self) -> None: ...

    def close(self) -> None: ...


class _Nothing:
    """A stage in the middle whose layers take no time."""

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        return hidden

    def apply(self, op: KvOp) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


def run_handling_s(rows: int = ROWS, hidden: int = HIDDEN) -> float:
    """Median seconds in which a rank's driver takes a run of `rows` of that width off the wire and sends it on."""
    setup = Setup(0, "target", "", b"", "", (1, 2), 1, 3, 64, 1024, 1, "", "")
    endpoint = Endpoint(_Nowhere(), setup)
    endpoint.worker = worker = StageWorker(endpoint, _Nothing())
    worker.take(Begin({}), b"")
    payload = bytes(4 * rows * hidden)
    times = []
    for run in range(RUNS):
        kv = (KvSeqCp(0, 1, 0, run), KvSeqRm(1, run, -1))
        tokens = tuple(range(rows))
        positions = tuple(range(run, run + rows))
        sent = Decode(run, RunKind.SPECULATIVE, tokens, positions, ((1,),) * rows, rows, kv, compute_s=(1e-3,))
        header = control.encode(sent)
        start = time.perf_counter()
        worker.take(control.decode(header), payload)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
