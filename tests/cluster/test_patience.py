"""Ranks that live are waited for, however long they take; a line says what is waited for. Who is gone is not."""

import logging
import time
from typing import Any

import pytest

from pipeinfer.cluster import contact
from pipeinfer.cluster.contact import Contact
from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime import live

NOTE_S, SLOW_S = 0.2, 0.7


@pytest.fixture(autouse=True)
def soon_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "NOTE_S", NOTE_S)


def test_a_slow_token_is_waited_for_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    slow = {"layers": 2, "layer_s": SLOW_S}
    with Cluster(Plan(backend="emulated", backend_options=slow, stages=1, draft=None)) as cluster:
        assert len(cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=1).token_ids) == 1
    assert "the ranks live and have sent nothing for 0 s; waiting for run 0" in caplog.messages
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_slow_loading_is_waited_for_and_noted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = live.load_stage

    def slowly(rank: int, *arguments: Any, **options: Any) -> Any:
        time.sleep(SLOW_S * rank)
        return load(rank, *arguments, **options)

    monkeypatch.setattr(live, "load_stage", slowly)
    plan = Plan(backend="emulated", backend_options={"layers": 2}, stages=2, draft=None, transport="inproc")
    with Cluster(plan):
        assert any(line.endswith("waiting for ranks [1] to load") for line in caplog.messages)


def test_ranks_that_never_heard_of_a_head_end_with_it() -> None:
    """As when the models turn out to be unfit after the ranks were started."""
    begun = time.monotonic()
    Contact("inproc", 2, (), None).close()
    assert time.monotonic() - begun < SLOW_S
