"""Many requests over one cluster: the tokens of each are those of it alone, and none leaves anything behind."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.engine.sampling import Sampling
from pipeinfer.plugins import open_strategy
from pipeinfer.serve.events import Ended, Failed, ServiceEvent, Tokens
from pipeinfer.serve.service import Service, Ticket
from pipeinfer.serve.world import QueueFull

PATIENCE_S = 60.0

STRATEGIES: list[tuple[str, dict[str, Any]]] = [
    ("iterative", {}),
    ("speculative", {"k": 3}),
    ("pipeinfer", {"draft": 2, "branches": 3, "split": 0.1}),
    ("adaptive", {}),
    ("async-chain", {}),
    ("specpipe", {"width": 3}),
    ("swiftspec", {}),
    ("pearl", {}),
    ("ssd", {}),
]

PROMPTS = ["def read_lines(path):", "import os\n", "class Queue:\n    def ", "for index in range(", "# Copyright"]


class Answer:
    """What one request hears."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[ServiceEvent] = queue.SimpleQueue()
        self.ids: list[int] = []
        self.ticket: Ticket

    def end(self) -> Ended | Failed:
        """Wait for it."""
        while True:
            event = self.events.get(timeout=PATIENCE_S)
            if isinstance(event, Tokens):
                self.ids += event.ids
            elif isinstance(event, Ended | Failed):
                return event

    def first(self) -> None:
        """Wait for its first token."""
        event = self.events.get(timeout=PATIENCE_S)
        assert isinstance(event, Tokens)
        self.ids += event.ids


