"""Sessions that follow one another have ranks of one parent, and nothing of it is left at the end."""

import os
from pathlib import Path

import pytest

from pipeinfer.cluster.kept_processes import kept_processes
from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.plugins import open_strategy

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="parents are read from /proc")

OPTIONS = {"layers": 4, "layer_s": 1e-4, "draft_s": 1e-4, "acceptance": 0.8}


def plan(latency_s: float = 0.0) -> Plan:
    return Plan(backend="emulated", backend_options=OPTIONS, stages=2, latency_s=latency_s, transport="tcp")


def ranks(cluster: Cluster) -> list[int]:
    """Their processes."""
    return [ready.pid for _, ready in sorted(cluster.ready.items())]


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def generate(cluster: Cluster) -> tuple[int, ...]:
    return cluster.generate([1, 2, 3], open_strategy("pipeinfer", {}), max_tokens=8, stop_ids=()).token_ids


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_next_session_has_the_same_parent_and_ranks_of_its_own() -> None:
    with kept_processes():
        with Cluster(plan()) as first:
            before, parents, text = ranks(first), {parent(rank) for rank in ranks(first)}, generate(first)
        assert not any(map(lives, before))
        with Cluster(plan(latency_s=1e-3)) as second:
            first.close()
            assert {parent(rank) for rank in ranks(second)} == parents
            assert generate(second) == text, "closing the first again is not for its ranks"
            with Cluster(plan()) as beside:
                assert {parent(rank) for rank in ranks(beside)}.isdisjoint(parents)
        assert all(map(lives, parents))
    assert not any(map(lives, parents))


def test_without_it_each_session_ends_with_its_parent() -> None:
    with Cluster(plan()) as cluster:
        parents = {parent(rank) for rank in ranks(cluster)}
    assert not any(map(lives, parents))
