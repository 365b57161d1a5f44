"""Schedulers that exist in simulation only: what they model, and that no live cluster takes them."""

import pytest

from pipeinfer.cluster.launch import Cluster, LaunchError
from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.strategies.dsi import Dsi
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.core.strategies.sync_tail import SyncTail
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.sim import SimulatedLink, Simulation

STAGES = 4
LINK_S = 0.25
TOKENS = 40


class Costs:
    """A traversal of one row takes 1, each further row `row` more, a draft 0.02."""

    def __init__(self, row: float) -> None:
        self.row = row

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return (1 + self.row * (rows - 1)) / STAGES

    def draft_s(self, rows: int, context: int) -> float:
        return 0.02

    def row_bytes(self, stage: int) -> int:
        return 0


def times(strategy: Strategy, acceptance: float = 0.8, row: float = 0.0, link_s: float = LINK_S) -> tuple[float, ...]:
    """When each token came."""
    pipeline = PipelineShape(STAGES, cells=2048, sequences=512)
    simulation = Simulation(pipeline, strategy, Costs(row), independent(acceptance), lambda *_: SimulatedLink(link_s))
    return simulation.generate(Request((1, 2, 3), TOKENS)).emit_s


def test_with_the_draft_on_the_last_stage_two_messages_of_each_round_fall_away() -> None:
    speculative, tail = times(Speculative(k=4)), times(SyncTail(k=4))
    rounds = len(set(speculative)) - 1
    assert len(set(tail)) - 1 == rounds
    assert speculative[-1] - speculative[0] == pytest.approx(tail[-1] - tail[0] + 2 * LINK_S * rounds)


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("row", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("link_s", [0.0, LINK_S])
def test_the_oracle_is_never_slower_than_plain_or_synchronous_decoding(
    acceptance: float, row: float, link_s: float
) -> None:
    oracle = times(Dsi(), acceptance, row, link_s)
    for other in (Iterative(), Speculative(k=1), Speculative(k=4), Speculative(k=12)):
        for mine, theirs in zip(oracle, times(other, acceptance, row, link_s), strict=True):
            assert mine <= theirs + 1e-9


@pytest.mark.parametrize("strategy", [Dsi(), SyncTail()])
def test_a_live_cluster_refuses_them_in_one_line(strategy: Strategy) -> None:
    cluster = object.__new__(Cluster)
    with pytest.raises(LaunchError, match=r"^this strategy needs .*: only `pipeinfer simulate` takes it$"):
        cluster.generate([1], strategy)