@pytest.fixture(scope="module", params=["inproc", "tcp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(transport=request.param, stages=3, cells=4096, sequences=96) as made:
        yield made


def ask(service: Service, prompt: str | list[int], cluster: Cluster, **asked: Any) -> Answer:
    answer = Answer()
    ids = cluster.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    settings = {"max_tokens": 24, "sampling": Sampling(), "stop_ids": (), **asked}
    answer.ticket = service.submit(ids, on_event=answer.events.put, **settings)
    return answer


KNOWN: dict[tuple[str, str, Sampling, int], list[int]] = {}


def alone(cluster: Cluster, prompt: str, sampling: Sampling, tokens: int) -> list[int]:
    if (asked := (cluster.plan.target, prompt, sampling, tokens)) not in KNOWN:
        ids = cluster.tokenizer.encode(prompt)
        trial = cluster.generate(ids, open_strategy("iterative", {}), max_tokens=tokens, sampling=sampling, stop_ids=())
        KNOWN[asked] = list(trial.token_ids)
    return KNOWN[asked]


def settled(service: Service) -> None:
    """Wait until nothing is in the pipe."""
    deadline = time.monotonic() + PATIENCE_S
    while (now := service.snapshot()).runs_in_flight or now.running:
        assert time.monotonic() < deadline, now
        time.sleep(0.01)


def test_every_answer_is_that_of_the_request_alone_whatever_runs_beside_it(cluster: Cluster) -> None:
    asked = []
    for number in range(3 if cluster.plan.transport == "inproc" else len(STRATEGIES)):  # threads share one interpreter
        sampling = Sampling(0.8, 0, 0.95, number) if number % 3 else Sampling()
        asked.append((PROMPTS[number % len(PROMPTS)], sampling, 4 + 3 * (number % 3), STRATEGIES[number]))
    expected = [alone(cluster, prompt, sampling, tokens) for prompt, sampling, tokens, _ in asked]
    with Service(cluster) as service:
        answers = [
            ask(service, prompt, cluster, sampling=sampling, max_tokens=tokens, strategy=name, options=options)
            for prompt, sampling, tokens, (name, options) in asked
        ]
        for answer, ids, (_, _, tokens, (name, _)) in zip(answers, expected, asked, strict=True):
            ended = answer.end()
            assert isinstance(ended, Ended), ended
            assert answer.ids == ids, name
            record = ended.record
            assert (record.reason, record.generated, record.strategy) == ("length", tokens, name)
            assert record.began_s is not None
            assert 0 <= record.began_s <= record.emit_s[0] <= record.emit_s[-1] <= record.ended_s
        settled(service)
        left = service.snapshot()
    assert (left.running, left.waiting, left.done) == (0, 0, {"length": len(asked)})
    assert left.tokens == sum(map(len, expected))
    assert left.accepted_tokens == sum(left.accepted_per_position) <= left.draft_tokens
    assert left.accepted_tokens > 0


def test_a_request_that_is_cancelled_leaves_nothing(cluster: Cluster) -> None:
    with Service(cluster) as service:
        other = ask(service, PROMPTS[0], cluster, max_tokens=8)
        gone = ask(service, "x = [" + "1, " * 150, cluster, max_tokens=400)
        gone.first()
        gone.ticket.cancel()
        ended = gone.end()
        assert isinstance(ended, Ended)
        assert ended.reason == "cancelled"
        assert ended.record.generated == len(gone.ids) < 400
        gone.ticket.cancel("again")
        assert other.end().record.generated == 8  # type: ignore[union-attr]
        settled(service)
        assert service._world._scheduler.generations == {}
    assert other.ids == alone(cluster, PROMPTS[0], Sampling(), 8)


def test_a_stop_takes_tokens_back_and_a_deadline_ends_what_runs_and_what_waits(cluster: Cluster) -> None:
    with Service(cluster) as service:
        stopped = ask(service, PROMPTS[0], cluster, max_tokens=300)
        stopped.first()
        stopped.ticket.stop(1, "stop")
        ended = stopped.end()
        assert isinstance(ended, Ended)
        assert (ended.reason, ended.record.generated) == ("stop", 1)
        long: dict[str, Any] = {"max_tokens": 900, "strategy": "iterative"}
        others = [ask(service, PROMPTS[1], cluster, **long) for _ in range(3)]
        late = [ask(service, PROMPTS[1], cluster, deadline_s=0.3, **long)]
        others.append(ask(service, PROMPTS[2], cluster, **long))
        late.append(ask(service, PROMPTS[1], cluster, deadline_s=0.1, **long))
        for answer, room in zip(late, (True, False), strict=True):
            ended = answer.end()
            assert isinstance(ended, Ended)
            assert ended.reason == "deadline"
            assert ended.record.generated == len(answer.ids)
            assert (ended.record.began_s is not None) == room
        for answer in others:
            answer.ticket.cancel()


@contextmanager
def head_held_up(service: Service) -> Iterator[None]:
    """What is asked meanwhile comes at the same moment, as the head sees it."""
    held_up, go_on = threading.Event(), threading.Event()

    def hold_up(_: ServiceEvent) -> None:
        held_up.set()
        assert go_on.wait(PATIENCE_S)

    service.submit([5], max_tokens=1, sampling=Sampling(), stop_ids=(), on_event=hold_up)
    assert held_up.wait(PATIENCE_S)
    yield
    go_on.set()


def are_taken(answers: list[Answer]) -> list[bool]:
    return [answer.ticket.taken.exception(PATIENCE_S) is None for answer in answers]


def test_the_queue_is_bounded_and_serves_in_order(cluster: Cluster) -> None:
    with Service(cluster, waiting=2, strategy="iterative") as service:
        with head_held_up(service):
            answers = [ask(service, PROMPTS[0], cluster, max_tokens=900) for _ in range(10)]
        taken = are_taken(answers)
        now = service.snapshot()
        assert taken == [True] * 6 + [False] * 4
        assert (now.running, now.waiting) == (4, 2)
        for answer in answers[6:]:
            with pytest.raises(QueueFull, match="2 requests wait already: try again later"):
                answer.ticket.taken.result()
            assert answer.end().reason == "refused"  # type: ignore[union-attr]
        assert service.snapshot().done["refused"] == 4
        answers[0].ticket.cancel()
        answers[4].first()  # It has the place that became free, and so there is one more to wait.
        assert are_taken([ask(service, PROMPTS[0], cluster, max_tokens=900) for _ in range(2)]) == [True, False]
        for answer in answers:
            answer.ticket.cancel()
        for answer in answers[:6]:
            assert answer.end().reason == "cancelled"  # type: ignore[union-attr]
        began = [ask(service, PROMPTS[0], cluster, max_tokens=2) for _ in range(2)]
        assert [answer.end().reason for answer in began] == ["length"] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("cluster", ["tcp"], indirect=True)
def test_where_none_may_wait_all_are_taken_that_there_is_room_for(cluster: Cluster) -> None:
    with Service(cluster, waiting=0, strategy="iterative") as service:
        with head_held_up(service):
            answers = [ask(service, PROMPTS[0], cluster, max_tokens=900) for _ in range(6)]
        assert are_taken(answers) == [True] * 4 + [False] * 2
        with pytest.raises(QueueFull, match="no room, and none may wait"):
            answers[5].ticket.taken.result()
        for answer in answers:
            answer.ticket.cancel()
            answer.end()
        settled(service)
        assert service._world._scheduler.generations == {}


def test_what_can_have_no_answer_is_refused_where_it_is_asked(cluster: Cluster) -> None:
    with Service(cluster) as service:
        with pytest.raises(ValueError, match="leaves no room"):
            ask(service, [5] * 5000, cluster)
        with pytest.raises(ValueError, match="empty"):
            ask(service, [], cluster)
        with pytest.raises(ValueError, match='did you mean "iterative"'):
            ask(service, [5], cluster, strategy="iterativ")
        assert service.snapshot().waiting == 0


def test_a_deadline_is_kept_no_longer_than_its_request(cluster: Cluster) -> None:
    with Service(cluster) as service:
        long = ask(service, PROMPTS[0], cluster, max_tokens=700, deadline_s=3600)
        answers = [ask(service, prompt, cluster, max_tokens=2, deadline_s=100 + len(prompt)) for prompt in PROMPTS]
        for answer in answers:
            answer.end()
        assert [number for _, number in service._world._due] == [long.ticket.number]
        long.ticket.cancel()
        long.end()
        assert service._world._due == []


def test_closing_ends_what_runs_and_the_cluster_goes_on(cluster: Cluster) -> None:
    threads = threading.active_count()
    service = Service(cluster)
    answers = [ask(service, PROMPTS[0], cluster, max_tokens=700) for _ in range(3)]
    answers[0].first()
    service.close()
    assert [answer.end().reason for answer in answers] == ["closed"] * 3  # type: ignore[union-attr]
    assert threading.active_count() == threads
    assert len(alone(cluster, PROMPTS[0], Sampling(), 5)) == 5


@pytest.mark.parametrize("cluster", ["tcp"], indirect=True)
def test_the_second_turn_of_a_chat_computes_the_new_turn_only(cluster: Cluster) -> None:
    turn = cluster.tokenizer.encode("def read_lines(path):\n    return [line for line in open(path)]\n" * 60)[:800]
    asked: dict[str, Any] = {"max_tokens": 8, "strategy": "iterative"}
    with Service(cluster) as service:
        first = ask(service, turn, cluster, **asked)
        before = first.end()
        chat = [*turn, *first.ids, *cluster.tokenizer.encode("\nimport os\n")]
        second = ask(service, chat, cluster, **asked)
        after = second.end()
        held = service.snapshot().cells_used
    with Service(cluster, keeps_texts=False) as service:
        afresh = ask(service, chat, cluster, **asked)
        afresh.end()
        settled(service)
        assert service.snapshot().cells_used == 0
    assert second.ids == afresh.ids
    assert isinstance(before, Ended)
    assert isinstance(after, Ended)
    assert (before.record.cached_tokens, after.record.cached_tokens) == (0, 800 + 7)
    assert held == len(chat) + 7

    def prompt_rows(ended: Ended) -> int:
        return sum(run.rows for run in ended.record.runs if run.kind == "prompt")

    assert prompt_rows(after) <= prompt_rows(before) / 5


@pytest.mark.parametrize("cluster", ["tcp"], indirect=True)
def test_the_draft_reads_of_a_second_turn_what_is_new(cluster: Cluster) -> None:
    turn = cluster.tokenizer.encode("def read_lines(path):\n    return [line for line in open(path)]\n" * 20)[:200]
    asked: dict[str, Any] = {"max_tokens": 8, "strategy": "speculative", "options": {"k": 2}}
    with Service(cluster) as service:
        first = ask(service, turn, cluster, **asked)
        before = first.end()
        second = ask(service, [*turn, *first.ids, *turn[:20]], cluster, **asked)
        after = second.end()
        assert isinstance(before, Ended)
        assert isinstance(after, Ended)
        assert before.record.draft_cached_tokens == 0
        assert 200 <= after.record.draft_cached_tokens <= 200 + 8
        assert service.snapshot().draft_cached_tokens == after.record.draft_cached_tokens
