"""What is left of a cluster when workers of it are lost, under the memory that the others have."""

from pathlib import Path

import pytest
from running_workers import Workers, running
from test_auto import profile

from pipeinfer.cluster.launch import Cluster
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.errors import LaunchError

pytestmark = pytest.mark.timeout(120)


def open_cluster(workers: Workers, path: str) -> Cluster:
    """All workers take part, and the last drafts."""
    return Cluster(workers.plan(backend_options={"profile": path}, stages=len(workers.addresses) - 1))


def text(cluster: Cluster) -> tuple[int, ...]:
    return cluster.generate([1, 2], Iterative(), max_tokens=3).token_ids


def test_a_new_split_is_as_even_as_memory_allows(tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (0.1,) * 4, (100, 3.2, 100, 100))
    with running(tmp_path, count=4, fixed=False) as workers, open_cluster(workers, path) as cluster:
        before = text(cluster)
        assert cluster.models.split == [(0, 3), (3, 6), (6, 8)]
        workers.kill(2)
        cluster.reopen(2)
        assert cluster.models.split == [(0, 6), (6, 8)]
        assert cluster.lacks == "on 2 stages instead of 3"
        assert text(cluster) == before


def test_where_fewer_stages_have_no_room_the_draft_makes_some(tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (0.1,) * 3, (5, 5, 5))
    with running(tmp_path, count=3, fixed=False) as workers, open_cluster(workers, path) as cluster:
        before = text(cluster)
        workers.kill(0)
        cluster.reopen(0)
        assert cluster.plan.workers == (workers.addresses[1], workers.addresses[2])
        assert cluster.models.split == [(0, 4), (4, 8)]
        assert cluster.lacks == "without a draft"
        assert text(cluster) == before
        workers.kill(1)
        with pytest.raises(LaunchError, match="has 8 layers, and the ranks have room for 4"):
            cluster.reopen(0)
