"""The drafter: streams micro-batches of drafted tokens from where the head says, until it is told to go elsewhere.

It never waits for a verdict. An order tells it what was committed; if its own branches agree it goes on with them, and
otherwise it drops them and starts from the new text. Which tokens are tried is for its draft policy to say. Its cache
is kept by a ledger of its own, like the target's. Several requests take turns, a forward at a time, and none reads what
another has read.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from pipeinfer.core.effects import Abort, Apply, ComputeDraft, Drafted, Forward, Wake, Woken
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.ledger import Ledger
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import DraftFrom, DraftNode, DraftSettings, Proposal
from pipeinfer.core.prefixes import HeldTexts, common_length
from pipeinfer.core.tree import Node, log_of, root

RETRY_S = 1e-3
"""A stalled branch looks at its decayed cutoff again this often (seconds)."""

FEED_ROWS = 256
"""At most this many committed tokens are read in one forward."""

NARROW_ROWS = 8
"""Forwards of at most so many rows tell what drafting a token takes; longer ones read text."""

LOOK_UP_ROWS = 4
"""Where more of a text is to be read, it is looked up whether somebody has read that."""

SPARED_CELLS = 512
"""Texts of requests that are over leave so many cells to drafts, or a quarter of a smaller cache."""

MOST_FORGOTTEN = 64
"""Branches that give their sequence to likelier ones before the next order, at most. With the end of a branch goes what
led to it alone, which may be likelier than what came in its place: without a bound they could take turns for ever."""


class DraftPolicy:
    """Which tokens to try: a plug-in of the group `pipeinfer.drafting`. One object serves one request."""

    model: bool = True
    """It needs the draft model's candidates; without, it is asked on the head and there is no draft rank."""

    def candidates(self, settings: DraftSettings) -> int:
        """How many of the draft's best tokens it wants to see after each row."""
        return 1

    def grow(self, draft: "Draft") -> None:
        """Add to `draft` what is to be tried next, with what is known now. Nothing is being computed."""
        raise NotImplementedError


