"""Head, stages and drafter wired to one another by queues that a schedule empties in any order.

Everything that a network or a computation may do is a queue: each link, each computation under way, each wait. Links
keep their order and nothing else is promised. The checks that hold after every single event stand here as well.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from toy_model import Cell, ToyCells, ToyLanguage, Values

from pipeinfer.core.drafter import Drafter, DraftOptions
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
    HeadEffect,
    Request,
    Start,
    Stop,
    ToDraft,
    ToFirstStage,
    ToStages,
    Wake,
    Woken,
)
from pipeinfer.core.head import Head, Pipeline, Strategy
from pipeinfer.core.ledger import CANONICAL
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, DraftFrom, Logits, Proposal, RunKind
from pipeinfer.core.stage import Stage

MOST_STEPS = 50_000


class Queue:
    """What waits to happen, in this order, and who is told of it."""

    def __init__(self, deliver: Callable[..., None]) -> None:
        self.items: deque[tuple[Any, ...]] = deque()
        self.deliver = deliver

    def put(self, *item: Any) -> None:
        self.items.append(item)


class ToyStage:
    """A stage machine with the cells of one toy layer."""

    def __init__(self, index: int, pipeline: Pipeline) -> None:
        self.machine = Stage(index, pipeline.stages)
        self.cells = ToyCells(pipeline.cells)
        self.outputs: tuple[int, ...] = ()
        self.aborting = False
        self.skipped: set[int] = set()
        self.caught_up = -1


class ToyCluster:
    """One generation. `schedule` says which of the queues that are not empty goes next; once used up, all take turns.

    `draft_cells` 0: as many as the target. `stop_after`: a stop string ends there. `watch` sees what the head does.
    """

    def __init__(
        self,
        language: ToyLanguage,
        pipeline: Pipeline,
        strategy: Strategy,
        schedule: bytes = b"",
        *,
        draft_cells: int = 0,
        stop_after: int = 0,
        watch: Callable[[float, Any, list[HeadEffect]], None] | None = None,
    ) -> None:
        self.language = language
        self.head = Head(pipeline, strategy)
        self.stages = [ToyStage(index, pipeline) for index in range(pipeline.stages)]
        options = DraftOptions(**strategy.draft_options())  # type: ignore[arg-type]
        draft_cells = draft_cells or pipeline.cells
        self.drafter = Drafter(draft_cells, options.branches + 2, pipeline.context, options)
        self.draft_cells = ToyCells(draft_cells)
        self.emitted: list[int] = []
        self.finishes: list[str] = []
        self.cancelled: set[int] = set()
        self.proposals: list[Proposal] = []
        self.steps = 0
        self._mirror = ToyCells(pipeline.cells)
        self._mirrored: list[list[tuple[int, int, tuple[int, ...]]]] = []
        self._returned = -1
        self._draft_rows = 0
        self._draft_aborting = False
        self._schedule = iter(schedule)
        self._stop_after = stop_after
        self._watch = watch
        self._last = pipeline.stages - 1
        self._streams = [Queue(partial(self._at_stage, i)) for i in range(pipeline.stages)]
        self._controls = [Queue(partial(self._at_stage, i)) for i in range(pipeline.stages)]
        self._computing = [Queue(partial(self._computed, i)) for i in range(pipeline.stages)]
        self._results = Queue(self._at_head)
        self._orders, self._proposals = Queue(self._at_drafter), Queue(self._at_head)
        self._drafting, self._wakes = Queue(self._draft_computed), Queue(self._at_drafter)
        self._stops = Queue(self._at_head)
        self._turns = [*self._streams, *self._controls, *self._computing, self._results, self._orders, self._proposals,
                       self._drafting, self._stops, self._wakes]  # fmt: skip

    def generate(self, request: Request) -> list[int]:
        """Run until nothing is left to happen anywhere, and check that the generation ended and left nothing behind."""
        self._at_head(Start(request))
        while ready := [queue for queue in self._turns if queue.items]:
            self.steps += 1
            assert self.steps < MOST_STEPS, "it goes on for ever"
            queue = ready[next(self._schedule, 0) % len(ready)]
            self._turns.remove(queue)
            self._turns.append(queue)
            queue.deliver(*queue.items.popleft())
        self._check_the_end()
        return self.head.generated

    # The head

    def _at_head(self, event: Any) -> None:
        if isinstance(event, Logits):
            assert event.run == self._returned + 1, "results come in the order in which runs were sent"
            self._returned = event.run
        effects = self.head.handle(float(self.steps), event)
        if self._watch is not None:
            self._watch(float(self.steps), event, effects)
        for effect in effects:
            self._perform_head(effect)
        self._check_ledger()

    def _perform_head(self, effect: HeadEffect) -> None:
        if isinstance(effect, Finish):
            self.finishes.append(effect.reason)
            return
        assert not self.finishes, f"{effect} after the end"
        if isinstance(effect, ToFirstStage):
            self._mirror_run(effect.message)
            self._streams[0].put(effect.message, None)
        elif isinstance(effect, ToDraft):
            self._orders.put(effect.message)
        elif isinstance(effect, Emit):
            self.emitted.extend(effect.tokens)
            if 0 < self._stop_after <= len(self.emitted) and not self._stops.items:
                self._stops.put(Stop(self._stop_after, "stop"))
        elif isinstance(effect, ToStages):
            self._check_cancelled(effect.message)
            for control in self._controls:
                control.put(effect.message)

    def _check_cancelled(self, message: CancelRun) -> None:
        assert self.head.strategy.cancellation
        for run_id in message.runs:
            run = self.head.runs[run_id]
            assert run_id not in self.cancelled, "a run is cancelled once"
            assert run.kind is RunKind.SPECULATIVE
            assert not any(node.alive for node in run.nodes), "a live run was cancelled"
            self.cancelled.add(run_id)

    def _mirror_run(self, decode: Decode) -> None:
        """What a stage that skips nothing would hold after this run."""
        self._mirror.apply(decode.kv)
        self._mirror.store(decode.run, decode.tokens, decode.positions, decode.sequences)
        self._mirrored.append(self._mirror.held())

    def _check_ledger(self) -> None:
        ledger = self.head.ledger
        ledger.validate()
        sent = ToyCells(self._mirror.capacity)
        sent.cells = [Cell(cell.run, cell.position, set(cell.tags), cell.value) for cell in self._mirror.cells]
        sent.apply(ledger.pending)
        assert len(sent.cells) == ledger.used
        held: dict[int, int] = {}
        for cell in sent.cells:
            for tag in cell.tags:
                held[tag] = held.get(tag, 0) + 1
        assert held == {sequence: ledger.length(sequence) for sequence in range(ledger.sequences)
                        if ledger.holds(sequence) and ledger.length(sequence)}  # fmt: skip

    # The stages

    def _at_stage(self, index: int, event: Decode | CancelRun, payload: Any = None) -> None:
        self._perform(index, self.stages[index].machine.handle(event, payload))

    def _computed(self, index: int, decode: Decode) -> None:
        stage = self.stages[index]
        aborted = stage.aborting and bool(next(self._schedule, 0) % 2)
        if aborted:
            stage.cells.take_back(len(decode.tokens))
            stage.skipped.add(decode.run)
        stage.aborting = False
        self._caught_up(stage, decode.run)
        ids: tuple[int, ...] = ()
        if index == self._last and not aborted:
            first = len(decode.tokens) - decode.outputs
            ids = tuple([self.language.token(output) for output in stage.outputs[first:]])
        payload = None if aborted else stage.outputs
        self._perform(index, stage.machine.handle(Computed(decode.run, 0.0, aborted, payload, ids)))

    def _perform(self, index: int, effects: list[Any]) -> None:
        stage = self.stages[index]
        for effect in effects:
            if isinstance(effect, Apply):
                stage.cells.apply(effect.ops)
            elif isinstance(effect, Abort):
                assert self._computing[index].items
                stage.aborting = True
            elif isinstance(effect, Compute):
                stage.outputs = self._forward(index, effect)
                self._computing[index].put(effect.decode)
            else:
                self._pass_on(index, effect)

    def _pass_on(self, index: int, effect: Forward) -> None:
        stage = self.stages[index]
        if stage.caught_up < effect.message.run:
            stage.skipped.add(effect.message.run)
            self._caught_up(stage, effect.message.run)
        live = effect.message.cancelled_at == NOT_CANCELLED
        assert live or effect.payload is None, "a marker carries no payload"
        assert live or effect.message.run in self.cancelled, "a run was skipped that nobody had cancelled"
        if index == self._last:
            self._results.put(effect.message)
        else:
            self._streams[index + 1].put(effect.message, effect.payload)

    def _forward(self, index: int, effect: Compute) -> tuple[int, ...]:
        decode = effect.decode
        values = decode.tokens if index == 0 else effect.payload
        seen = self.stages[index].cells.store(decode.run, values, decode.positions, decode.sequences)
        outputs = []
        for visible in seen:
            # Not even where the row is dead, beside a live branch: there are engines that refuse it.
            assert visible is not None, "a row sees gaps"
            outputs.append(self.language.layer(index, visible))
        return tuple(outputs)

    def _caught_up(self, stage: ToyStage, run: int) -> None:
        """After each run a stage holds exactly what it would if it skipped nothing, less what it skipped."""
        assert stage.caught_up == run - 1, "runs pass a stage in the order in which they were sent"
        stage.caught_up = run
        expected = [cell for cell in self._mirrored[run] if cell[0] not in stage.skipped]
        assert stage.cells.held() == expected, "a stage's cells are not those of the ledger"

    # The draft rank

    def _at_drafter(self, event: DraftFrom | Woken) -> None:
        self._perform_draft(self.drafter.handle(event))

    def _draft_computed(self, drafted: Drafted) -> None:
        if self._draft_aborting and next(self._schedule, 0) % 2:
            self.draft_cells.take_back(self._draft_rows)
            drafted = Drafted((), aborted=True)
        self._draft_aborting = False
        self._perform_draft(self.drafter.handle(drafted))

    def _perform_draft(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Apply):
                self.draft_cells.apply(effect.ops)
            elif isinstance(effect, Abort):
                assert self._drafting.items
                self._draft_aborting = True
            elif isinstance(effect, Wake):
                self._wakes.put(Woken())
            elif isinstance(effect, ComputeDraft):
                self._drafting.put(self._draft(effect))
            else:
                self._check_proposal(effect.message)
                self._proposals.put(effect.message)
        self.drafter.ledger.validate()

    def _draft(self, work: ComputeDraft) -> Drafted:
        seen = self.draft_cells.store(0, work.tokens, work.positions, work.sequences)
        assert len(self.draft_cells.cells) <= self.drafter.ledger.used
        self._draft_rows = len(work.tokens)
        texts: list[Values] = [text for text in seen if text is not None]
        assert len(texts) == len(seen), "the draft sees gaps"
        found = [self.language.candidates(text, work.count) for text in texts[len(texts) - work.outputs :]]
        return Drafted(tuple(found))

    def _check_proposal(self, proposal: Proposal) -> None:
        if self.proposals:
            before = self.proposals[-1]
            assert proposal.order >= before.order
            assert proposal.order > before.order or not before.stalled, "stalled, but something more came"
        if self.drafter.options.once:
            assert proposal.stalled, "one micro-batch per order"
        self.proposals.append(proposal)

    # The end

    def _check_the_end(self) -> None:
        head = self.head
        assert head.reason is not None, "nobody has anything to do, and the generation has not ended"
        assert self.finishes == [head.reason]
        assert head.idle
        assert self.emitted[: len(head.generated)] == head.generated
        assert head.ledger.used == head.ledger.length(CANONICAL), "cells are left over"
        partitions = (head.pipeline.sequences - 1) // head.strategy.width
        assert len(head._partitions) == partitions, "partitions are left over"
        for run in head.runs:
            assert run.finished_at is not None
            assert run.live == sum(node.alive for node in run.nodes)
        for stage in self.stages:
            assert stage.machine.idle
            assert not stage.machine._cancelled
            assert stage.caught_up == len(head.runs) - 1
