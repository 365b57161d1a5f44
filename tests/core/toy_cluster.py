"""Scheduler, stages and drafter wired to one another by queues that a schedule empties in any order.

Everything that a network or a computation may do is a queue: each link, each computation under way, each wait. Links
keep their order and nothing else is promised. The checks that hold after every single event stand here as well.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from toy_model import CellWords, ToyCells, ToyLanguage, Values

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
    Forget,
    Forward,
    Note,
    Start,
    Stop,
    Wake,
    Woken,
)
from pipeinfer.core.generation import Generation, PipelineShape, Strategy
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, DraftFrom, KvOp, Logits, Proposal, RunKind
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.stage import Arrival, Stage
from pipeinfer.core.text_drafter import TextDrafter
from pipeinfer.core.tree import Run
from pipeinfer.runtime.world import World

MOST_STEPS = 200_000

Watch = Callable[[Machine, float, Any, list[Any]], None]


class Queue:
    """What waits to happen, in this order, and who is told of it."""

    def __init__(self, deliver: Callable[..., None]) -> None:
        self.items: deque[tuple[Any, ...]] = deque()
        self.deliver = deliver

    def put(self, *item: Any) -> None:
        self.items.append(item)


class ToyStage:
    """A stage machine with the cells of one toy layer."""

    def __init__(self, index: int, pipeline: PipelineShape) -> None:
        self.machine = Stage(index, pipeline.stages)
        self.cells = ToyCells(pipeline.cells)
        self.rows: tuple[int, ...] = ()
        self.outputs: tuple[int, ...] = ()
        self.aborting = False
        self.skipped: set[int] = set()
        self.caught_up = -1


class ToyCluster(World):
    """Some generations. `schedule` says which of the queues that are not empty goes next; once used up, all take turns.

    `draft_cells` 0: as many as the target. `stop_after`: a stop string ends the first request there. `cancels`: by
    number, after how many turns a request is given up. `pauses`: so many turns pass before the second request comes,
    the third, and so on. `forgets`: the scheduler is to forget each when it has ended. `lost_after`: a rank is lost
    after so many turns, and with it all that is under way. `row_s`: what stages say that a run takes for each row and
    one more; the longer, the fewer runs the pipe seems to have room for. `draft_row`: what a row more takes the draft,
    as a share of one row. `watch` sees what every machine does.
    """

    def __init__(
        self,
        language: ToyLanguage,
        pipeline: PipelineShape,
        open_strategy: Callable[[Start], Strategy],
        open_policy: Callable[[int], Any],
        schedule: bytes = b"",
        *,
        draft_cells: int = 0,
        draft_sequences: int = 10,
        stop_after: int = 0,
        cancels: Mapping[int, int] = {},
        pauses: Sequence[int] = (),
        forgets: bool = False,
        lost_after: int = MOST_STEPS,
        row_s: float = 0.01,
        draft_row: float = 0.0,
        watch: Watch | None = None,
    ) -> None:
        self.language = language
        self.scheduler = Scheduler(pipeline, open_strategy)
        self.stages = [ToyStage(index, pipeline) for index in range(pipeline.stages)]
        draft_cells = draft_cells or pipeline.cells
        self.drafter: Drafter | TextDrafter = TextDrafter(open_policy)
        if open_policy(0).model:
            self.drafter = Drafter(draft_cells, draft_sequences, pipeline.context, open_policy,
                                   keeps_texts=pipeline.keeps_texts)  # fmt: skip
        self.draft_cells = ToyCells(draft_cells)
        self.generations: dict[int, Generation] = {}
        self.emitted: dict[int, list[int]] = {}
        self.finishes: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.steps = 0
        self._mirror = ToyCells(pipeline.cells)
        self._mirrored: list[list[CellWords]] = []
        self._ahead: ToyCells | None = None
        """The mirror after the operations that wait, of which these are applied."""
        self._applied: list[KvOp] = []
        self._runs: dict[int, tuple[Run, ...]] = {}
        """All that were sent, by id."""
        self._proposed: dict[int, Proposal] = {}
        """The last of each request."""
        self._come: set[int] = set()
        """The requests."""
        self._returned = -1
        self._draft_rows = 0
        self._draft_aborting = False
        self._schedule = iter(schedule)
        self._stop_after = stop_after
        self._cancels = dict(cancels)
        self._pauses = iter(pauses)
        self._forgets = forgets
        self._lost_after = lost_after
        self._row_s = row_s
        self._draft_row = draft_row
        self.shared_forwards = 0
        """Of the draft, that had rows of several requests."""
        self._watch = watch
        self._last = pipeline.stages - 1
        self._make_queues(pipeline.stages)

    def _make_queues(self, stages: int) -> None:
        machines = [stage.machine for stage in self.stages]
        self._streams = [Queue(partial(self._to_stage, machine)) for machine in machines]
        self._controls = [Queue(partial(self.tell, machine)) for machine in machines]
        self._computing = [Queue(partial(self._computed, i)) for i in range(stages)]
        at_scheduler, at_drafter = partial(self.tell, self.scheduler), partial(self.tell, self.drafter)
        self._results, self._proposals, self._stops, self._forgotten = (Queue(at_scheduler) for _ in range(4))
        self._starts, self._gone = Queue(self._arrive), Queue(self._give_up)
        self._orders, self._wakes = Queue(at_drafter), Queue(at_drafter)
        self._drafting = Queue(self._draft_computed)
        self._turns = [*self._streams, *self._controls, *self._computing, self._results, self._orders, self._proposals,
                       self._drafting, self._stops, self._wakes, self._starts, self._gone, self._forgotten]  # fmt: skip

    def generate(self, *starts: Start) -> list[list[int]]:
        """Run until nothing is left to happen anywhere, and check that every generation ended and left nothing."""
        for start in starts:
            self._starts.put(start)
            for _ in range(next(self._pauses, 0)):
                self._starts.put(None)
        self._starts.deliver(*self._starts.items.popleft())
        for number, turns in self._cancels.items():
            for turn in range(turns, -1, -1):
                self._gone.put(number if turn == 0 else None)
        for queue in self._next_queues():
            queue.deliver(*queue.items.popleft())
            if self.steps >= self._lost_after:
                return [self.emitted.get(start.number, []) for start in starts]
        self._check_the_end()
        known = self.generations
        return [known[start.number].generated if start.number in known else [] for start in starts]

    def _arrive(self, start: Start | None) -> None:
        if start is not None:
            self._come.add(start.number)
            self.tell(self.scheduler, start)

    def _give_up(self, number: int | None) -> None:
        """Whoever asked has gone, unless they have not come yet or the end came first."""
        if number is not None and number not in self.finishes:
            if number not in self._come:
                self._gone.put(number)
                return
            self.tell(self.scheduler, Stop(len(self.emitted.get(number, [])), "cancelled", number))

    def _next_queues(self) -> Iterator[Queue]:
        turns = self._turns
        while ready := [queue for queue in turns if queue.items]:
            self.steps += 1
            assert self.steps < MOST_STEPS, "it goes on for ever"
            queue = ready[next(self._schedule, 0) % len(ready)]
            turns.remove(queue)
            turns.append(queue)
            yield queue

    def now(self) -> float:
        return float(self.steps)

    def tell(self, machine: Machine, event: Any) -> None:
        if isinstance(event, Logits) and machine is self.scheduler:
            assert event.run == self._returned + 1, "results come in the order in which runs were sent"
            self._returned = event.run
        if self._watch is None:
            super().tell(machine, event)
        else:
            self._watched(machine, event, self._watch)
        machine.validate()
        if machine is self.scheduler:
            self.generations |= self.scheduler.generations
            self._check_ledger()

    def _watched(self, machine: Machine, event: Any, watch: Watch) -> None:
        """The same, with what it does handed to `watch` as well."""
        handle = machine.handle

        def watched(now: float, event: Any) -> list[Any]:
            effects = handle(now, event)
            watch(machine, now, event, effects)
            return effects

        machine.handle = watched  # type: ignore[method-assign]
        try:
            super().tell(machine, event)
        finally:
            del machine.handle  # type: ignore[method-assign]

    # The scheduler's effects

    def finish(self, machine: Machine, effect: Finish) -> None:
        assert effect.number not in self.finishes, "it ends once"
        self.finishes[effect.number] = effect.reason
        if self._forgets and effect.number in self.scheduler.generations:
            self._forgotten.put(Forget(effect.number))

    def note(self, machine: Machine, effect: Note) -> None:
        assert effect.text

    def to_first_stage(self, machine: Machine, effect: Decode) -> None:
        self._mirror_run(effect)
        self._runs[effect.run] = next(runs for runs in reversed(self.scheduler.in_flight) if runs[0].id == effect.run)
        self._streams[0].put(effect, None)

    def to_draft(self, machine: Machine, effect: DraftFrom) -> None:
        assert effect.request not in self.finishes, "an order after the end"
        self._orders.put(effect)

    def emit(self, machine: Machine, effect: Emit) -> None:
        assert effect.number not in self.finishes, "tokens after the end"
        tokens = self.emitted.setdefault(effect.number, [])
        tokens.extend(effect.tokens)
        if effect.number == 0 and 0 < self._stop_after <= len(tokens) and not self._stops.items:
            self._stops.put(Stop(self._stop_after, "stop"))

    def to_stages(self, machine: Machine, effect: CancelRun) -> None:
        self._check_cancelled(effect)
        for control in self._controls:
            control.put(effect)

    def _check_cancelled(self, message: CancelRun) -> None:
        for run_id in message.runs:
            assert run_id not in self.cancelled, "a run is cancelled once"
            self.cancelled.add(run_id)
        for run, rows in self._given_up(message):
            if run.request not in self.finishes:
                assert run.kind is RunKind.SPECULATIVE
                dead = not any(node.alive for node in run.nodes)
                assert dead or run.id not in self.cancelled, "a live run was cancelled"
                assert not any(run.nodes[row - run.first_row].alive for row in rows), "a live row was pruned"

    def _given_up(self, message: CancelRun) -> Iterator[tuple[Run, list[int]]]:
        """The runs that a message is about, each with those of its rows that it prunes."""
        pruned = dict(message.pruned)
        assert all(pruned.values())
        for run in [run for number in {*message.runs, *pruned} for run in self._runs[number]]:
            own = [row for row in pruned.get(run.id, ()) if run.first_row <= row < run.first_row + run.rows]
            if run.id in message.runs or own:
                yield run, own

    def _mirror_run(self, decode: Decode) -> None:
        """What a stage that skips nothing would hold after this run."""
        self._mirror.apply(decode.kv)
        self._mirror.store(decode.run, decode.tokens, decode.positions, decode.sequences)
        self._mirrored.append(self._mirror.held())
        self._ahead = None

    def _check_ledger(self) -> None:
        ledger = self.scheduler.ledger
        sent = self._mirror_after(ledger.pending) if ledger.pending else self._mirror
        assert len(sent.cells) == ledger.used
        assert sent.lengths() == {sequence: ledger.length(sequence) for sequence in range(ledger.sequences)
                                  if ledger.holds(sequence) and ledger.length(sequence)}  # fmt: skip

    def _mirror_after(self, pending: list[KvOp]) -> ToyCells:
        """What it will be. More wait after each event: only these are applied to what it was to be before."""
        if self._ahead is None or pending[: len(self._applied)] != self._applied:
            self._ahead, self._applied = self._mirror.copy(), []
        self._ahead.apply(pending[len(self._applied) :])
        self._applied = list(pending)
        return self._ahead

    # The stages

    def _to_stage(self, machine: Stage, decode: Decode, payload: Any) -> None:
        self.tell(machine, Arrival(decode, payload))

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
        self.tell(stage.machine, Computed(decode.run, self._row_s * (1 + len(decode.tokens)), aborted, payload, ids))

    def apply(self, machine: Machine, effect: Apply) -> None:
        cells = self.draft_cells if machine is self.drafter else self._stage(machine).cells
        cells.apply(effect.ops)

    def abort(self, machine: Machine, effect: Abort) -> None:
        if machine is self.drafter:
            assert self._drafting.items
            self._draft_aborting = True
        else:
            stage = self._stage(machine)
            assert self._computing[stage.machine.index].items
            stage.aborting = True

    def compute(self, machine: Machine, effect: Compute) -> None:
        stage = self._stage(machine)
        stage.outputs = self._layer(stage, effect)
        self._computing[stage.machine.index].put(effect.decode)

    def forward(self, machine: Machine, effect: Forward) -> None:
        if machine is self.drafter:
            self._check_proposal(effect.message)
            self._proposals.put(effect.message)
            return
        stage, message = self._stage(machine), effect.message
        if stage.caught_up < message.run:
            stage.skipped.add(message.run)
            self._caught_up(stage, message.run)
        live = message.cancelled_at == NOT_CANCELLED
        assert live or effect.payload is None, "a marker carries no payload"
        assert live or message.run in self.cancelled, "a run was skipped that nobody had cancelled"
        if stage.machine.is_last:
            self._results.put(message)
        else:
            self._streams[stage.machine.index + 1].put(message, effect.payload)

    def _stage(self, machine: Machine) -> ToyStage:
        assert isinstance(machine, Stage)
        return self.stages[machine.index]

    def _layer(self, stage: ToyStage, effect: Compute) -> tuple[int, ...]:
        decode = effect.decode
        values = decode.tokens if stage.machine.index == 0 else _chosen(effect.payload, effect.keep)
        seen = stage.cells.store(decode.run, values, decode.positions, decode.sequences, decode.kept)
        outputs = []
        for visible in seen:
            # Not even where the row is dead, beside a live branch: there are engines that refuse it.
            assert visible is not None, "a row sees gaps"
            outputs.append(self.language.layer(stage.machine.index, visible))
        return tuple(outputs)

    def _caught_up(self, stage: ToyStage, run: int) -> None:
        """After each run a stage holds exactly what it would if it skipped nothing, less what it skipped."""
        assert stage.caught_up == run - 1, "runs pass a stage in the order in which they were sent"
        stage.caught_up = run
        expected = self._mirrored[run]
        if stage.skipped:
            expected = [cell for cell in expected if cell[0] not in stage.skipped]
        held = stage.cells.held()
        if held == expected:
            return
        assert not set(held).difference(expected), "a stage holds a cell that the ledger does not"
        for sent_with, _, _, row in set(expected).difference(held):
            pruned = any(row in one.pruned for one in self._runs[sent_with])
            assert pruned, "a stage lacks a cell that nobody pruned"

    # The draft rank

    def _draft_computed(self, drafted: Drafted) -> None:
        if self._draft_aborting and next(self._schedule, 0) % 2:
            self.draft_cells.take_back(self._draft_rows)
            drafted = Drafted((), aborted=True)
        self._draft_aborting = False
        self.tell(self.drafter, drafted)

    def wake(self, machine: Machine, effect: Wake) -> None:
        self._wakes.put(Woken())

    def compute_draft(self, machine: Machine, work: ComputeDraft) -> None:
        seen = self.draft_cells.store(0, work.tokens, work.positions, work.sequences)
        assert isinstance(self.drafter, Drafter)
        assert len(self.draft_cells.cells) <= self.drafter.ledger.used
        self._draft_rows = len(work.tokens)
        assert len(work.requests) in (1, len(work.tokens))
        self.shared_forwards += len(work.requests) > 1
        texts: list[Values] = [text for text in seen if text is not None]
        assert len(texts) == len(seen), "the draft sees gaps"
        found = [self.language.candidates(text, work.count) for text in texts[len(texts) - work.outputs :]]
        self._drafting.put(Drafted(tuple(found), seconds=1e-3 * (1 + self._draft_row * (len(work.tokens) - 1))))

    def _check_proposal(self, proposal: Proposal) -> None:
        before = self._proposed.get(proposal.request)
        if before is not None:
            assert proposal.order >= before.order
            assert proposal.order > before.order or not before.stalled, "stalled, but something more came"
        self._proposed[proposal.request] = proposal

    # The end

    def _check_the_end(self) -> None:
        scheduler = self.scheduler
        assert not self._starts.items
        assert scheduler.idle, "nobody has anything to do, and a generation has not ended"
        assert not (self._forgets and scheduler.generations), "what is to be forgotten stays"
        assert list(self.generations) == sorted(self.generations), "nobody begins before who came earlier"
        for number, one in self.generations.items():
            assert self.finishes[number] == one.reason
            assert self.emitted.get(number, [])[: len(one.generated)] == one.generated
            for run in one.runs:
                assert run.finished_at is not None
                assert run.live == sum(node.alive for node in run.nodes)
        room = scheduler.room
        assert len(room.free) + len(room.held) == scheduler.pipeline.sequences, "sequence ids are left over"
        for sequence in room.held.sequences:
            room.give_up(sequence)
        assert scheduler.ledger.used == 0, "cells are left over"
        runs = [run for one in self.generations.values() for run in one.runs]
        assert len(runs) == sum(map(len, self._runs.values()))
        assert all(run in self._runs[run.id] for run in runs)
        for stage in self.stages:
            assert stage.machine.idle
            assert not stage.machine._cancelled
            assert not stage.machine._pruned
            assert stage.caught_up == len(self._runs) - 1


def _chosen(values: Sequence[int], keep: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([values[at] for at in keep]) if keep else tuple(values)
