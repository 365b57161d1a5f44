"""A service: one cluster, many requests, handed in from any thread. A thread of its own runs the head.

    with Cluster(plan) as cluster, Service(cluster) as service:
        ticket = service.submit(ids, max_tokens=64, sampling=Sampling(), stop_ids=(), on_event=queue.put)
"""

import gc
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Self

from pipeinfer.cluster.launch import Cluster
from pipeinfer.core.effects import Request, Start, Stop
from pipeinfer.core.generation import Strategy
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import RankLost, one_line
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime.control import Begin
from pipeinfer.runtime.transports import HEAD
from pipeinfer.serve.counters import Counters, Snapshot
from pipeinfer.serve.events import OnEvent
from pipeinfer.serve.world import Asked, Observe, OpenLog, ServiceEnded, ServiceWorld

MOST_LOSSES = 5
"""Whoever loses ranks more often than this without a token in between does not lose them by accident."""

_log = logging.getLogger(__name__)


class Ticket:
    """A request that was handed in. `taken` is done once it has a place in the pipe or waits for one; where it never
    will it raises QueueFull or ServiceEnded. Its methods may be called from any thread, also after its end."""

    def __init__(self, number: int, taken: Future[None], service: "Service") -> None:
        self.number = number
        self.taken = taken
        self._service = service

    def cancel(self, reason: str = "cancelled") -> None:
        """End it as it stands: its runs are given up wherever they are, and its cells are free."""
        self._service.stop(Stop(-1, reason, self.number))

    def stop(self, length: int, reason: str) -> None:
        """End it after its first `length` generated tokens: a stop string was seen there, say."""
        self._service.stop(Stop(length, reason, self.number))


