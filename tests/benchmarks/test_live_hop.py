"""What a hop through live ranks costs beside a hop in a ring of bare processes, also encrypted: of pyzmq for `tcp`, of
blocking TLS sockets for `tls`.

    pytest tests/benchmarks/test_live_hop.py --benchmark-only

A token of the iterative strategy crosses stages + 1 links. The stages compute nothing, so that the time between tokens,
divided by the links, is one hop: receive, decode the header, dispatch, an empty stage, encode, send. The bare rings
have as many processes, which pass the same bytes on and sleep in between. Printed is also the processor time of all
processes per hop, which a busy machine moves less than the seconds.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from bare_rings import Ring, bare_ring

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.messages import Decode, RunKind
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime import control
from pipeinfer.runtime.transports.keys import write_keys
from pipeinfer.study.external_program import processor_s

HIDDEN = 64
TOKENS = 1000
MICRO = 1e6

HEADER = control.encode(Decode(999, RunKind.SINGLE, (99,), (999,), ((0,),), 1, compute_s=(0.1,)))

Way = Callable[[], tuple[float, float]]
"""Goes TOKENS times around: the median in seconds, and seconds of processors, both per hop."""


@pytest.mark.parametrize("stages", [1, 4, 8])
def test_a_hop_through_live_ranks(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], stages: int
) -> None:
    keys = write_keys(tmp_path / "keys")
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for transport in ("tcp", "tls"):
            ways[transport] = live(stack.enter_context(Cluster(plan(transport, stages))), stages)
            ring = bare_ring(transport, stages, keys, HEADER, bytes(4 * HIDDEN))
            ways[f"bare {transport}"] = bare(stack.enter_context(ring), stages)
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}

        def one_of_each() -> None:
            """Side by side, so that whatever else this machine does disturbs all."""
            for name, way in ways.items():
                taken[name].append(way())

        benchmark.pedantic(one_of_each, rounds=5, warmup_rounds=1)
    told = []
    for transport in ("tcp", "tls"):
        (hop, spent), (floor, floor_spent) = (
            [MICRO * median(figures) for figures in zip(*taken[name], strict=True)]
            for name in (transport, f"bare {transport}")
        )
        told.append(f"\n{stages} stages over {transport}: live {hop:.1f} us per hop, bare {floor:.1f} us, ratio "
                    f"{hop / floor:.2f}; of a processor {spent:.1f} and {floor_spent:.1f} us")  # fmt: skip
    with capsys.disabled():
        sys.stdout.write("".join(told))


def plan(transport: str, stages: int) -> Plan:
    options = {"layers": stages, "layer_s": 0.0, "hidden_size": HIDDEN}
    return Plan(backend="emulated", backend_options=options, stages=stages, draft=None, cells=TOKENS + 8,
                transport=transport)  # fmt: skip


def live(cluster: Cluster, stages: int) -> Way:
    strategy = open_strategy("iterative", {})

    def around() -> tuple[float, float]:
        trial = cluster.generate([1], strategy, max_tokens=TOKENS)
        return float(np.median(np.diff(trial.emit_s))) / (stages + 1), trial.processor_s / TOKENS / (stages + 1)

    return around


def bare(ring: Ring, stages: int) -> Way:
    def around() -> tuple[float, float]:
        start = processor_s(ring.processes)
        hop = median([ring.around() for _ in range(TOKENS)]) / (stages + 1)
        return hop, (processor_s(ring.processes) - start) / TOKENS / (stages + 1)

    return around
