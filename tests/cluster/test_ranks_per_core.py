"""How many ranks the scheduler takes for sharing a core."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.core.strategies.iterative import Iterative


@pytest.fixture
def one_core() -> Iterator[None]:
    """This thread and those that it starts are bound to one core."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("threads cannot be bound to a core here")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("how", "ranks_per_core"),
    [({}, 3.1), ({"cpu_share": 0.5}, 1.6), ({"node_cores": 0.25}, 1.0), ({"node_cores": 2.0}, 3.1)],
)
def test_ranks_on_small_nodes_or_with_a_share_of_the_time_count_as_so_much_of_one_and_the_head_as_a_tenth(
    how: dict[str, Any], ranks_per_core: float
) -> None:
    with Cluster(stages=2, transport="inproc", **how) as cluster:
        pipeline = cluster.open_scheduler(lambda _: Iterative()).pipeline
    assert pipeline.ranks_per_core == pytest.approx(ranks_per_core)
    assert pipeline.rationed == (how.get("node_cores", 1.0) < 1), "with `cpu_share` a rank is slower, and has no bursts"


@pytest.mark.usefixtures("one_core")
def test_a_rank_counts_as_many_times_as_it_has_threads() -> None:
    pytest.importorskip("torch")
    with Cluster(stages=1, draft=None, backend="torch", target="builtin:draft", backend_options={"threads": 2},
                 transport="inproc") as cluster:  # fmt: skip
        assert cluster.open_scheduler(lambda _: Iterative()).pipeline.ranks_per_core == 2.1
