"""What a trial says it used of processors: all that head and ranks did, and nothing twice."""

import os
import time
from contextlib import ExitStack

import pytest

from pipeinfer.cluster.control_groups import limited_nodes, move
from pipeinfer.cluster.launch import Cluster
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_strategy
from pipeinfer.results.metrics import summary
from pipeinfer.results.trial import Trial
from pipeinfer.study.external_program import processor_s


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


WAIT_S = 2.0


@pytest.mark.parametrize("cores", [None, 0.45], ids=["all cores", "under a quota"])
def test_ranks_that_wait_take_less_than_a_hundredth_of_a_core(cores: float | None) -> None:
    with ExitStack() as stack:
        if cores is not None:
            try:
                (node,) = stack.enter_context(limited_nodes(1, cores))
            except LaunchError as problem:
                pytest.skip(str(problem))
            move(os.getpid(), node)  # where its ranks start, too
        cluster = stack.enter_context(Cluster(stages=2, transport="tcp"))
        trial_of(cluster)
        time.sleep(0.1)
        ranks = [ready.pid for ready in cluster.ready.values()]
        before = [processor_s([rank]) for rank in ranks]
        time.sleep(WAIT_S)
        used = [processor_s([rank]) - start for rank, start in zip(ranks, before, strict=True)]
    assert max(used) < 0.01 * WAIT_S, f"of {WAIT_S} s they used {used}"
