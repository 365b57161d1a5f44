"""An emulated pipeline in real time beside the simulator with the same costs: eight stages of 5 ms, a draft of 2 ms.

    pytest tests/benchmarks/test_emulated_speed.py --benchmark-only

What is missing to 100 % is the overhead of real processes and links, which the simulator does not know.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.plugins import open_strategy
from pipeinfer.results import metrics
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.sim import Simulation

STAGES, STAGE_S, DRAFT_S, ACCEPTANCE = 8, 0.005, 0.002, 0.7
PROMPT, TOKENS, ROUNDS = (1, 2, 3), 128, 3


class Costs:
    """The emulated backend's."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return STAGE_S

    def draft_s(self, rows: int, context: int) -> float:
        return DRAFT_S

    def row_bytes(self, stage: int) -> int:
        return 256


@pytest.fixture(scope="module")
def open_cluster() -> Any:
    """Opens the pipeline with or without the rank of a draft; one at a time."""
    opened: list[Cluster] = []

    def open_cluster(drafts: bool, transport: str) -> Cluster:
        while opened:
            opened.pop().close()
        options = {"layers": STAGES, "layer_s": STAGE_S, "draft_s": DRAFT_S, "acceptance": ACCEPTANCE}
        opened.append(
            Cluster(
                Plan(
                    backend="emulated", backend_options=options, stages=STAGES,
                    draft="builtin:draft" if drafts else None, transport=transport,
                )
            )
        )  # fmt: skip
        return opened[-1]

    yield open_cluster
    while opened:
        opened.pop().close()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("strategy", ["iterative", "speculative", "pipeinfer"])
def test_emulated_beside_simulated(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    open_cluster: Callable[[bool, str], Cluster],
    strategy: str,
    transport: str,
) -> None:
    simulated = metrics.tokens_per_second(simulate(strategy))
    cluster = open_cluster(open_strategy(strategy, {}).drafts, transport)
    speeds: list[float] = []

    def generate() -> None:
        trial = cluster.generate(PROMPT, open_strategy(strategy, {}), max_tokens=TOKENS)
        speeds.append(metrics.tokens_per_second(trial) or 0.0)

    benchmark.pedantic(generate, rounds=ROUNDS)
    assert simulated is not None
    with capsys.disabled():
        sys.stdout.write(
            f"\n{strategy} over {transport}: simulated {simulated:.1f} tokens/s, emulated "
            + ", ".join(f"{speed:.1f} ({speed / simulated:.1%})" for speed in speeds)
        )


def simulate(strategy: str) -> Trial:
    pipeline = PipelineShape(STAGES, cells=4096 + 256, context=4096)
    oracle = independent(ACCEPTANCE, seed=0)
    return Simulation(pipeline, open_strategy(strategy, {}), Costs(), oracle).generate(Request(PROMPT, TOKENS))
