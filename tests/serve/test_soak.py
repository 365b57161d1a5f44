"""Many hundreds of requests on 32 emulated ranks, with all that clients do to them: nothing grows.

It runs for as long as it is told to, and says what it saw: PIPEINFER_SOAK_S=600 pytest -s tests/serve/test_soak.py
"""

import gc
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_service import PATIENCE_S, STRATEGIES, Answer, ask

from pipeinfer.cluster.launch import Cluster
from pipeinfer.engine.sampling import Sampling
from pipeinfer.serve.events import Ended
from pipeinfer.serve.pipe_events import PipeEvents
from pipeinfer.serve.service import Service

SOAK_S = float(os.environ.get("PIPEINFER_SOAK_S", "0"))
RANKS = 32
EMULATED = {"layers": RANKS - 1, "layer_s": 0.0, "draft_s": 0.0}

AT_ONCE, BATCH = 8, 32
"""Requests under way together, and from one look at what is held to the next."""

SETTLING = 8
"""Batches after which everything is as large as it becomes: texts that stay fill the cells."""

REST_S = 0.3
"""After each of the requests: the machine is others' too."""

MEMORY_GROWS = 2**23
"""Bytes by which the allocator's pages may differ from one look to the next."""

pytestmark = [
    pytest.mark.skipif(not SOAK_S, reason="takes as long as PIPEINFER_SOAK_S says"),
    pytest.mark.timeout(SOAK_S + 300),
]


class Held(NamedTuple):
    """What there is while no request is under way: of this process, in which all the ranks are, and of the head."""

    blocks: int
    memory_bytes: int
    descriptors: int
    threads: int
    cells: int
    generations: int
    deadlines: int


def held(cluster: Cluster, service: Service) -> Held:
    deadline = time.monotonic() + PATIENCE_S
    while (now := service.snapshot()).running or now.waiting or now.runs_in_flight or service._world.asked:
        assert time.monotonic() < deadline, now
        time.sleep(0.01)
    time.sleep(0.2)  # What is under way at the draft and between the ranks comes to its end.
    scheduler = cluster.scheduler
    assert scheduler is not None
    scheduler.validate()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(sys.getallocatedblocks(), pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")),
                threading.active_count(), scheduler.ledger.used, len(scheduler.generations),
                len(service._world._due))  # fmt: skip


class Clients:
    """What they ask: any strategy, alone or as a further turn, some with a deadline, some of whom go away."""

    def __init__(self, cluster: Cluster, service: Service) -> None:
        self._cluster, self._service = cluster, service
        self._random = random.Random(0)
        self._turns: list[list[int]] = [[] for _ in range(4)]
        self._said: dict[int, int] = {}
        """By position: made-up texts have the same tokens at the same places."""
        self.reasons: dict[str, int] = {}

    def batch(self) -> None:
        for _ in range(BATCH // AT_ONCE):
            asked = list(self._begin())
            for prompt, answer in asked:
                ended = answer.end()
                assert isinstance(ended, Ended), ended
                self.reasons[ended.reason] = self.reasons.get(ended.reason, 0) + 1
                for position, token in enumerate(answer.ids, start=len(prompt)):
                    assert self._said.setdefault(position, token) == token

    def _begin(self) -> Iterator[tuple[list[int], Answer]]:
        for _ in range(AT_ONCE):
            prompt, (name, options) = self._prompt(), self._random.choice(STRATEGIES)
            answer = ask(
                self._service, prompt, self._cluster, max_tokens=self._random.randint(1, 24), strategy=name,
                options=options, deadline_s=self._random.choice([None, 3600.0]),
                sampling=Sampling(self._random.choice([0.0, 0.8]), seed=self._random.getrandbits(32)),
            )  # fmt: skip
            if self._random.random() < 0.1:
                answer.ticket.cancel()
            yield prompt, answer
            time.sleep(REST_S)

    def _prompt(self) -> list[int]:
        """A conversation goes on, until it is long and another begins."""
        turn = self._random.choice(self._turns)
        if len(turn) > 150:
            turn.clear()
        turn += [self._random.randrange(1, 200) for _ in range(self._random.randint(1, 30))]
        return list(turn)


def test_nothing_grows() -> None:
    end = time.monotonic() + SOAK_S
    plan: dict[str, Any] = {"backend": "emulated", "backend_options": EMULATED, "transport": "inproc"}
    with (
        Cluster(**plan, stages=RANKS - 1, cells=1024, sequences=48) as cluster,
        Service(cluster, observe=PipeEvents().record) as service,
    ):
        clients = Clients(cluster, service)
        looks = []
        while time.monotonic() < end or len(looks) < SETTLING + 8:
            clients.batch()
            looks.append(held(cluster, service))
            print(f"{len(looks) * BATCH} requests: {looks[-1]}", flush=True)
    print(clients.reasons)
    settled = looks[SETTLING:]
    quarter = len(settled) // 4
    first, last = settled[:quarter], settled[-quarter:]
    assert all((one.generations, one.deadlines, one.cells <= 1024) == (0, 0, True) for one in settled)
    assert {(one.descriptors, one.threads) for one in last} == {(one.descriptors, one.threads) for one in first}
    # What the texts are that stay, and when ranks collected garbage, differs from look to look.
    assert min(one.blocks for one in last) < 1.01 * min(one.blocks for one in first)
    assert min(one.memory_bytes for one in last) < min(one.memory_bytes for one in first) + MEMORY_GROWS
