"""The scheduler: one pipeline and any number of requests, from their beginning to their end.

    for event in world.events():
        for effect in scheduler.handle(world.now(), event):
            world.perform(effect)

What a request's text and tree are is for its `Generation` to know; which run comes next, for its `Strategy` to say;
which sequence ids and cells there are, for the `Room`; whose runs go first, for the `Sender` beneath.
"""

from collections import deque
from collections.abc import Callable, Sequence

from pipeinfer.core.effects import Finish, Forget, Start, Stop
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.generation import Generation, PipelineShape, Strategy
from pipeinfer.core.losses import cancellation, killed
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Logits, Proposal, RunKind
from pipeinfer.core.micro_batch import returned, validate_in_flight
from pipeinfer.core.prompt import chunk_size
from pipeinfer.core.sending import Sender
from pipeinfer.core.tree import Node, Run


class Scheduler(Sender):
    """Schedules requests over `pipeline`; `open_strategy` gives the strategy that a Start wants.

    Run ids and draft orders count up from `first_run` and `first_order`, so that what an earlier scheduler left behind
    in the pipeline is told apart. `measured` is what an earlier one knew of the same pipeline.
    """

    def __init__(
        self,
        pipeline: PipelineShape,
        open_strategy: Callable[[Start], Strategy],
        *,
        first_run: int = 0,
        first_order: int = 0,
        measured: Measured | None = None,
    ) -> None:
        super().__init__(pipeline, first_run, measured)
        self.handlers = {Logits: self._result, Proposal: self._propose, Start: self._enqueue, Stop: self._stop,
                         Forget: self._forget}  # fmt: skip
        self.generations: dict[int, Generation] = {}
        self._open_strategy = open_strategy
        self._order = self._first_order = first_order
        self._newest = -1
        self._forgotten: set[int] = set()
        self._queue: deque[Start] = deque()
        self._returned_at = 0.0
        """When the last run came back."""

    @property
    def order(self) -> int:
        """The newest draft order of any request."""
        return max([self._order, *(one.order for one in self._live)])

    @property
    def running(self) -> int:
        """Requests that have begun and not ended."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Every generation has ended and nothing is left in the pipeline."""
        return self._newest >= 0 and not (self._live or self._queue or self.in_flight)

    def validate(self) -> None:
        runs = [run for together in self.in_flight for run in together]
        self.room.validate([one.sequence for one in self._live] + [s for run in runs for s in run.partition])
        validate_in_flight(self.in_flight)
        assert self._given_up == {together[0].id for together in self.in_flight
                                  if all(run.cancel_sent_at is not None for run in together)}  # fmt: skip
        own: dict[int, list[Run]] = {number: [] for number in self.generations}
        for run in runs:
            own[run.request].append(run)
        for number, generation in self.generations.items():
            assert list(generation.in_flight) == own[number]
        for generation in self._live:
            generation.validate()

    # Events

    def _enqueue(self, event: Start) -> None:
        """It begins when there is room. Raises ValueError for what can have no answer, before anything has happened."""
        if event.number in self.generations or any(event.number == other.number for other in self._queue):
            raise ValueError(f"request {event.number} was begun already: expected a new number")
        self.pipeline.check(event.request)
        self._newest = max(self._newest, event.number)
        self._queue.append(event)
        self._admit()

    def _forget(self, event: Forget) -> None:
        self._forgotten.add(event.number)
        self._clear_away(self._generation(event.number))

    def _propose(self, message: Proposal) -> None:
        if message.forward_s:
            self.measured.draft(message.forward_s, message.forward_rows, alone=not self.in_flight)
        if message.order <= self._first_order:
            return
        generation = self.generations.get(message.request)
        if generation is not None:
            generation.propose(message)
            if generation.reason is None:
                self._send_what_is_ready([generation])  # Nothing has become free for the others.
                generation.order_draft()
        elif not self._is_over(message.request):
            raise PeerError(f"a proposal is for request {message.request}, which was never begun")

    def _is_over(self, number: int) -> bool:
        """It came once, has ended and is forgotten."""
        return number not in self.generations and number <= self._newest

    def _generation(self, number: int) -> Generation:
        generation = self.generations.get(number)
        if generation is None:
            raise OurError(f"request {number} was never begun")
        return generation

    def _admit(self) -> None:
        """Begin the requests that there is room for, in the order in which they came."""
        while self._queue:
            request = self._queue[0].request
            source, shared = self.room.beginning(request.prompt, self._live)
            wanted = min(self.pipeline.limit, len(request.prompt) + request.max_tokens) + self._promised()
            if not self.room.make(1, wanted - shared, spared=source):
                if source not in self.room.held.sequences or not self.room.might_have(wanted):
                    return
                self.room.give_up(source)
                continue
            self._start(self._queue.popleft(), source, shared)

    def _start(self, event: Start, source: int, shared: int) -> None:
        """Begin, after the `shared` tokens of the prompt that the sequence `source` holds."""
        sequence = self.room.free.popleft()
        strategy = self._open_strategy(event)
        generation = Generation(self, event.number, event.request, strategy, sequence, self.order)
        self.generations[event.number] = generation
        generation.began_at = self.now
        self._live.append(generation)
        self._longest_texts += generation.limit
        generation.cached = shared
        if shared:
            self.ledger.fork(source, sequence, shared)
            for one in self._live:
                if one.sequence == source:
                    one.lent = max(one.lent, shared)
        else:
            self.ledger.begin(sequence)
        nodes = generation.take_prompt()[shared:]
        strategy.started(generation)
        size = chunk_size(self.pipeline.prompt_chunk, len(nodes), self.pipeline.at_once)
        generation.unsent.extend([nodes[start : start + size] for start in range(0, len(nodes), size)])
        self._reading.append(generation)
        self._go_on([generation])

    def _result(self, message: Logits) -> None:
        if not self.in_flight or self.in_flight[0][0].id != message.run:
            expected = self.in_flight[0][0].id if self.in_flight else "none"
            raise PeerError(f"the result of run {message.run} came, expected {expected}")
        runs = self.in_flight.popleft()
        self._given_up.discard(message.run)
        returned(runs, message, self.now)
        if message.cancelled_at == NOT_CANCELLED:
            alone = not self.in_flight and runs[0].submitted_at >= self._returned_at
            self.measured.run(runs[0], message.computed, alone=alone)
        self._returned_at = self.now
        self._go_on(list(map(self._came_back, runs)))

    def _came_back(self, run: Run) -> Generation:
        """What is known now becomes text, and what contradicts it is lost."""
        generation = self.generations[run.request]
        generation.in_flight.popleft()
        advanced = generation.reason is None and generation.tip.verdict is not None
        if advanced:
            lost = generation.commit()
            if generation.reason is not None:
                self._end(generation, lost)
            elif lost:
                self._kill(generation, lost)
        if run.partition:
            self.room.give_back(run.partition)
            run.partition = run.sequences = ()
        if advanced and generation.reason is None:
            generation.strategy.advanced(generation)
        if self._forgotten:
            self._clear_away(generation)
        return generation

    def _clear_away(self, generation: Generation) -> None:
        """Let go of a generation that is to be forgotten, if nothing of it is in the pipeline."""
        number = generation.number
        if number in self._forgotten and generation.reason is not None and not generation.in_flight:
            self._forgotten.discard(number)
            del self.generations[number]

    def _stop(self, event: Stop) -> None:
        waiting = [start for start in self._queue if start.number == event.number]
        if waiting:
            self._queue.remove(waiting[0])
            self.perform(Finish(event.reason, event.number))
            return
        if self._is_over(event.number):
            return
        generation = self._generation(event.number)
        if generation.reason is None:
            generation.stop(event.length, event.reason)
            self._end(generation, [])
            self._abandon(generation)
            self._go_on([generation])

    def _abandon(self, generation: Generation) -> None:
        """Nothing follows the text any more: give up its own runs too, but for those that other texts begin with."""
        lent = generation.lent
        runs = [run for run in generation.in_flight if run.cancel_sent_at is None and run.nodes[0].position >= lent]
        self._tell_stages(cancellation(runs, self.now, whole=True))

    def _end(self, generation: Generation, lost: Sequence[Node]) -> None:
        self._kill(generation, [*lost, *generation.tip.children.values()])
        generation.finish()
        self._order = self.order
        self._live.remove(generation)
        if generation.unsent:
            self._reading.remove(generation)
        self._longest_texts -= generation.limit
        self.room.keep(generation.sequence, generation.tree_text()[: self._computed(generation)])

    def _computed(self, generation: Generation) -> int:
        """So many tokens of a text have cells on every stage by the time that a run sent now comes there. The tip's may
        be missing, and what is on its way may be given up."""
        own = [run.nodes[0].position for run in generation.in_flight if run.kind is not RunKind.SPECULATIVE]
        return min([self.ledger.length(generation.sequence), generation.tip.position, *own])

    # What is lost

    def _kill(self, generation: Generation, tops: Sequence[Node]) -> None:
        """These nodes and all below them can become text no more."""
        if tops and (hit := killed(tops)) and generation.strategy.cancels:
            self._tell_stages(cancellation(hit, self.now))

    def _tell_stages(self, message: CancelRun | None) -> None:
        if message is not None:
            self._given_up.update(message.runs)
            self.perform(message)

    def _go_on(self, asked: Sequence[Generation]) -> None:
        """Something of these requests came back: there may be room for any, and their drafts may go on."""
        if self._queue:
            self._admit()
        if self._reading:
            self._send_prompts()
        self._send_what_is_ready(self._live)
        for generation in asked:
            if generation.reason is None:
                generation.order_draft()
