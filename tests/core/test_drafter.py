"""The drafter as a trace: orders and results of the draft model in, forwards and micro-batches out."""

import random
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from pipeinfer.core.draft import FEED_ROWS, DraftPolicy
from pipeinfer.core.drafter import BESIDE, RETRY_S, Drafter
from pipeinfer.core.drafting.beam import Beam
from pipeinfer.core.drafting.chain import Chain
from pipeinfer.core.drafting.frontier import Frontier
from pipeinfer.core.drafting.tree import Tree
from pipeinfer.core.effects import Abort, Apply, ComputeDraft, Drafted, Forward, Wake, Woken
from pipeinfer.core.messages import DraftFrom, DraftNode, DraftSettings, KvSeqCp, KvSeqRm, Proposal

FAR = 100


class Told:
    """A drafter under test, whose first order carries its settings."""

    def __init__(
        self,
        cells: int,
        context: int,
        settings: DraftSettings,
        policy: type[DraftPolicy] | None = None,
        sequences: int = 0,
    ) -> None:
        made = policy or (Tree if settings.width > 1 else Chain)
        self.machine = Drafter(cells, sequences or settings.width + 2, context, lambda _: made())
        self.ledger = self.machine.ledger
        self._settings: DraftSettings | None = settings

    def handle(self, event: Any) -> list[Any]:
        if isinstance(event, DraftFrom) and self._settings is not None:
            event, self._settings = msgspec.structs.replace(event, settings=self._settings), None
        effects = self.machine.handle(0.0, event)
        self.machine.validate()
        return effects


def drafter(cells: int = 64, context: int = 64, **settings: Any) -> Told:
    return Told(cells, context, DraftSettings(**settings))


def forward(*rows: tuple[int, int, int], outputs: int = 1, count: int = 1) -> ComputeDraft:
    """Rows of (token, position, sequence)."""
    tokens, positions, sequences = zip(*rows, strict=True)
    return ComputeDraft(tokens, positions, tuple((s,) for s in sequences), outputs, count)


def drafted(*rows: tuple[tuple[int, float], ...]) -> Drafted:
    return Drafted(rows)


def one(token: int, confidence: float = 0.9) -> Drafted:
    """The single best candidate after a single row."""
    return drafted(((token, confidence),))


def proposal(order: int, *nodes: DraftNode, stalled: bool = False) -> Forward:
    return Forward(Proposal(order, nodes, stalled))


def proposals(effects: list[Any]) -> list[Proposal]:
    return [effect.message for effect in effects if isinstance(effect, Forward)]


def test_it_streams_micro_batches_without_being_asked_again() -> None:
    d = drafter(micro_batch=2)
    assert d.handle(DraftFrom(1, (5, 6), FAR)) == [forward((5, 0, 0), (6, 1, 0))]
    assert d.handle(one(7)) == [Apply((KvSeqCp(0, 1, 0, 2),)), forward((7, 2, 1))]
    first, second = DraftNode(0, -1, 7, 0.9), DraftNode(1, 0, 8, 0.8)
    assert d.handle(one(8, 0.8)) == [proposal(1, first, second), forward((8, 3, 1))]
    assert d.handle(one(9)) == [forward((9, 4, 1))]
    assert proposals(d.handle(one(10)))[0].nodes == (DraftNode(2, 1, 9, 0.9), DraftNode(3, 2, 10, 0.9))


def test_a_confirmation_changes_nothing_but_where_nodes_hang() -> None:
    d = drafter(micro_batch=2)
    for event in (DraftFrom(1, (5,), FAR), one(6), one(7)):
        d.handle(event)
    # 6 is committed while the row of 7 is computed: no abort, and its cell becomes text.
    assert d.handle(DraftFrom(2, (6,), FAR)) == []
    assert d.handle(one(8)) == [Apply((KvSeqCp(1, 0, 1, 2),)), forward((8, 3, 1))]
    (proposed,) = proposals(d.handle(one(9)))
    assert (proposed.order, proposed.nodes[0].parent) == (2, 1)


def test_what_hangs_on_the_tip_says_so() -> None:
    d = drafter(micro_batch=2)
    for event in (DraftFrom(1, (5,), FAR), one(6)):
        d.handle(event)
    d.handle(DraftFrom(2, (6,), FAR))
    # 6 was committed before it was proposed: what follows hangs on the tip, and 6 itself is no proposal.
    d.handle(one(7))
    (proposed,) = proposals(d.handle(one(8)))
    assert [(node.parent, node.token) for node in proposed.nodes] == [(-1, 7), (1, 8)]


