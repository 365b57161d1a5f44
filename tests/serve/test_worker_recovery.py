"""Workers are lost under load: a spare takes the place, or the same one again, or the others go on without it."""

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from running_workers import Workers, lent, running, wait_until
from small_pair import Pair
from test_command import asking, server
from test_recovery import ASKED, TOKENS, heard
from test_service import PATIENCE_S, PROMPTS, Answer, alone, ask, settled

from pipeinfer.cluster import recovery
from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.serve.events import Ended, Failed, Paused, Resumed
from pipeinfer.serve.service import Service

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def expected(small_pair: Pair) -> list[list[int]]:
    """The tokens of each request alone, on one stage in this process."""
    with Cluster(target=small_pair.target, draft=None, transport="inproc", stages=1, cells=4096) as cluster:
        return [alone(cluster, prompt, how, TOKENS) for prompt, (_, how) in zip(PROMPTS, ASKED, strict=False)]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Four of no rank in particular, over TCP, to be `lent` to one test after another."""
    with running(tmp_path_factory.mktemp("workers"), count=4, fixed=False) as found:
        yield found


@contextmanager
def serving(workers: Workers, pair: Pair, ranks: int, **options: Any) -> Iterator[tuple[Cluster, Service]]:
    """A service over the first `ranks` workers, of which the last drafts; the others are its spares."""
    plan = Plan(**pair._asdict(), stages=ranks - 1, cells=4096, key=str(workers.key),
                workers=tuple(workers.addresses[:ranks]), spares=tuple(workers.addresses[ranks:]))  # fmt: skip
    with Cluster(plan) as cluster, Service(cluster, **options) as service:
        yield cluster, service


def ask_all(service: Service, cluster: Cluster) -> list[Answer]:
    return [
        ask(service, prompt, cluster, strategy=name, sampling=how, max_tokens=TOKENS)
        for prompt, (name, how) in zip(PROMPTS, ASKED, strict=False)
    ]


def after_some_tokens(service: Service, more: int = 30) -> None:
    before = service.snapshot().tokens
    while service.snapshot().tokens < before + more:
        time.sleep(0.005)


def assert_all_end_as_alone(answers: list[Answer], expected: list[list[int]]) -> None:
    for answer, ids in zip(answers, expected, strict=True):
        kinds = heard(answer)
        assert kinds == [Paused, Resumed, Ended]
        assert answer.ids == ids


@pytest.mark.parametrize(("victim", "scheme"), [(0, "tcp"), (1, "tcp"), (2, "tcp"), (1, "tls")])
def test_a_spare_takes_the_place_of_a_killed_worker(
    tmp_path: Path, workers: Workers, small_pair: Pair, expected: list[list[int]], victim: int, scheme: str
) -> None:
    with ExitStack() as stack:
        if scheme == "tls":
            workers = stack.enter_context(running(tmp_path, "tls://127.0.0.1:0", count=4, fixed=False))
        workers = lent(workers, 4)
        cluster, service = stack.enter_context(serving(workers, small_pair, 3))
        answers = ask_all(service, cluster)
        after_some_tokens(service)
        workers.kill(victim)
        assert_all_end_as_alone(answers, expected)
        now = service.snapshot()
        assert (now.losses, now.lacks, now.has_draft, now.stages) == (1, "", True, 2)
        wanted = list(workers.addresses[:3])
        wanted[victim] = workers.addresses[3]
        assert cluster.plan.workers == tuple(wanted)
        settled(service)


def test_without_a_draft_the_target_goes_on_alone_until_there_is_one_again(
    workers: Workers, small_pair: Pair, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = lent(workers, 3)
    with serving(workers, small_pair, 3) as (cluster, service):
        answers = ask_all(service, cluster)
        after_some_tokens(service)
        workers.kill(2)
        assert_all_end_as_alone(answers, expected)
        now = service.snapshot()
        assert (now.lacks, now.has_draft, now.stages) == ("without a draft", False, 2)
        later = ask(service, PROMPTS[0], cluster, strategy="pipeinfer", sampling=ASKED[0][1], max_tokens=TOKENS)
        ended = later.end()
        assert isinstance(ended, Ended)
        assert (later.ids, ended.record.strategy) == (expected[0], "iterative")
        workers.start_again(2)
        monkeypatch.setattr(recovery, "LATE_S", PATIENCE_S)
        answers = ask_all(service, cluster)
        after_some_tokens(service)
        workers.kill(0)
        workers.start_again(0)
        assert_all_end_as_alone(answers, expected)
        now = service.snapshot()
        assert (now.losses, now.lacks, now.has_draft) == (2, "", True)


def test_the_rest_go_on_with_a_new_split(workers: Workers, small_pair: Pair, expected: list[list[int]]) -> None:
    workers = lent(workers, 4)
    with serving(workers, small_pair, 4) as (cluster, service):
        assert cluster.models.split == [(0, 2), (2, 3), (3, 4)]
        answers = ask_all(service, cluster)
        after_some_tokens(service)
        workers.kill(1)
        assert_all_end_as_alone(answers, expected)
        assert cluster.models.split == [(0, 2), (2, 4)]
        now = service.snapshot()
        assert (now.lacks, now.has_draft, now.stages) == ("on 2 stages instead of 3", True, 2)


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_a_worker_that_was_silent_for_a_while_is_used_again(
    tmp_path: Path, small_pair: Pair, expected: list[list[int]], scheme: str
) -> None:
    """Of a process of this host the head sees that it is stopped, where a transport would wait for it."""
    listen = f"{scheme}://127.0.0.1:0"
    with (
        running(tmp_path, listen, count=3, fixed=True) as workers,
        serving(workers, small_pair, 3) as (cluster, service),
    ):
        answers = ask_all(service, cluster)
        after_some_tokens(service)
        os.kill(workers.processes[1].pid, signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE_S
        while service.snapshot().state == "serving":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "lost rank 1: target layers 2-3" in service.snapshot().state
        os.kill(workers.processes[1].pid, signal.SIGCONT)
        assert_all_end_as_alone(answers, expected)
        assert cluster.plan.workers == tuple(workers.addresses)
        assert service.snapshot().lacks == ""


def test_a_worker_whose_name_is_not_known_any_more_is_passed_over(
    workers: Workers,
    small_pair: Pair,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    workers = lent(workers, 4)
    workers.addresses[1] = workers.addresses[1].replace("127.0.0.1", "localhost")
    with serving(workers, small_pair, 3) as (cluster, service):
        answers = ask_all(service, cluster)
        after_some_tokens(service)
        asked = socket.getaddrinfo

        def without_names(host: str, *args: Any, **options: Any) -> Any:
            if host == "localhost":
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return asked(host, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", without_names)
        workers.kill(1)
        assert_all_end_as_alone(answers, expected)
        assert cluster.plan.workers == (workers.addresses[0], workers.addresses[3], workers.addresses[2])
        assert service.snapshot().lacks == ""
    assert f'the worker at {workers.addresses[1]}: no host "localhost" is known here' in caplog.text


def test_where_nobody_is_left_everybody_hears_so(
    workers: Workers, small_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = lent(workers, 2)
    monkeypatch.setattr(recovery, "ROLL_S", 0.5)
    monkeypatch.setattr(recovery, "LATE_S", 0.5)
    with serving(workers, small_pair, 2) as (cluster, service):
        answer = ask(service, PROMPTS[0], cluster, strategy="iterative", max_tokens=1900)
        answer.first()
        workers.kill(1)
        workers.kill(0)
        ended = answer.end()
        assert isinstance(ended, Failed)
        assert ended.text == "no worker is left that answers: start some, and then this again"
        assert service.snapshot().state == ended.text


def test_without_recovery_a_lost_worker_ends_it(workers: Workers, small_pair: Pair) -> None:
    workers = lent(workers, 3)
    with serving(workers, small_pair, 2, recovers=False) as (cluster, service):
        answer = ask(service, PROMPTS[0], cluster, strategy="iterative", max_tokens=1900)
        answer.first()
        workers.kill(0)
        ended = answer.end()
        assert isinstance(ended, Failed)
        assert "lost rank 0: target layers 0-3" in ended.text
        assert len(ended.text.splitlines()) == 1


def test_a_spare_that_cannot_do_it_is_passed_over(
    tmp_path: Path, small_pair: Pair, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started as another rank than the lost one."""
    monkeypatch.setattr(recovery, "MEET_S", 0.5)
    name, sampling = ASKED[0]
    with running(tmp_path, count=3, fixed=True) as workers, serving(workers, small_pair, 2) as (cluster, service):
        answer = ask(service, PROMPTS[0], cluster, strategy=name, sampling=sampling, max_tokens=TOKENS)
        answer.first()
        workers.kill(1)
        assert heard(answer)[-1] is Ended
        assert answer.ids == expected[0]
        assert service.snapshot().lacks == "without a draft"


