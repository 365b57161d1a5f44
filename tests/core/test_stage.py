"""One stage: runs in the order of the stream, cancellation from beside it."""

from typing import Any

import msgspec
import pytest

from pipeinfer.core.effects import Abort, Apply, Compute, Computed, Forward
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, KvOp, KvSeqCp, KvSeqRm, Logits, RunKind
from pipeinfer.core.stage import Arrival, Stage

COPY, REMOVE = KvSeqCp(0, 1, 0, 4), KvSeqRm(1, 0, -1)


def run(number: int, *kv: KvOp, cancelled_at: int = NOT_CANCELLED, compute_s: tuple[float, ...] = ()) -> Decode:
    return Decode(number, RunKind.SPECULATIVE, (7,), (4,), ((1,),), 1, kv, cancelled_at, compute_s)


def told(stage: Stage, event: Any) -> list[Any]:
    effects = stage.handle(0.0, event)
    stage.validate()
    return [_without_rows(effect) for effect in effects]


def _without_rows(effect: Any) -> Any:
    """A message without how many rows each stage computed, which tests of its own look at."""
    if isinstance(effect, Forward):
        return Forward(msgspec.structs.replace(effect.message, computed=()), effect.payload)
    return effect


def marker(decode: Decode, at: int, *compute_s: float) -> Decode:
    """What is left of a run that stage `at` cancelled."""
    return msgspec.structs.replace(decode, cancelled_at=at, compute_s=compute_s)


def test_a_run_is_computed_and_sent_on() -> None:
    stage = Stage(0, 2)
    first = run(0, COPY)
    assert told(stage, Arrival(first)) == [Apply((COPY,)), Compute(first, None, came=1)]
    assert not stage.idle
    assert told(stage, Computed(0, 0.5, payload=b"h")) == [
        Forward(msgspec.structs.replace(first, compute_s=(0.5,)), b"h")
    ]
    assert stage.idle


def test_the_last_stage_answers_the_head() -> None:
    stage = Stage(1, 2)
    told(stage, Arrival(run(3, compute_s=(0.5,)), b"h"))
    assert told(stage, Computed(3, 0.25, payload=None, ids=(9,), margins=(0.1,))) == [
        Forward(Logits(3, (9,), (0.1,), NOT_CANCELLED, (0.5, 0.25)))
    ]


def test_runs_wait_for_their_turn_and_so_do_their_kv_operations() -> None:
    stage = Stage(0, 2)
    told(stage, Arrival(run(0)))
    assert told(stage, Arrival(run(1, COPY))) == []
    assert told(stage, Arrival(run(2, REMOVE))) == []
    forwarded, *then = told(stage, Computed(0, 0.0))
    assert isinstance(forwarded, Forward)
    assert then == [Apply((COPY,)), Compute(run(1, COPY), None, came=1)]
    assert told(stage, Computed(1, 0.0))[1:] == [Apply((REMOVE,)), Compute(run(2, REMOVE), None, came=1)]


def test_a_cancelled_run_is_skipped_but_its_kv_operations_are_not() -> None:
    stage = Stage(0, 3)
    told(stage, Arrival(run(0)))
    skipped, last = run(1, COPY), run(2, REMOVE)
    told(stage, Arrival(skipped))
    told(stage, Arrival(last))
    assert told(stage, CancelRun((1,))) == []
    assert told(stage, Computed(0, 0.5, payload=b"h"))[1:] == [
        Apply((COPY,)),
        Forward(marker(skipped, 0, 0.0)),
        Apply((REMOVE,)),
        Compute(last, None, came=1),
    ]


def test_a_run_is_abandoned_in_the_middle_and_its_marker_flows() -> None:
    stage = Stage(1, 3)
    decode = run(5, compute_s=(0.5,))
    told(stage, Arrival(decode, b"h"))
    assert told(stage, CancelRun((5, 6))) == [Abort()]
    assert told(stage, Computed(5, 0.1, aborted=True)) == [Forward(marker(decode, 1, 0.5, 0.1))]


def test_a_cancel_that_comes_too_late_to_abort_still_leaves_a_marker() -> None:
    stage = Stage(1, 3)
    decode = run(5, compute_s=(0.5,))
    told(stage, Arrival(decode, b"h"))
    told(stage, CancelRun((5,)))
    assert told(stage, Computed(5, 0.2, payload=b"whole")) == [Forward(marker(decode, 1, 0.5, 0.2))]


def test_a_cancel_may_overtake_its_run() -> None:
    stage = Stage(2, 3)
    assert told(stage, CancelRun((4,))) == []
    assert told(stage, Arrival(run(4, COPY))) == [Apply((COPY,)), Forward(Logits(4, (), (), 2, (0.0,)))]
    assert stage.idle


