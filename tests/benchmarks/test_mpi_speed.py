"""Tokens per second over MPI beside TCP: the same 4 ranks and head, more than the cores of a small machine.

    pytest tests/benchmarks/test_mpi_speed.py --benchmark-only

Generations over the two alternate in one run, so that what else the machine does meets both. `emulated` waits instead
of computing, which leaves the transport; `numpy` runs the built-in pair, and ranks compete for the cores.
"""

import os
import statistics
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.mpi_world import OVERSUBSCRIBE, find_mpiexec, join_world
from pipeinfer.core.generation import Strategy
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.errors import LaunchError
from pipeinfer.results.metrics import summary

RANKS = 4
TOKENS = 96
ROUNDS = 5
PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """'
STRATEGIES: dict[str, type[Strategy]] = {"iterative": Iterative, "pipeinfer": PipeInfer}


@pytest.mark.parametrize("backend", ["emulated", "numpy"])
@pytest.mark.timeout(300)
def test_mpi_is_within_half_again_of_tcp(benchmark: Any, capsys: pytest.CaptureFixture[str], backend: str) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    try:
        command = [find_mpiexec(), "-n", str(RANKS + 1), sys.executable, __file__, backend]
    except LaunchError as problem:
        pytest.skip(str(problem))
    output = benchmark.pedantic(subprocess.check_output, (command,), {"env": {**OVERSUBSCRIBE, **os.environ}}, rounds=1)
    for strategy, speeds in msgspec.json.decode(output).items():
        tcp, mpi = (statistics.median(speeds[transport]) for transport in ("tcp", "mpi"))
        with capsys.disabled():
            print(f"\n{backend:8} {strategy:9} tcp {tcp:6.1f}  mpi {mpi:6.1f} tokens/s  ratio {mpi / tcp:.2f}", end="")
        assert mpi > tcp / 1.5


def measure(backend: str) -> dict[str, dict[str, list[float]]]:
    """Tokens per second by strategy and transport, one figure per round."""
    found: dict[str, dict[str, list[float]]] = {name: {"tcp": [], "mpi": []} for name in STRATEGIES}
    with (
        Cluster(backend=backend, transport="tcp", stages=RANKS - 1) as tcp,
        Cluster(backend=backend, transport="mpi", stages=RANKS - 1) as mpi,
    ):
        for name, strategy in STRATEGIES.items():
            for _ in range(ROUNDS):
                found[name]["tcp"].append(tokens_per_second(tcp, strategy()))
                found[name]["mpi"].append(tokens_per_second(mpi, strategy()))
    return found


def tokens_per_second(cluster: Cluster, strategy: Strategy) -> float:
    trial = cluster.generate(cluster.tokenizer.encode(PROMPT), strategy, max_tokens=TOKENS, stop_ids=())
    return float(summary(trial)["tokens_per_second"])


if __name__ == "__main__":
    join_world()
    print(msgspec.json.encode(measure(sys.argv[1])).decode())
