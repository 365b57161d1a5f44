"""What a hop through live ranks costs beside a bare, also encrypted, pyzmq hop of the same bytes.

    pytest tests/benchmarks/test_live_hop.py --benchmark-only

A token of the iterative strategy crosses stages + 1 links. The stages compute nothing, so that the time between tokens,
divided by the links, is one hop: receive, decode the header, dispatch, an empty stage, encode, send.
"""

import subprocess
import sys
import time
from statistics import median
from typing import Any

import numpy as np
import pytest
import test_transport_hop
from test_transport_hop import round_trips

from pipeinfer.core import messages
from pipeinfer.core.messages import Decode, RunKind
from pipeinfer.launch import Cluster, Plan
from pipeinfer.plugins import open_strategy
from pipeinfer.transports.keys import Keys, write_keys

HIDDEN = 64
TOKENS = 1500
BARE_ROUNDS = 3000
MICRO = 1e6


@pytest.mark.parametrize("stages", [1, 4, 8])
def test_a_hop_through_live_ranks(
    benchmark: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str], stages: int
) -> None:
    keys = write_keys(tmp_path / "keys")
    options = {"layers": stages, "layer_s": 0.0, "hidden_size": HIDDEN}
    with Cluster(Plan(backend="emulated", backend_options=options, stages=stages, draft=None)) as cluster:
        bare = {kind: [bare_hop(kind, keys)] for kind in ("bare-blocking", "bare-spinning")}
        strategy = open_strategy("iterative", {})
        cluster.generate([1], strategy, max_tokens=50)
        trial = benchmark.pedantic(cluster.generate, ([1], strategy), {"max_tokens": TOKENS}, rounds=1)
        for kind, hops in bare.items():
            hops.append(bare_hop(kind, keys))
    gaps = np.diff(trial.emit_s)
    hop = float(np.median(gaps)) / (stages + 1)
    with capsys.disabled():
        sys.stdout.write(f"\n{stages} stages: {MICRO * hop:6.1f} us per hop")
        for kind, hops in bare.items():
            sys.stdout.write(f"; {kind} {MICRO * median(hops):6.1f} us, ratio {hop / median(hops):.2f}")


def bare_hop(kind: str, keys: Keys) -> float:
    """Median seconds one way: half a round trip between two processes."""
    size = 4 * HIDDEN + len(messages.encode(Decode(999, RunKind.SINGLE, (99,), (999,), ((0,),), 1, compute_s=(0.1,))))
    command = [sys.executable, test_transport_hop.__file__, kind, str(keys.file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            with round_trips(kind, keys, child.stdout.readline().strip()) as (_, round_trip):
                payload, taken = bytes(size), []
                for _ in range(BARE_ROUNDS):
                    start = time.perf_counter()
                    round_trip(payload)
                    taken.append(time.perf_counter() - start)
        finally:
            child.kill()
    return median(taken) / 2
