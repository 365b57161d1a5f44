"""`adaptive` beside many requests of its kind: together they come to about as much as by the best of the others."""

from typing import Any

import pytest
from test_shared_pipe import STAGES
from test_theory import Ideal

from pipeinfer.core.effects import Request, Start
from pipeinfer.core.generation import PipelineShape
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime.load_sim import Arriving, LoadSimulation
from pipeinfer.runtime.oracle import independent

TOKENS = 64

OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("iterative", {}), ("speculative", {"k": 1}), ("speculative", {"k": 3}), ("pipeinfer", {"draft": 1}),
]  # fmt: skip

LEAST = 0.9
"""Of the best of them, from the first token on, before which nothing was measured."""


class Drafting(Ideal):
    """A forward of the draft takes a fiftieth of a traversal."""

    def draft_s(self, rows: int, context: int) -> float:
        return 0.02


def throughput(strategy: str, options: dict[str, Any], requests: int, row: float) -> float:
    """Tokens of all per time that a token alone takes through the pipeline."""
    pipeline = PipelineShape(STAGES, cells=requests * 512, sequences=requests * 64)
    load = LoadSimulation(pipeline, Drafting(STAGES, row=row), [
        Arriving(0.0, Start(Request(tuple(range(8)), TOKENS), number), open_strategy(strategy, options),
                 independent(0.79, seed=number))
        for number in range(requests)
    ])  # fmt: skip
    load.serve()
    return requests * TOKENS / max(times[-1] for times in load.emit_s.values())


@pytest.mark.parametrize("requests", [8, 16, 32])
@pytest.mark.parametrize("row", [0.05, 0.3, 1.0])
def test_adaptive_keeps_up_beside_others(row: float, requests: int) -> None:
    best = max(throughput(strategy, options, requests, row) for strategy, options in OTHERS)
    assert throughput("adaptive", {}, requests, row) >= LEAST * best