def test_a_redirect_abandons_the_computation_and_starts_from_the_new_text() -> None:
    d = drafter(micro_batch=3)
    for event in (DraftFrom(1, (5,), FAR), one(6)):
        d.handle(event)
    assert d.handle(DraftFrom(2, (20,), FAR)) == [Abort()]
    assert d.handle(DraftFrom(3, (21,), FAR)) == [], "once aborted is enough"
    assert d.handle(Drafted((), aborted=True)) == [
        Apply((KvSeqRm(1, 0, -1),)),
        forward((20, 1, 0), (21, 2, 0)),
    ]
    assert d.ledger.used == 3


def test_what_a_redirect_overtakes_is_not_proposed() -> None:
    d = drafter(micro_batch=3)
    for event in (DraftFrom(1, (5,), FAR), one(6), one(7), DraftFrom(2, (20,), FAR), Drafted((), aborted=True)):
        assert proposals(d.handle(event)) == []
    for token in (30, 31):
        assert proposals(d.handle(one(token))) == []
    (proposed,) = proposals(d.handle(one(32)))
    assert [node.token for node in proposed.nodes] == [30, 31, 32]


def test_an_abort_that_comes_too_late_is_no_harm() -> None:
    d = drafter(micro_batch=1)
    for event in (DraftFrom(1, (5,), FAR), one(6), DraftFrom(2, (20,), FAR)):
        d.handle(event)
    assert d.handle(one(7))[-1] == forward((20, 1, 0))
    assert d.handle(one(21))[0] == proposal(2, DraftNode(1, -1, 21, 0.9))


def test_text_is_read_even_when_it_is_long() -> None:
    d = drafter(cells=1024, context=1024, micro_batch=1)
    text = tuple(range(FEED_ROWS + 2))
    rows = [(token, token, 0) for token in text]
    assert d.handle(DraftFrom(1, text, 2000)) == [forward(*rows[:FEED_ROWS], outputs=0)]
    assert d.handle(drafted()) == [forward(*rows[FEED_ROWS:])]


def test_a_branch_splits_where_another_candidate_is_likely() -> None:
    d = drafter(micro_batch=3, width=2, split=0.2)
    assert d.handle(DraftFrom(1, (5,), FAR)) == [forward((5, 0, 0), count=8)]
    effects = d.handle(drafted(((6, 0.5), (7, 0.4), (8, 0.3))))
    assert effects == [Apply((KvSeqCp(0, 1, 0, 1), KvSeqCp(0, 2, 0, 1))),
                       forward((6, 1, 1), (7, 1, 2), outputs=2, count=8)]  # fmt: skip
    effects = d.handle(drafted(((60, 0.9),), ((70, 0.9),)))
    assert [(node.parent, node.token) for node in proposals(effects)[0].nodes] == [(-1, 6), (-1, 7), (0, 60), (1, 70)]


def test_the_branch_that_came_true_goes_on_and_the_other_is_dropped() -> None:
    d = drafter(micro_batch=3, width=2, split=0.2)
    for event in (DraftFrom(1, (5,), FAR), drafted(((6, 0.5), (7, 0.4))), drafted(((60, 0.9),), ((70, 0.9),))):
        d.handle(event)
    assert d.handle(DraftFrom(2, (7,), FAR)) == [], "the row of 70 is still wanted"
    assert d.handle(drafted(((61, 0.9),), ((71, 0.9), (72, 0.8)))) == [
        Apply((KvSeqCp(2, 0, 1, 2), KvSeqRm(1, 0, -1), KvSeqCp(2, 3, 0, 3))),
        forward((71, 3, 3), (72, 3, 2), outputs=2, count=8),
    ]


def test_it_stops_at_until_and_goes_on_when_that_is_raised() -> None:
    d = drafter(micro_batch=4)
    d.handle(DraftFrom(1, (5,), 2))
    d.handle(one(6))
    both = DraftNode(0, -1, 6, 0.9), DraftNode(1, 0, 7, 0.9)
    assert d.handle(one(7)) == [proposal(1, *both, stalled=True)]
    assert d.handle(DraftFrom(2, (), 3)) == [forward((7, 2, 1))]
    assert d.handle(one(8)) == [proposal(2, DraftNode(2, 1, 8, 0.9), stalled=True)]


def test_an_order_with_nothing_to_draft_is_answered_all_the_same() -> None:
    d = drafter(micro_batch=4)
    d.handle(DraftFrom(1, (5,), 0))
    assert d.handle(one(6)) == [proposal(1, stalled=True)]


