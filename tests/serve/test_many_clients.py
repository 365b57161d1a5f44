"""Sixteen clients at once, with everything that may differ between them: every answer is that of the request alone.

It asks as many requests as it is told to: PIPEINFER_REQUESTS=2000 pytest -s tests/serve/test_many_clients.py
"""

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from test_service import PATIENCE_S, PROMPTS, STRATEGIES, alone, ask, settled

from pipeinfer.cluster.launch import Cluster
from pipeinfer.engine.sampling import Sampling
from pipeinfer.serve.events import Ended
from pipeinfer.serve.service import Service

REQUESTS = int(os.environ.get("PIPEINFER_REQUESTS", "0"))
CLIENTS = 16
LONGEST = 16
SEEDS = 5

pytestmark = [
    pytest.mark.skipif(not REQUESTS, reason="asks as many requests as PIPEINFER_REQUESTS says"),
    pytest.mark.timeout(PATIENCE_S + 3 * REQUESTS),
]


@pytest.fixture(scope="module")
def reference() -> Iterator[Cluster]:
    """One stage in this process."""
    with Cluster(transport="inproc", stages=1, draft=None, cells=4096) as cluster:
        yield cluster


class Client(threading.Thread):
    """Asks one request after the other, until none is left; notes what came."""

    def __init__(self, service: Service, cluster: Cluster, requests: Iterator[random.Random]) -> None:
        super().__init__(daemon=True)
        self.came: list[tuple[str, Sampling, str, int, list[int]]] = []
        self._service, self._cluster, self._requests = service, cluster, requests

    def run(self) -> None:
        for rng in self._requests:
            prompt, (name, options) = rng.choice(PROMPTS), rng.choice(STRATEGIES)
            temperature, top_k, top_p = rng.choice([0.0, 0.6, 1.0]), rng.choice([0, 40]), rng.choice([0.9, 1.0])
            how, tokens = Sampling(temperature, top_k, top_p, rng.randrange(SEEDS)), rng.randint(1, LONGEST)
            asked = {"strategy": name, "options": options, "sampling": how, "max_tokens": tokens}
            answer = ask(self._service, prompt, self._cluster, **asked)
            assert isinstance(answer.end(), Ended)
            self.came.append((prompt, how, name, tokens, answer.ids))


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_every_answer_is_that_of_the_request_alone(reference: Cluster, transport: str) -> None:
    requests = iter([random.Random(number) for number in range(REQUESTS)])
    with Cluster(transport=transport, stages=3, cells=4096, sequences=96) as cluster, Service(cluster) as service:
        clients = [Client(service, cluster, requests) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        settled(service)
        accepted = service.snapshot().accepted_tokens
    came = [answer for client in clients for answer in client.came]
    assert len(came) == REQUESTS
    parted = [(prompt, how, name, ids) for prompt, how, name, tokens, ids in came
              if ids != alone(reference, prompt, how, LONGEST)[:tokens]]  # fmt: skip
    assert parted == []
    assert accepted > 0
    print(f"\n{REQUESTS} answers, {sum(len(ids) for *_, ids in came)} tokens, {accepted} of them drafted:",
          dict(Counter(name for _, _, name, _, _ in came)))  # fmt: skip
