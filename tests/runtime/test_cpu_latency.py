"""Cores are asked to stay awake for as long as a session lasts, and only where that can be asked."""

import os
import struct
from pathlib import Path

import pytest

from pipeinfer.cluster import contact, doctor
from pipeinfer.cluster.launch import Cluster
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.runtime import cpu_latency, live
from pipeinfer.runtime.cpu_latency import without_deep_idle


def test_a_request_for_no_latency_is_held_open_meanwhile(tmp_path: Path) -> None:
    requests = tmp_path / "requests"
    os.mkfifo(requests)
    with open(os.open(requests, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as kernel:
        with without_deep_idle(requests):
            assert struct.unpack("=i", kernel.read(8)) == (0,)
            assert kernel.read(8) is None, "still open"
        assert kernel.read(8) == b"", "given back"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that refuses every write")
def test_a_request_that_is_refused_is_no_error() -> None:
    with without_deep_idle(Path("/dev/full")):
        pass


def test_where_nothing_can_be_asked_nothing_happens(tmp_path: Path) -> None:
    with without_deep_idle(tmp_path / "none"):
        pass
    assert not list(tmp_path.iterdir())


def test_every_rank_and_the_head_ask_and_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests = tmp_path / "requests"
    requests.touch()
    held = []
    monkeypatch.setattr(contact, "without_deep_idle", lambda: held.append(without_deep_idle(requests)) or held[-1])
    monkeypatch.setattr(live, "without_deep_idle", contact.without_deep_idle)
    with Cluster(transport="inproc", draft=None, stages=2) as cluster:
        cluster.generate([1, 2, 3], Iterative(), max_tokens=2)
        assert [request.closed for request in held] == [False] * 3
    assert [request.closed for request in held] == [True] * 3


def test_the_doctor_says_whether_cores_stay_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.idle_cores(tmp_path).state == "unknown"
    (tmp_path / "dev").mkdir()
    (tmp_path / cpu_latency.REQUESTS.relative_to("/")).touch()
    assert doctor.idle_cores(tmp_path).state == "ok"
    monkeypatch.setattr(os, "access", lambda *_: False)
    finding = doctor.idle_cores(tmp_path)
    assert (finding.state, "chmod" in finding.cure) == ("advice", True)