class Draft:
    """What is drafted for one request, for its policy to grow.

    `leaves` are the ends of the branches that may still grow, the oldest first; the candidates after a leaf are in its
    `next` once they are known.
    """

    def __init__(self, number: int, ledger: Ledger, free: list[int], limit: int, policy: DraftPolicy) -> None:
        self.number = number
        self.policy = policy
        self.settings = DraftSettings()
        self.tip = root()
        """The last committed token."""
        self.leaves: list[Node] = []
        self.until = -1
        self.limit = limit
        """The longest text, in tokens, that the draft can hold."""
        self.outbox: list[Node] = []
        self.text: list[int] = []
        self.unfed: list[Node] = []
        """The end of the text that was not read yet."""
        self.cached = 0
        """Tokens of the text that others had read."""
        self.whole: int | None = None
        """Of the text no more than this was read: an abort took what came after (None: nothing)."""
        self.order = 0
        self.answered = True
        self.stalled = False
        """It has said that nothing more comes before the next order."""
        self.waiting = False
        """A retry has been asked for."""
        self.started = self.rejects = 0
        self.sequence = free.pop()
        self._ledger = ledger
        self._free = free
        self._resting: list[Node] = []
        self._forgotten = 0
        self._next_id = 0
        self._wants_retry = False
        self.tip.sequence = self.sequence
        ledger.begin(self.sequence)

    # For policies

    @property
    def spare(self) -> int:
        """How many branches may be added beside those that go on."""
        return len(self._free)

    @property
    def room(self) -> int:
        """Cells of the draft's cache that are free."""
        return self._ledger.free

    @property
    def adjustment(self) -> float:
        """What recovery and decay add to the thresholds now."""
        return self.started * self.settings.recovery - self.rejects * self.settings.decay

    @property
    def resting(self) -> list[Node]:
        """Ends of branches that rest."""
        return list(self._resting)

    def may_grow(self, node: Node, score: float = 0.0) -> bool:
        """A token after `node` is wanted, has a sequence, and the draft could read on from it. One of that `score` may
        take the sequence of a branch that rests and is less likely."""
        wanted = node.position + 1 <= self.until and node.position + 2 <= self.limit
        return wanted and (bool(self._free) or self._hands_on(node) or self._least_likely(score, node) is not None)

    def branch(self, parent: Node, token: int, confidence: float, *, last: bool = True, propose: bool = True) -> Node:
        """Try `token` after `parent`. `last`: nothing else is tried after it, so that its sequence goes on."""
        sequence = parent.sequence
        node = parent.children[token] = Node(token, parent.position + 1, parent, confidence)
        node.score = parent.score + log_of(confidence)
        if not (last and self._hands_on(parent)):
            if not self._free:
                self._forget(node.score, parent)
            sequence = self._free.pop()
            self._ledger.fork(parent.sequence, sequence, parent.position + 1)
        node.id, self._next_id = self._next_id, self._next_id + 1
        node.sequence = sequence
        if last and parent in self.leaves:
            self.leaves.remove(parent)
        self.leaves.append(node)
        if propose:
            self.propose(node)
        return node

    def propose(self, node: Node) -> None:
        """Have this node proposed, which was tried without; those above it must have been before."""
        self.outbox.append(node)

    def rest(self, leaf: Node) -> None:
        """Let this branch grow no further; it stays where it is until it is resumed, the text comes to its end, or a
        likelier one takes its sequence."""
        self.leaves.remove(leaf)
        self._resting.append(leaf)

    def resume(self, leaf: Node) -> None:
        """Let a branch that rests go on."""
        self._resting.remove(leaf)
        self.leaves.append(leaf)

    def retry_later(self) -> None:
        """Ask again in a millisecond, when decay has lowered the thresholds."""
        if self.settings.decay > 0 and not self.settings.once:
            self._wants_retry = True

    # For the drafter

    def redirect(self, order: DraftFrom) -> None:
        """Take a new order."""
        self.order, self.until = order.order, order.until
        self.settings = order.settings or self.settings
        self.started = self.rejects = self._forgotten = 0
        self.answered = self.stalled = False
        for token in order.tokens:
            self._commit(token)
        self._resting = [leaf for leaf in self._resting if self._still_open(leaf)]
        self.leaves = [leaf for leaf in self.leaves if self._still_open(leaf)]
        if not self.leaves and not self._resting:
            self.leaves = [self.tip]
        # A token that was committed before it was proposed is no proposal any more.
        self.outbox = [node for node in self.outbox if node.alive and node.position > self.tip.position]

    @property
    def read(self) -> int:
        """The length of what was read of the text, what is being computed included."""
        length = self._ledger.length(self.sequence)
        return length if self.whole is None else min(length, self.whole)

    def catch_up(self, source: int, length: int) -> None:
        """Begin with so many cells of the sequence `source`, whose text begins like this one."""
        before = self._ledger.length(self.sequence)
        self._ledger.release(self.sequence)
        self._ledger.fork(source, self.sequence, length)
        for node in self.unfed[: length - before]:
            node.fed, node.sequence = True, self.sequence
        del self.unfed[: length - before]
        self.cached += length - before

    def take_wish(self) -> bool:
        """Whether a retry is asked for anew."""
        wanted = self._wants_retry and not self.waiting
        self._wants_retry = False
        self.waiting = self.waiting or wanted
        return wanted

    def rows(self, free_cells: int, *, done: bool) -> list[Node]:
        """What to feed next: committed text first, then the last token of every open branch."""
        if self.unfed:
            return self.unfed[: min(FEED_ROWS, free_cells)] if self.tip.position < self.limit else []
        if done:
            return []
        leaves = [leaf for leaf in self.leaves if not leaf.fed and leaf.position < self.until]
        return leaves if len(leaves) <= free_cells else []

    def abandon(self) -> None:
        """Nothing more is wanted."""
        self._resting += self.leaves
        self.unfed, self.leaves, self.outbox = [], [], []
        self.answered = self.stalled = True

    def release(self) -> None:
        """Give the sequences of all branches back, and that of the text where nothing of it was read; else it holds
        what was."""
        sequences = {leaf.sequence for leaf in self._resting} - {self.sequence}
        length = self.read
        if length:
            self._ledger.cut(self.sequence, length)
        else:
            sequences.add(self.sequence)
        for sequence in sequences:
            self._ledger.release(sequence)
            self._free.append(sequence)

    def _hands_on(self, node: Node) -> bool:
        """A branch ends here, on a sequence of its own, which its last child may take."""
        return node.sequence != self.sequence and node in self.leaves

    def _least_likely(self, score: float, parent: Node) -> Node | None:
        """Of the branches that rest and are less likely than one of this score, the least likely; none of `parent`'s
        own, which may be all that holds it."""
        if self._forgotten >= MOST_FORGOTTEN:
            return None
        below = [leaf for leaf in self._resting if leaf.score < score and not _is_below(leaf, parent)]
        return min(below, key=lambda leaf: leaf.score, default=None)

    def _forget(self, score: float, parent: Node) -> None:
        """Give back the sequence of the least likely branch that rests. What only it held is drafted no more: should it
        come true, it is read like any text."""
        leaf = self._least_likely(score, parent)
        assert leaf is not None
        self._forgotten += 1
        self._resting.remove(leaf)
        self._ledger.release(leaf.sequence)
        self._free.append(leaf.sequence)
        ends = {*self.leaves, *self._resting}
        node: Node | None = leaf
        while node is not None and not node.committed:
            if node.sequence == leaf.sequence:  # Also above one that has another's.
                holder = next((below for below in node.subtree() if below in ends), None)
                if holder is not None:
                    node.sequence = holder.sequence
                elif node.parent is not None:
                    del node.parent.children[node.token]
                    node.alive = False
            node = node.parent

    def _commit(self, token: int) -> None:
        """Move the tip one token on, into the branch that drafted it if there is one, and drop its siblings."""
        self.text.append(token)
        self.tip, lost = self.tip.commit(token)
        child = self.tip
        for sibling in lost:
            for node in sibling.subtree():
                node.alive = False
        if child.fed:
            self._ledger.promote(child.sequence, child.position, self.sequence)
        else:
            if child not in self.leaves and child not in self._resting:
                child.sequence = self.sequence
            self.unfed.append(child)

    def _still_open(self, leaf: Node) -> bool:
        """A leaf below the tip goes on; the sequence of one that died, or that the text has reached, is given back."""
        if leaf.alive and leaf.position > self.tip.position:
            return True
        if leaf.sequence != self.sequence:
            self._ledger.release(leaf.sequence)
            self._free.append(leaf.sequence)
            leaf.sequence = self.sequence
        return False