def test_below_the_cutoff_it_stalls() -> None:
    d = drafter(micro_batch=4, cutoff=0.5)
    d.handle(DraftFrom(1, (5,), FAR))
    assert d.handle(one(6, 0.49)) == [proposal(1, stalled=True)]


def test_whoever_waits_for_more_hears_that_there_is_no_more() -> None:
    d = drafter(micro_batch=1, context=4)
    d.handle(DraftFrom(1, (5,), FAR))
    assert not proposals(d.handle(one(6)))[0].stalled
    assert not proposals(d.handle(one(7)))[0].stalled
    assert not proposals(d.handle(one(8)))[0].stalled, "8 is read before it is seen that the context ends"
    assert d.handle(one(9)) == [proposal(1, stalled=True)]


def test_recovery_raises_the_cutoff_with_every_run() -> None:
    d = drafter(micro_batch=1, recovery=0.3)
    d.handle(DraftFrom(1, (5,), FAR))
    assert proposals(d.handle(one(6, 0.25)))[0].nodes, "nothing started yet: no cutoff"
    assert d.handle(one(7, 0.25)) == [proposal(1, stalled=True)], "one started: the cutoff is .3"
    # An order resets it.
    effects = d.handle(DraftFrom(2, (), FAR + 1))
    assert proposals(effects)[0].nodes == (DraftNode(1, 0, 7, 0.25),)


def test_decay_lowers_the_cutoff_until_it_goes_on() -> None:
    d = drafter(micro_batch=1, cutoff=0.5, decay=0.1)
    d.handle(DraftFrom(1, (5,), FAR))
    assert d.handle(one(6, 0.35)) == [Wake(RETRY_S), proposal(1)], "not stalled: it will try again"
    assert d.handle(Woken()) == [Wake(RETRY_S)]
    effects = d.handle(Woken())
    assert proposals(effects)[0].nodes == (DraftNode(0, -1, 6, 0.35),)
    assert isinstance(effects[-1], ComputeDraft)


def test_once_is_one_micro_batch_per_order() -> None:
    d = drafter(micro_batch=2, once=True)
    d.handle(DraftFrom(1, (5,), FAR))
    d.handle(one(6))
    (effect,) = d.handle(one(7))
    assert effect == proposal(1, DraftNode(0, -1, 6, 0.9), DraftNode(1, 0, 7, 0.9), stalled=True)
    assert d.handle(DraftFrom(2, (6,), FAR)) == [Apply((KvSeqCp(1, 0, 1, 2),)), forward((7, 2, 1))]
    d.handle(one(8))
    (answer,) = proposals(d.handle(one(9)))
    assert (answer.order, answer.stalled, [node.token for node in answer.nodes]) == (2, True, [8, 9])


def test_the_context_ends_drafting_not_the_drafter() -> None:
    d = drafter(context=4, micro_batch=8)
    d.handle(DraftFrom(1, (5, 6), FAR))
    d.handle(one(7))
    assert d.handle(one(8)) == [forward((8, 3, 1))]
    assert [node.token for node in proposals(d.handle(one(9)))[0].nodes] == [7, 8]
    # Text beyond what it can hold is taken note of, and answered.
    assert proposals(d.handle(DraftFrom(2, (7, 8, 9), FAR))) == [Proposal(2, (), True)]


def test_branches_wait_for_cells() -> None:
    d = drafter(cells=2, micro_batch=2, width=2, split=0.2)
    d.handle(DraftFrom(1, (5,), FAR))
    effects = d.handle(drafted(((6, 0.5), (7, 0.4))))
    assert proposals(effects)[0].stalled, "two rows do not fit in one cell"
    assert d.handle(DraftFrom(2, (6,), FAR))[-1] == forward((6, 1, 0), count=8)


def test_the_last_order_ends_it_and_frees_what_it_held() -> None:
    d = drafter(micro_batch=2)
    for event in (DraftFrom(1, (5,), FAR), one(6), one(7)):
        d.handle(event)
    assert d.handle(DraftFrom(2, (), -1)) == [Abort()]
    assert d.handle(Drafted((), aborted=True)) == []
    assert d.ledger.used == 0
    assert not d.machine.drafts


def test_what_the_driver_aborts_unasked_is_the_end() -> None:
    d = drafter(micro_batch=2)
    (compute,) = d.handle(DraftFrom(1, (5, 6), 8))
    assert isinstance(compute, ComputeDraft)
    assert d.handle(Drafted((), aborted=True)) == []


