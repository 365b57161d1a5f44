"""What a hop through live ranks costs beside a hop in a ring of bare pyzmq processes, also encrypted.

    pytest tests/benchmarks/test_live_hop.py --benchmark-only

A token of the iterative strategy crosses stages + 1 links. The stages compute nothing, so that the time between tokens,
divided by the links, is one hop: receive, decode the header, dispatch, an empty stage, encode, send. The bare ring has
as many processes, which pass the same bytes on and sleep in between. Printed of both is also the processor time of all
processes per hop, which a busy machine moves less than the seconds.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pytest
import zmq

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.messages import Decode, RunKind
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime import control
from pipeinfer.runtime.transports.framing import PREFIX_SIZE
from pipeinfer.runtime.transports.keys import Keys, read_keys, write_keys
from pipeinfer.study.external_program import processor_s

HIDDEN = 64
TOKENS = 1000
ANY = "tcp://127.0.0.1:0"
MICRO = 1e6

Socket = zmq.Socket[bytes]


class Ring(NamedTuple):
    """`around` sends a message around the ring of these processes and gives the seconds that took."""

    around: Callable[[], float]
    processes: list[int]


@pytest.mark.parametrize("stages", [1, 4, 8])
def test_a_hop_through_live_ranks(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], stages: int
) -> None:
    options = {"layers": stages, "layer_s": 0.0, "hidden_size": HIDDEN}
    plan = Plan(backend="emulated", backend_options=options, stages=stages, draft=None, cells=TOKENS + 8)
    with Cluster(plan) as cluster, bare_ring(stages, write_keys(tmp_path / "keys")) as ring:
        live: list[float] = []
        bare: list[float] = []
        live_spent: list[float] = []
        bare_spent: list[float] = []
        strategy = open_strategy("iterative", {})

        def one_of_each() -> None:
            """Side by side, so that whatever else this machine does disturbs both."""
            trial = cluster.generate([1], strategy, max_tokens=TOKENS)
            live.append(float(np.median(np.diff(trial.emit_s))) / (stages + 1))
            live_spent.append(trial.processor_s / TOKENS / (stages + 1))
            start = processor_s(ring.processes)
            bare.append(median([ring.around() for _ in range(TOKENS)]) / (stages + 1))
            bare_spent.append((processor_s(ring.processes) - start) / TOKENS / (stages + 1))

        benchmark.pedantic(one_of_each, rounds=5, warmup_rounds=1)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{stages} stages: live {MICRO * median(live):.1f} us per hop, bare {MICRO * median(bare):.1f} us, "
            f"ratio {median(live) / median(bare):.2f}; of a processor {MICRO * median(live_spent):.1f} and "
            f"{MICRO * median(bare_spent):.1f} us"
        )


@contextmanager
def bare_ring(stages: int, keys: Keys) -> Iterator[Ring]:
    """A ring of `stages` bare processes and this one."""
    header = control.encode(Decode(999, RunKind.SINGLE, (99,), (999,), ((0,),), 1, compute_s=(0.1,)))
    message = [bytes(PREFIX_SIZE) + header, bytes(4 * HIDDEN)]
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        router = bound(stack.enter_context(context.socket(zmq.ROUTER)), keys)
        dealer = stack.enter_context(context.socket(zmq.DEALER))
        following = router.getsockopt_string(zmq.LAST_ENDPOINT)
        processes = [os.getpid()]
        for _ in range(stages):
            command = [sys.executable, __file__, str(keys.file), following]
            child = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(child.kill)
            processes.append(child.pid)
            assert child.stdout is not None
            following = child.stdout.readline().strip()
        connected(dealer, keys, following)

        def around() -> float:
            start = time.perf_counter()
            dealer.send_multipart(message)
            router.recv_multipart()
            return time.perf_counter() - start

        yield Ring(around, processes)


def bound(router: Socket, keys: Keys) -> Socket:
    router.curve_server, router.curve_secretkey = True, keys.secret
    router.bind(ANY)
    return router


def connected(dealer: Socket, keys: Keys, address: str) -> Socket:
    dealer.linger = 0
    dealer.curve_serverkey = keys.public
    dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
    dealer.connect(address)
    return dealer


def pass_on(keys: Keys, following: str) -> None:
    """One process of the ring: prints its address and sends what comes to the next one."""
    context = zmq.Context()
    router = bound(context.socket(zmq.ROUTER), keys)
    dealer = connected(context.socket(zmq.DEALER), keys, following)
    print(router.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    while True:
        dealer.send_multipart(router.recv_multipart()[1:])


if __name__ == "__main__":
    pass_on(read_keys(sys.argv[1]), sys.argv[2])
