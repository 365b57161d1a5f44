"""The scheduler: one pipeline and any number of requests. Runs in order, sequence ids, cells, cancellation, pruning.

    for event in world.events():
        for effect in scheduler.handle(world.now(), event):
            world.perform(effect)

What a request's text and tree are is for its `Generation` to know; which run comes next, for its `Strategy` to say.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pipeinfer.core.effects import Finish, Forget, HeadEffect, Start, Stop, ToFirstStage, ToStages
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.generation import Generation, PipelineShape, Strategy
from pipeinfer.core.ledger import Ledger
from pipeinfer.core.machine import Machine
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, Logits, Proposal, RunKind
from pipeinfer.core.prefixes import Alike, HeldTexts
from pipeinfer.core.prompt import chunk_size
from pipeinfer.core.tree import Node, Run

AGED = 0.2
"""How much less a run is worth that continues one which is about to come back. From 0.1 to 0.3 any number
of requests comes to the closed form; at 0 up to 9 % is missing, and at 1 long chains are cut short."""


class Scheduler(Machine):
    """Schedules requests over `pipeline`; `open_strategy` gives the strategy that a Start wants.

    Run ids and draft orders count up from `first_run` and `first_order`, so that what an earlier scheduler left behind
    in the pipeline is told apart.
    """

    def __init__(
        self,
        pipeline: PipelineShape,
        open_strategy: Callable[[Start], Strategy],
        *,
        first_run: int = 0,
        first_order: int = 0,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.ledger = Ledger(pipeline.cells, pipeline.sequences)
        self.in_flight: deque[Run] = deque()
        self.generations: dict[int, Generation] = {}
        self.measured = Measured(pipeline.stages)
        self.next_run = first_run
        self._open_strategy = open_strategy
        self._order = self._first_order = first_order
        self._newest = -1
        self._forgotten: set[int] = set()
        self._free = deque(range(pipeline.sequences))
        self._live: list[Generation] = []
        self._longest_texts = 0
        self._slots = self._looks_up_at = 0
        self._queue: deque[Start] = deque()
        self._reading: deque[Generation] = deque()
        """Those of whose prompts not all was sent."""
        self.held = HeldTexts()
        self._alike = Alike()

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

    def perform(self, effect: HeadEffect) -> None:
        """For its generations: have this done."""
        self._effects.append(effect)

    def fits(self, generation: Generation, nodes: Sequence[Node]) -> bool:
        """A speculative run of these nodes has sequence ids and cells, and every request keeps what its text needs."""
        rows = len(nodes)
        reserve = generation.strategy.reserve(generation, rows)
        # Where all texts would fit anew, what they still need need not be added up.
        if len(self._live) > 1 and self.ledger.free - rows - reserve < self._longest_texts:
            reserve += self._promised() - (generation.limit - self.ledger.length(generation.sequence))
        if self.ledger.free - rows >= reserve and rows <= len(self._free):
            return True
        return self._make_room(_leaves(nodes), rows + reserve)

    def _promised(self) -> int:
        """Cells that the texts of live requests may still need."""
        return sum(one.limit - self.ledger.length(one.sequence) for one in self._live)

    def validate(self) -> None:
        self.ledger.validate()
        ids = [run.id for run in self.in_flight]
        assert ids == sorted(set(ids)), "runs are in flight in the order of their ids"
        taken = [one.sequence for one in self._live] + [s for run in self.in_flight for s in run.partition]
        ids = sorted([*taken, *self.held.sequences, *self._free])
        assert ids == list(range(self.pipeline.sequences)), "each sequence id is in one place"
        for run in self.in_flight:
            assert run.live == sum(node.alive for node in run.nodes)
        for generation in self._live:
            generation.validate()

    # Events

    def _take(self, event: Any) -> None:
        if isinstance(event, Logits):
            self._result(event)
        elif isinstance(event, Proposal):
            self._propose(event)
        elif isinstance(event, Start):
            self._check(event)
            self._newest = max(self._newest, event.number)
            self._queue.append(event)
            self._admit()
        elif isinstance(event, Stop):
            self._stop(event)
        elif isinstance(event, Forget):
            self._forgotten.add(event.number)
            self._clear_away(self._generation(event.number))
        else:
            raise PeerError(f"the scheduler does not take a {type(event).__name__}")

    def _propose(self, message: Proposal) -> None:
        if message.forward_s:
            self.measured.draft(message.forward_s)
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
            source, shared = self._beginning(request.prompt)
            wanted = min(self.pipeline.limit, len(request.prompt) + request.max_tokens) + self._promised()
            if not self._make_room(1, wanted - shared, spared=source):
                if source not in self.held.sequences or not self._might_have(wanted):
                    return
                self._give_up(source)
                continue
            self._start(self._queue.popleft(), source, shared)

    def _start(self, event: Start, source: int, shared: int) -> None:
        """Begin, after the `shared` tokens of the prompt that the sequence `source` holds."""
        sequence = self._free.popleft()
        strategy = self._open_strategy(event)
        generation = Generation(self, event.number, event.request, strategy, sequence, self.order)
        self.generations[event.number] = generation
        generation.began_at = self.now
        self._live.append(generation)
        self._longest_texts += generation.limit
        generation.cached = shared
        if shared:
            self.ledger.fork(source, sequence, shared)
            self._lend(source, shared)
        else:
            self.ledger.begin(sequence)
        nodes = generation.take_prompt()[shared:]
        strategy.started(generation)
        size = chunk_size(self.pipeline.prompt_chunk, len(nodes), self.pipeline.stages)
        generation.unsent.extend([nodes[start : start + size] for start in range(0, len(nodes), size)])
        self._reading.append(generation)
        self._go_on(generation)

    def _send_prompts(self) -> None:
        """Send chunks of prompts, in the order in which their requests came: each after the one before it has come back
        where others decode, whom a long prompt must not hold up."""
        while self._reading:
            one = self._reading[0]
            if one.in_flight and len(self._live) > len(self._reading):
                return
            chunk = one.unsent.popleft()
            for node in chunk:
                self.ledger.extend((one.sequence,), node.position)
            tags = ((one.sequence,),) * len(chunk)
            self._send(one, RunKind.PROMPT, chunk, tags, outputs=int(chunk[-1] is one.tip))
            if not one.unsent:
                self._reading.popleft()

    def _check(self, event: Start) -> None:
        """Refuse, with ValueError, what can have no answer. Nothing has happened then."""
        if event.number in self.generations or any(event.number == other.number for other in self._queue):
            raise ValueError(f"request {event.number} was begun already: expected a new number")
        self.pipeline.check(event.request)

    def _result(self, message: Logits) -> None:
        if not self.in_flight or self.in_flight[0].id != message.run:
            expected = self.in_flight[0].id if self.in_flight else "none"
            raise PeerError(f"the result of run {message.run} came, expected {expected}")
        run = self.in_flight.popleft()
        generation = self.generations[run.request]
        generation.in_flight.popleft()
        run.finished_at, run.compute_s, run.cancelled_at = self.now, message.compute_s, message.cancelled_at
        if message.cancelled_at == NOT_CANCELLED:
            self._judge(run, message)
            self.measured.run(run, message.computed)
        before = len(generation.text)
        if generation.reason is None:
            lost = generation.commit()
            if generation.reason is not None:
                self._end(generation, lost)
            else:
                self._kill(generation, lost)
        self._give_back(run.partition)
        if len(generation.text) > before and generation.reason is None:
            generation.strategy.advanced(generation)
        if self._forgotten:
            self._clear_away(generation)
        self._go_on(generation)

    def _clear_away(self, generation: Generation) -> None:
        """Let go of a generation that is to be forgotten, if nothing of it is in the pipeline."""
        number = generation.number
        if number in self._forgotten and generation.reason is not None and not generation.in_flight:
            self._forgotten.discard(number)
            del self.generations[number]

    def _judge(self, run: Run, message: Logits) -> None:
        """Note what the target said after each output row that was computed."""
        first = run.rows - run.outputs
        outputs = [run.nodes[row] for row in message.kept] if message.kept else run.nodes[first:]
        if len(outputs) != len(message.ids):
            raise PeerError(f"run {run.id} came back with {len(message.ids)} ids, expected {len(outputs)}")
        for node, token in zip(outputs, message.ids, strict=True):
            node.verdict = token
        if message.margins:
            for node, margin in zip(outputs, message.margins, strict=False):
                node.margin = margin

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
            self._go_on(generation)

    def _lend(self, source: int, shared: int) -> None:
        """A text begins with so many tokens of another: what is under way of these is not to be given up."""
        for one in self._live:
            if one.sequence == source:
                one.lent = max(one.lent, shared)

    def _abandon(self, generation: Generation) -> None:
        """Nothing follows the text any more: give up its own runs too, but for those that other texts begin with."""
        lent = generation.lent
        runs = [run for run in generation.in_flight if run.cancel_sent_at is None and run.nodes[0].position >= lent]
        for run in runs:
            run.cancel_sent_at = self.now
        if runs:
            self.perform(ToStages(CancelRun(tuple([run.id for run in runs]))))

    def _end(self, generation: Generation, lost: Sequence[Node]) -> None:
        self._kill(generation, [*lost, *generation.tip.children.values()])
        generation.finish()
        self._order = self.order
        self._live.remove(generation)
        if generation.unsent:
            self._reading.remove(generation)
        self._longest_texts -= generation.limit
        self._keep(generation)

    # What stays after the end

    def _computed(self, generation: Generation) -> int:
        """So many tokens of a text have cells on every stage by the time that a run sent now comes there. The tip's may
        be missing, and what is on its way may be given up."""
        own = [run.nodes[0].position for run in generation.in_flight if run.kind is not RunKind.SPECULATIVE]
        return min([self.ledger.length(generation.sequence), generation.tip.position, *own])

    def _keep(self, generation: Generation) -> None:
        """Hold the text of a generation that has ended, if texts are kept."""
        sequence, length = generation.sequence, self._computed(generation) if self.pipeline.keeps_texts else 0
        if not length:
            self._give_back((sequence,))
            return
        self.ledger.cut(sequence, length)
        self._give_back(tuple(self.held.add(sequence, generation.tree_text()[:length])))

    def _beginning(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The sequence that holds most of the beginning of a prompt, of a text that was kept or goes on, and how many
        tokens of it; of the last one the next has yet to be chosen. So of several requests with the same prompt the
        first computes it for all."""
        if not self.pipeline.keeps_texts:
            return -1, 0
        source, shared = self.held.longest(prompt)
        for one in self._live:
            # What was sent of a text is on every stage by the time that whatever is sent now comes there.
            length = min(self._alike.length(one.number, one.text, prompt), one.tip.position)
            if length > shared and (length := min(length, self.ledger.length(one.sequence))) > shared:
                source, shared = one.sequence, length
        if source in self.held.sequences:
            self.held.use(source)
        return source, min(shared, len(prompt) - 1)

    def _make_room(self, sequences: int, cells: int, spared: int = -1) -> bool:
        """Whether so many of them are free, once texts that were kept are given up as far as needed; not `spared`."""
        if len(self._free) >= sequences and self.ledger.free >= cells:
            return True
        if not self._might_have(cells):
            return False
        kept = [held for held in self.held.sequences if held != spared]
        while (len(self._free) < sequences or self.ledger.free < cells) and kept:
            self._give_up(kept.pop(0))
        return len(self._free) >= sequences and self.ledger.free >= cells

    def _might_have(self, cells: int) -> bool:
        """Whether giving up every text that was kept may make room for so many; where texts share cells it may not."""
        return self.ledger.free + sum(map(self.ledger.length, self.held.sequences)) >= cells

    def _give_up(self, sequence: int) -> None:
        self.held.drop(sequence)
        self._give_back((sequence,))

    # What is lost

    def _kill(self, generation: Generation, tops: Sequence[Node]) -> None:
        """These nodes and all below them can become text no more."""
        if not tops:
            return
        lost: dict[Run, list[int]] = {}
        last: Run | None = None
        stack = list(tops)
        while stack:
            node = stack.pop()
            node.alive = False
            run = node.run
            if run is not None:
                run.live -= 1
                if run is not last:  # Rows of one run are next to one another, as a rule.
                    last, rows = run, lost.setdefault(run, [])
                rows.append(node.row)
            if node.children:
                stack += node.children.values()
        if lost and generation.strategy.cancels:
            self._cancel(generation, lost)

    def _cancel(self, generation: Generation, lost: dict[Run, list[int]]) -> None:
        """Give up the runs that nothing is left of, and the lost rows of those that go on; all in one message, so that
        no stage computes a row after a gap."""
        runs: list[int] = []
        pruned: list[tuple[int, tuple[int, ...]]] = []
        for run in generation.in_flight:
            rows = lost.get(run)
            if rows and run.live:
                run.pruned = run.pruned.union(rows)
                pruned.append((run.id, tuple(sorted(rows))))
            elif rows:
                run.cancel_sent_at = self.now
                runs.append(run.id)
        if runs or pruned:
            self.perform(ToStages(CancelRun(tuple(runs), tuple(pruned))))

    def _give_back(self, partition: tuple[int, ...]) -> None:
        for sequence in partition:
            self.ledger.release(sequence)
            self._free.append(sequence)

    # What is sent

    def _go_on(self, generation: Generation) -> None:
        """Something of this request came back: there may be room for any, and its drafts may go on."""
        if self._queue:
            self._admit()
        if self._reading:
            self._send_prompts()
        self._send_what_is_ready(self._live)
        if generation.reason is None:
            generation.order_draft()

    def _send_what_is_ready(self, asked: Sequence[Generation]) -> None:
        """Of several requests in one pipe, committed tokens first, then the run that is likeliest to become text; of
        equals the one that follows closest."""
        if len(self._live) <= 1:
            for one in asked:
                while nodes := one.strategy.next_run(one):
                    self.submit(one, nodes)
            return
        ready = self._offers(asked)
        while ready:
            one, nodes = ready[0]
            if len(ready) > 1:
                right = self.measured.acceptance
                one, nodes = max(ready, key=lambda offer: self._worth(offer[0], offer[1], right))
            self._live.remove(one)
            self._live.append(one)  # Who was served is served last among equals.
            self.submit(one, nodes)
            # Sending only takes room: who had nothing to send has nothing now.
            had = {other for other, _ in ready}
            ready = self._offers([other for other in self._live if other in had])

    def _worth(self, generation: Generation, nodes: Sequence[Node], right: float) -> float:
        """Of a run: its chance to become text, and less by up to AGED the longer what it continues has been under way.
        Right behind it saves its request the most time; late, hardly more than a committed token would that waits for
        the verdict. Who has few slots uses them in pairs so, and not each a traversal after the one before."""
        first = nodes[0]
        before = first.parent.run if first.parent is not None else None
        if first.committed or before is None:
            return 1.0
        behind = min(self.next_run - before.id, self._slots) / self._slots
        return right ** (first.position - generation.tip.position) * (1 - AGED * behind)

    def _offers(self, asked: Sequence[Generation]) -> list[tuple[Generation, Sequence[Node]]]:
        """The runs that these requests would send; while the pipe is full, only of committed tokens, where a text lacks
        their cells. What was cancelled has its place until its marker is back, in the wake of the run before it: so
        runs enter one by one, and few wait where a better one might have gone."""
        full = self._is_full()
        return [
            (one, nodes)
            for one in asked
            if not (one.unsent or (full and self.ledger.length(one.sequence) > one.tip.position))
            and (nodes := one.strategy.next_run(one))
            and (nodes[0].committed or not full)
        ]

    def _is_full(self) -> bool:
        """As many runs are in flight as a traversal has room for: a number that is looked up once per traversal."""
        if self.next_run >= self._looks_up_at:
            self._slots, self._looks_up_at = self.measured.slots, self.next_run + self.pipeline.stages
        return len(self.in_flight) >= self._slots

    def submit(self, generation: Generation, nodes: Sequence[Node]) -> None:
        """Send these nodes as one run, parents first."""
        tip, text = generation.tip, generation.sequence
        if nodes[0].committed and nodes[-1] is tip:
            for node in nodes:
                self.ledger.extend((text,), node.position)
            self._send(generation, RunKind.SINGLE, list(nodes), ((text,),) * len(nodes), outputs=len(nodes))
            return
        partition, tags = self._partition(nodes)
        ledger = self.ledger
        for node in nodes:
            parent, sequences, position = node.parent, tags[node], node.position
            if parent is not None and parent not in tags:
                for sequence in sequences:
                    ledger.fork(text if parent.committed else parent.sequence, sequence, position)
                if node is tip:
                    sequences = tags[node] = (text, *sequences)
            ledger.extend(sequences, position)
            node.sequence = sequences[-1]
        run = self._send(generation, RunKind.SPECULATIVE, list(nodes), tuple(tags.values()), outputs=len(nodes))
        run.partition = tuple(partition)
        run.drafted = len(nodes) - (nodes[0] is tip)

    def _send(
        self,
        generation: Generation,
        kind: RunKind,
        nodes: list[Node],
        sequences: tuple[tuple[int, ...], ...],
        *,
        outputs: int,
    ) -> Run:
        run = Run(self.next_run, generation.number, kind, nodes, outputs, self.now)
        self.next_run += 1
        for row, node in enumerate(nodes):
            if node.run is None:
                node.run, node.row = run, row
        self.in_flight.append(run)
        generation.in_flight.append(run)
        generation.runs.append(run)
        tokens = tuple([node.token for node in nodes])
        positions = tuple([node.position for node in nodes])
        kv = self.ledger.take_pending()
        requests = (generation.number,)
        decode = Decode(run.id, kind, tokens, positions, sequences, outputs, kv, requests=requests)
        self._effects.append(ToFirstStage(decode))
        return run

    def _partition(self, nodes: Sequence[Node]) -> tuple[list[int], dict[Node, tuple[int, ...]]]:
        """Take a sequence id for each leaf of a run. Gives these, and the ids of each row: of the leaves that it leads
        to."""
        partition: list[int] = []
        tags: dict[Node, tuple[int, ...]] = dict.fromkeys(nodes, ())
        for node in reversed(nodes):
            own = tags[node]
            if not own:  # Whatever continues it comes after it, and so has been here: it is a leaf.
                partition.append(self._free.popleft())
                tags[node] = own = (partition[-1],)
            parent = node.parent
            if parent in tags:
                tags[parent] = own + tags[parent]
        return partition, tags


def _leaves(nodes: Sequence[Node]) -> int:
    """How many of them no other of them continues."""
    inner = {node.parent for node in nodes}
    return sum(node not in inner for node in nodes)