def test_an_order_may_change_how_it_drafts() -> None:
    d = drafter(micro_batch=1)
    d.handle(DraftFrom(1, (5,), FAR))
    assert proposals(d.handle(one(6)))[0].nodes == (DraftNode(0, -1, 6, 0.9),)
    d.handle(DraftFrom(2, (6,), FAR, DraftSettings(micro_batch=2, cutoff=0.5)))
    assert proposals(d.handle(one(7))) == [], "micro-batches of two from here on"
    assert len(proposals(d.handle(one(8)))[0].nodes) == 2
    d.handle(one(9))
    assert [node.token for node in proposals(d.handle(one(10, 0.4)))[0].nodes] == [9], "and a cutoff"


# Several requests


class Several:
    """A drafter of several requests whose model says t + 1 after token t, and then t + 2 and so on; forwards take
    `row_s` for each row more than one, which takes 1 s."""

    def __init__(self, policy: type[DraftPolicy] = Chain, *, row_s: float = 0.0, **settings: Any) -> None:
        self._settings = DraftSettings(**{"micro_batch": 1, **settings})
        self.machine = Drafter(8192, 256, 4096, lambda _: policy())
        self._row_s = row_s
        self.forward = ComputeDraft((), (), (), 0, 0)
        """The newest."""

    def tell(self, event: Any) -> list[Any]:
        effects = self.machine.handle(0.0, event)
        self.machine.validate()
        for effect in effects:
            self.forward = effect if isinstance(effect, ComputeDraft) else self.forward
        return effects

    def order(self, request: int, *tokens: int, number: int = 1, until: int = 2000, **settings: Any) -> list[Any]:
        changed = msgspec.structs.replace(self._settings, **settings) if number == 1 else None
        return self.tell(DraftFrom(number, tokens, until, changed, request))

    def compute(self) -> list[Any]:
        """It comes to its end."""
        work = self.forward
        asked = work.tokens[len(work.tokens) - work.outputs :]
        found = tuple([tuple([(token + 1 + k, 0.9 * 0.5**k) for k in range(work.count)]) for token in asked])
        return self.tell(Drafted(found, seconds=1 + self._row_s * (len(work.tokens) - 1)))


def test_requests_with_something_to_feed_go_as_one_forward() -> None:
    d = Several()
    d.order(0, 5)
    assert d.order(7, 90) == [], "one forward at a time"
    effects = d.compute()
    assert proposals(effects) == [Proposal(1, (DraftNode(0, -1, 6, 0.9),), False, 0, 1.0)]
    assert d.forward == ComputeDraft((6, 90), (1, 0), ((2,), (1,)), 2, 1, (0, 7))
    effects = d.compute()
    said = {one.request: [(node.parent, node.token) for node in one.nodes] for one in proposals(effects)}
    assert said == {0: [(0, 7)], 7: [(-1, 91)]}
    assert set(d.forward.requests) == {0, 7}


def test_what_is_asked_of_nobody_stands_before_what_is_asked() -> None:
    d = Several()
    d.order(0, 5)
    d.order(1, 10, 11, 12)
    d.order(2, 20, 21)
    d.compute()
    assert (d.forward.tokens, d.forward.outputs) == ((10, 11, 20, 6, 12, 21), 3)
    assert d.forward.requests == (1, 1, 2, 0, 1, 2)
    assert sorted(tokens_of(d.compute())) == [(7,), (13,), (22,)]


def test_nobody_waits_for_who_has_nothing_to_feed() -> None:
    d = Several()
    d.order(0, 5)
    d.order(1, 10, until=1)
    d.compute()
    assert set(d.forward.requests) == {0, 1}
    assert [one.request for one in proposals(d.compute()) if one.stalled] == [1]
    assert d.forward.requests == (0,)
    assert d.order(1, 11, number=2, until=2) == []
    d.compute()
    assert set(d.forward.requests) == {0, 1}


def test_each_request_sees_as_many_candidates_as_its_policy_wants() -> None:
    d = Several(Beam)
    d.order(0, 5, width=1)
    d.order(1, 10, width=3)
    d.compute()
    assert d.forward.count == 3
    assert sorted(tokens_of(d.compute())) == [(7,), (11, 12, 13)]


def test_a_forward_is_abandoned_when_nobody_wants_it_any_more() -> None:
    d = Several()
    d.order(0, 5)
    d.order(1, 10)
    d.compute()
    d.compute()
    assert d.order(0, 30, number=2) == [], "the other's row is wanted"
    assert d.order(1, number=2, until=-1) == [Abort()]
    assert d.tell(Drafted((), aborted=True))[-1] == ComputeDraft((30,), (1,), ((0,),), 1, 1, (0,))
    assert list(d.machine.drafts) == [0]


