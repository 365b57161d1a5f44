"""The head's world for any number of requests: those that other threads hand in, beside what the ranks send."""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import msgspec

from pipeinfer.cluster.head import HeadWorld, Links
from pipeinfer.core.effects import Emit, Finish, Forget, Start, Stop
from pipeinfer.core.generation import Generation, PipelineShape
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import Logits
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.text_drafter import TextDrafter
from pipeinfer.engine.sampling import Sampling
from pipeinfer.plugins import open_drafting
from pipeinfer.results.trial import RunRecord, run_record
from pipeinfer.runtime.control import AddRequest
from pipeinfer.runtime.event_log import EventLog
from pipeinfer.runtime.world import METHODS
from pipeinfer.serve.counters import Counters
from pipeinfer.serve.events import Ended, Failed, OnEvent, Paused, RequestRecord, Resumed, ServiceEvent, Tokens

ALONE = "iterative"
"""The strategy of requests whose draft was lost."""

GLANCE_S = 0.1
"""How often a head that waits looks whether the ranks live."""

Observe: TypeAlias = Callable[[float, Any, Sequence[Any]], None]
"""Like `EventLog.record`: when, what the scheduler was told, what it wants done."""

OpenLog: TypeAlias = Callable[[Scheduler, str, float], EventLog]
"""Begins the part of the log that is a new scheduler's: it, what ended the one before, and when."""

REFUSED = "refused"
"""How a request ends that found neither a place in the pipe nor one among those that wait."""

_log = logging.getLogger(__name__)


class QueueFull(RuntimeError):  # noqa: N818 - reads as what happened
    """So many requests wait already that no further one is taken. One line."""


class ServiceEnded(RuntimeError):  # noqa: N818 - as above
    """The service takes no requests any more. One line that says why."""


class Asked:
    """One request, from when it was handed in to its end. `drafting` is its draft policy: name and options. `taken` is
    done once it has a place in the pipe or waits for one, or raises QueueFull or ServiceEnded."""

    def __init__(
        self,
        start: Start,
        sampling: Sampling,
        drafting: tuple[str, dict[str, Any]],
        deadline_s: float | None,
        on_event: OnEvent,
    ) -> None:
        self.start = start
        self.strategy = start.strategy
        self.sampling = sampling
        self.drafting = drafting
        self.takes_draft = bool(drafting[0]) and open_drafting(*drafting).model
        self.drafts_here = bool(drafting[0]) and not self.takes_draft
        self.on_event = on_event
        self.taken: Future[None] = Future()
        self.taken.set_running_or_notify_cancel()  # Whoever waits for it may leave, and it is decided all the same.
        self.asked_at = time.monotonic()
        self.due_at = float("inf") if deadline_s is None else self.asked_at + deadline_s
        self.ids: list[int] = []
        self.base = 0
        """How many of them were there when it was last begun."""
        self.emit_s: list[float] = []
        self.stopped_at: int | None = None
        """After how many tokens it was to end."""
        self.began_s: float | None = None
        self.cached = self.draft_cached = 0
        self.runs: list[RunRecord] = []

    def refuse(self, most_waiting: int) -> None:
        """It is not taken, as so many wait already."""
        why = f"{most_waiting} requests wait already" if most_waiting else "there is no room, and none may wait"
        self.taken.set_exception(QueueFull(f"{why}: try again later"))

    @property
    def age_s(self) -> float:
        """Seconds since it was handed in."""
        return time.monotonic() - self.asked_at

    def rest(self, *, drafts: bool) -> tuple[Start, tuple[str, dict[str, Any]]]:
        """What is left to do, from the text as it stands: positions choose tokens, so they are the same. And with which
        draft policy; where there is no draft model that it takes, one token after the other."""
        alone = self.takes_draft and not drafts
        self.strategy = ALONE if alone else self.start.strategy
        self.base = len(self.ids)
        request = self.start.request
        left = msgspec.structs.replace(request, prompt=request.prompt + tuple(self.ids),
                                       max_tokens=request.max_tokens - self.base)  # fmt: skip
        start = Start(left, self.start.number, self.strategy, {} if alone else self.start.options)
        return start, ("", {}) if alone else self.drafting

    def take_down(self, generation: Generation, clock: float) -> None:
        """Note how it was decoded, by a scheduler whose time began at `clock`."""
        if self.began_s is None:
            self.began_s, self.cached = generation.began_at + clock - self.asked_at, generation.cached
            self.draft_cached = generation.draft_cached
        first = self.began_s + self.asked_at - clock
        self.runs += [run_record(run, first) for run in generation.runs]

    def record(self, reason: str) -> RequestRecord:
        """What is left of it."""
        start = self.start
        generated = len(self.ids) if self.stopped_at is None else min(len(self.ids), self.stopped_at)
        return RequestRecord(start.number, self.strategy, reason, len(start.request.prompt), self.cached, generated,
                             self.began_s, tuple(self.emit_s[:generated]), self.age_s, tuple(self.runs),
                             self.draft_cached)  # fmt: skip

    def tell(self, event: ServiceEvent) -> None:
        """Whoever asked hears of it; what goes wrong there is no reason to let the others wait."""
        try:
            self.on_event(event)
        except Exception:
            _log.exception("request %d: what was to be done at %s", self.start.number, type(event).__name__)


