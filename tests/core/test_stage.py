"""One stage: runs in the order of the stream, cancellation from beside it."""

import msgspec
import pytest

from pipeinfer.core.effects import Abort, Apply, Compute, Computed, Forward
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, KvOp, KvSeqCp, KvSeqRm, Logits, RunKind
from pipeinfer.core.stage import Stage

COPY, REMOVE = KvSeqCp(0, 1, 0, 4), KvSeqRm(1, 0, -1)


def run(number: int, *kv: KvOp, cancelled_at: int = NOT_CANCELLED, compute_s: tuple[float, ...] = ()) -> Decode:
    return Decode(number, RunKind.SPECULATIVE, (7,), (4,), ((1,),), 1, kv, cancelled_at, compute_s)


def marker(decode: Decode, at: int, *compute_s: float) -> Decode:
    """What is left of a run that stage `at` cancelled."""
    return msgspec.structs.replace(decode, cancelled_at=at, compute_s=compute_s)


def test_a_run_is_computed_and_sent_on() -> None:
    stage = Stage(0, 2)
    first = run(0, COPY)
    assert stage.handle(first) == [Apply((COPY,)), Compute(first, None)]
    assert not stage.idle
    assert stage.handle(Computed(0, 0.5, payload=b"h")) == [
        Forward(msgspec.structs.replace(first, compute_s=(0.5,)), b"h")
    ]
    assert stage.idle


def test_the_last_stage_answers_the_head() -> None:
    stage = Stage(1, 2)
    stage.handle(run(3, compute_s=(0.5,)), b"h")
    assert stage.handle(Computed(3, 0.25, payload=None, ids=(9,), margins=(0.1,))) == [
        Forward(Logits(3, (9,), (0.1,), NOT_CANCELLED, (0.5, 0.25)))
    ]


def test_runs_wait_for_their_turn_and_so_do_their_kv_operations() -> None:
    stage = Stage(0, 2)
    stage.handle(run(0))
    assert stage.handle(run(1, COPY)) == []
    assert stage.handle(run(2, REMOVE)) == []
    forwarded, *then = stage.handle(Computed(0, 0.0))
    assert isinstance(forwarded, Forward)
    assert then == [Apply((COPY,)), Compute(run(1, COPY), None)]
    assert stage.handle(Computed(1, 0.0))[1:] == [Apply((REMOVE,)), Compute(run(2, REMOVE), None)]


def test_a_cancelled_run_is_skipped_but_its_kv_operations_are_not() -> None:
    stage = Stage(0, 3)
    stage.handle(run(0))
    skipped, last = run(1, COPY), run(2, REMOVE)
    stage.handle(skipped)
    stage.handle(last)
    assert stage.handle(CancelRun((1,))) == []
    assert stage.handle(Computed(0, 0.5, payload=b"h"))[1:] == [
        Apply((COPY,)),
        Forward(marker(skipped, 0, 0.0)),
        Apply((REMOVE,)),
        Compute(last, None),
    ]


def test_a_run_is_abandoned_in_the_middle_and_its_marker_flows() -> None:
    stage = Stage(1, 3)
    decode = run(5, compute_s=(0.5,))
    stage.handle(decode, b"h")
    assert stage.handle(CancelRun((5, 6))) == [Abort()]
    assert stage.handle(Computed(5, 0.1, aborted=True)) == [Forward(marker(decode, 1, 0.5, 0.1))]


def test_a_cancel_that_comes_too_late_to_abort_still_leaves_a_marker() -> None:
    stage = Stage(1, 3)
    decode = run(5, compute_s=(0.5,))
    stage.handle(decode, b"h")
    stage.handle(CancelRun((5,)))
    assert stage.handle(Computed(5, 0.2, payload=b"whole")) == [Forward(marker(decode, 1, 0.5, 0.2))]


def test_a_cancel_may_overtake_its_run() -> None:
    stage = Stage(2, 3)
    assert stage.handle(CancelRun((4,))) == []
    assert stage.handle(run(4, COPY)) == [Apply((COPY,)), Forward(Logits(4, (), (), 2, (0.0,)))]
    assert stage.idle


def test_a_cancel_after_the_run_has_left_means_nothing() -> None:
    stage = Stage(0, 2)
    stage.handle(run(4))
    stage.handle(Computed(4, 0.0))
    assert stage.handle(CancelRun((4,))) == []
    assert stage.handle(run(5)) == [Compute(run(5), None)]
    assert not stage._cancelled, "ids must not pile up"


@pytest.mark.parametrize("index", [1, 2])
def test_a_marker_passes_through_and_remembers_where_it_was_cancelled(index: int) -> None:
    stage = Stage(index, 3)
    arrived = run(8, COPY, cancelled_at=0, compute_s=(0.1,))
    effects = stage.handle(arrived)
    assert effects[0] == Apply((COPY,))
    (forwarded,) = [effect.message for effect in effects if isinstance(effect, Forward)]
    assert (forwarded.cancelled_at, forwarded.compute_s) == (0, (0.1, 0.0))
    assert isinstance(forwarded, Logits if index == 2 else Decode)


def test_markers_keep_their_place_behind_the_run_under_way() -> None:
    stage = Stage(1, 2)
    stage.handle(run(0))
    assert stage.handle(run(1, cancelled_at=0)) == []
    effects = stage.handle(Computed(0, 0.0, ids=(9,)))
    assert [effect.message.run for effect in effects if isinstance(effect, Forward)] == [0, 1]


def test_a_result_of_another_run_is_refused() -> None:
    stage = Stage(0, 1)
    stage.handle(run(0))
    with pytest.raises(AssertionError):
        stage.handle(Computed(1, 0.0))