def test_who_is_redirected_or_ends_while_others_go_on_gets_nothing_of_that_forward() -> None:
    d = Several()
    for request in range(3):
        d.order(request, 10 * request + 5)
    d.compute()
    d.compute()
    d.order(0, 99, number=2)
    d.order(1, number=2, until=-1)
    assert sorted(tokens_of(d.compute())) == [(27,)]
    assert sorted(zip(d.forward.tokens, d.forward.requests, strict=True)) == [(27, 2), (99, 0)]


def test_what_the_driver_aborts_unasked_is_the_end_of_all() -> None:
    d = Several()
    d.order(0, 5)
    d.order(1, 10)
    d.compute()
    assert d.tell(Drafted((), aborted=True)) == []


def test_who_reads_a_long_text_joins_nobody_and_others_join_it() -> None:
    d = Several()
    d.order(0, 5)
    d.order(1, *range(100, 200))
    d.order(2, *range(200, 300))
    turns = []
    for _ in range(3):
        d.compute()
        turns.append((set(d.forward.requests), len(d.forward.tokens)))
    assert turns == [({0}, 1), ({0, 1}, 101), ({0, 1, 2}, 102)]


@pytest.mark.parametrize(("row_s", "forwards"), [(0.0, 1), (0.1, 1), (1.0, 8)])
def test_eight_requests_that_always_have_something_to_feed(row_s: float, forwards: int) -> None:
    """They need as many forwards as one, unless a row takes as long as a forward: then each has its own. What fewer of
    them take is looked at now and then."""
    d = Several(row_s=row_s)
    for request in range(8):
        d.order(request, 100 * request)
    drafted_tokens = [sum(map(len, tokens_of(d.compute()))) for _ in range(256)]
    assert sum(drafted_tokens[64:]) == pytest.approx(192 * 8 / forwards, rel=0.15)


@pytest.mark.parametrize("row_s", [0.0, 0.1, 1.0])
def test_everybody_comes_to_their_turn(row_s: float) -> None:
    """Trees of eight rows, more than one forward takes of them."""
    d = Several(Beam, width=8, row_s=row_s)
    for request in range(12):
        d.order(request, 100 * request)
    turns = []
    for _ in range(50):
        d.compute()
        turns.append(set(d.forward.requests))
        assert len(d.forward.tokens) <= BESIDE + 8
    for request in range(12):
        served = [at for at, together in enumerate(turns) if request in together]
        assert max(after - before for before, after in pairwise(served)) <= (12 if row_s == 1.0 else 2)


def test_each_request_hears_how_long_its_own_forwards_take_whatever_is_beside_it() -> None:
    d = Several(row_s=0.25)
    d.order(0, 5)
    d.order(1, 10)
    d.order(2, *range(100, 200))
    heard = [[(one.request, one.forward_s) for one in proposals(d.compute())] for _ in range(3)]
    assert heard[0] == [(0, 1.0)]
    assert heard[1] == [(0, 1.25), (1, 1.25)]
    assert heard[2] == [(2, 0.0), (0, 0.0), (1, 0.0)], "a long text was read with them"


def test_proposals_say_how_long_the_draft_takes() -> None:
    d = drafter(micro_batch=2)
    d.handle(DraftFrom(1, (5, 8), FAR))
    d.handle(Drafted((((6, 0.9),),), seconds=0.25))
    (said,) = proposals(d.handle(Drafted((((7, 0.9),),), seconds=0.75)))
    assert said.forward_s == 0.5
    assert said.forward_rows == 1.5, "two tokens of the text were read, then one that was drafted"


# Trees of the best branches


def beam(width: int, sequences: int, **settings: Any) -> Told:
    return Told(64, 64, DraftSettings(micro_batch=1, width=width, **settings), Beam, sequences)


def frontier(width: int, sequences: int, **settings: Any) -> Told:
    return Told(64, 64, DraftSettings(micro_batch=1, width=width, **settings), Frontier, sequences)


def tokens_of(effects: list[Any]) -> list[tuple[int, ...]]:
    """Of each proposal."""
    return [tuple(node.token for node in proposal.nodes) for proposal in proposals(effects)]


