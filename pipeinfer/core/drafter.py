"""The drafter: streams micro-batches of drafted tokens from where the head says, until it is told to go elsewhere.

It never waits for a verdict. An order tells it what was committed; if its own branches agree it goes on with them, and
otherwise it drops them and starts from the new text. Which tokens are tried is for its draft policy to say. Its cache
is kept by a ledger of its own, like the target's. Of several requests those that have something to feed go as one
forward, as many as pays (`draft_forward`), the others in their turn; none reads what another has read.
"""

from collections.abc import Callable, Sequence

import msgspec

from pipeinfer.core.draft import Draft, DraftPolicy
from pipeinfer.core.draft_forward import DraftTimes, Share, assemble
from pipeinfer.core.effects import Abort, Apply, Drafted, Forward, Wake, Woken
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import DraftFrom, DraftNode, Proposal
from pipeinfer.core.prefixes import common_length
from pipeinfer.core.room import Room
from pipeinfer.core.tree import Node

RETRY_S = 1e-3
"""A stalled branch looks at its decayed cutoff again this often (seconds)."""

NARROW_ROWS = 8
"""Where each request in it has at most so many rows, a forward tells what drafting a token takes; more is text that is
read, and who has so much joins nobody."""

BESIDE = 64
"""Others add at most so many rows to those of whose turn it is."""

LOOK_UP_ROWS = 4
"""Where more of a text is to be read, it is looked up whether somebody has read that."""

