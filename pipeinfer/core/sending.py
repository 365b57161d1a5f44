"""What of many requests goes down one pipe, and in which order: committed tokens first, of several requests as one run
where the pipe is full, then whatever is likeliest to become text.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

from pipeinfer.core.generation import Generation, PipelineShape
from pipeinfer.core.machine import Machine
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import RunKind
from pipeinfer.core.micro_batch import assemble, put_together
from pipeinfer.core.room import Room
from pipeinfer.core.slots import Most, Slots, worth
from pipeinfer.core.tree import Node, Run

Offer: TypeAlias = tuple[Generation, Sequence[Node]]
"""What a request would send."""


class Sender(Machine):
    """The requests that live over `pipeline`, and what is under way of them. Run ids count up from `first_run`.
    `measured` is what is known of the pipeline, if anything is."""

    def __init__(self, pipeline: PipelineShape, first_run: int, measured: Measured | None = None) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.room = Room(pipeline.cells, pipeline.sequences, keeps_texts=pipeline.keeps_texts)
        self.ledger = self.room.ledger
        self.in_flight: deque[tuple[Run, ...]] = deque()
        """What is under way, oldest first: the runs that travel as one."""
        self.measured = measured or Measured(pipeline.stages, shared=pipeline.ranks_per_core > 1)
        self.next_run = first_run
        self._live: list[Generation] = []
        """Those that have begun and not ended, who was served last at the end."""
        self._longest_texts = 0
        self._reading: deque[Generation] = deque()
        """Those of whose prompts not all was sent."""
        self._slots = Slots(self.measured, pipeline.stages)
        self._given_up: set[int] = set()
        """Those in flight that are nothing but markers, by their ids."""

    def perform(self, effect: Any) -> None:
        """For its generations: have this done."""
        self._effects.append(effect)

    def fits(self, generation: Generation, nodes: Sequence[Node]) -> bool:
        """A speculative run of these nodes has sequence ids and cells, and every request keeps what its text needs."""
        rows, free = len(nodes), self.ledger.free
        reserve = generation.strategy.reserve(generation, rows)
        # Where all texts would fit anew, what they still need need not be added up.
        if len(self._live) > 1 and free - rows - reserve < self._longest_texts:
            reserve += self._promised() - (generation.limit - self.ledger.length(generation.sequence))
        if free - rows >= reserve and rows <= len(self.room.free):
            return True
        inner = {node.parent for node in nodes}
        return self.room.make(sum(node not in inner for node in nodes), rows + reserve)

    def _promised(self) -> int:
        """Cells that the texts of live requests may still need."""
        return sum(one.limit - self.ledger.length(one.sequence) for one in self._live)

    # Prompts

    def _send_prompts(self) -> None:
        """Send chunks of prompts, in the order in which their requests came: each after the one before it has come back
        where others decode, whom a long prompt must not hold up."""
        while self._reading:
            one = self._reading[0]
            if one.in_flight and len(self._live) > len(self._reading):
                return
            chunk = one.unsent.popleft()
            sequences = self.room.text_rows(one.sequence, chunk)
            self._send(self._run(one, RunKind.PROMPT, chunk, sequences, int(chunk[-1] is one.tip)))
            if not one.unsent:
                self._reading.popleft()

    # Whose turn it is

    def _send_what_is_ready(self, asked: Sequence[Generation]) -> None:
        """Of several requests in one pipe, committed tokens first, then the run that is likeliest to become text; of
        equals the one that follows closest."""
        if len(self._live) <= 1:
            for one in asked:
                while nodes := one.strategy.next_run(one):
                    self._send(self._run_of(one, nodes))
            return
        ready = self._offers(asked)
        while ready:
            self._send(self._chosen(ready))
            # Sending only takes room: who had nothing to send has nothing now.
            had = {other for other, _ in ready}
            ready = self._offers([other for other in self._live if other in had])

    def _offers(self, asked: Sequence[Generation]) -> list[Offer]:
        """The runs that these requests would send; while the pipe is full, only of committed tokens, where a text lacks
        their cells. What was cancelled has its place until its marker is back, in the wake of the run before it: so
        runs enter one by one, and few wait where a better one might have gone. Where runs that go on fill the pipe,
        committed tokens wait too, if they can go as one later: before the first stage they would go one by one."""
        if self.next_run >= self._slots.again_at:
            self._slots.look(self.next_run)
        full = len(self.in_flight) >= self._slots.count
        ready = [
            (one, nodes)
            for one in asked
            if not (one.unsent or (full and self.ledger.length(one.sequence) > one.tip.position))
            and (nodes := one.strategy.next_run(one))
            and (nodes[0].committed or not full)
        ]
        if full and ready and self._free_slots() < 1:
            widths = [runs[0].width for runs in self.in_flight if runs[0].id not in self._given_up]
            if self._slots.busy(widths):
                return [offer for offer in ready if self._most_together(offer[1]).requests == 1]
        return ready

    def _free_slots(self) -> int:
        """For runs of committed tokens, which do not wait for markers."""
        return self._slots.count - len(self.in_flight) + len(self._given_up)

    def _most_together(self, nodes: Sequence[Node]) -> Most:
        """Of which each is like these. Rows that are sent ahead count if most requests send some."""
        ahead = [one.strategy.ahead for one in self._live if one.strategy.ahead]
        rows_ahead = max(ahead) if 2 * len(ahead) > len(self._live) else 0
        return self._slots.most(len(self._live) - len(self._reading), len(nodes), rows_ahead)

    def _chosen(self, ready: Sequence[Offer]) -> Run:
        """What goes next: the best, and of those that wait for a slot as many with it as is worth it."""
        if len(ready) == 1:
            return self._take_turn(*ready[0])
        right, slots = self.measured.acceptance, self._slots.count
        worths = [worth(one, nodes, right, self.next_run, slots) for one, nodes in ready]
        best = worths.index(max(worths))
        one, nodes = ready[best]
        chosen = self._take_turn(one, nodes)
        requests = -(-len(ready) // max(1, self._free_slots()))  # Each alone where there are slots for all.
        if requests > 1 and (most := self._most_together(nodes)).requests > 1:
            order = sorted(range(len(ready)), key=worths.__getitem__, reverse=True)
            self._join(chosen, [ready[at] for at in order if at != best], min(requests, most.requests), most.rows)
        return chosen

    def _join(self, chosen: Run, others: Sequence[Offer], requests: int, rows: int) -> None:
        """Others go with it, up to so many requests and rows in all."""
        together = [chosen]
        rows -= chosen.rows
        for other, _ in others:
            if len(together) >= requests or rows < 1:
                break
            nodes = other.strategy.next_run(other)  # Those before it may have taken the room for its drafts.
            if nodes and len(nodes) <= rows:
                together.append(self._take_turn(other, nodes))
                rows -= len(nodes)
        if len(together) > 1:
            put_together(together)

    def _take_turn(self, one: Generation, nodes: Sequence[Node]) -> Run:
        """Who was served is served last among equals."""
        self._live.remove(one)
        self._live.append(one)
        return self._run_of(one, nodes)

    def _run_of(self, generation: Generation, nodes: Sequence[Node]) -> Run:
        """A run of these nodes, parents first, with cells and sequence ids."""
        if nodes[0].committed and nodes[-1] is generation.tip:
            sequences = self.room.text_rows(generation.sequence, nodes)
            return self._run(generation, RunKind.SINGLE, nodes, sequences, len(nodes))
        partition, sequences = self.room.branch_rows(generation, nodes)
        drafted = len(nodes) - (nodes[0] is generation.tip)
        return self._run(generation, RunKind.SPECULATIVE, nodes, sequences, len(nodes), partition, drafted)

    def _run(
        self,
        generation: Generation,
        kind: RunKind,
        nodes: Sequence[Node],
        sequences: tuple[tuple[int, ...], ...],
        outputs: int,
        partition: tuple[int, ...] = (),
        drafted: int = 0,
    ) -> Run:
        """Part of what is sent next."""
        rows = len(nodes)
        run = Run(self.next_run, generation.number, kind, list(nodes), outputs, self.now, rows, rows, rows,
                  sequences, partition, drafted)  # fmt: skip
        for node in nodes:
            if node.run is None:
                node.run = run
        generation.in_flight.append(run)
        generation.runs.append(run)
        return run

    def _send(self, run: Run) -> None:
        """Send this run, and those that travel with it."""
        runs = run.together or (run,)
        self.next_run += 1
        self.in_flight.append(runs)
        self._effects.append(assemble(runs, self.ledger.take_pending()))