def test_the_best_candidates_of_a_level_go_on() -> None:
    d = beam(2, 10)
    assert d.handle(DraftFrom(1, (5,), FAR)) == [forward((5, 0, 0), count=2)]
    assert tokens_of(d.handle(drafted(((6, 0.6), (7, 0.4))))) == [(6, 7)]
    # 0.6 * 0.5 and 0.6 * 0.45 are more than 0.4 * 0.6: the branch of 7 rests.
    effects = d.handle(drafted(((60, 0.5), (61, 0.45)), ((70, 0.6), (71, 0.4))))
    assert tokens_of(effects) == [(60, 61)]
    assert effects[-1].tokens == (60, 61)


def test_what_rests_goes_on_when_the_text_comes_to_it() -> None:
    d = beam(2, 10)
    for event in (DraftFrom(1, (5,), FAR), drafted(((6, 0.6), (7, 0.4)))):
        d.handle(event)
    d.handle(drafted(((60, 0.5), (61, 0.45)), ((70, 0.6), (71, 0.4))))
    assert d.handle(DraftFrom(2, (7,), FAR)) == [Abort()]
    # It was read before it rested: there is nothing to wait for.
    effects = d.handle(Drafted((), aborted=True))
    assert tokens_of(effects) == [(70, 71)]
    assert effects[-1].positions == (2, 2)


def test_what_rests_above_the_tip_goes_on_where_all_below_it_died() -> None:
    d = beam(2, 10)
    for event in (DraftFrom(1, (5,), FAR), drafted(((6, 0.5), (7, 0.5)))):
        d.handle(event)
    d.handle(drafted(((60, 0.5), (61, 0.5)), ((70, 0.4),)))
    d.handle(drafted(((600, 0.5), (601, 0.5)), ((610, 0.2),)))  # 61 rests
    d.handle(drafted(((6000, 0.9), (6001, 0.05)), ((6010, 0.04),)))
    d.handle(DraftFrom(2, (6, 61), FAR))
    effects = d.handle(Drafted((), aborted=True))
    assert tokens_of(effects) == [(610,)]


def test_a_likelier_branch_takes_the_sequence_of_one_that_rests() -> None:
    d = beam(2, 3)
    for event in (DraftFrom(1, (5,), FAR), drafted(((6, 0.6), (7, 0.1)))):
        d.handle(event)
    effects = d.handle(drafted(((60, 0.5), (61, 0.45)), ((70, 0.6), (71, 0.4))))
    assert tokens_of(effects) == [(60,)], "both sequences are taken when the level is made: 7 still holds one"
    # Now it rests and is the least likely.
    effects = d.handle(drafted(((600, 0.5), (601, 0.4))))
    assert tokens_of(effects) == [(600, 601)]
    assert KvSeqRm(2, 0, -1) in effects[1].ops
    # The text takes the branch that was forgotten: it is read like any other.
    assert d.handle(DraftFrom(2, (7,), FAR)) == [Abort()]
    assert d.handle(Drafted((), aborted=True))[-1] == forward((7, 1, 0), count=2)


def test_a_request_without_a_sequence_drafts_from_its_next_order_on() -> None:
    d = beam(2, 3)
    d.handle(DraftFrom(1, (5,), FAR))
    d.handle(drafted(((6, 0.6), (7, 0.4))))
    settings = DraftSettings(1, width=2)
    assert d.handle(DraftFrom(1, (9,), FAR, settings, request=7)) == [Forward(Proposal(1, (), True, 7))]
    assert d.handle(DraftFrom(2, (), -1)) == [Abort()]
    d.handle(Drafted((), aborted=True))
    assert d.handle(DraftFrom(2, (8,), FAR, request=7))[-1].tokens == (9, 8)


def test_the_likeliest_grow_wherever_they_hang() -> None:
    d = frontier(2, 10)
    d.handle(DraftFrom(1, (5,), FAR))
    assert tokens_of(d.handle(drafted(((6, 0.6), (7, 0.3))))) == [(6, 7)]
    # 0.6 * 0.3 is less than 0.3 * 0.9 and more than 0.6 * 0.2.
    effects = d.handle(drafted(((60, 0.3), (61, 0.2)), ((70, 0.9), (71, 0.1))))
    assert tokens_of(effects) == [(70, 60)]
    # After what 70 and 60 may go on with, 61 is the likeliest, below a node that has grown already.
    effects = d.handle(drafted(((700, 0.2), (701, 0.2)), ((600, 0.8), (601, 0.1))))
    assert tokens_of(effects) == [(600, 61)]
    (read,) = [effect for effect in effects if isinstance(effect, ComputeDraft)]
    assert (read.tokens, read.positions) == ((600, 61), (3, 2))


