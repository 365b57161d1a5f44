"""FlowSpec as a trace: segments of a tree, the likeliest first, follow one another."""

from test_scheduler import Told, started
from test_specpipe import sent

from pipeinfer.core.effects import Emit
from pipeinfer.core.messages import CancelRun, DraftNode, Logits, Proposal, RunKind
from pipeinfer.core.strategies.flowspec import FlowSpec

TREE = (
    DraftNode(0, -1, 9, 0.6), DraftNode(1, -1, 10, 0.3), DraftNode(2, 0, 20, 0.9), DraftNode(3, 1, 21, 0.5),
    DraftNode(4, 2, 30, 0.4),
)  # fmt: skip
"""Below the token 8 at position 3: 9, 20, 30 have the scores 0.6, 0.54, 0.216; 10 and 21 0.3 and 0.15."""


def flowing(**options: int) -> Told:
    return started(FlowSpec(**{"segment": 3, **options}))


def test_the_tree_is_cut_into_segments_the_likeliest_first() -> None:
    told = flowing()
    assert sent(told(Proposal(2, TREE, False))) == [(RunKind.SPECULATIVE, (9, 20, 10), (4, 5, 4))]
    # The rest is a segment when nothing more comes.
    assert sent(told(Proposal(2, (), True))) == [(RunKind.SPECULATIVE, (30, 21), (6, 5))]


def test_an_idle_pipe_does_not_wait_for_a_whole_segment() -> None:
    told = flowing()
    assert sent(told(Proposal(2, TREE[:2], False))) == [(RunKind.SPECULATIVE, (9, 10), (4, 4))]
    assert told(Proposal(2, TREE[2:4], False)) == [], "from here on it does"


def test_what_a_verdict_leaves_of_every_segment_goes_on() -> None:
    told = flowing()
    told(Proposal(2, TREE, True))
    effects = told(Logits(1, (10,)))
    assert effects[:2] == [Emit((10,)), CancelRun((), ((2, (0, 1)), (3, (0,))))]
    # What is drafted anew from there and was known already is not sent twice.
    again = (DraftNode(8, -1, 21, 0.5), DraftNode(9, -1, 22, 0.4), DraftNode(10, 8, 31, 0.9), DraftNode(11, 9, 32, 0.3))
    assert sent(told(Proposal(3, again, False))) == [(RunKind.SPECULATIVE, (31, 22, 32), (6, 5, 6))]


def test_a_segment_waits_for_a_place_and_takes_the_likeliest_then() -> None:
    told = flowing(in_flight=2)
    told(Proposal(2, TREE, True))
    assert told(Proposal(2, (DraftNode(5, 2, 31, 0.6),), True)) == []
    told(Logits(1, (9,)))
    # 10 lost and 21 with it; 31 came later and is likelier than 30.
    assert sent(told(Proposal(3, (), True))) == [(RunKind.SPECULATIVE, (31, 30), (6, 6))]
