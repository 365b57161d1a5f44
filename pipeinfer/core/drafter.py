"""The drafter: streams micro-batches of drafted tokens from where the head says, until it is told to go elsewhere.

It never waits for a verdict. An order tells it what was committed; if its own branches agree it goes on with them, and
otherwise it drops them and starts from the new text. Its cache is kept by a ledger of its own, like the target's.
"""

from typing import Any

import msgspec

from pipeinfer.core.effects import Abort, Apply, ComputeDraft, Drafted, Effect, Forward, Wake, Woken
from pipeinfer.core.ledger import CANONICAL, Ledger
from pipeinfer.core.messages import DraftFrom, DraftNode, Proposal

RETRY_S = 1e-3
"""A stalled branch looks at its decayed cutoff again this often (seconds)."""

FEED_ROWS = 256
"""At most this many committed tokens are read in one forward."""

MAX_CANDIDATES = 8
"""The artifact looks at the drafts ranked 1 to 8 when it splits a branch."""


class DraftOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to draft; the names are those of `Strategy.draft_options`. `once`: one micro-batch per order, then wait."""

    micro_batch: int = 3
    cutoff: float = 0.0
    branches: int = 1
    split: float = 1.0
    recovery: float = 0.0
    decay: float = 0.0
    once: bool = False

    @property
    def candidates(self) -> int:
        """How many the drafter looks at after each token."""
        return MAX_CANDIDATES if self.branches > 1 else 1


class _Node:
    """A token the drafter knows of. `fed`: in the cache or being computed. `next`: the candidates after it."""

    __slots__ = ("alive", "children", "confidence", "fed", "id", "next", "parent", "position", "sequence", "token")

    def __init__(
        self, id: int, token: int, position: int, parent: "_Node | None", sequence: int, confidence: float = 1.0
    ) -> None:
        self.id = id
        self.token = token
        self.position = position
        self.parent = parent
        self.sequence = sequence
        self.confidence = confidence
        self.children: dict[int, _Node] = {}
        self.next: tuple[tuple[int, float], ...] | None = None
        self.fed = False
        self.alive = True


class Drafter:
    """Drafts with one model of `cells` KV cells and sequence ids 0..`sequences`-1, on text up to `context` tokens."""

    def __init__(self, cells: int, sequences: int, context: int, options: DraftOptions) -> None:
        self.options = options
        self.ledger = Ledger(cells, sequences)
        self._limit = min(cells, context)
        self._tip = _Node(-1, -1, -1, None, CANONICAL)
        self._unfed: list[_Node] = []
        self._leaves: list[_Node] = []
        self._outbox: list[_Node] = []
        self._computing: list[_Node] | None = None
        self._outputs: list[_Node] = []
        self._aborting = False
        self._answered = True
        self._order = 0
        self._until = -1
        self._next_id = 0
        self._free = list(range(sequences - 1, CANONICAL, -1))
        self._started = 0
        self._rejects = 0
        self._waking = False

    def handle(self, event: Any) -> list[Effect]:
        """A DraftFrom, Drafted or Woken; gives what is to be done, in order."""
        effects: list[Effect] = []
        if isinstance(event, DraftFrom):
            self._redirect(event, effects)
        elif isinstance(event, Drafted):
            self._computed(event)
        elif isinstance(event, Woken):
            self._waking = False
            self._rejects += 1
        self._step(effects)
        return effects

    # Orders

    def _redirect(self, order: DraftFrom, effects: list[Effect]) -> None:
        self._order, self._until = order.order, order.until
        self._started = self._rejects = 0
        self._answered = False
        for token in order.tokens:
            self._commit(token)
        self._leaves = [leaf for leaf in self._leaves if self._still_open(leaf)]
        if not self._leaves:
            self._leaves = [self._tip]
        # A token that was committed before it was proposed is no proposal any more.
        self._outbox = [node for node in self._outbox if node.alive and node.position > self._tip.position]
        computing = self._computing
        if computing and not self._aborting and not any(node.alive for node in computing):
            self._aborting = True
            effects.append(Abort())

    def _commit(self, token: int) -> None:
        """Move the tip one token on, into the branch that drafted it if there is one, and drop its siblings."""
        tip = self._tip
        child = tip.children.pop(token, None)
        for sibling in tip.children.values():
            self._drop(sibling)
        if child is None:
            child = _Node(-1, token, tip.position + 1, tip, CANONICAL)
            self._unfed.append(child)
        elif child.fed:
            self.ledger.promote(child.sequence, child.position)
        else:
            self._unfed.append(child)
        tip.children = {token: child}
        self._tip = child

    def _drop(self, top: _Node) -> None:
        stack = [top]
        while stack:
            node = stack.pop()
            node.alive = False
            stack.extend(node.children.values())

    def _still_open(self, leaf: _Node) -> bool:
        """A leaf below the tip goes on; the sequence of one that died, or that the text has reached, is given back."""
        if leaf.alive and leaf.position > self._tip.position:
            return True
        if leaf.sequence != CANONICAL:
            self._release(leaf)
        return False

    def _release(self, leaf: _Node) -> None:
        self.ledger.release(leaf.sequence)
        self._free.append(leaf.sequence)
        leaf.sequence = CANONICAL

    # Drafting

    def _computed(self, event: Drafted) -> None:
        assert self._computing is not None
        if event.aborted and not self._aborting:
            self._abandon()
        if not event.aborted:
            for node, candidates in zip(self._outputs, event.candidates, strict=True):
                node.next = candidates
        self._computing, self._aborting = None, False

    def _abandon(self) -> None:
        """The driver aborted what was wanted: the generation is over, and the cache no longer holds what is fed."""
        self._unfed, self._leaves, self._outbox = [], [], []
        self._answered = True

    def _step(self, effects: list[Effect]) -> None:
        if self._computing is not None:
            return
        for leaf in list(self._leaves):
            if leaf.next is not None:
                self._grow(leaf, effects)
        full = len(self._outbox) >= self.options.micro_batch
        rows = self._rows(done=full and self.options.once)
        if full or (not rows and (self._outbox or not self._answered)):
            self._flush(effects, stalled=not rows and not self._waking)
        if rows:
            self._compute(rows, effects)

    def _grow(self, leaf: _Node, effects: list[Effect]) -> None:
        """Continue a branch with the candidates after its last token, where they are confident enough."""
        assert leaf.next is not None
        if leaf.position + 1 > self._until or leaf.position + 2 > self._limit:
            return
        adjustment = self._started * self.options.recovery - self._rejects * self.options.decay
        token, confidence = leaf.next[0]
        if confidence < self.options.cutoff + adjustment:
            self._retry_later(effects)
            return
        chosen = [(token, confidence)]
        spare = min(self.options.branches - len(self._leaves), len(self._free) - 1)
        for other, probability in leaf.next[1:]:
            if spare > 0 and probability > self.options.split + adjustment:
                chosen.append((other, probability))
                spare -= 1
        self._leaves.remove(leaf)
        for rank, (child, probability) in enumerate(chosen):
            self._leaves.append(self._branch(leaf, child, probability, keep=rank == len(chosen) - 1))

    def _branch(self, leaf: _Node, token: int, confidence: float, *, keep: bool) -> _Node:
        """A child of `leaf` on a fork of its sequence, or on that itself (`keep`: the last one takes it over)."""
        sequence = leaf.sequence
        if not keep or sequence == CANONICAL:
            sequence = self._free.pop()
            self.ledger.fork(leaf.sequence, sequence, leaf.position + 1)
        child = _Node(self._next_id, token, leaf.position + 1, leaf, sequence, confidence)
        self._next_id += 1
        leaf.children[token] = child
        self._outbox.append(child)
        return child

    def _retry_later(self, effects: list[Effect]) -> None:
        if self.options.decay > 0 and not self.options.once and not self._waking:
            self._waking = True
            effects.append(Wake(RETRY_S))

    def _rows(self, *, done: bool) -> list[_Node]:
        """What to feed next: committed text first, then the last token of every open branch."""
        if self._unfed:
            return self._unfed[:FEED_ROWS] if self._tip.position < self._limit else []
        if done:
            return []
        leaves = [leaf for leaf in self._leaves if not leaf.fed and leaf.position < self._until]
        return leaves if len(leaves) <= self.ledger.free else []

    def _compute(self, rows: list[_Node], effects: list[Effect]) -> None:
        outputs = len(rows)
        if self._unfed:
            del self._unfed[: len(rows)]
            outputs = 1 if rows[-1] is self._tip else 0
        if self.ledger.pending:
            effects.append(Apply(self.ledger.take_pending()))
        for node in rows:
            self.ledger.extend((node.sequence,), node.position)
            node.fed = True
        self._computing, self._outputs = rows, rows[len(rows) - outputs :]
        effects.append(
            ComputeDraft(
                tuple([node.token for node in rows]),
                tuple([node.position for node in rows]),
                tuple([(node.sequence,) for node in rows]),
                outputs,
                self.options.candidates,
            )
        )

    def _flush(self, effects: list[Effect], *, stalled: bool) -> None:
        nodes = tuple([self._as_message(node) for node in self._outbox])
        self._answered = True
        self._started += bool(nodes)
        effects.append(Forward(Proposal(self._order, nodes, stalled)))
        self._outbox = []

    def _as_message(self, node: _Node) -> DraftNode:
        parent = node.parent
        assert parent is not None
        return DraftNode(node.id, -1 if parent is self._tip else parent.id, node.token, node.confidence)
