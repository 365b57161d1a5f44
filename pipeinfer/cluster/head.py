"""The head's world: a scheduler over a cluster of ranks, in real time. Here for one request; `pipeinfer.serve` has it
for any number."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from pipeinfer.core.effects import Emit, Finish, Forward, Note, Request, Start, Stop
from pipeinfer.core.generation import Strategy
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import CancelRun, Decode, DraftFrom
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.text_drafter import TextDrafter
from pipeinfer.results.trial import RankRecord, Trial, run_record
from pipeinfer.runtime.control import AddRequest
from pipeinfer.runtime.event_log import EventLog
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD
from pipeinfer.runtime.world import METHODS, World

OnTokens = Callable[[tuple[int, ...]], Stop | None]


class Links(Protocol):
    """What the head needs of its cluster."""

    spans: list[Span]

    @property
    def drafts(self) -> bool:
        """There is a draft model, which may have been lost."""

    def wait(self, what: Callable[[], str]) -> tuple[Any, Any]:
        """The next envelope and its message, however long it takes; `what` is waited for. Raises RankLost."""

    def receive_from(self, timeout: float) -> tuple[Any, Any] | None:
        """The same within so many seconds, or None."""

    def wake(self) -> None:
        """For any thread: `receive_from` returns soon."""

    def add_request(self, request: AddRequest) -> None:
        """Tell every rank of a request before it begins."""

    def send_first(self, message: Any) -> None:
        """Down the target pipeline's ordered stream."""

    def send_draft(self, message: Any) -> None:
        """To the rank that drafts."""

    def send_stages(self, message: Any) -> None:
        """To every stage at once, beside the stream."""

    def collect(self) -> list[RankRecord]:
        """What each rank says of the trial that has ended."""


class HeadWorld(World):
    """What every head does: the scheduler's messages go to the ranks, and what needs no model is drafted by `drafter`,
    here. `trace`: decisions go on the timeline."""

    def __init__(self, cluster: Links, scheduler: Scheduler, drafter: TextDrafter | None, *, trace: bool) -> None:
        self._cluster = cluster
        self._scheduler = scheduler
        self._drafter = drafter
        self._trace = trace
        self._next: deque[tuple[Machine, Any]] = deque()
        self._start = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._start

    def to_first_stage(self, machine: Machine, effect: Decode) -> None:
        self._cluster.send_first(effect)

    def to_draft(self, machine: Machine, effect: DraftFrom) -> None:
        if self._drafter is not None and self._drafts_here(effect.request):
            World.tell(self, self._drafter, effect)
        else:
            self._cluster.send_draft(effect)

    def forward(self, machine: Machine, effect: Forward) -> None:
        """The drafter on the head proposes."""
        self._next.append((self._scheduler, effect.message))

    def to_stages(self, machine: Machine, effect: CancelRun) -> None:
        self._cluster.send_stages(effect)
        if effect.runs:
            self._mark("cancel " + " ".join(map(str, effect.runs)), self.now())

    def note(self, machine: Machine, effect: Note) -> None:
        self._mark(effect.text, self.now())

    def _drafts_here(self, request: int) -> bool:
        """Whether the request's draft policy needs no model."""
        return True

    def _mark(self, what: str, now: float) -> None:
        """Put a decision of the head on the timeline."""
        if self._trace:
            at = self._start + now
            self._cluster.spans.append(Span(HEAD, what, at, at))


class Head(HeadWorld):
    """Runs one scheduler over the cluster, from Start until nothing of it is left in the pipeline."""

    def __init__(
        self,
        cluster: Links,
        scheduler: Scheduler,
        strategy: Strategy,
        drafter: TextDrafter | None,
        on_tokens: OnTokens | None,
        log: EventLog | None,
        *,
        trace: bool = False,
    ) -> None:
        super().__init__(cluster, scheduler, drafter, trace=trace)
        self._strategy = strategy
        self._log = log
        self._on_tokens = on_tokens
        self._stop: Stop | None = None
        self._emitted: list[tuple[int, ...]] = []
        self._emit_s: list[float] = []

    def generate(self, start: Start, *, fidelity: str, precision: str) -> Trial:
        self._start = time.monotonic()
        self._next.append((self._scheduler, start))
        self.run()
        return self._trial(start.request, fidelity, precision)

    def events(self) -> Iterator[tuple[Machine, Any]]:
        while self._next or not self._scheduler.idle:
            if self._next:
                yield self._next.popleft()
            else:
                _, message = self._cluster.wait(self._awaited)
                yield self._scheduler, message

    def _awaited(self) -> str:
        """What has to come for this to go on, for people."""
        in_flight = self._scheduler.in_flight
        return f"run {in_flight[0][0].id}" if in_flight else "the draft"

    def tell(self, machine: Machine, event: Any) -> None:
        now = self.now()
        effects = machine.handle(now, event)
        if self._log is not None and machine is self._scheduler:
            self._log.record(now, event, effects)
        for effect in effects:
            getattr(self, METHODS[type(effect)])(machine, effect)
        self._hand_over(now)

    def _hand_over(self, now: float) -> None:
        """The ranks have their work: now the user gets the tokens."""
        while self._emitted:
            tokens = self._emitted.pop(0)
            self._emit_s.extend([now] * len(tokens))
            self._mark(f"commit {len(tokens)}", now)
            stop = self._on_tokens(tokens) if self._on_tokens else None
            if stop is not None:
                self._stop = stop
                self._next.appendleft((self._scheduler, stop))

    def emit(self, machine: Machine, effect: Emit) -> None:
        self._emitted.append(effect.tokens)

    def finish(self, machine: Machine, effect: Finish) -> None:
        """The scheduler is idle once all has come back."""

    def _trial(self, request: Request, fidelity: str, precision: str) -> Trial:
        generation = self._scheduler.generations[0]
        tokens, reason = generation.generated, generation.reason or ""
        if self._stop is not None:  # which counts even where the generation ended in the same group of tokens
            tokens, reason = tokens[: self._stop.length], self._stop.reason
        return Trial(
            strategy=self._strategy.name,
            fidelity=fidelity,
            prompt_tokens=len(request.prompt),
            token_ids=tuple(tokens),
            emit_s=tuple(self._emit_s[: len(tokens)]),
            reason=reason,
            runs=tuple([run_record(run, 0.0) for run in generation.runs]),
            ranks=tuple(self._cluster.collect()),
            margins=tuple(generation.margins[: len(tokens)]),
            precision=precision,
        )
