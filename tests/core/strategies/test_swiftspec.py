"""SwiftSpec as a trace: one verification in flight, of the likeliest part of a tree that goes on growing."""

from test_scheduler import Told, started
from test_specpipe import sent

from pipeinfer.core.effects import Emit
from pipeinfer.core.messages import DraftNode, Logits, Proposal, RunKind
from pipeinfer.core.strategies.swiftspec import SwiftSpec

TREE = (
    DraftNode(0, -1, 9, 0.6), DraftNode(1, -1, 10, 0.3), DraftNode(2, 0, 20, 0.9), DraftNode(3, 1, 21, 0.5),
    DraftNode(4, 2, 30, 0.4),
)  # fmt: skip
"""Below the token 8 at position 3: 9, 20, 30 have the scores 0.6, 0.54, 0.216; 10 and 21 0.3 and 0.15."""


def grown(batch: int, sequences: int = 64) -> Told:
    """The tree has grown while nothing is verified."""
    told = started(SwiftSpec(batch=batch, depth=2), sequences=sequences)
    assert told(Proposal(2, TREE[:2], False)) == [], "one level is not yet two"
    return told


def test_the_likeliest_connected_subtree_is_verified() -> None:
    assert sent(grown(batch=4)(Proposal(2, TREE[2:], False))) == [
        (RunKind.SPECULATIVE, (8, 9, 20, 10), (3, 4, 5, 4))
    ]  # fmt: skip


def test_what_was_verified_becomes_the_root_and_keeps_its_subtree() -> None:
    told = grown(batch=3)
    told(Proposal(2, TREE[2:], False))
    assert told(Proposal(2, (DraftNode(5, 4, 40, 0.9),), False)) == [], "it grows while it is verified, one at a time"
    effects = told(Logits(1, (9, 20, 30)))
    assert effects[0] == Emit((9, 20, 30))
    # 40 hangs on the new root; one level is too few to send, until the draft has no more.
    assert sent(effects) == []
    assert sent(told(Proposal(3, (), True))) == [(RunKind.SPECULATIVE, (30, 40), (6, 7))]


def test_a_root_without_a_subtree_waits_until_one_has_grown() -> None:
    told = grown(batch=3)
    told(Proposal(2, TREE[2:], False))
    assert sent(told(Logits(1, (99, 0, 0)))) == []
    assert sent(told(Proposal(3, (DraftNode(6, -1, 50, 0.9), DraftNode(7, 6, 51, 0.9)), False))) == [
        (RunKind.SPECULATIVE, (99, 50, 51), (4, 5, 6))
    ]


def test_where_sequences_are_short_the_least_likely_are_left_out() -> None:
    told = grown(batch=8, sequences=2)
    assert sent(told(Proposal(2, TREE[2:], False))) == [(RunKind.SPECULATIVE, (8, 9, 20), (3, 4, 5))]
