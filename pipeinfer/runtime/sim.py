"""The simulator: the same scheduler, stages and drafter as on a cluster, over a heap of events in virtual time.

Compute takes what the cost model says, messages take latency and bandwidth, tokens come from an oracle. Unless `Hosts`
say otherwise nothing else is modelled: every rank has a host to itself, handling a message is free, and an aborted
computation stops when the cancellation arrives. Deterministic.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import repeat
from math import sqrt
from typing import Any, NamedTuple, Protocol

from pipeinfer.core.draft import DraftPolicy
from pipeinfer.core.drafter import Drafter
from pipeinfer.core.effects import (
    Abort,
    Apply,
    Compute,
    Computed,
    ComputeDraft,
    Drafted,
    Emit,
    Finish,
    Forward,
    Note,
    Request,
    Start,
    Wake,
    Woken,
)
from pipeinfer.core.generation import Generation, PipelineShape, Strategy
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Candidates, Decode, DraftFrom, Proposal
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.stage import Arrival, Stage
from pipeinfer.core.text_drafter import TextDrafter, TextPolicy
from pipeinfer.engine.backend import context_of
from pipeinfer.plugins import open_drafting
from pipeinfer.results.trial import RankRecord, Trial, run_record
from pipeinfer.runtime.oracle import Oracle
from pipeinfer.runtime.shared_cores import Cores
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD
from pipeinfer.runtime.world import World

DRAFT_SEQUENCES = 64
"""Sequence ids of the draft: one per branch, and one for the text."""


class Costs(Protocol):
    """What computing and sending take. `context` is the highest position that the rows attend to, plus one."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        """Seconds for `rows` rows on a stage of the target."""

    def draft_s(self, rows: int, context: int) -> float:
        """Seconds for one forward of the draft model."""

    def row_bytes(self, stage: int) -> int:
        """Bytes of payload per row that a stage sends on: hidden states, or logits where they travel."""


class SimulatedLink:
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
        # Without `max`: this is called for every message of a sweep.
        free_at = self._free_at
        self._free_at = free_at = (now if now > free_at else free_at) + size * self.s_per_byte
        self.bytes += size
        self.messages += 1
        least, arrives = now + self.floor_s, free_at + self.latency_s
        return arrives if arrives > least else least

    def alone(self, size: int) -> float:
        """Seconds that a message of `size` bytes is under way where no other is."""
        return max(self.floor_s, size * self.s_per_byte + self.latency_s)

    def urgent_arrival(self, now: float, size: int) -> float:
        """The same for a message that need not queue: cancellation travels beside the stream."""
        self.bytes += size
        self.messages += 1
        return max(now + self.floor_s, now + size * self.s_per_byte + self.latency_s)


def free_link(_source: int, _target: int) -> SimulatedLink:
    return SimulatedLink()


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


class Simulation(World):
    """One generation over `pipeline` with `strategy`. `link(source, target)` makes each link, -1 being the head and the
    number of stages the draft; `spans` collects a timeline. `policy` replaces the strategy's own draft policy."""

    def __init__(
        self,
        pipeline: PipelineShape,
        strategy: Strategy,
        costs: Costs,
        oracle: Oracle,
        link: Callable[[int, int], SimulatedLink] = free_link,
        spans: list[Span] | None = None,
        hosts: Hosts | None = None,
        policy: DraftPolicy | TextPolicy | None = None,
    ) -> None:
        count = pipeline.stages
        self.scheduler = Scheduler(pipeline, lambda _: strategy)
        self.time = 0.0
        self.handled = 0
        """Events so far."""
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
        if policy is None and strategy.drafting:
            policy = open_drafting(strategy.drafting, strategy.drafting_options)
        self._policy = policy
        self._drafter = drafter_of(lambda _: policy, pipeline)
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
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
        self._leaves_at = [0.0] * count
        model = policy is None or policy.model
        self._drafts_apart = model and not strategy.drafts_on_last_stage

    @property
    def generation(self) -> Generation:
        """The one request."""
        return self.scheduler.generations[0]

    def generate(self, request: Request) -> Trial:
        """Generate until the request ends. Raises RuntimeError if nothing is left to happen before that."""
        self.tell(self.scheduler, Start(request))
        self.run()
        if self.generation.reason is None:
            raise RuntimeError("the simulation has come to a stop: nobody has anything to do")
        return self._trial(self.generation, self._emit_s)

    def now(self) -> float:
        return self.time

    def events(self) -> Iterator[tuple[Machine, Any]]:
        """What happens next, as long as the request has not ended; some of it tells no machine anything."""
        heap, generation = self._heap, self.generation
        while heap and generation.reason is None:
            self.time, _, action, arguments = heappop(heap)
            self.handled += 1
            # Most of what happens is that a message arrives.
            told: Any = arguments if action is _told else action(*arguments)
            if told is not None:
                yield told

    def _schedule(self, when: float, action: Callable[..., Any], *arguments: Any) -> None:
        self._serial += 1
        heappush(self._heap, (when, self._serial, action, arguments))

    def _deliver(self, when: float, rank: int, machine: Machine, event: Any) -> None:
        """A message arrives at a rank (-1: the head), which sees it when it has handled it."""
        if self._hosts is None:
            self._serial += 1
            heappush(self._heap, (when, self._serial, _told, (machine, event)))
        else:
            self._schedule(when, self._receive, rank, machine, event)

    def _receive(self, rank: int, machine: Machine, event: Any) -> None:
        assert self._hosts is not None
        seconds = self._hosts.head_s if rank == HEAD else self._hosts.message_s
        self._cores[rank].start(self.time, seconds, _told, machine, event)

    # Computing

    def _begin(self, rank: int, what: Decode | ComputeDraft) -> None:
        """Rank `rank` computes `what`."""
        self._began[rank], self._what[rank] = self.time, what
        context = context_of(what.positions, what.requests)
        seconds = self._cost(rank, len(what.tokens), context)
        if self._hosts is None:
            self._serial += 1
            heappush(self._heap, (self.time + seconds, self._serial, self._done, (rank, self._epoch[rank], what)))
        else:
            if self._hosts.cold:
                pause = min(self.time - self._ended_at[rank], LONGEST_PAUSE_S)
                seconds += self._hosts.cold * sqrt(pause) * self._cost(rank, 1, context)
            self._needs[rank] = seconds
            self._tickets[rank] = self._cores[rank].start(
                self.time, seconds, self._done, rank, self._epoch[rank], what
            )  # fmt: skip

    def _cost(self, rank: int, rows: int, context: int) -> float:
        return self._costs.draft_s(rows, context) if rank == self._draft else self._costs.stage_s(rank, rows, context)

    def _done(self, rank: int, epoch: int, what: Decode | ComputeDraft) -> tuple[Machine, Any] | None:
        return self._computed(rank, what, False) if epoch == self._epoch[rank] else None

    def _stopped(self, rank: int, _epoch: int, what: Decode | ComputeDraft) -> tuple[Machine, Any]:
        return self._computed(rank, what, True)

    def _computed(self, rank: int, what: Any, aborted: bool) -> tuple[Machine, Any]:
        """A computation has come to its end: whom to tell what."""
        self._epoch[rank] += 1
        seconds = self.time - self._began[rank]
        self._busy[rank] += seconds
        self._ended_at[rank] = self.time
        if self._spans is not None:
            name = "draft" if rank == self._draft else f"{what.kind.name.lower()} {what.run}"
            self._spans.append(Span(rank, name, self._began[rank], self.time, aborted))
        if rank == self._draft:
            return self._drafter, Drafted(() if aborted else self._candidates(what), aborted, seconds)
        ids = self._sampled(what) if rank == self._last and not aborted else ()
        return self._stages[rank], Computed(what.run, seconds, aborted, None, ids)

    def _sampled(self, what: Decode) -> tuple[int, ...]:
        """What the target says after each output row."""
        return tuple([oracle.target(position + 1) for position, oracle in self._outputs(what)])

    def _candidates(self, what: ComputeDraft) -> Candidates:
        """What the draft makes of a forward, after each output row."""
        return tuple([oracle.candidates(position + 1, what.count) for position, oracle in self._outputs(what)])

    def _outputs(self, what: Decode | ComputeDraft) -> Iterable[tuple[int, Oracle]]:
        """The position of each output row, which are the last, and who knows what follows."""
        positions = what.positions[len(what.positions) - what.outputs :]
        if len(what.requests) == 1:
            return zip(positions, repeat(self._oracle_of(what.requests[0])))
        requests = what.requests[len(what.requests) - what.outputs :]
        return zip(positions, map(self._oracle_of, requests), strict=True)

    def _oracle_of(self, request: int) -> Oracle:
        return self._oracle

    def abort(self, machine: Machine, effect: Abort) -> None:
        """End what a rank computes: now, or where it next looks."""
        rank = self._rank(machine)
        epoch, what = self._epoch[rank], self._what[rank]
        if self._hosts is None:
            self.tell(*self._stopped(rank, epoch, what))
            return
        cores = self._cores[rank]
        left = cores.stop(self.time, self._tickets[rank])
        step = self._needs[rank] / self._hosts.steps[rank]
        self._tickets[rank] = cores.start(self.time, left % step if step else 0.0, self._stopped, rank, epoch, what)

    def _rank(self, machine: Machine) -> int:
        return machine.index if isinstance(machine, Stage) else self._draft

    def apply(self, machine: Machine, effect: Apply) -> None:
        """Nothing is kept."""

    def compute(self, machine: Machine, effect: Compute) -> None:
        assert isinstance(machine, Stage)
        if self._strategy.endless_stages:
            self._compute_beside(machine.index, effect.decode)
        else:
            self._begin(machine.index, effect.decode)

    def _compute_beside(self, stage: int, what: Decode) -> None:
        """The stage takes its time for this run, which leaves it after those before, and is free at once."""
        seconds = self._cost(stage, len(what.tokens), context_of(what.positions, what.requests))
        self._leaves_at[stage] = max(self._leaves_at[stage], self.time + seconds)
        self._began[stage] = self.time - seconds
        self.tell(*self._computed(stage, what, False))

    def compute_draft(self, machine: Machine, effect: ComputeDraft) -> None:
        self._begin(self._draft, effect)

    def wake(self, machine: Machine, effect: Wake) -> None:
        self._schedule(self.time + effect.delay, _told, machine, Woken())

    # Sending

    def to_first_stage(self, machine: Machine, effect: Decode) -> None:
        size = HEADER_BYTES + ROW_BYTES * len(effect.tokens)
        self._deliver(self._down[0].arrival(self.time, size), 0, self._stages[0], Arrival(effect))

    def to_draft(self, machine: Machine, effect: DraftFrom) -> None:
        size = HEADER_BYTES + ROW_BYTES * len(effect.tokens)
        if not self._drafts_apart:
            self._schedule(self.time, _told, self._drafter, effect)
        else:
            self._deliver(self._orders.arrival(self.time, size), self._draft, self._drafter, effect)

    def to_stages(self, machine: Machine, effect: CancelRun) -> None:
        size = HEADER_BYTES + 4 * (len(effect.runs) + sum(1 + len(rows) for _, rows in effect.pruned))
        for stage, link in enumerate(self._control):
            self._deliver(link.urgent_arrival(self.time, size), stage, self._stages[stage], effect)

    def forward(self, machine: Machine, effect: Forward) -> None:
        message = effect.message
        if not isinstance(machine, Stage):
            self._propose(message)
            return
        stage, size = machine.index, HEADER_BYTES
        if message.cancelled_at == NOT_CANCELLED:
            rows = len(message.ids if stage == self._last else message.tokens)
            size += rows * (ROW_BYTES + self._costs.row_bytes(stage))
        leaves_at = self._leaves_at[stage]
        arrival = self._down[stage + 1].arrival(self.time if self.time > leaves_at else leaves_at, size)
        if stage == self._last:
            self._deliver(arrival, HEAD, self.scheduler, message)
        else:
            self._deliver(arrival, stage + 1, self._stages[stage + 1], Arrival(message))

    def _propose(self, proposal: Proposal) -> None:
        if not self._drafts_apart:
            self._schedule(self.time, _told, self.scheduler, proposal)
            return
        size = HEADER_BYTES + ROW_BYTES * len(proposal.nodes)
        self._deliver(self._proposals.arrival(self.time, size), HEAD, self.scheduler, proposal)

    def emit(self, machine: Machine, effect: Emit) -> None:
        self._emit_s.extend([self.time] * len(effect.tokens))

    def finish(self, machine: Machine, effect: Finish) -> None:
        """The loop sees it."""

    def note(self, machine: Machine, effect: Note) -> None:
        if self._spans is not None:
            self._spans.append(Span(HEAD, effect.text, self.time, self.time, False))

    # Records

    def _trial(self, generation: Generation, emit_s: Sequence[float], start: float = 0.0) -> Trial:
        """What is left of one that has ended, in times since `start`; what ranks did is for all."""
        count = len(self._stages)
        ranks = [
            RankRecord(rank, "target", (rank, rank + 1), self._busy[rank],
                       bytes_sent={rank + 1 if rank < count - 1 else -1: self._down[rank + 1].bytes},
                       messages_sent={rank + 1 if rank < count - 1 else -1: self._down[rank + 1].messages})
            for rank in range(count)
        ]  # fmt: skip
        if self._policy is not None and self._policy.model:
            ranks.append(RankRecord(count, "draft", (0, 1), self._busy[-1], bytes_sent={-1: self._proposals.bytes},
                                    messages_sent={-1: self._proposals.messages}))  # fmt: skip
        return Trial(
            strategy=generation.strategy.name,
            fidelity="sim",
            prompt_tokens=generation.prompt_length,
            token_ids=tuple(generation.generated),
            emit_s=tuple([when - start for when in emit_s]),
            reason=generation.reason or "",
            runs=tuple([run_record(run, start) for run in generation.runs]),
            ranks=tuple(ranks),
        )


def drafter_of(open_policy: Callable[[int], Any], pipeline: PipelineShape) -> Drafter | TextDrafter:
    """The machine that drafts by such policies, with a model or without, for a target in this pipeline."""
    policy = open_policy(0)
    if policy is not None and not policy.model:
        return TextDrafter(open_policy)
    return Drafter(pipeline.cells, DRAFT_SEQUENCES, pipeline.context, open_policy)



def _told(machine: Machine, event: Any) -> tuple[Machine, Any]:
    return machine, event
