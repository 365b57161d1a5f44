"""How soon a cancelled run stops: eight emulated stages of 20 ms over tcp, acceptance 0.5.

    pytest tests/benchmarks/test_cancellation_speed.py --benchmark-only

Both figures are upper bounds, as they have hops in them: from the head's decision until the forward has returned, one
hop, in a whole pipeline; and from the CancelRun being sent until the marker is back, two hops, for a stage alone.
"""

import itertools
import sys
import threading
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.messages import CancelRun, Decode, RunKind
from pipeinfer.plugins import open_strategy
from pipeinfer.results import metrics
from pipeinfer.runtime import control
from pipeinfer.runtime.control import Begin, Setup, Shutdown
from pipeinfer.runtime.live import run_rank
from pipeinfer.runtime.transports import HEAD, open_transport
from pipeinfer.runtime.transports.keys import Keys

STAGES, STAGE_S = 8, 0.02
ROUNDS = 200


def test_from_the_head_to_the_stage(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"layers": STAGES, "layer_s": STAGE_S, "acceptance": 0.5}
    with Cluster(Plan(backend="emulated", backend_options=options, stages=STAGES, trace=True)) as cluster:
        cluster.generate([1, 2], open_strategy("pipeinfer", {}), max_tokens=4)
        cluster.spans.clear()
        trial = benchmark.pedantic(
            cluster.generate, ([1, 2], open_strategy("pipeinfer", {})), {"max_tokens": 48}, rounds=1
        )  # fmt: skip
        sent = {run: span.start for span in cluster.spans if span.name.startswith("cancel")
                for run in span.name.split()[1:]}  # fmt: skip
        stopped = [span for span in cluster.spans if span.aborted and span.rank < STAGES]
    latencies = [span.end - sent[span.name.split()[1]] for span in stopped]
    with capsys.disabled():
        show("head's decision to forward's return", latencies)
        print(f"\ncompute saved: {metrics.compute_saved_s(trial):.2f} s", end="")


def test_inside_a_stage(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The stage runs in a thread here, so that nothing else of a cluster is in the way."""
    keys = Keys.generate()
    head = open_transport("tcp://127.0.0.1:0", HEAD, keys=keys)
    rank = open_transport("tcp://127.0.0.1:0", 0, keys=keys)
    thread = threading.Thread(target=run_rank, args=(rank, 30))
    thread.start()
    head.connect(0, rank.address)

    def send(message: object, *, urgent: bool = False) -> None:
        head.send(0, control.encode(message), urgent=urgent)

    def receive() -> Any:
        envelope = head.receive(10)
        assert envelope is not None
        return control.decode(envelope.header)

    send(Setup(
        rank=0, role="target", backend="emulated", options=msgspec.json.encode({"layers": 1, "layer_s": STAGE_S}),
        model="target", layers=(0, 1), stage=0, stages=1, sequences=8, cells=64, next_rank=HEAD,
        next_address=head.address, head_address=head.address,
    ))  # fmt: skip
    receive()
    send(Begin({}))
    pauses = np.random.Generator(np.random.Philox(7)).uniform(0.002, 0.015, ROUNDS)
    latencies: list[float] = []

    runs = itertools.count()

    def cancel_one() -> None:
        run = next(runs)
        send(Decode(run, RunKind.SPECULATIVE, (7,), (0,), ((0,),), 1))
        time.sleep(pauses[run % ROUNDS])
        sent = time.monotonic()
        send(CancelRun((run,)), urgent=True)
        if receive().cancelled_at == 0:  # else this process woke up too late, and the run was through
            latencies.append(time.monotonic() - sent)

    benchmark.pedantic(cancel_one, rounds=ROUNDS)
    send(Shutdown())
    thread.join(10)
    for each in (rank, head):
        each.close()
    with capsys.disabled():
        show("cancel sent to marker received, two hops", latencies)


def show(what: str, seconds: list[float]) -> None:
    p50, p90, p99 = 1e3 * np.percentile(seconds, [50, 90, 99])
    within = float(np.mean(np.asarray(seconds) < 0.002))
    sys.stdout.write(
        f"\n{what}: {len(seconds)} times, p50 {p50:.2f} ms, p90 {p90:.2f}, p99 {p99:.2f}, within 2 ms {within:.0%}"
    )
