"""A draft on several simulated ranks: its time is the sum over them and the hops, and nothing else changes."""

import msgspec
import pytest

from pipeinfer import workload
from pipeinfer.cluster.placement import even_split
from pipeinfer.modelling.costs import HIDDEN_BYTES, Roofline
from pipeinfer.modelling.simulate import Setting, check, simulate_one
from pipeinfer.results import metrics
from pipeinfer.workload import WorkloadError

CLUSTER, PAIR = workload.cluster("haswell-gigabit"), workload.pair("dolphin-orca2")
ONE = Setting("speculative", {"k": 3}, nodes=8, tokens=24)
TWO = msgspec.structs.replace(ONE, nodes=9, draft_ranks=2)


def test_a_forward_takes_the_sum_and_the_hops() -> None:
    layers = even_split(PAIR.target.layers, 7)
    one = Roofline(PAIR, CLUSTER, layers, 7)
    split = even_split(PAIR.draft.layers, 2)
    two = Roofline(PAIR, CLUSTER, layers, 7, draft_layers=split, latency_s=1e-3, bandwidth_bps=1e9)
    wire = 5 * PAIR.draft.hidden * HIDDEN_BYTES * 8 / 1e9
    # To read the weights takes as long in halves, as long as neither bound changes sides.
    assert two.draft_s(5, 64) == pytest.approx(one.draft_s(5, 64) + 2e-3 + wire, rel=0.02)
    assert sum(two.draft_shares(64)) == pytest.approx(1 - (2e-3 + wire / 5) / two.draft_s(1, 64))


def test_ranks_and_memory_are_those_of_the_split() -> None:
    one, two = simulate_one(CLUSTER, PAIR, ONE), simulate_one(CLUSTER, PAIR, TWO)
    assert two.token_ids == one.token_ids
    assert [rank.layers for rank in two.ranks[:7]] == [rank.layers for rank in one.ranks[:7]]
    assert [(rank.rank, rank.role, rank.layers) for rank in two.ranks[7:]] == [
        (7, "draft", (0, 16)), (8, "draft", (16, 32)),
    ]  # fmt: skip
    assert sum(rank.peak_memory for rank in two.ranks[7:]) == pytest.approx(one.ranks[7].peak_memory, rel=0.01)
    assert 0.9 * one.ranks[7].busy_s < sum(rank.busy_s for rank in two.ranks[7:]) < 1.1 * one.ranks[7].busy_s
    speed, slower = metrics.tokens_per_second(one), metrics.tokens_per_second(two)
    assert speed is not None
    assert slower is not None
    assert 0.8 * speed < slower < speed, "a hop more per drafted token"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"draft_ranks": 9}, "9 nodes for speculative: 80 layers"),
        ({"draft_ranks": 40, "nodes": 60}, "the draft: 32 layers cannot be split over 40"),
        ({"accounting": "as-published"}, "as published have one draft rank"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        check(CLUSTER, PAIR, msgspec.structs.replace(TWO, **fields))