def test_a_tree_has_so_many_nodes_and_no_more() -> None:
    d = frontier(2, 10, nodes=3)
    d.handle(DraftFrom(1, (5,), FAR))
    d.handle(drafted(((6, 0.6), (7, 0.3))))
    effects = d.handle(drafted(((60, 0.3), (61, 0.2)), ((70, 0.9), (71, 0.1))))
    assert tokens_of(effects) == [(70,)]
    # Where the text went on there is room again.
    d.handle(DraftFrom(2, (7,), FAR))
    assert tokens_of(d.handle(drafted(((700, 0.5), (701, 0.2))))) == [(700, 701)]


def test_what_comes_true_with_too_small_a_chance_is_not_tried() -> None:
    d = frontier(2, 10, cutoff=0.3)
    d.handle(DraftFrom(1, (5,), FAR))
    assert tokens_of(d.handle(drafted(((6, 0.6), (7, 0.2))))) == [(6,)]
    effects = d.handle(drafted(((60, 0.4), (61, 0.1))))
    assert [(said.nodes, said.stalled) for said in proposals(effects)] == [((), True)], "0.6 * 0.4 is less than 0.3"
    assert tokens_of(d.handle(DraftFrom(2, (6,), FAR))) == [(60,)], "after 6 it is 0.4"


def test_a_draft_that_is_right_more_often_than_it_says_is_followed_further() -> None:
    d = frontier(2, 10, cutoff=0.3, power=0.5)
    d.handle(DraftFrom(1, (5,), FAR))
    assert tokens_of(d.handle(drafted(((6, 0.25), (7, 0.2))))) == [(6,)], "its first choice half the time, 7 seldom"


def test_the_last_level_is_read_when_the_order_reaches_beyond_it_the_likeliest_first() -> None:
    d = frontier(2, 10)
    d.handle(DraftFrom(1, (5,), 2))
    d.handle(drafted(((6, 0.6), (7, 0.3))))
    (said,) = proposals(d.handle(drafted(((60, 0.5), (61, 0.4)), ((70, 0.9), (71, 0.1)))))
    assert ([node.token for node in said.nodes], said.stalled) == ([60, 70], True)
    assert d.handle(DraftFrom(2, (), 3))[-1].tokens == (60, 70)
    d = frontier(1, 10)
    d.handle(DraftFrom(1, (5,), 1))
    d.handle(drafted(((6, 0.6),)))
    d.handle(DraftFrom(2, (), 2))
    assert d.handle(drafted(((60, 0.5),)))[-1] == proposal(2, DraftNode(1, 0, 60, 0.5), stalled=True)


class Wandering:
    """A drafter with few sequences, told at random of texts that follow its branches or leave them; whatever it drafts
    from is there (`Drafter.validate`)."""

    def __init__(self, seed: int, requests: int) -> None:
        self._rng = random.Random(seed)
        self._requests = requests
        self._settings = DraftSettings(1, width=self._rng.randint(1, 8), nodes=self._rng.choice([0, 8, 30]))
        self._machine = Drafter(400, 10, 400, lambda _: Frontier())
        self._lengths: dict[int, int] = {}
        self._computing: ComputeDraft | None = None
        self.computed = 0

    def go_on(self, order: int) -> None:
        if self._computing is None or self._rng.random() < 0.3:
            self._tell(self._order(order))
            return
        done, self._computing = self._computing, None
        self.computed += done.outputs
        self._tell(drafted(*[self._candidates(done.count) for _ in range(done.outputs)]))

    def _tell(self, event: Any) -> None:
        for effect in self._machine.handle(0.0, event):
            if isinstance(effect, ComputeDraft):
                self._computing = effect
        self._machine.validate()

    def _candidates(self, count: int) -> tuple[tuple[int, float], ...]:
        tokens = self._rng.sample(range(6), min(count, 6))
        return tuple([(token, self._rng.choice([0.05, 0.1, 0.3, 0.5])) for token in tokens])

    def _order(self, number: int) -> DraftFrom:
        rng, request = self._rng, self._rng.randrange(self._requests)
        if self._lengths.get(request, 0) > 300:
            del self._lengths[request]
            return DraftFrom(number, (), -1, None, request)
        begins = request not in self._lengths
        tokens = (1, 2, 3) if begins else self._tokens(request)
        self._lengths[request] = self._lengths.get(request, 0) + len(tokens)
        until = self._lengths[request] - 1 + rng.randint(2, 10)
        return DraftFrom(number, tokens, until, self._settings if begins else None, request)

    def _tokens(self, request: int) -> tuple[int, ...]:
        """Up to three that go on, as a rule along a branch."""
        draft, tokens = self._machine.drafts.get(request), []
        node = draft.tip if draft is not None else None
        for _ in range(self._rng.randint(0, 3)):
            known = list(node.children) if node is not None else []
            token = self._rng.choice(known) if known and self._rng.random() < 0.85 else self._rng.randrange(6)
            node = node.children.get(token) if node is not None else None
            tokens.append(token)
        return tuple(tokens)


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_drafted_from_is_there_whichever_branches_gave_their_sequences_away(seed: int, requests: int) -> None:
    wandering = Wandering(seed, requests)
    for order in range(1, 401):
        wandering.go_on(order)
    assert wandering.computed > 200