SPARED_CELLS = 512
"""Texts of requests that are over leave so many cells to drafts, or a quarter of a smaller cache."""


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
        self.handlers = {DraftFrom: self._redirect, Drafted: self._computed, Woken: self._woken}
        self.room = Room(cells, sequences, keeps_texts=keeps_texts)
        self.ledger = self.room.ledger
        self.drafts: dict[int, Draft] = {}
        """By request; whose turn it was last is at the end."""
        self._open_policy = open_policy
        self._limit = min(cells, context)
        self._waiting: dict[int, DraftFrom] = {}
        self._computing: list[Share] = []
        self._times = DraftTimes()
        self._aborting = False

    @property
    def idle(self) -> bool:
        return not self._computing

    def validate(self) -> None:
        self.ledger.validate()
        texts = [*(draft.sequence for draft in self.drafts.values()), *self.room.held.sequences]
        assert len({*texts, *self.room.free}) == len(texts) + len(self.room.free), "each text has a sequence of its own"
        for draft in self.drafts.values():
            assert len(draft.text) == draft.tip.position + 1
            assert all(leaf.alive for leaf in draft.leaves)
            assert len(draft.outbox) == len({node.id for node in draft.outbox})
            for node in draft.tip.subtree():
                assert not node.fed or self.ledger.length(node.sequence) > node.position, "its sequence has its cell"
        computing = [share.draft.number for share in self._computing]
        assert len(computing) == len(set(computing)), "a request has one share of a forward"
        assert all(self.drafts[share.draft.number] is share.draft for share in self._computing)
        assert all(node.fed for share in self._computing for node in share.rows)

    def _redirect(self, order: DraftFrom) -> None:
        draft = self.drafts.get(order.request)
        if draft is None:
            order = self._with_what_was_put_off(order)
            if self.room.make(1, 0):
                draft = Draft(order.request, self.room, self._limit, self._open_policy(order.request))
                self.drafts[order.request] = draft
            elif order.until >= 0:  # Others' branches have all sequences: nothing is drafted before its next order.
                self._waiting[order.request] = order
                self._effects.append(Forward(Proposal(order.order, (), stalled=True, request=order.request)))
        elif order.order <= draft.order:
            raise PeerError(f"order {order.order} came after order {draft.order}: expected numbers that grow")
        if draft is not None:
            draft.redirect(order)
            self._abort_unless_wanted(draft)
        self._step()

    def _abort_unless_wanted(self, draft: Draft) -> None:
        """What is computed for a draft that goes elsewhere may be of use to none of those that it is computed for."""
        shares = self._computing
        wanted = any(not share.draft.ended and any(node.alive for node in share.rows) for share in shares)
        if any(share.draft is draft for share in shares) and not self._aborting and not wanted:
            self._aborting = True
            self._effects.append(Abort())

    def _woken(self, _: Woken) -> None:
        for draft in self.drafts.values():
            draft.rejects += draft.waiting
            draft.waiting = False
        self._step()

    def _with_what_was_put_off(self, order: DraftFrom) -> DraftFrom:
        """The order, with the tokens and settings of those before it."""
        before = self._waiting.pop(order.request, None)
        if before is None:
            return order
        settings = order.settings or before.settings
        return msgspec.structs.replace(order, tokens=before.tokens + order.tokens, settings=settings)

    def _computed(self, event: Drafted) -> None:
        shares, self._computing = self._computing, []
        if not shares:
            raise OurError("a forward came to its end, but none was under way")
        if event.aborted:
            self._lost(shares)
        else:
            self._found(shares, event)
        self._aborting = False
        self._step()

    def _lost(self, shares: Sequence[Share]) -> None:
        for draft, rows, *_ in shares:
            lost = [node.position for node in rows if node.committed]
            draft.whole = min(lost, default=draft.whole)
            if not self._aborting:
                draft.abandon()  # the driver aborted what was wanted: the generation is over

    def _found(self, shares: Sequence[Share], event: Drafted) -> None:
        widths = [len(share.rows) for share in shares]
        asked = [(node, share.candidates) for share in shares for node in share.asked]
        for (node, wanted), candidates in zip(asked, event.candidates, strict=True):
            node.next = candidates[:wanted]
        if not event.seconds:
            return
        self._times.add(sum(widths), event.seconds)
        if max(widths) <= NARROW_ROWS:
            for share, width in zip(shares, widths, strict=True):
                share.draft.forwards.append((width, event.seconds))

    def _step(self) -> None:
        """Grow every draft, say what is to be said, and compute for the first in turn that has something to feed, and
        for others with it."""
        if self._computing:
            return
        for draft in list(self.drafts.values()):
            if draft.ended:
                self.drafts.pop(draft.number).release()
        if self.room.keeps_texts:
            self._look_up()
            self._make_room()
        for draft in self.drafts.values():
            waited = draft.waiting
            if not draft.stalled:
                draft.policy.grow(draft)
            if draft.waiting and not waited:
                self._effects.append(Wake(RETRY_S))
        due = [(draft, rows) for draft in self.drafts.values() if (rows := self._say(draft))]
        if due:
            self._compute(due if len(due) == 1 else self._together(due))

    def _together(self, due: list[tuple[Draft, list[Node]]]) -> list[tuple[Draft, list[Node]]]:
        """Of what could be fed, each in its turn, that which goes as one: the first, and as many others as pays."""
        first, *others = due
        room = min(self.ledger.free - len(first[1]), BESIDE)
        going = [first]
        for draft, rows in others:
            if len(rows) <= room and not (draft.unfed and len(rows) > NARROW_ROWS):
                going.append((draft, rows))
                room -= len(rows)
        return going[: self._times.best([len(rows) for _, rows in going])]

    def _look_up(self) -> None:
        """Of what drafts have still to read, take over what others have read."""
        for draft in self.drafts.values():
            if len(draft.unfed) > LOOK_UP_ROWS and not draft.stalled:
                self._catch_up(draft)

    def _catch_up(self, draft: Draft) -> None:
        """With a text that is over, or that goes on."""
        text = draft.text
        source, length = self.room.held.longest(tuple(text))
        if length:
            self.room.held.use(source)
        for other in self.drafts.values():
            shared = min(common_length(other.text, text), other.read) if other is not draft else 0
            if shared > length:
                source, length = other.sequence, shared
        length = min(length, len(text) - 1)  # what follows the last one is still to be found
        if length - draft.read > LOOK_UP_ROWS:
            draft.catch_up(source, length)

    def _make_room(self) -> None:
        """Texts of requests that are over have what drafts do not want; the least recently used goes first."""
        cells = min(SPARED_CELLS, self.ledger.capacity // 4) + sum(len(draft.unfed) for draft in self.drafts.values())
        room, held = self.room, self.room.held
        while held and (self.ledger.free < cells or 2 * len(room.free) < self.ledger.sequences):
            room.give_up(held.sequences[0])

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

    def _compute(self, going: list[tuple[Draft, list[Node]]]) -> None:
        if self.ledger.pending:
            self._effects.append(Apply(self.ledger.take_pending()))
        for draft, rows in going:
            self.drafts[draft.number] = self.drafts.pop(draft.number)
            self._computing.append(self._feed(draft, rows))
        self._effects.append(assemble(self._computing))

    def _feed(self, draft: Draft, rows: list[Node]) -> Share:
        outputs = len(rows)
        if draft.unfed:
            del draft.unfed[: len(rows)]
            outputs = 1 if rows[-1] is draft.tip else 0
            for node in rows:
                node.sequence = draft.sequence
        for node in rows:
            self.ledger.extend((node.sequence,), node.position)
            node.fed = True
        return Share(draft, rows, outputs, draft.policy.candidates(draft.settings))

    def _propose(self, draft: Draft, *, stalled: bool) -> None:
        nodes = tuple([_as_message(node, draft.tip) for node in draft.outbox])
        draft.answered, draft.stalled = True, stalled
        draft.started += bool(nodes)
        rows, seconds = _mean(draft.forwards)
        draft.forwards = []
        proposal = Proposal(draft.order, nodes, stalled, draft.number, seconds, draft.cached, rows)
        self._effects.append(Forward(proposal))
        draft.outbox = []


def _mean(forwards: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Rows and seconds; of none, one row in no time."""
    if not forwards:
        return 1.0, 0.0
    rows, seconds = zip(*forwards, strict=True)
    return sum(rows) / len(rows), sum(seconds) / len(seconds)


def _as_message(node: Node, tip: Node) -> DraftNode:
    parent = node.parent
    assert parent is not None
    return DraftNode(node.id, -1 if parent is tip else parent.id, node.token, node.confidence)
