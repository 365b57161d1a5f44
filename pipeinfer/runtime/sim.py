"""The simulator: the same head, stages and drafter as on a cluster, over a heap of events in virtual time.

Compute takes what the cost model says, messages take latency and bandwidth, tokens come from an oracle. Unless `Hosts`
say otherwise nothing else is modelled: every rank has a host to itself, handling a message is free, and an aborted
computation stops when the cancellation arrives. Deterministic.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import sqrt
from typing import Any, NamedTuple, Protocol

from pipeinfer.core.drafter import Drafter, DraftOptions
from pipeinfer.core.effects import (
    Abort,
    Compute,
    Computed,
    ComputeDraft,
    Drafted,
    Emit,
    Forward,
    Request,
    Start,
    ToDraft,
    ToFirstStage,
    Wake,
    Woken,
)
from pipeinfer.core.head import Head, Pipeline, Strategy
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, DraftFrom, Logits, Proposal
from pipeinfer.core.stage import Stage
from pipeinfer.results.trial import RankRecord, Trial, run_record
from pipeinfer.runtime.oracle import Oracle
from pipeinfer.runtime.shared_cores import Cores
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD


class Costs(Protocol):
    """What computing and sending take. `context` is the highest position that the rows attend to, plus one."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        """Seconds for `rows` rows on a stage of the target."""

    def draft_s(self, rows: int, context: int) -> float:
        """Seconds for one forward of the draft model."""

    def row_bytes(self, stage: int) -> int:
        """Bytes of payload per row that a stage sends on: hidden states, or logits where they travel."""


class Link:
    """One direction between two ranks: `latency_s` seconds, `bandwidth_bps` bit/s (infinite by default). No message
    takes less than `floor_s`: that of the real link which a slower one is emulated on."""

    __slots__ = ("_free_at", "bytes", "floor_s", "latency_s", "messages", "s_per_byte")

    def __init__(self, latency_s: float = 0.0, bandwidth_bps: float = float("inf"), floor_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.floor_s = floor_s
        self.s_per_byte = 8 / bandwidth_bps
        self.bytes = 0
        self.messages = 0
        self._free_at = 0.0

    def arrival(self, now: float, size: int) -> float:
        """When a message of `size` bytes sent now arrives: after those before it on this link."""
        self._free_at = max(now, self._free_at) + size * self.s_per_byte
        self.bytes += size
        self.messages += 1
        return max(now + self.floor_s, self._free_at + self.latency_s)

    def alone(self, size: int) -> float:
        """Seconds that a message of `size` bytes is under way where no other is."""
        return max(self.floor_s, size * self.s_per_byte + self.latency_s)

    def urgent_arrival(self, now: float, size: int) -> float:
        """The same for a message that need not queue: cancellation travels beside the stream."""
        self.bytes += size
        self.messages += 1
        return max(now + self.floor_s, now + size * self.s_per_byte + self.latency_s)


def _perfect(_source: int, _target: int) -> Link:
    return Link()


class Hosts(NamedTuple):
    """Hosts whose cores the ranks share. `names` has one per stage, then the draft's, then the head's; `slowdown` is by
    how much work slows down while 1, 2, ... pieces of it are under way on a host. A message takes `message_s` of the
    rank's host before it is seen, an event `head_s` of the head's. A computation looks `steps[rank]` times (stages,
    then the draft) whether to go on: between layers. After a pause of p seconds, up to LONGEST_PAUSE_S, it takes
    cold * sqrt(p) of what one row takes longer."""

    names: Sequence[str]
    slowdown: Sequence[float]
    message_s: float
    head_s: float
    steps: Sequence[int]
    cold: float = 0.0


LONGEST_PAUSE_S = 0.02
"""After which nothing is left in the caches that could still be lost."""

HEADER_BYTES = 32
ROW_BYTES = 12
"""Wire size of a message without payload, and of a row's token, position and sequence id in it (about what msgspec
makes of them)."""


class Simulation:
    """One generation over `pipeline` with `strategy`. `link(source, target)` makes each link, -1 being the head and the
    number of stages the draft; `spans` collects a timeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        strategy: Strategy,
        costs: Costs,
        oracle: Oracle,
        link: Callable[[int, int], Link] = _perfect,
        spans: list[Span] | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        count = pipeline.stages
        self.head = Head(pipeline, strategy)
        self.now = 0.0
        self.events = 0
        self._strategy = strategy
        self._costs = costs
        self._oracle = oracle
        self._spans = spans
        self._last, self._draft = count - 1, count
        self._stages = [Stage(index, count) for index in range(count)]
        self._down = [link(stage - 1, stage if stage < count else HEAD) for stage in range(count + 1)]
        self._control = [self._down[0], *(link(HEAD, stage) for stage in range(1, count))]
        self._orders, self._proposals = link(HEAD, count), link(count, HEAD)
        self._busy = [0.0] * (count + 1)
        self._epoch = [0] * (count + 1)
        self._began = [0.0] * (count + 1)
        self._what: list[Any] = [None] * (count + 1)
        options = DraftOptions(**strategy.draft_options())  # type: ignore[arg-type]
        self._drafter = Drafter(pipeline.cells, options.branches + 2, pipeline.context, options)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._emit_s: list[float] = []
        self._hosts = hosts
        self._cores: list[Cores] = []
        if hosts is not None:
            known = {name: Cores(hosts.slowdown, self._schedule) for name in hosts.names}
            self._cores = [known[name] for name in hosts.names]
        self._tickets = [0] * (count + 1)
        self._needs = [0.0] * (count + 1)
        self._ended_at = [0.0] * (count + 1)

    def run(self, request: Request) -> Trial:
        """Generate until the head finishes. Raises RuntimeError if nothing is left to happen before that."""
        self._at_head(Start(request))
        heap = self._heap
        while self.head.reason is None:
            if not heap:
                raise RuntimeError("the simulation has come to a stop: nobody has anything to do")
            self.now, _, action, arguments = heappop(heap)
            self.events += 1
            action(*arguments)
        return self._trial(request)

    def _schedule(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        self._serial += 1
        heappush(self._heap, (when, self._serial, action, arguments))

    def _deliver(self, when: float, rank: int, action: Callable[..., None], *arguments: Any) -> None:
        """A message arrives at a rank (-1: the head), which sees it when it has handled it."""
        if self._hosts is None:
            self._schedule(when, action, *arguments)
        else:
            self._schedule(when, self._take, rank, action, *arguments)

    def _take(self, rank: int, action: Callable[..., None], *arguments: Any) -> None:
        assert self._hosts is not None
        seconds = self._hosts.head_s if rank == HEAD else self._hosts.message_s
        self._cores[rank].start(self.now, seconds, action, *arguments)

    def _begin(self, rank: int, what: Decode | ComputeDraft, action: Callable[..., None]) -> None:
        """Rank `rank` computes `what`, then `action(rank, epoch, what)`."""
        self._began[rank], self._what[rank] = self.now, what
        context = what.positions[-1] + 1
        seconds = self._cost(rank, len(what.tokens), context)
        if self._hosts is None:
            self._schedule(self.now + seconds, action, rank, self._epoch[rank], what)
        else:
            if self._hosts.cold:
                pause = min(self.now - self._ended_at[rank], LONGEST_PAUSE_S)
                seconds += self._hosts.cold * sqrt(pause) * self._cost(rank, 1, context)
            self._needs[rank] = seconds
            self._tickets[rank] = self._cores[rank].start(self.now, seconds, action, rank, self._epoch[rank], what)

    def _cost(self, rank: int, rows: int, context: int) -> float:
        return self._costs.draft_s(rows, context) if rank == self._draft else self._costs.stage_s(rank, rows, context)

    def _abort(self, rank: int, action: Callable[..., None]) -> None:
        """End what rank `rank` computes: now, or where it next looks."""
        epoch, what = self._epoch[rank], self._what[rank]
        if self._hosts is None:
            action(rank, epoch, what)
            return
        cores = self._cores[rank]
        left = cores.stop(self.now, self._tickets[rank])
        step = self._needs[rank] / self._hosts.steps[rank]
        self._tickets[rank] = cores.start(self.now, left % step if step else 0.0, action, rank, epoch, what)

    # The head

    def _at_head(self, event: Any) -> None:
        now = self.now
        for effect in self.head.handle(now, event):
            if isinstance(effect, ToFirstStage):
                decode = effect.message
                size = HEADER_BYTES + ROW_BYTES * len(decode.tokens)
                self._deliver(self._down[0].arrival(now, size), 0, self._at_stage, 0, decode)
            elif isinstance(effect, ToDraft):
                order = effect.message
                size = HEADER_BYTES + ROW_BYTES * len(order.tokens)
                self._deliver(self._orders.arrival(now, size), self._draft, self._at_drafter, order)
            elif isinstance(effect, Emit):
                self._emit_s.extend([now] * len(effect.tokens))
            elif not hasattr(effect, "reason"):
                self._cancel(effect.message)

    def _cancel(self, message: CancelRun) -> None:
        size = HEADER_BYTES + 4 * len(message.runs)
        for stage, link in enumerate(self._control):
            self._deliver(link.urgent_arrival(self.now, size), stage, self._at_stage, stage, message)

    # The stages

    def _at_stage(self, stage: int, event: Decode | CancelRun) -> None:
        self._perform(stage, self._stages[stage].handle(event))

    def _stage_done(self, stage: int, epoch: int, decode: Decode) -> None:
        if epoch == self._epoch[stage]:
            self._stage_ends(stage, decode, aborted=False)

    def _stage_aborted(self, stage: int, epoch: int, decode: Decode) -> None:
        self._stage_ends(stage, decode, aborted=True)

    def _stage_ends(self, stage: int, decode: Decode, *, aborted: bool) -> None:
        self._epoch[stage] += 1
        seconds = self._ended(stage, decode, aborted)
        ids: tuple[int, ...] = ()
        if stage == self._last and not aborted:
            target = self._oracle.target
            ids = tuple([target(position + 1) for position in decode.positions[len(decode.tokens) - decode.outputs :]])
        self._perform(stage, self._stages[stage].handle(Computed(decode.run, seconds, aborted, None, ids)))

    def _perform(self, stage: int, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Forward):
                self._forward(stage, effect.message)
            elif isinstance(effect, Compute):
                self._begin(stage, effect.decode, self._stage_done)
            elif isinstance(effect, Abort):
                self._abort(stage, self._stage_aborted)

    def _forward(self, stage: int, message: Decode | Logits) -> None:
        size = HEADER_BYTES
        if message.cancelled_at == NOT_CANCELLED:
            rows = len(message.ids) if isinstance(message, Logits) else len(message.tokens)
            size += rows * (ROW_BYTES + self._costs.row_bytes(stage))
        arrival = self._down[stage + 1].arrival(self.now, size)
        if isinstance(message, Logits):
            self._deliver(arrival, HEAD, self._at_head, message)
        else:
            self._deliver(arrival, stage + 1, self._at_stage, stage + 1, message)

    # The draft rank

    def _at_drafter(self, event: DraftFrom | Woken) -> None:
        self._perform_draft(self._drafter.handle(event))

    def _draft_done(self, rank: int, epoch: int, work: ComputeDraft) -> None:
        if epoch == self._epoch[rank]:
            self._draft_ends(work, aborted=False)

    def _draft_aborted(self, rank: int, epoch: int, work: ComputeDraft) -> None:
        self._draft_ends(work, aborted=True)

    def _draft_ends(self, work: ComputeDraft, *, aborted: bool) -> None:
        self._epoch[self._draft] += 1
        self._ended(self._draft, None, aborted)
        candidates = self._oracle.candidates
        outputs = work.positions[len(work.positions) - work.outputs :]
        found = tuple([candidates(position + 1, work.count) for position in outputs])
        self._perform_draft(self._drafter.handle(Drafted(() if aborted else found, aborted)))

    def _perform_draft(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, ComputeDraft):
                self._begin(self._draft, effect, self._draft_done)
            elif isinstance(effect, Forward):
                proposal: Proposal = effect.message
                size = HEADER_BYTES + ROW_BYTES * len(proposal.nodes)
                self._deliver(self._proposals.arrival(self.now, size), HEAD, self._at_head, proposal)
            elif isinstance(effect, Abort):
                self._abort(self._draft, self._draft_aborted)
            elif isinstance(effect, Wake):
                self._schedule(self.now + effect.delay, self._at_drafter, Woken())

    # Records

    def _ended(self, rank: int, decode: Decode | None, aborted: bool) -> float:
        seconds = self.now - self._began[rank]
        self._busy[rank] += seconds
        self._ended_at[rank] = self.now
        if self._spans is not None:
            name = "draft" if decode is None else f"{decode.kind.name.lower()} {decode.run}"
            self._spans.append(Span(rank, name, self._began[rank], self.now, aborted))
        return seconds

    def _trial(self, request: Request) -> Trial:
        count = len(self._stages)
        ranks = [
            RankRecord(rank, "target", (rank, rank + 1), self._busy[rank],
                       bytes_sent={rank + 1 if rank < count - 1 else -1: self._down[rank + 1].bytes},
                       messages_sent={rank + 1 if rank < count - 1 else -1: self._down[rank + 1].messages})
            for rank in range(count)
        ]  # fmt: skip
        if self._strategy.drafts:
            ranks.append(RankRecord(count, "draft", (0, 1), self._busy[-1], bytes_sent={-1: self._proposals.bytes},
                                    messages_sent={-1: self._proposals.messages}))  # fmt: skip
        return Trial(
            strategy=type(self._strategy).__name__.lower(),
            fidelity="sim",
            prompt_tokens=len(request.prompt),
            token_ids=tuple(self.head.generated),
            emit_s=tuple(self._emit_s),
            reason=self.head.reason or "",
            runs=tuple([run_record(run, 0.0) for run in self.head.runs]),
            ranks=tuple(ranks),
        )
