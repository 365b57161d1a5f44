"""The head: commits tokens, keeps the token tree and the KV ledger, and turns a strategy's wishes into effects.

    for event in driver.events():
        for effect in head.handle(driver.now(), event):
            driver.perform(effect)

`handle` is deterministic: same events, same effects. One head serves one generation.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from pipeinfer.core.effects import (
    Emit,
    Finish,
    HeadEffect,
    Request,
    Start,
    Stop,
    ToDraft,
    ToFirstStage,
    ToStages,
)
from pipeinfer.core.ledger import CANONICAL, Ledger
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, DraftFrom, Logits, Proposal, RunKind
from pipeinfer.core.prompt import PromptChunk, chunk_size
from pipeinfer.core.tree import Node, Run

NOWHERE = -1
"""The `until` of an order that stops the drafter."""


class OutOfOrder(RuntimeError):  # noqa: N818
    """A message that the protocol does not allow now: results come in the order in which runs were sent."""


class Pipeline(msgspec.Struct, frozen=True):
    """What the head knows of the target pipeline: its depth, each stage's KV cells and sequence ids, the model's
    context (tokens), and in how many tokens at a time the prompt is sent."""

    stages: int
    cells: int = 2048
    sequences: int = 64
    context: int = 1 << 30
    prompt_chunk: PromptChunk = "auto"

    @property
    def limit(self) -> int:
        """The longest text, in tokens, that this pipeline can hold."""
        return min(self.context, self.cells)

    @property
    def short_of(self) -> str:
        """What limits the text, and what helps: more cells, unless it is the model that holds no more."""
        if self.cells < self.context:
            return f"{self.cells} KV cells: shorten it or raise --cells"
        return f"the model's context of {self.context} tokens: shorten it"


class Strategy(Protocol):
    """When to send which run. Sees tokens, positions, runs and partitions; decides by calling the head back."""

    drafts: bool
    """A draft rank is needed."""
    cancellation: bool
    """Dead runs are abandoned wherever they are."""
    redundant: bool
    """The canonical sequence is filled by runs of its own and never by tagging speculative cells."""
    width: int
    """Sequence ids in a partition: the most branches that one run can carry."""

    def draft_options(self) -> dict[str, float | int]:
        """The drafter's settings, by name (see `pipeinfer.core.drafter.DraftOptions`)."""

    def started(self, head: "Head") -> None:
        """The prompt is on its way."""

    def advanced(self, head: "Head") -> None:
        """Tokens were committed; `head.tip` is the last."""

    def proposed(self, head: "Head", nodes: list[Node], stalled: bool) -> None:
        """The draft proposes these nodes (alive, new, parents first); `stalled`: and nothing more for now."""

    def returned(self, head: "Head") -> None:
        """A run came back without committing anything: its cells and partition are free."""


