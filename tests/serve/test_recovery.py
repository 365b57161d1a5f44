"""Ranks are killed under load: every answer is the one that it would have been, and nothing is left behind."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import alive, parent_of
from small_pair import Pair
from test_service import PATIENCE_S, PROMPTS, Answer, alone, ask, settled

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError, RankLost
from pipeinfer.plugins import open_strategy
from pipeinfer.serve.events import Ended, Failed, Paused, Resumed, Tokens
from pipeinfer.serve.service import Service

ASKED = [
    ("pipeinfer", Sampling(0.8, 0, 0.95, 5)),
    ("speculative", Sampling()),
    ("iterative", Sampling(1.0, 40, 1.0, 6)),
    ("specpipe", Sampling()),
]
TOKENS = 120
"""So many that none has ended before a rank is killed, also where this process is not always given its turn."""


@pytest.fixture(scope="module")
def cluster(small_pair: Pair) -> Iterator[Cluster]:
    with Cluster(**small_pair._asdict(), transport="tcp", stages=2, cells=4096) as made:
        yield made


@pytest.fixture(scope="module")
def expected(cluster: Cluster) -> list[list[int]]:
    """The tokens of each request alone."""
    return [alone(cluster, prompt, sampling, TOKENS) for prompt, (_, sampling) in zip(PROMPTS, ASKED, strict=False)]


def pid_of(cluster: Cluster, rank: int) -> int:
    return cluster.ready[rank].pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def heard(answer: Answer) -> list[type]:
    """What came until the end, tokens among themselves left out."""
    kinds: list[type] = []
    while True:
        event = answer.events.get(timeout=PATIENCE_S)
        if isinstance(event, Tokens):
            answer.ids += event.ids
        else:
            kinds.append(type(event))
        if isinstance(event, Ended | Failed):
            return kinds


@pytest.mark.parametrize("victims", [(0,), (1,), (2,), (0, 2)], ids=["first", "last", "draft", "twice"])
def test_every_stream_goes_on_with_the_tokens_it_would_have_had(
    cluster: Cluster, expected: list[list[int]], victims: tuple[int, ...]
) -> None:
    with Service(cluster) as service:
        answers = [
            ask(service, prompt, cluster, strategy=name, sampling=sampling, max_tokens=TOKENS)
            for prompt, (name, sampling) in zip(PROMPTS, ASKED, strict=False)
        ]
        gone = []
        for at, victim in enumerate(victims):
            while service.snapshot().tokens < 20 + 30 * at:
                time.sleep(0.005)
            gone += [pid_of(cluster, rank) for rank in (0, 1, 2)]
            kill(pid_of(cluster, victim))
            deadline = time.monotonic() + PATIENCE_S
            while service.snapshot().state == "serving" and pid_of(cluster, victim) in gone:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        for answer, ids in zip(answers, expected, strict=True):
            kinds = heard(answer)
            assert answer.ids == ids
            assert kinds[-1] is Ended
            assert kinds[:-1] == [Paused, Resumed] * (len(kinds) // 2)
        settled(service)
    assert not any(map(is_there, gone)), "ranks of a session that has ended are there"


def test_a_request_that_is_given_up_in_the_pause_ends_as_it_stands(cluster: Cluster) -> None:
    with Service(cluster) as service:
        answer = ask(service, PROMPTS[0], cluster, strategy="iterative", max_tokens=1900)
        answer.first()
        kill(pid_of(cluster, 0))
        while not isinstance(event := answer.events.get(timeout=PATIENCE_S), Paused):
            assert isinstance(event, Tokens)
            answer.ids += event.ids
        answer.ticket.cancel()
        ended = answer.end()
        assert isinstance(ended, Ended)
        assert (ended.reason, ended.record.generated) == ("cancelled", len(answer.ids))


def test_where_the_draft_cannot_be_had_any_more_the_target_goes_on_alone(
    expected: list[list[int]], small_pair: Pair, tmp_path: Path
) -> None:
    draft = tmp_path / "draft"
    shutil.copytree(small_pair.draft, draft)
    plan = Plan(target=small_pair.target, draft=str(draft), stages=2, cells=4096)
    with Cluster(plan) as cluster, Service(cluster) as service:
        answers = [
            ask(service, prompt, cluster, strategy=name, sampling=sampling, max_tokens=TOKENS)
            for prompt, (name, sampling) in zip(PROMPTS, ASKED, strict=False)
        ]
        for answer in answers:
            answer.first()
        shutil.rmtree(draft)
        kill(pid_of(cluster, 2))
        for answer, ids in zip(answers, expected, strict=True):
            said = []
            while not isinstance(event := answer.events.get(timeout=PATIENCE_S), Ended | Failed):
                if isinstance(event, Tokens):
                    answer.ids += event.ids
                else:
                    said.append(event.text)
            assert isinstance(event, Ended)
            assert (answer.ids, event.record.strategy) == (ids, "iterative")
            assert "lost rank 2: draft on " in said[0]
            assert said[1].endswith(", without a draft")
        now = service.snapshot()
        assert (now.lacks, now.has_draft, now.losses) == ("without a draft", False, 1)
        with pytest.raises(LaunchError, match="the draft was lost"):
            cluster.generate([5], open_strategy("pipeinfer", {}), max_tokens=2)


def test_without_recovery_everybody_hears_which_rank_was_lost(cluster: Cluster) -> None:
    with Service(cluster, recovers=False) as service:
        answer = ask(service, PROMPTS[0], cluster, strategy="iterative", max_tokens=1900)
        answer.first()
        kill(pid_of(cluster, 1))
        ended = answer.end()
        assert isinstance(ended, Failed)
        assert "lost rank 1: target layers" in ended.text
    with pytest.raises(RankLost):
        cluster.generate([5], open_strategy("iterative", {}), max_tokens=2)
    cluster.reopen()


@pytest.mark.parametrize("stopped", [False, True], ids=["all run", "one is stopped"])
def test_where_the_process_that_ranks_are_forked_from_is_killed_every_stream_goes_on(
    cluster: Cluster, expected: list[list[int]], stopped: bool
) -> None:
    with Service(cluster) as service:
        answers = [
            ask(service, prompt, cluster, strategy=name, sampling=sampling, max_tokens=TOKENS)
            for prompt, (name, sampling) in zip(PROMPTS, ASKED, strict=False)
        ]
        for answer in answers:
            answer.first()
        gone = [pid_of(cluster, rank) for rank in (0, 1, 2)]
        if stopped:
            os.kill(gone[1], signal.SIGSTOP)
        kill(parent_of(gone[0]))
        for answer, ids in zip(answers, expected, strict=True):
            assert heard(answer) == [Paused, Resumed, Ended]
            assert answer.ids == ids
        settled(service)
    assert not any(map(alive, gone))  # Whoever takes orphans in may not have buried them yet.