class Service:
    """Requests over `cluster`, at most `waiting` of which wait for room. `strategy` and its `options` are for requests
    that name none; `drafting` and its options replace the draft policies of all. `observe` is told, on the head's
    thread, each event of the scheduler with its time and effects; `open_log` gives the event log. `keeps_texts`: cells
    stay after a request as long as there is room, and a prompt that begins like a text before it is computed from there
    on. A context manager; the cluster stays.

    `recovers`: when a rank is lost, ranks are brought up anew, with others in the places of lost ones, and every
    request goes on from its text with the tokens that it would have had; otherwise the requests fail.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        waiting: int = 64,
        strategy: str = "adaptive",
        options: dict[str, Any] | None = None,
        drafting: str | None = None,
        drafting_options: dict[str, Any] | None = None,
        observe: Observe | None = None,
        open_log: OpenLog | None = None,
        keeps_texts: bool = True,
        recovers: bool = True,
    ) -> None:
        self._cluster = cluster
        self._strategy, self._options = strategy, options or {}
        self._drafting, self._drafting_options = drafting, drafting_options
        self._open(strategy, self._options)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._why_ended = ""
        self._why_paused = ""
        self._recovers = recovers and cluster.reopens
        self._keeps_texts = keeps_texts
        self._lost = HEAD
        self._losses = 0
        """Since the last token."""
        self._tokens_at_loss = 0
        self._since = time.monotonic()
        scheduler = self._open_scheduler()
        self._counters = Counters(scheduler.pipeline.stages)
        self._world = ServiceWorld(cluster, scheduler, self._counters, self._lock, most_waiting=waiting,
                                   trace=cluster.plan.trace, observe=observe, open_log=open_log)  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="head", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
        on_event: OnEvent,
        strategy: str | None = None,
        options: dict[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> Ticket:
        """Hand in a request; `on_event` hears of it on the head's thread, which it must not block. After `deadline_s`
        it ends as it stands, by the reason "deadline". Where neither the pipe nor the queue has a place for it, which
        the head finds out (`Ticket.taken`), it ends by the reason "refused".

        Raises ServiceEnded, ValueError on what can have no answer, LaunchError on a strategy that cannot be had here.
        """
        name = self._strategy if strategy is None else strategy
        chosen = dict(options if options is not None else self._options if name == self._strategy else {})
        request = Request(tuple(prompt_ids), max_tokens, tuple(stop_ids))
        self._world.pipeline.check(request)
        self._cluster.check_ids(request.prompt)
        drafting = self._open(name, chosen)
        with self._lock:
            if self._why_ended:
                raise ServiceEnded(self._why_ended)
            number = next(self._numbers)
            asked = Asked(Start(request, number, name, chosen), sampling, drafting, deadline_s, on_event)
            self._world.waiting[number] = None
            self._world.inbox.append(asked)
        self._cluster.wake()
        return Ticket(number, asked.taken, self)

    def stop(self, stop: Stop) -> None:
        """For tickets."""
        self._world.inbox.append(stop)
        self._cluster.wake()

    def snapshot(self) -> Snapshot:
        """How it goes. From any thread."""
        return self._counters.snapshot(
            state=self._why_ended or self._why_paused or "serving",
            uptime_s=time.monotonic() - self._since,
            waiting=len(self._world.waiting),
            lacks=self._cluster.lacks,
            has_draft=self._cluster.drafts,
            **self._world.now_in_pipe(),
        )

    def close(self) -> None:
        """End what is under way, by the reason "closed", and the thread. Idempotent."""
        with self._lock:
            self._why_ended = self._why_ended or "the service was closed"
            numbers = [*self._world.asked, *self._world.waiting]
        for number in numbers:
            self.stop(Stop(-1, "closed", number))
        self._world.closing = True
        self._cluster.wake()
        self._thread.join()

    def _open(self, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The draft policy that goes with a strategy, which is opened to see whether it can be."""
        made: Strategy = open_strategy(name, options)
        return self._cluster.drafting_of(made, self._drafting, self._drafting_options)

    def _open_scheduler(self) -> Scheduler:
        def strategy(start: Start) -> Strategy:
            made: Strategy = open_strategy(start.strategy, dict(start.options))
            return made

        self._cluster.begin(Begin({}, keeps_texts=self._keeps_texts))
        return self._cluster.open_scheduler(strategy, keeps_texts=self._keeps_texts)

    def _run(self) -> None:
        """The head's thread."""
        gc.collect()
        gc.freeze()  # Collections look at what is there once; what requests leave behind is little.
        try:
            while not self._ran_to_the_end():
                pass
        except Exception as problem:
            with self._lock:
                self._why_ended = one_line(str(problem))
            self._world.fail(self._why_ended)
        finally:
            gc.unfreeze()

    def _ran_to_the_end(self) -> bool:
        """False: a rank was lost. Raises RankLost or LaunchError where it cannot go on."""
        try:
            if self._why_paused:
                self._bring_up_anew()
            self._world.run()
        except RankLost as lost:
            self._counters.losses += 1
            self._losses = self._losses + 1 if self._counters.tokens == self._tokens_at_loss else 1
            self._tokens_at_loss = self._counters.tokens
            if not self._recovers or self._losses > MOST_LOSSES:
                raise
            self._lost, self._why_paused = lost.rank, one_line(str(lost))
            _log.warning("%s; ranks are brought up anew", self._why_paused)
            self._world.pause(self._why_paused)
            return False
        return True

    def _bring_up_anew(self) -> None:
        start = time.monotonic()
        self._cluster.reopen(self._lost)
        self._world.restart(self._open_scheduler(), self._why_paused)
        said = ", ".join(filter(None, [f"the ranks are up again after {time.monotonic() - start:.1f} s",
                                       self._cluster.lacks]))  # fmt: skip
        hosts = (f"{self._cluster.rank_names[rank]} on {host}" for rank, host in sorted(self._cluster.hosts.items()))
        _log.warning("%s: %s", said, "; ".join(hosts))
        self._why_paused = ""
        self._world.resume(said)
