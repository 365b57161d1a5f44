"""PEARL as a trace: pre-verify after a wrong draft, post-verify after a right one."""

import pytest
from told import Told, chain, decode, draft_from, single, started

from pipeinfer.core.effects import Emit
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import KvSeqCp, KvSeqRm, Logits, RunKind
from pipeinfer.core.strategies.pearl import Pearl, best_round
from pipeinfer.core.tree import Node, Run


def in_post_verify() -> Told:
    """Rounds of three drafts; 9 was right, and 9, 10, 11 are being verified."""
    told = started(Pearl(gamma=3))
    told(chain(2, 0, 9, 10, 11))
    told(Logits(1, (9,)))
    return told


def test_the_first_draft_is_checked_while_the_round_is_made() -> None:
    told = Told(Pearl(gamma=3))
    assert told(Logits(0, (8,))) == [Emit((8,)), single(1, 8, 3), draft_from(2, 8, until=6)]


def test_drafts_are_verified_while_the_next_are_made() -> None:
    told = started(Pearl(gamma=3))
    told(chain(2, 0, 9, 10, 11))
    assert told(Logits(1, (9,))) == [
        Emit((9,)),
        decode(2, RunKind.SPECULATIVE, (9, 4, (0, 1)), (10, 5, (1,)), (11, 6, (1,)), kv=(KvSeqCp(0, 1, 0, 4),)),
        draft_from(3, 9, until=9),
    ]


def test_a_round_lasts_until_its_drafts_are_made() -> None:
    told = in_post_verify()
    told(chain(3, 3, 12, parent=2))
    told(Logits(2, (10, 11, 12)))
    assert not told.generation.in_flight, "12 was right: the round of 12, 13, 14 is still being made"
    assert told(chain(4, 4, 13)) == []
    told(chain(4, 5, 14, parent=4))
    assert [node.token for node in told.generation.in_flight[0].nodes] == [12, 13, 14]


def test_where_the_draft_has_no_more_what_there_is_goes() -> None:
    told = in_post_verify()
    told(chain(3, 3, 12, parent=2))
    told(Logits(2, (10, 11, 12)))
    told(chain(4, 4, 13, stalled=True))
    assert [node.token for node in told.generation.in_flight[0].nodes] == [12, 13]


def test_after_a_wrong_draft_it_checks_one_again() -> None:
    told = in_post_verify()
    told(chain(3, 3, 12, 13, parent=2))
    assert told(Logits(2, (10, 99, 0))) == [
        Emit((10, 99)),
        single(3, 99, 6, KvSeqCp(1, 0, 5, 6), KvSeqRm(1, 0, -1)),
        draft_from(4, 10, 99, until=9),
    ]


def timed(draft_s: float, row_s: float) -> Measured:
    """A target of 1.1 s for one row and `row_s` for each further, whose draft is right in 9 of 10 cases."""
    measured = Measured(2)
    for rows in (1, 5):
        run = Run(rows, 0, RunKind.SINGLE, [Node(8, 3, None)], 1, 0.0, 1, 1, 1)
        each = 0.5 + row_s * (rows - 1) / 2
        run.compute_s, run.finished_at = (each, each), 2 * each + 0.1
        measured.run(run, (rows, rows))
    for verdict in range(40):
        measured.verdict(0, verdict % 10 > 0)
    if draft_s:
        measured.draft(draft_s)
    return measured


@pytest.mark.parametrize(("draft_s", "expected"), [(0.0, 5), (0.1, 11), (1.1, 1), (5.0, 1)])
def test_a_round_is_as_many_drafts_as_a_traversal_takes(draft_s: float, expected: int) -> None:
    assert best_round(timed(draft_s, row_s=0.0), unknown=5) == expected


def test_where_rows_are_dear_rounds_are_short() -> None:
    assert best_round(timed(0.02, row_s=0.1), unknown=5) < 20
    assert best_round(timed(0.02, row_s=1.0), unknown=5) == 1