class Reader:
    """A drafter that keeps texts, and how many rows it reads."""

    def __init__(self, *, cells: int = 1024, sequences: int = 16, keeps_texts: bool = True) -> None:
        self.machine = Drafter(cells, sequences, 1024, lambda _: Chain(), keeps_texts=keeps_texts)
        self.computing: ComputeDraft | None = None
        self.read = 0
        self.cached: dict[int, int] = {}
        self._orders = 0

    def tell(self, event: Any) -> None:
        for effect in self.machine.handle(0.0, event):
            if isinstance(effect, ComputeDraft):
                self.computing = effect
                self.read += len(effect.tokens)
            elif isinstance(effect, Forward):
                self.cached[effect.message.request] = effect.message.cached
        self.machine.validate()

    def order(self, request: int, *tokens: int, until: int = FAR) -> None:
        self._orders += 1
        self.tell(DraftFrom(self._orders, tokens, until, DraftSettings(micro_batch=1), request))

    def over(self, request: int) -> None:
        self.order(request, until=-1)

    def compute(self, token: int = 7, *, aborted: bool = False) -> None:
        """What is being computed comes to its end; each output row is followed by `token`."""
        done, self.computing = self.computing, None
        assert done is not None
        self.tell(Drafted(() if aborted else (((token, 0.9),),) * done.outputs, aborted=aborted))

    def answer(self, request: int, *tokens: int) -> int:
        """A request from its beginning to its end, with two drafts. Gives how many rows were read."""
        before = self.read
        self.order(request, *tokens, until=len(tokens) + 1)
        while self.computing is not None:
            self.compute()
        self.over(request)
        return self.read - before


def test_the_second_turn_of_a_chat_reads_the_new_turn_only() -> None:
    d = Reader()
    first = range(100, 500)
    assert d.answer(0, *first) == 400 + 1
    assert d.answer(1, *first, 7, 8, *range(20)) == 22 + 1
    assert d.cached == {0: 0, 1: 400}
    assert d.answer(2, *first, 7, 8, *range(20)) == 1 + 1, "the last token is read again, for what follows it"
    assert d.answer(3, *range(100, 300), *range(50)) == 50 + 1
    assert d.machine.ledger.used == 422 + 50
    forgetful = Reader(keeps_texts=False)
    assert [forgetful.answer(number, *first) for number in range(2)] == [401, 401]
    assert forgetful.machine.ledger.used == 0


def test_requests_with_one_prompt_read_it_once_between_them() -> None:
    """They take turns with it, and whoever comes later goes on where the others are."""
    prompt = [*range(100, 100 + 3 * FEED_ROWS)]
    d = Reader(cells=4096)
    for request in range(3):
        d.order(request, *prompt, request, until=len(prompt))
    while d.computing is not None:
        d.compute()
    assert d.read == len(prompt) + 3
    for request in range(3):
        d.over(request)
    assert d.machine.ledger.used == len(prompt) + 3


@pytest.mark.parametrize("aborted", [True, False])
def test_what_an_abort_left_unread_is_read_again(aborted: bool) -> None:
    d = Reader()
    prompt = [*range(100, 100 + FEED_ROWS + 50)]
    d.order(0, *prompt)
    d.compute()
    d.over(0)
    d.compute(aborted=aborted)
    assert d.answer(1, *prompt, 1) == (50 if aborted else 0) + 1 + 1


def test_texts_that_nobody_needs_make_room_the_least_recently_used_first() -> None:
    d = Reader(cells=256)
    for request, start in enumerate((100, 200, 100, 300)):
        d.answer(request, *range(start, start + 80))
    held = [text[0] for text in d.machine.room.held._texts.values()]
    assert held == [100, 300], "three do not fit beside a quarter for drafts"
    few = Reader(sequences=4)
    for request in range(9):
        few.answer(request, *range(10 * request, 10 * request + 10))
        assert len(few.machine.room.held) <= 2
