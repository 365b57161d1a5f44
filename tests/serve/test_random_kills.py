"""Ranks are killed at random moments under load, also while others come up: every answer is the one that it would have
been, and nothing is left behind. PIPEINFER_KILLS=50 makes it a soak; with `-s` it says how long the pauses were.
"""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from processes import alive, forking, ranks_of
from running_workers import running, wait_until
from small_pair import Pair
from test_recovery import ASKED
from test_service import PATIENCE_S, PROMPTS, Answer, alone, ask, settled

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.serve.events import Ended, Failed, Paused, Resumed, Tokens
from pipeinfer.serve.service import Service

KILLS = int(os.environ.get("PIPEINFER_KILLS", "3"))
TOKENS = 60
CLIENTS = 4
TWICE = 0.3
"""How often another one is killed before the ranks are up again."""

pytestmark = [pytest.mark.timeout(120 + 30 * KILLS), pytest.mark.usefixtures("own_parents_of_ranks")]

Asked = list[tuple[str, tuple[str, Any], list[int]]]
Kill = Callable[[random.Random], None]


@pytest.fixture(scope="module")
def expected(small_pair: Pair) -> Asked:
    """Prompts, how they are asked, and the tokens of each alone, on one stage in this process."""
    with Cluster(target=small_pair.target, draft=None, transport="inproc", stages=1, cells=4096) as cluster:
        pairs = list(zip(PROMPTS, ASKED, strict=False))
        return [(prompt, how, alone(cluster, prompt, how[1], TOKENS)) for prompt, how in pairs]


class Client(threading.Thread):
    """Asks one request after the other until it is told to stop; notes what went wrong, and the pauses in seconds: from
    the news of a loss to the next token."""

    def __init__(self, service: Service, cluster: Cluster, asked: Asked, number: int) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.wrong: list[str] = []
        self.pauses: list[float] = []
        self.answers = 0
        self._service, self._cluster = service, cluster
        self._asked = itertools.cycle(asked[number:] + asked[:number])

    def run(self) -> None:
        while not self.stopping.is_set() and not self.wrong:
            prompt, (name, sampling), ids = next(self._asked)
            answer = ask(self._service, prompt, self._cluster, strategy=name, sampling=sampling, max_tokens=TOKENS)
            ended = self._hear(answer)
            self.answers += 1
            if isinstance(ended, Failed):
                self.wrong.append(ended.text)
            elif answer.ids != ids:
                self.wrong.append(f"{name}: {answer.ids} instead of {ids}")

    def _hear(self, answer: Answer) -> Ended | Failed:
        paused_at, resumed = 0.0, False
        while not isinstance(event := answer.events.get(timeout=PATIENCE_S), Ended | Failed):
            if isinstance(event, Tokens):
                answer.ids += event.ids
                if resumed:
                    self.pauses.append(time.monotonic() - paused_at)
                    paused_at, resumed = 0.0, False
            elif isinstance(event, Paused):
                paused_at, resumed = paused_at or time.monotonic(), False
            elif isinstance(event, Resumed):
                resumed = True
        return event


@contextmanager
def clients(service: Service, cluster: Cluster, asked: Asked) -> Iterator[list[Client]]:
    started = [Client(service, cluster, asked, number) for number in range(CLIENTS)]
    for client in started:
        client.start()
    yield started
    for client in started:
        client.stopping.set()
    for client in started:
        client.join(PATIENCE_S)
        assert not client.is_alive()


def serving(service: Service) -> bool:
    return service.snapshot().state == "serving"


def kill_at_random(service: Service, cluster: Cluster, asked: Asked, kill: Kill, seed: int) -> None:
    """So many times, each at a random moment of a service that has answered something since the last one."""
    rng = random.Random(seed)
    with clients(service, cluster, asked) as under_way:
        for _ in range(KILLS):
            before, losses = service.snapshot().tokens, service.snapshot().losses
            wait_until(lambda: service.snapshot().tokens > before, PATIENCE_S)  # noqa: B023
            time.sleep(rng.uniform(0, 0.5))
            kill(rng)
            if rng.random() < TWICE:
                time.sleep(rng.uniform(0, 1.5))
                kill(rng)
            wait_until(lambda: service.snapshot().losses > losses and serving(service), PATIENCE_S)  # noqa: B023
    wrong = [line for client in under_way for line in client.wrong]
    assert wrong == []
    pauses = sorted(pause for client in under_way for pause in client.pauses)
    assert pauses
    now = service.snapshot()
    print(f"\n{now.losses} losses, {sum(client.answers for client in under_way)} answers; pauses of"
          f" {pauses[len(pauses) // 2]:.1f} s (median) to {pauses[-1]:.1f} s")  # fmt: skip
    settled(service)


def held() -> tuple[int, int]:
    """Descriptors and threads of this process. Of a thread that was joined the system may be told a little later."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def no_more_than(before: tuple[int, int]) -> bool:
    return all(now <= then for now, then in zip(held(), before, strict=True))


def test_processes_of_this_machine(expected: Asked, small_pair: Pair) -> None:
    seen: set[int] = set()
    others = forking(os.getpid())
    """Those of a server that other tests in this process share."""

    def kill(rng: random.Random) -> None:
        """A rank, or the process from which they are forked."""
        there = [*sorted(ranks_of(os.getpid(), others).values()), *forking(os.getpid(), others)]
        seen.update(there)
        with suppress(ProcessLookupError):  # It was being ended just then.
            os.kill(rng.choice(there), signal.SIGKILL)

    before = held()
    with Cluster(Plan(**small_pair._asdict(), stages=3, cells=4096)) as cluster, Service(cluster) as service:
        kill_at_random(service, cluster, expected, kill, 1)
        seen.update(ranks_of(os.getpid(), others).values())
    wait_until(lambda: no_more_than(before))
    wait_until(lambda: not any(map(alive, seen)))


def test_workers_that_somebody_starts_again(expected: Asked, small_pair: Pair, tmp_path: Path) -> None:
    with running(tmp_path, count=5, fixed=False) as workers:
        plan = Plan(**small_pair._asdict(), stages=3, cells=4096, key=str(workers.key),
                    workers=tuple(workers.addresses[:4]), spares=tuple(workers.addresses[4:]))  # fmt: skip
        before = held()
        with Cluster(plan) as cluster, Service(cluster) as service:

            def kill(rng: random.Random) -> None:
                victim = workers.addresses.index(rng.choice(cluster.plan.workers))
                workers.kill(victim)
                workers.processes[victim] = workers.start(victim, workers.addresses[victim])

            kill_at_random(service, cluster, expected, kill, 2)
        wait_until(lambda: no_more_than(before) and workers.held() == workers.held_at_first)
