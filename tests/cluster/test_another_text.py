"""What a cluster measured of its ranks is there for the next text; a text with a log begins with nothing known."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.strategies.adaptive import Adaptive
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime.event_log import EventLog, SchedulerHeader


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(stages=2, transport="inproc") as cluster:
        yield cluster


def decoded(cluster: Cluster, **options: Any) -> Adaptive:
    strategy: Any = open_strategy("adaptive", {})
    prompt = cluster.tokenizer.encode("def read(")
    cluster.generate(prompt, strategy, max_tokens=24, stop_ids=(), **options)
    return strategy


def test_the_next_text_begins_in_the_way_that_was_the_fastest_so_far(cluster: Cluster) -> None:
    decoded(cluster)
    assert cluster.scheduler is not None
    first = cluster.scheduler.measured
    known = set(first.rows)
    strategy = decoded(cluster)
    second = cluster.scheduler.measured
    assert known <= set(second.rows)
    assert second.learned["adaptive"] is first.learned["adaptive"]
    assert strategy.forecast_s > 0


def test_a_text_with_a_log_begins_anew(cluster: Cluster) -> None:
    decoded(cluster)
    assert cluster.scheduler is not None
    before, seen = cluster.scheduler.measured, []

    def open_log(scheduler: Scheduler) -> EventLog:
        seen.append(dict(scheduler.measured.rows))
        header = SchedulerHeader(scheduler.pipeline, scheduler.next_run, scheduler.order, "", 0.0)
        return EventLog(header, lambda _: None)

    decoded(cluster, open_log=open_log)
    assert seen == [{}]
    assert cluster.scheduler.measured.learned["adaptive"] is not before.learned["adaptive"]