class Head:
    """Schedules one generation with `strategy` over `pipeline`.

    Run ids and draft orders count up from `first_run` and `first_order`, so that what an earlier generation left behind
    in the pipeline is told apart.
    """

    def __init__(self, pipeline: Pipeline, strategy: Strategy, *, first_run: int = 0, first_order: int = 0) -> None:
        self.pipeline = pipeline
        self.strategy = strategy
        self.ledger = Ledger(pipeline.cells, pipeline.sequences)
        self.in_flight: deque[Run] = deque()
        self.runs: list[Run] = []
        self.text: list[int] = []
        self.margins: list[float] = []
        self.prompt_length = 0
        self.tip = Node(-1, -1, None)
        self.reason: str | None = None
        self.next_run = first_run
        self.now = 0.0
        self._request = Request((), 0)
        self._effects: list[HeadEffect] = []
        self._partitions = self._make_partitions()
        self._told = 0
        self._until = -1
        self.order = self._first_order = first_order
        self._orders: dict[int, Node] = {}
        self._drafted: dict[int, Node] = {}

    @property
    def generated(self) -> list[int]:
        """The committed tokens after the prompt."""
        return self.text[self.prompt_length :]

    @property
    def idle(self) -> bool:
        """The generation has ended and nothing of it is left in the pipeline."""
        return self.reason is not None and not self.in_flight

    def handle(self, now: float, event: Any) -> list[HeadEffect]:
        """One event in, the effects out, in order. Raises OutOfOrder, LedgerError, or ValueError on a bad request."""
        self.now = now
        effects: list[HeadEffect] = []
        self._effects = effects
        if isinstance(event, Logits):
            self._logits(event)
        elif isinstance(event, Proposal):
            self._proposal(event)
        elif isinstance(event, Start):
            self._start(event.request)
        elif isinstance(event, Stop):
            self._stop(event)
        else:
            raise OutOfOrder(f"the head does not take a {type(event).__name__}")
        return effects

    # What a strategy may ask for

    def covered(self) -> bool:
        """The tip is in a run already, so its verdict will come."""
        return self.tip.run is not None

    def room(self, rows: int) -> bool:
        """A speculative run of that many rows has a partition and cells, and the runs that must go on keep theirs."""
        reserve = 1
        if self.strategy.redundant:
            # Every speculative row may be accepted and then needs a second cell in the canonical sequence.
            reserve += rows + sum(run.rows for run in self.in_flight)
        return bool(self._partitions) and self.ledger.free - rows >= reserve

    def submit(self, nodes: Sequence[Node]) -> Run:
        """Send these nodes as one run, parents first; the tip may be the first, and alone is a single-token run."""
        first = nodes[0]
        if len(nodes) == 1 and first is self.tip:
            self.ledger.extend((CANONICAL,), first.position)
            return self._send(RunKind.SINGLE, list(nodes), ((CANONICAL,),), 1)
        partition = self._partitions.popleft()
        tags = self._tag(nodes, partition)
        for node in nodes:
            self.ledger.extend(tags[node], node.position)
            node.sequence = tags[node][-1]
        run = self._send(RunKind.SPECULATIVE, list(nodes), tuple(tags[node] for node in nodes), len(nodes))
        run.partition = partition
        run.drafted = len(nodes) - (first is self.tip)
        return run

    def resubmit(self) -> Run:
        """Send what the canonical sequence lacks of the text as one run, covered or not (the artifact's habit)."""
        nodes: list[Node] = []
        node: Node | None = self.tip
        start = self.ledger.length(CANONICAL)
        while node is not None and node.position >= start:
            nodes.insert(0, node)
            node = node.parent
        for node in nodes:
            self.ledger.extend((CANONICAL,), node.position)
        return self._send(RunKind.SINGLE, nodes, ((CANONICAL,),) * len(nodes), len(nodes))

    def order_draft(self, until: int) -> None:
        """Tell the draft rank what was committed since the last order, and to draft up to position `until`."""
        tokens = tuple(self.text[self._told :])
        if not tokens and until <= self._until:
            return
        self._told = len(self.text)
        self._until = until
        self.order += 1
        self._orders[self.order] = self.tip
        self._effects.append(ToDraft(DraftFrom(self.order, tokens, until)))

    # Events

    def _start(self, request: Request) -> None:
        prompt = request.prompt
        if not prompt:
            raise ValueError("the prompt is empty: expected at least one token")
        if len(prompt) >= self.pipeline.limit:
            raise ValueError(f"the prompt has {len(prompt)} tokens and leaves no room in {self.pipeline.short_of}")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens = {request.max_tokens}: expected at least 1")
        self._request = request
        self.prompt_length = len(prompt)
        self.text = list(prompt)
        nodes: list[Node] = []
        for position, token in enumerate(prompt):
            node = Node(token, position, nodes[-1] if nodes else None)
            node.committed = True
            self.ledger.extend((CANONICAL,), position)
            nodes.append(node)
        self.tip = nodes[-1]
        size = chunk_size(self.pipeline.prompt_chunk, len(nodes), self.pipeline.stages)
        for start in range(0, len(nodes), size):
            chunk = nodes[start : start + size]
            self._send(RunKind.PROMPT, chunk, ((CANONICAL,),) * len(chunk), 1 if chunk[-1] is self.tip else 0)
        self.strategy.started(self)

    def _logits(self, message: Logits) -> None:
        if not self.in_flight or self.in_flight[0].id != message.run:
            expected = self.in_flight[0].id if self.in_flight else "none"
            raise OutOfOrder(f"the result of run {message.run} came, expected {expected}")
        run = self.in_flight.popleft()
        run.finished_at, run.compute_s, run.cancelled_at = self.now, message.compute_s, message.cancelled_at
        if message.cancelled_at == NOT_CANCELLED:
            outputs = run.nodes[run.rows - run.outputs :]
            for node, token in zip(outputs, message.ids, strict=True):
                node.verdict = token
            for node, margin in zip(outputs, message.margins, strict=False):
                node.margin = margin
        before = len(self.text)
        if self.reason is None:
            self._commit()
        if run.partition:
            self._give_back(run.partition)
        if self.reason is not None:
            return
        if len(self.text) > before:
            self.strategy.advanced(self)
        else:
            self.strategy.returned(self)

    def _proposal(self, message: Proposal) -> None:
        if self.reason is not None or message.order <= self._first_order:
            return
        for order in [order for order in self._orders if order < message.order]:
            del self._orders[order]
        root = self._orders.get(message.order)
        if root is None:
            raise OutOfOrder(f"a proposal answers order {message.order}, which was not given")
        new = []
        for drafted in message.nodes:
            parent = root if drafted.parent < 0 else self._drafted.get(drafted.parent)
            if parent is None or not parent.alive:
                continue
            node = parent.children.get(drafted.token)
            if node is None:
                # Under a committed token that has its successor, another child is dead at birth.
                if parent.committed and parent is not self.tip:
                    continue
                node = Node(drafted.token, parent.position + 1, parent, drafted.confidence)
                parent.children[drafted.token] = node
                new.append(node)
            self._drafted[drafted.id] = node
        # An answer to an older order says nothing about the newest.
        self.strategy.proposed(self, new, message.stalled and message.order == self.order)

    def _stop(self, event: Stop) -> None:
        if self.reason is None:
            del self.text[self.prompt_length + event.length :]
            del self.margins[event.length :]
            self._finish(event.reason)

    # Committing

    def _commit(self) -> None:
        """Commit every token whose verdict is known, kill what contradicts it, cancel runs that nothing is left of."""
        tip = self.tip
        emitted: list[int] = []
        dead: list[Node] = []
        while tip.verdict is not None and self.reason is None:
            token = tip.verdict
            child = tip.children.pop(token, None)
            dead.extend(tip.children.values())
            tip.children.clear()
            if child is None:
                child = Node(token, tip.position + 1, tip)
            elif child.run is not None:
                child.run.accepted += 1
                if not self.strategy.redundant:
                    self.ledger.promote(child.sequence, child.position)
            tip.children[token] = child
            child.committed = True
            if tip.margin is not None:
                self.margins.append(tip.margin)
            self.tip = tip = child
            self.text.append(token)
            emitted.append(token)
            self.reason = self._ended(token)
        if emitted:
            self._effects.append(Emit(tuple(emitted)))
        if self.reason is not None:
            self._finish(self.reason, dead)
        elif dead:
            self._kill(dead)

    def _ended(self, token: int) -> str | None:
        if token in self._request.stop_ids:
            return "eos"
        if len(self.text) - self.prompt_length >= self._request.max_tokens:
            return "length"
        return "context" if len(self.text) >= self.pipeline.limit else None

    def _finish(self, reason: str, dead: Sequence[Node] = ()) -> None:
        self.reason = reason
        self._kill([*dead, *self.tip.children.values()])
        if self.strategy.drafts:
            self.order += 1
            self._effects.append(ToDraft(DraftFrom(self.order, (), NOWHERE)))
        self._effects.append(Finish(reason))

    def _kill(self, nodes: list[Node]) -> None:
        emptied = False
        for top in nodes:
            for node in top.subtree():
                node.alive = False
                run = node.run
                if run is not None:
                    run.live -= 1
                    emptied = emptied or (run.live == 0 and run.finished_at is None)
        if emptied and self.strategy.cancellation:
            self._cancel()

    def _cancel(self) -> None:
        """Give up the runs that nothing is left of, except where one that goes on has rows after theirs: such rows may
        be dead as well, in a tree, but a stage can compute none after a gap."""
        lost: list[Run] = []
        needed: set[Run | None] = set()
        for run in reversed(self.in_flight):
            if run.live or run in needed:
                needed.update([node.parent.run for node in run.nodes if node.parent is not None])
            elif run.cancel_sent_at is None:
                run.cancel_sent_at = self.now
                lost.append(run)
        if lost:
            self._effects.append(ToStages(CancelRun(tuple([run.id for run in reversed(lost)]))))

    # Sending

    def _send(self, kind: RunKind, nodes: list[Node], sequences: tuple[tuple[int, ...], ...], outputs: int) -> Run:
        run = Run(self.next_run, kind, nodes, outputs, self.now)
        self.next_run += 1
        for node in nodes:
            if node.run is None:
                node.run = run
        self.in_flight.append(run)
        self.runs.append(run)
        tokens = tuple([node.token for node in nodes])
        positions = tuple([node.position for node in nodes])
        decode = Decode(run.id, kind, tokens, positions, sequences, outputs, self.ledger.take_pending())
        self._effects.append(ToFirstStage(decode))
        return run

    def _tag(self, nodes: Sequence[Node], partition: tuple[int, ...]) -> dict[Node, tuple[int, ...]]:
        """Give each leaf of the run a sequence of its own, forked from its prefix; a row carries its leaves' ids."""
        inner = {node.parent for node in nodes}
        free = iter(partition)
        tags: dict[Node, tuple[int, ...]] = dict.fromkeys(nodes, ())
        for node in reversed(nodes):
            if node not in inner:
                tags[node] = (next(free),)
            parent = node.parent
            if parent is not None and parent in tags:
                tags[parent] = tags[node] + tags[parent]
        for node in nodes:
            parent = node.parent
            if parent is None or parent in tags:
                continue
            source = CANONICAL if parent.committed else parent.sequence
            for sequence in tags[node]:
                self.ledger.fork(source, sequence, node.position)
            if node is self.tip:
                tags[node] = (CANONICAL, *tags[node])
        return tags

    def _give_back(self, partition: tuple[int, ...]) -> None:
        for sequence in partition:
            if self.ledger.holds(sequence):
                self.ledger.release(sequence)
        self._partitions.append(partition)

    def _make_partitions(self) -> deque[tuple[int, ...]]:
        width = self.strategy.width
        count = (self.pipeline.sequences - 1) // width
        if self.strategy.drafts and count < 1:
            raise ValueError(f"{self.pipeline.sequences} sequence ids hold no partition of {width}: raise --sequences")
        return deque(tuple(range(1 + i * width, 1 + (i + 1) * width)) for i in range(count))
