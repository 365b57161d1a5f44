"""What a trial says it used of processors: all that head and ranks did, and nothing twice."""

import time

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.plugins import open_strategy
from pipeinfer.results.metrics import summary
from pipeinfer.results.trial import Trial


def trial_of(cluster: Cluster) -> Trial:
    prompt = cluster.tokenizer.encode("def read(")
    return cluster.generate(prompt, open_strategy("pipeinfer", {}), max_tokens=12, stop_ids=())


def test_ranks_that_are_threads_share_their_processes_time() -> None:
    with Cluster(stages=2, transport="inproc") as cluster:
        start = time.process_time()
        trial = trial_of(cluster)
        whole = time.process_time() - start
    used = [rank.processor_s for rank in trial.ranks]
    assert min(used) > 0
    assert sum(used) <= whole
    assert 0 < trial.processor_s <= whole


@pytest.mark.parametrize("stages", [1, 2])
def test_ranks_that_are_processes_add_theirs(stages: int) -> None:
    with Cluster(stages=stages, transport="tcp") as cluster:
        first, second = trial_of(cluster), trial_of(cluster)
    for trial in (first, second):
        used = [rank.processor_s for rank in trial.ranks]
        assert min(used) > 0
        assert trial.processor_s > sum(used)
    assert summary(second)["processor_s_per_token"] == second.processor_s / len(second.token_ids)