STEADY = ["--backend", "emulated", "--backend-option", "layers=4", "--backend-option", "layer_s=0.004"]


def there(workers: Workers) -> list[str]:
    return ["--workers", ",".join(workers.addresses), "--key", str(workers.key)]


def told(url: str, path: str) -> str:
    return str(urlopen(f"{url}/{path}", timeout=PATIENCE_S).read().decode())


def test_a_server_says_that_it_goes_on_without_a_draft(workers: Workers) -> None:
    fields = {"prompt": "a b", "max_tokens": 200, "temperature": 0}
    workers = lent(workers, 3)
    with server(*STEADY, *there(workers)) as (_, url):
        whole = json.loads(urlopen(asking(url, fields), timeout=PATIENCE_S).read())["choices"][0]["text"]
        assert json.loads(told(url, "health")) == {"status": "ok"}
        with urlopen(asking(url, {**fields, "stream": True}), timeout=PATIENCE_S) as stream:
            events = [stream.readline().decode() for _ in range(10)]
            workers.kill(2)
            events += stream.read().decode().splitlines(keepends=True)
        chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
        assert chunks[-1]["metrics"]["pipeinfer"]["choices"][0]["strategy"] == "iterative"
        paused, resumed = [event for event in events if event.startswith(":")]
        assert paused.startswith(": paused: lost rank 2: draft on ")
        assert resumed.endswith(", without a draft\n")
        assert json.loads(told(url, "health")) == {"status": "ok", "lacks": "without a draft"}
        figures = told(url, "metrics")
        for name, value in (("has_draft", 0), ("stages", 2), ("ranks_lost_total", 1)):
            assert re.search(rf"^pipeinfer_{name}\{{.*\}} {value}$", figures, re.MULTILINE)


def test_a_head_that_is_killed_ends_its_streams_and_workers_wait_for_the_next(tmp_path: Path) -> None:
    fields = {"prompt": "a b", "max_tokens": 2000, "stream": True}
    with running(tmp_path, count=3, fixed=False) as workers:
        for _ in range(2):
            with (
                server(*STEADY, *there(workers)) as (process, url),
                urlopen(asking(url, fields), timeout=PATIENCE_S) as stream,
            ):
                assert stream.readline().startswith(b"data: ")
                process.kill()
                with pytest.raises(http.client.IncompleteRead):
                    stream.read()
        with server(*STEADY, *there(workers)) as (_, url):
            answer = json.loads(urlopen(asking(url, {"prompt": "a b", "max_tokens": 4}), timeout=PATIENCE_S).read())
            assert answer["usage"]["completion_tokens"] == 4
        wait_until(lambda: workers.held() == workers.held_at_first)
        for rank in range(3):
            assert set(workers.said(rank).splitlines()) <= {"session ended: the head is gone"}
