"""The asynchronous chain as a trace: the target takes whatever waits, the draft goes on."""

from told import chain, decode, draft_from, single, started

from pipeinfer.core.effects import Emit
from pipeinfer.core.messages import KvSeqCp, KvSeqRm, Logits, RunKind
from pipeinfer.core.strategies.async_chain import AsyncChain


def test_the_target_takes_all_that_waits_and_the_draft_goes_on() -> None:
    told = started(AsyncChain(ahead=8))
    assert told.generation.in_flight[0].nodes == [told.generation.tip], "nothing is drafted: the last token alone"
    for at, token in enumerate((9, 10, 11)):
        assert told(chain(2, at, token, parent=at - 1)) == [], "one run at a time"
    assert told(Logits(1, (9,))) == [
        Emit((9,)),
        decode(2, RunKind.SPECULATIVE, (9, 4, (0, 1)), (10, 5, (1,)), (11, 6, (1,)), kv=(KvSeqCp(0, 1, 0, 4),)),
        draft_from(3, 9, until=12),
    ]


def test_a_wrong_draft_leaves_the_target_with_the_right_token_alone() -> None:
    told = started(AsyncChain(ahead=8))
    told(chain(2, 0, 9, 10, 11))
    told(Logits(1, (9,)))
    told(chain(3, 3, 12, parent=2))
    effects = told(Logits(2, (10, 99, 0)))
    assert effects == [
        Emit((10, 99)),
        single(3, 99, 6, KvSeqCp(1, 0, 5, 6), KvSeqRm(1, 0, -1)),
        draft_from(4, 10, 99, until=14),
    ]


def test_the_batch_is_bounded() -> None:
    told = started(AsyncChain(ahead=2))
    told(chain(2, 0, 9, 10, 11, 12, 13))
    told(Logits(1, (9,)))
    assert told.generation.in_flight[0].rows == 3
