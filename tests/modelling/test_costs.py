"""The cost model, held against figures worked out by hand from the dimensions."""

import msgspec
import pytest

from pipeinfer import workload
from pipeinfer.cluster.placement import even_split
from pipeinfer.modelling.costs import Roofline, check_memory, kv_bytes_per_position, memory_bytes

PAIR = workload.pair("dolphin-tinyllama")
CLUSTER = workload.cluster("haswell-gigabit")
BANDWIDTH = 136.5e9 * 0.8
ARITHMETIC = 1472e9 * 0.4


def costs(stages: int, **options: float) -> Roofline:
    return Roofline(PAIR, CLUSTER, even_split(PAIR.target.layers, stages), stages, **options)  # type: ignore[arg-type]


def test_one_row_is_bound_by_reading_the_weights() -> None:
    traversal = sum(costs(4).stage_s(stage, 1, 1) for stage in range(4))
    # All weights but the embedding, which is looked up, and 80 layers' overhead.
    read = 33.2e9 * (1 - PAIR.target.head_parameters / PAIR.target.counted_parameters)
    assert traversal == pytest.approx(read / BANDWIDTH + 80 * 20e-6, rel=1e-3)


def test_many_rows_are_bound_by_arithmetic() -> None:
    weights = 20 * PAIR.target.layer_parameters
    expected = 20 * 20e-6 + 64 * (2 * weights + 4 * 512 * 8192 * 20) / ARITHMETIC
    assert costs(4).stage_s(0, 64, 512) == pytest.approx(expected, rel=1e-9)


def test_more_rows_and_more_context_never_cost_less() -> None:
    stage = [[costs(2).stage_s(1, rows, context) for context in (1, 512, 4096)] for rows in (1, 2, 4, 64)]
    for context in range(3):
        by_rows = [row[context] for row in stage]
        assert by_rows == sorted(by_rows)
        assert by_rows[0] < by_rows[-1]
    assert all(row == sorted(row) and row[0] < row[-1] for row in stage)


def test_free_width_costs_what_one_row_does() -> None:
    free = costs(4, width_cost=0.0)
    assert free.stage_s(1, 8, 100) == free.stage_s(1, 1, 100) == costs(4).stage_s(1, 1, 100)


def test_a_dearer_draft_leaves_the_target_alone() -> None:
    dear = costs(4, draft_cost=6.0)
    assert dear.draft_s(3, 100) == 6 * costs(4).draft_s(3, 100)
    assert dear.stage_s(1, 3, 100) == costs(4).stage_s(1, 3, 100)


def test_only_the_last_stage_pays_for_the_output_head() -> None:
    model = costs(4)
    head = PAIR.target.head_parameters * PAIR.target.bytes_per_weight / BANDWIDTH
    assert model.stage_s(3, 1, 1) - model.stage_s(2, 1, 1) == pytest.approx(head, rel=1e-9)


def test_a_hop_carries_32_kib_per_row_and_ids_or_logits_at_the_end() -> None:
    assert [costs(3).row_bytes(stage) for stage in range(3)] == [32 * 1024, 32 * 1024, 4]
    assert costs(3, logits_on_wire=True).row_bytes(2) == 125 * 1024
    falcon = Roofline(workload.pair("falcon-7b"), CLUSTER, even_split(80, 2), 2, logits_on_wire=True)
    assert (falcon.row_bytes(0), falcon.row_bytes(1)) == (58 * 1024, 254 * 1024)


def test_the_draft_is_far_cheaper_than_the_target() -> None:
    model = costs(4)
    assert 0 < model.draft_s(1, 64) < 0.05 * sum(model.stage_s(stage, 1, 64) for stage in range(4))


def test_grouped_query_attention_shrinks_keys_and_values() -> None:
    # Two tensors of 8 heads of 128 numbers in float16.
    assert kv_bytes_per_position(PAIR.target) == 2 * 8 * 128 * 2


def test_the_stages_together_hold_the_whole_model() -> None:
    split = even_split(PAIR.target.layers, 7)
    held = sum(memory_bytes(PAIR.target, layers, 0) for layers in split)
    assert held == pytest.approx(33.2e9, rel=1e-6)


def test_a_model_that_does_not_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(workload.WorkloadError, match=r"rank 1 has 64 GB of memory and needs 70.0 GB for a model: use"):
        check_memory(CLUSTER, 1, 70 * 10**9, "a model")


def test_a_slower_node_in_a_mixed_cluster_takes_longer() -> None:
    mixed = workload.cluster("mixed-gigabit")
    model = Roofline(PAIR, mixed, [(0, 20), (20, 40), (40, 80)], 3)
    assert model.stage_s(1, 1, 1) > model.stage_s(0, 1, 1)
    assert msgspec.structs.asdict(mixed.node(3)) == msgspec.structs.asdict(mixed.nodes[1])