class Drafter(Machine):
    """Drafts with one model of `cells` KV cells and sequence ids 0..`sequences`-1, on text up to `context` tokens;
    `open_policy` makes the draft policy of the request with this number. `keeps_texts`: cells stay after a request as
    long as nobody needs them."""

    def __init__(
        self,
        cells: int,
        sequences: int,
        context: int,
        open_policy: Callable[[int], DraftPolicy],
        *,
        keeps_texts: bool = False,
    ) -> None:
        super().__init__()
        self.ledger = Ledger(cells, sequences)
        self.held = HeldTexts()
        self._keeps_texts = keeps_texts
        self.drafts: dict[int, Draft] = {}
        self._open_policy = open_policy
        self._limit = min(cells, context)
        self._free = list(range(sequences - 1, -1, -1))
        self._turns: list[Draft] = []
        self._ended: list[Draft] = []
        self._waiting: dict[int, DraftFrom] = {}
        self._current: Draft | None = None
        self._computing: list[Node] | None = None
        self._outputs: list[Node] = []
        self._aborting = False
        self._forward_s: list[float] = []

    @property
    def idle(self) -> bool:
        return self._computing is None

    def validate(self) -> None:
        self.ledger.validate()
        taken = {draft.sequence for draft in self.drafts.values()} | set(self.held.sequences)
        assert len(taken) == len(self.drafts) + len(self.held), "each text has a sequence of its own"
        assert not taken & set(self._free)
        for draft in self.drafts.values():
            assert len(draft.text) == draft.tip.position + 1
            assert all(leaf.alive for leaf in draft.leaves)
            assert len(draft.outbox) == len({node.id for node in draft.outbox})
            for node in draft.tip.subtree():
                assert not node.fed or self.ledger.length(node.sequence) > node.position, "its sequence has its cell"

    def _take(self, event: Any) -> None:
        if isinstance(event, DraftFrom):
            self._redirect(event)
        elif isinstance(event, Drafted):
            self._computed(event)
        elif isinstance(event, Woken):
            for draft in self._turns:
                draft.rejects += draft.waiting
                draft.waiting = False
        else:
            raise PeerError(f"the drafter does not take a {type(event).__name__}")
        self._step()

    def _redirect(self, order: DraftFrom) -> None:
        draft = self.drafts.get(order.request)
        if draft is None:
            if not self._free and self.held:
                self._give_up()
            if not self._free:
                self._put_off(order)
                return
            order = self._with_what_was_put_off(order)
            draft = Draft(order.request, self.ledger, self._free, self._limit,
                          self._open_policy(order.request))  # fmt: skip
            self.drafts[order.request] = draft
            self._turns.append(draft)
        elif order.order <= draft.order:
            raise PeerError(f"order {order.order} came after order {draft.order}: expected numbers that grow")
        ended = order.until < 0
        if ended:
            draft.abandon()
            self._ended.append(draft)
            self._turns.remove(draft)
        else:
            draft.redirect(order)
        computing = self._computing if self._current is draft else None
        if computing and not self._aborting and (ended or not any(node.alive for node in computing)):
            self._aborting = True
            self._effects.append(Abort())

    def _put_off(self, order: DraftFrom) -> None:
        """Others' branches have all sequences: nothing is drafted before the request's next order."""
        if order.until < 0:
            self._waiting.pop(order.request, None)
            return
        self._waiting[order.request] = self._with_what_was_put_off(order)
        self._effects.append(Forward(Proposal(order.order, (), stalled=True, request=order.request)))

    def _with_what_was_put_off(self, order: DraftFrom) -> DraftFrom:
        """The order, with the tokens and settings of those before it."""
        before = self._waiting.pop(order.request, None)
        if before is None:
            return order
        settings = order.settings or before.settings
        return msgspec.structs.replace(order, tokens=before.tokens + order.tokens, settings=settings)

    def _computed(self, event: Drafted) -> None:
        if self._computing is None or self._current is None:
            raise OurError("a forward came to its end, but none was under way")
        if event.aborted:
            lost = [node.position for node in self._computing if node.committed]
            self._current.whole = min(lost, default=self._current.whole)
        if event.aborted and not self._aborting:
            self._current.abandon()  # the driver aborted what was wanted: the generation is over
        if not event.aborted:
            for node, candidates in zip(self._outputs, event.candidates, strict=True):
                node.next = candidates
            if event.seconds and len(self._computing) <= NARROW_ROWS:
                self._forward_s.append(event.seconds)
        self._computing, self._aborting = None, False

    def _step(self) -> None:
        """Grow every draft, say what is to be said, and compute for the first in turn that has something to feed."""
        if self._computing is not None:
            return
        while self._ended:
            self._let_go(self._ended.pop())
        if self._keeps_texts:
            self._look_up()
            self._make_room()
        for draft in self._turns:
            if not draft.stalled:
                draft.policy.grow(draft)
            if draft.take_wish():
                self._effects.append(Wake(RETRY_S))
        for draft in list(self._turns):
            rows = self._say(draft)
            if rows:
                self._turns.remove(draft)
                self._turns.append(draft)
                self._compute(draft, rows)
                return

    def _let_go(self, ended: Draft) -> None:
        del self.drafts[ended.number]
        length = ended.read
        ended.release()
        if not length:
            return
        over = self.held.add(ended.sequence, ended.text[:length]) if self._keeps_texts else [ended.sequence]
        for sequence in over:
            self.ledger.release(sequence)
            self._free.append(sequence)

    def _look_up(self) -> None:
        """Of what drafts have still to read, take over what others have read."""
        for draft in self._turns:
            if len(draft.unfed) > LOOK_UP_ROWS and not draft.stalled:
                self._catch_up(draft)

    def _catch_up(self, draft: Draft) -> None:
        """With a text that is over, or that goes on."""
        text = draft.text
        source, length = self.held.longest(tuple(text))
        if length:
            self.held.use(source)
        for other in self.drafts.values():
            shared = min(common_length(other.text, text), other.read) if other is not draft else 0
            if shared > length:
                source, length = other.sequence, shared
        length = min(length, len(text) - 1)  # what follows the last one is still to be found
        if length - draft.read > LOOK_UP_ROWS:
            draft.catch_up(source, length)

    def _make_room(self) -> None:
        """Texts of requests that are over have what drafts do not want; the least recently used goes first."""
        cells = min(SPARED_CELLS, self.ledger.capacity // 4) + sum(len(draft.unfed) for draft in self._turns)
        while self.held and (self.ledger.free < cells or 2 * len(self._free) < self.ledger.sequences):
            self._give_up()

    def _give_up(self) -> None:
        """Hold one text less."""
        sequence = self.held.sequences[0]
        self.held.drop(sequence)
        self.ledger.release(sequence)
        self._free.append(sequence)

    def _say(self, draft: Draft) -> list[Node]:
        """Propose what is ready. Gives the rows that can be fed next."""
        if draft.stalled:
            return []
        full = len(draft.outbox) >= draft.settings.micro_batch
        rows = draft.rows(self.ledger.free, done=full and draft.settings.once)
        # Whoever waits for more drafts than there will be hears of it, even where all there were are proposed.
        stalled = not rows and not draft.waiting
        if full or stalled or (not rows and (draft.outbox or not draft.answered)):
            self._propose(draft, stalled=stalled)
        return rows

    def _compute(self, draft: Draft, rows: list[Node]) -> None:
        outputs = len(rows)
        if draft.unfed:
            del draft.unfed[: len(rows)]
            outputs = 1 if rows[-1] is draft.tip else 0
            for node in rows:
                node.sequence = draft.sequence
        if self.ledger.pending:
            self._effects.append(Apply(self.ledger.take_pending()))
        for node in rows:
            self.ledger.extend((node.sequence,), node.position)
            node.fed = True
        self._current, self._computing, self._outputs = draft, rows, rows[len(rows) - outputs :]
        self._effects.append(
            ComputeDraft(
                tuple([node.token for node in rows]),
                tuple([node.position for node in rows]),
                tuple([(node.sequence,) for node in rows]),
                outputs,
                draft.policy.candidates(draft.settings),
                draft.number,
            )
        )

    def _propose(self, draft: Draft, *, stalled: bool) -> None:
        nodes = tuple([_as_message(node, draft.tip) for node in draft.outbox])
        draft.answered, draft.stalled = True, stalled
        draft.started += bool(nodes)
        spent, self._forward_s = self._forward_s, []
        mean = sum(spent) / len(spent) if spent else 0.0
        self._effects.append(Forward(Proposal(draft.order, nodes, stalled, draft.number, mean, draft.cached)))
        draft.outbox = []


def _is_below(node: Node, ancestor: Node) -> bool:
    above: Node | None = node
    while above is not None and above.position > ancestor.position:
        above = above.parent
    return above is ancestor


def _as_message(node: Node, tip: Node) -> DraftNode:
    parent = node.parent
    assert parent is not None
    return DraftNode(node.id, -1 if parent is tip else parent.id, node.token, node.confidence)
