"""What is drafted for one request: the branches of its tree, grown by its draft policy from where the text stands."""

from pipeinfer.core.losses import killed
from pipeinfer.core.messages import DraftFrom, DraftSettings
from pipeinfer.core.room import Room
from pipeinfer.core.tree import Node, log_of, root

FEED_ROWS = 256
"""At most this many committed tokens are read in one forward."""

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

    def __init__(self, number: int, room: Room, limit: int, policy: DraftPolicy) -> None:
        self.number = number
        self.policy = policy
        self.settings = DraftSettings()
        self.tip = root()
        """The last committed token."""
        self.leaves: list[Node] = []
        self.resting: list[Node] = []
        """Ends of branches that rest."""
        self.until = -1
        self.limit = limit
        """The longest text, in tokens, that the draft can hold."""
        self.outbox: list[Node] = []
        self.text: list[int] = []
        self.unfed: list[Node] = []
        """The end of the text that was not read yet."""
        self.cached = 0
        """Tokens of the text that others had read."""
        self.forwards: list[tuple[int, float]] = []
        """Forwards of few rows since its last proposal: how many of its own, and seconds."""
        self.whole: int | None = None
        """Of the text no more than this was read: an abort took what came after (None: nothing)."""
        self.order = 0
        self.answered = True
        self.stalled = False
        """It has said that nothing more comes before the next order."""
        self.waiting = False
        """A retry has been asked for."""
        self.ended = False
        self.started = self.rejects = 0
        self.sequence = room.free.popleft()
        self._room = room
        self._ledger = room.ledger
        self._forgotten = 0
        self._next_id = 0
        self.tip.sequence = self.sequence
        room.ledger.begin(self.sequence)

    # For policies

    @property
    def spare(self) -> int:
        """How many branches may be added beside those that go on."""
        return len(self._room.free)

    @property
    def room(self) -> int:
        """Cells of the draft's cache that are free."""
        return self._ledger.free

    @property
    def adjustment(self) -> float:
        """What recovery and decay add to the thresholds now."""
        return self.started * self.settings.recovery - self.rejects * self.settings.decay

    def may_grow(self, node: Node, score: float = 0.0) -> bool:
        """A token after `node` is wanted, has a sequence, and the draft could read on from it. One of that `score` may
        take the sequence of a branch that rests and is less likely."""
        wanted = node.position + 1 <= self.until and node.position + 2 <= self.limit
        return wanted and (bool(self._room.free) or self._hands_on(node) or self._least_likely(score, node) is not None)

    def branch(self, parent: Node, token: int, confidence: float, *, last: bool = True, propose: bool = True) -> Node:
        """Try `token` after `parent`. `last`: nothing else is tried after it, so that its sequence goes on."""
        sequence = parent.sequence
        node = parent.children[token] = Node(token, parent.position + 1, parent, confidence)
        node.score = parent.score + log_of(confidence)
        if not (last and self._hands_on(parent)):
            if not self._room.free:
                self._forget(node.score, parent)
            sequence = self._room.free.popleft()
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
        self.resting.append(leaf)

    def resume(self, leaf: Node) -> None:
        """Let a branch that rests go on."""
        self.resting.remove(leaf)
        self.leaves.append(leaf)

    def retry_later(self) -> None:
        """Ask again in a millisecond, when decay has lowered the thresholds."""
        self.waiting = self.waiting or (self.settings.decay > 0 and not self.settings.once)

    # For the drafter

    def redirect(self, order: DraftFrom) -> None:
        """Take a new order; with one that stops it, it has ended."""
        if order.until < 0:
            self.abandon()
            self.ended = True
            return
        self.order, self.until = order.order, order.until
        self.settings = order.settings or self.settings
        self.started = self.rejects = self._forgotten = 0
        self.answered = self.stalled = False
        for token in order.tokens:
            self._commit(token)
        self.resting = [leaf for leaf in self.resting if self._still_open(leaf)]
        self.leaves = [leaf for leaf in self.leaves if self._still_open(leaf)]
        if not self.leaves and not self.resting:
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
        self.resting += self.leaves
        self.unfed, self.leaves, self.outbox = [], [], []
        self.answered = self.stalled = True

    def release(self) -> None:
        """Give back the sequences of all branches; that of the text holds what was read of it, if texts are kept."""
        text = self.text[: self.read]
        self._room.give_back({leaf.sequence for leaf in self.resting} - {self.sequence})
        self._room.keep(self.sequence, text)

    def _hands_on(self, node: Node) -> bool:
        """A branch ends here, on a sequence of its own, which its last child may take."""
        return node.sequence != self.sequence and node in self.leaves

    def _least_likely(self, score: float, parent: Node) -> Node | None:
        """Of the branches that rest and are less likely than one of this score, the least likely; none of `parent`'s
        own, which may be all that holds it."""
        if self._forgotten >= MOST_FORGOTTEN:
            return None
        below = [leaf for leaf in self.resting if leaf.score < score and not _is_below(leaf, parent)]
        return min(below, key=lambda leaf: leaf.score, default=None)

    def _forget(self, score: float, parent: Node) -> None:
        """Give back the sequence of the least likely branch that rests. What only it held is drafted no more: should it
        come true, it is read like any text."""
        leaf = self._least_likely(score, parent)
        assert leaf is not None
        self._forgotten += 1
        self.resting.remove(leaf)
        self._room.give_back((leaf.sequence,))
        ends = {*self.leaves, *self.resting}
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
        if lost:
            killed(lost)
        if child.fed:
            self._ledger.promote(child.sequence, child.position, self.sequence)
        else:
            if child not in self.leaves and child not in self.resting:
                child.sequence = self.sequence
            self.unfed.append(child)

    def _still_open(self, leaf: Node) -> bool:
        """A leaf below the tip goes on; the sequence of one that died, or that the text has reached, is given back."""
        if leaf.alive and leaf.position > self.tip.position:
            return True
        if leaf.sequence != self.sequence:
            self._room.give_back((leaf.sequence,))
            leaf.sequence = self.sequence
        return False


def _is_below(node: Node, ancestor: Node) -> bool:
    above: Node | None = node
    while above is not None and above.position > ancestor.position:
        above = above.parent
    return above is ancestor