class ServiceWorld(HeadWorld):
    """Runs one scheduler over the cluster until it is closed. `inbox` takes, from any thread and before a `wake` of the
    cluster, requests and Stops. Of the requests that come at most `most_waiting` wait at a time, and further ones are
    refused."""

    def __init__(
        self,
        cluster: Links,
        scheduler: Scheduler,
        counters: Counters,
        lock: threading.Lock,
        *,
        most_waiting: int,
        trace: bool,
        observe: Observe | None = None,
        open_log: OpenLog | None = None,
    ) -> None:
        super().__init__(cluster, scheduler, TextDrafter(self._open_policy), trace=trace)
        self.inbox: deque[Asked | Stop] = deque()
        self.asked: dict[int, Asked] = {}
        self.waiting: dict[int, None] = {}
        """Those that have not begun, in order, also of what is in the inbox. Under the lock."""
        self.closing = False
        self._most_waiting = most_waiting
        self._lock = lock
        self._observe = observe
        self._open_log = open_log
        self._log = open_log(scheduler, "", self.now()) if open_log else None
        self._counters = counters
        self._due: list[tuple[float, int]] = []
        self._over: list[int] = []
        self._told: list[Emit | Finish] = []

    def events(self) -> Iterator[tuple[Machine, Any]]:
        while not (self.closing and self._at_rest()):
            if self._next:
                yield self._next.popleft()
            elif self.inbox:
                self._take(self.inbox.popleft())
            elif self._due and self._due[0][0] <= time.monotonic():
                self._stop(Stop(-1, "deadline", heapq.heappop(self._due)[1]))
            else:
                found = self._cluster.receive_from(self._patience())
                if found is not None:
                    yield self._scheduler, found[1]

    @property
    def pipeline(self) -> PipelineShape:
        return self._scheduler.pipeline

    def now_in_pipe(self) -> dict[str, int]:
        """The fields of a Snapshot that are the scheduler's."""
        scheduler = self._scheduler
        return {
            "running": scheduler.running,
            "runs_in_flight": len(scheduler.in_flight),
            "cells": scheduler.ledger.capacity,
            "cells_used": scheduler.ledger.used,
            "stages": scheduler.pipeline.stages,
        }

    def _at_rest(self) -> bool:
        return not (self._next or self.inbox or self.asked or self._scheduler.in_flight)

    def _patience(self) -> float:
        return min(GLANCE_S, max(0.0, self._due[0][0] - time.monotonic())) if self._due else GLANCE_S

    def _take(self, news: Asked | Stop) -> None:
        if isinstance(news, Stop):
            self._stop(news)
            return
        if 0 < self._most_waiting <= self._scheduler.waiting:
            self._turn_away(news)
            return
        number = news.start.number
        self.asked[number] = news
        if news.due_at < float("inf"):
            heapq.heappush(self._due, (news.due_at, number))
        self._begin(news)

    def _turn_away(self, asked: Asked) -> None:
        """A request that comes where as many wait as may: nobody else is told of it."""
        self._refuse(asked)
        self._counters.done[REFUSED] += 1
        asked.tell(Ended(REFUSED, asked.record(REFUSED)))

    def _refuse(self, asked: Asked) -> None:
        """Whoever hears that it has no place finds it among those that wait no more."""
        with self._lock:
            self.waiting.pop(asked.start.number, None)
        asked.refuse(self._most_waiting)

    def _decide(self, number: int) -> None:
        """Whether a request that was begun is taken: the scheduler alone knows what there is room for."""
        asked = self.asked[number]
        if asked.taken.done():
            return  # It is begun again.
        if number in self._scheduler.generations or self._scheduler.waiting <= self._most_waiting:
            asked.taken.set_result(None)
        else:
            self._refuse(asked)
            self._stop(Stop(0, REFUSED, number))

    def _begin(self, asked: Asked) -> None:
        """Tell the ranks of it, and the scheduler what there is to do of it."""
        start, drafting = asked.rest(drafts=self._cluster.drafts)
        self._cluster.add_request(AddRequest(start.number, asked.sampling, *drafting, over=tuple(self._over)))
        self._over.clear()
        self._next.append((self._scheduler, start))

    def _stop(self, stop: Stop) -> None:
        """End a request if it has not ended; a negative length stands for all that it has."""
        asked = self.asked.get(stop.number)
        if asked is not None and asked.stopped_at is None:
            asked.stopped_at = len(asked.ids) if stop.length < 0 else stop.length
            self._next.append((self._scheduler, Stop(max(0, asked.stopped_at - asked.base), stop.reason, stop.number)))

    def tell(self, machine: Machine, event: Any) -> None:
        in_flight = self._scheduler.in_flight
        runs = in_flight[0] if isinstance(event, Logits) and in_flight else ()
        now = self.now()
        effects = machine.handle(now, event)
        if machine is self._scheduler:
            self._note_down(now, event, effects)
        # First: a rank may be found lost while the others are performed, and a text is told of its end but once.
        self._told += [effect for effect in effects if isinstance(effect, Emit | Finish)]
        for effect in effects:
            getattr(self, METHODS[type(effect)])(machine, effect)
        if runs:
            self._counters.came_back(runs)
        if machine is self._scheduler:
            self._hand_over()
            if isinstance(event, Start):
                self._decide(event.number)

    def _note_down(self, now: float, event: Any, effects: Sequence[Any]) -> None:
        if self._observe is not None:
            self._observe(now, event, effects)
        if self._log is not None:
            self._log.record(now, event, effects)

    def emit(self, machine: Machine, effect: Emit) -> None:
        """Handed over when all are performed."""

    def finish(self, machine: Machine, effect: Finish) -> None:
        """As above."""

    def _hand_over(self) -> None:
        """The ranks have their work: now those who asked hear of theirs."""
        with self._lock:
            while self.waiting and (first := next(iter(self.waiting))) in self._scheduler.generations:
                del self.waiting[first]
        for effect in self._told:
            asked = self.asked[effect.number]
            if isinstance(effect, Emit):
                at_s = asked.age_s
                asked.ids += effect.tokens
                asked.emit_s += [at_s] * len(effect.tokens)
                self._counters.tokens += len(effect.tokens)
                asked.tell(Tokens(effect.tokens, at_s))
            else:
                self._ended(asked, effect.reason)
        self._told.clear()

    def _ended(self, asked: Asked, reason: str) -> None:
        number = asked.start.number
        del self.asked[number]
        if (asked.due_at, number) in self._due:
            self._due.remove((asked.due_at, number))
            heapq.heapify(self._due)
        with self._lock:
            self.waiting.pop(number, None)
        self._over.append(number)
        generation = self._scheduler.generations.get(number)
        if generation is not None:
            self._next.append((self._scheduler, Forget(number)))
            asked.take_down(generation, self._start)
            self._counters.prompt_tokens += len(asked.start.request.prompt)
            self._counters.cached_tokens += asked.cached
            self._counters.draft_cached_tokens += asked.draft_cached
        self._counters.done[reason] += 1
        asked.tell(Ended(reason, asked.record(reason)))

    # When a rank was lost

    def pause(self, text: str) -> None:
        """Tell everybody that it will go on."""
        self._hand_over()
        for asked in list(self.asked.values()):
            asked.tell(Paused(text))

    def restart(self, scheduler: Scheduler, why: str) -> None:
        """Begin every request again from its text, over ranks that know nothing of them."""
        if self._open_log is not None:
            self._log = self._open_log(scheduler, why, self.now())
        stops = [event for _, event in self._next if isinstance(event, Stop)]
        self._next.clear()
        self._over.clear()
        for number, asked in self.asked.items():
            generation = self._scheduler.generations.get(number)
            if generation is not None:
                asked.take_down(generation, self._start)
        self._scheduler, self._drafter = scheduler, TextDrafter(self._open_policy)
        for asked in self.asked.values():
            self._begin(asked)
        for stop in stops:
            length = self.asked[stop.number].stopped_at if stop.number in self.asked else None
            if length is not None:
                left = max(0, length - self.asked[stop.number].base)
                self._next.append((scheduler, Stop(left, stop.reason, stop.number)))

    def resume(self, text: str) -> None:
        """Tell everybody that it goes on."""
        for asked in list(self.asked.values()):
            asked.tell(Resumed(text))

    def fail(self, text: str) -> None:
        """Nothing goes on: tell everybody."""
        with self._lock:
            self.waiting.clear()
        left = [*self.asked.values(), *(news for news in self.inbox if isinstance(news, Asked))]
        self.asked.clear()
        self.inbox.clear()
        self._due.clear()
        for asked in left:
            if not asked.taken.done():
                asked.taken.set_exception(ServiceEnded(text))
            self._counters.done["failed"] += 1
            asked.tell(Failed(text))

    def _drafts_here(self, request: int) -> bool:
        asked = self.asked.get(request)
        return asked is not None and asked.drafts_here

    def _open_policy(self, request: int) -> Any:
        return open_drafting(*self.asked[request].drafting)