def test_a_cancel_after_the_run_has_left_means_nothing() -> None:
    stage = Stage(0, 2)
    told(stage, Arrival(run(4)))
    told(stage, Computed(4, 0.0))
    assert told(stage, CancelRun((4,))) == []
    assert told(stage, Arrival(run(5))) == [Compute(run(5), None, came=1)]
    assert not stage._cancelled, "ids must not pile up"


@pytest.mark.parametrize("index", [1, 2])
def test_a_marker_passes_through_and_remembers_where_it_was_cancelled(index: int) -> None:
    stage = Stage(index, 3)
    arrived = run(8, COPY, cancelled_at=0, compute_s=(0.1,))
    effects = told(stage, Arrival(arrived))
    assert effects[0] == Apply((COPY,))
    (forwarded,) = [effect.message for effect in effects if isinstance(effect, Forward)]
    assert (forwarded.cancelled_at, forwarded.compute_s) == (0, (0.1, 0.0))
    assert isinstance(forwarded, Logits if index == 2 else Decode)


def test_markers_keep_their_place_behind_the_run_under_way() -> None:
    stage = Stage(1, 2)
    told(stage, Arrival(run(0)))
    assert told(stage, Arrival(run(1, cancelled_at=0))) == []
    effects = told(stage, Computed(0, 0.0, ids=(9,)))
    assert [effect.message.run for effect in effects if isinstance(effect, Forward)] == [0, 1]


def test_a_result_of_another_run_is_refused() -> None:
    stage = Stage(0, 1)
    told(stage, Arrival(run(0)))
    with pytest.raises(OurError, match="run 1 was computed, expected 0"):
        told(stage, Computed(1, 0.0))


def branches(number: int, *, compute_s: tuple[float, ...] = ()) -> Decode:
    """A run of two branches: rows 0 and 2 of one, row 1 of the other."""
    return Decode(number, RunKind.SPECULATIVE, (7, 8, 9), (4, 4, 5), ((1,), (2,), (1,)), 3, compute_s=compute_s)


def test_pruned_rows_are_dropped_before_they_are_computed() -> None:
    stage = Stage(1, 3)
    told(stage, Arrival(run(0), b"h"))
    told(stage, Arrival(branches(1), b"hhh"))
    assert told(stage, CancelRun((), ((1, (1,)),))) == []
    (_, compute) = told(stage, Computed(0, 0.0))
    assert (compute.keep, compute.came, compute.payload) == ((0, 2), 3, b"hhh")
    assert (compute.decode.tokens, compute.decode.outputs, compute.decode.kept) == ((7, 9), 2, (0, 2))
    # The next stage had the same message, and drops nothing twice.
    last = Stage(2, 3)
    told(last, CancelRun((), ((1, (1,)),)))
    told(last, Arrival(run(0), b"h"))
    told(last, Computed(0, 0.0, ids=(1,)))
    (compute,) = told(last, Arrival(compute.decode, b"hh"))
    assert (compute.keep, compute.came) == ((), 2)
    (answer,) = told(last, Computed(1, 0.0, ids=(10, 11)))
    assert (answer.message.ids, answer.message.kept) == ((10, 11), (0, 2))


def test_rows_pruned_one_after_the_other_keep_their_names() -> None:
    stage = Stage(2, 3)
    arrived = msgspec.structs.replace(branches(4), tokens=(7, 9), positions=(4, 5), sequences=((1,), (1,)), outputs=2,
                                      kept=(0, 2))  # fmt: skip
    told(stage, CancelRun((), ((4, (2,)),)))
    (compute,) = told(stage, Arrival(arrived, b"hh"))
    assert (compute.decode.tokens, compute.decode.kept, compute.keep) == ((7,), (0,), (0,))


def test_runs_out_of_order_are_the_peers_fault() -> None:
    stage = Stage(0, 1)
    told(stage, Arrival(run(3)))
    with pytest.raises(PeerError, match="run 2 came after run 3"):
        told(stage, Arrival(run(2)))


def test_a_result_says_how_many_rows_each_stage_computed() -> None:
    stage = Stage(1, 2)
    stage.handle(0.0, CancelRun((), ((1, (1,)),)))
    stage.handle(0.0, Arrival(msgspec.structs.replace(branches(1), computed=(3,)), b"hhh"))
    (answer,) = stage.handle(0.0, Computed(1, 0.0, ids=(10, 11)))
    assert answer.message.computed == (3, 2)
    stage.handle(0.0, CancelRun((2,)))
    (marker_,) = stage.handle(0.0, Arrival(msgspec.structs.replace(run(2), computed=(1,))))
    assert marker_.message.computed == (1, 0)
