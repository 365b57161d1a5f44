"""Speculation on the outcome as a trace: a run leaves as soon as its drafts are there; orders reach past the round."""

from told import chain, decode, draft_from, started

from pipeinfer.core.effects import Emit
from pipeinfer.core.messages import KvSeqCp, KvSeqRm, Logits, RunKind
from pipeinfer.core.strategies.ssd import Ssd


def test_the_order_reaches_as_far_as_the_next_round_may() -> None:
    told = started(Ssd(k=2))
    assert told.begun[-1] == draft_from(1, 5, 6, 7, until=7)
    assert not told.generation.in_flight, "it waits for the first drafts"
    assert told(chain(2, 0, 9)) == []
    assert told(chain(2, 1, 10, parent=0)) == [
        decode(1, RunKind.SPECULATIVE, (8, 3, (0, 1)), (9, 4, (1,)), (10, 5, (1,)), kv=(KvSeqCp(0, 1, 0, 3),))
    ]


def test_what_was_prepared_leaves_at_once() -> None:
    told = started(Ssd(k=2))
    told(chain(2, 0, 9, 10))
    assert told(Logits(1, (9, 99, 0))) == [Emit((9, 99)), draft_from(3, 9, 99, until=10)]
    (run,) = told(chain(3, 7, 21, 22))
    assert run == decode(2, RunKind.SPECULATIVE, (99, 5, (0, 2)), (21, 6, (2,)), (22, 7, (2,)),
                         kv=(KvSeqCp(1, 0, 4, 5), KvSeqRm(1, 0, -1), KvSeqCp(0, 2, 0, 5)))  # fmt: skip


def test_where_the_draft_has_no_more_what_there_is_goes() -> None:
    told = started(Ssd(k=4))
    (run,) = told(chain(2, 0, 9, stalled=True))
    assert len(run.tokens) == 2
