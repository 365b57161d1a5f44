"""What is timed: forwards of the right rows over the right context, after a rest, and nothing else."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp, KvSeqRm
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden
from pipeinfer.runtime.control import Load, Measure
from pipeinfer.runtime.stage_timing import LEAST_ROUNDS, Bench, Interrupted

HIDDEN, VOCABULARY, WAIT_S = 3, 7, 2e-3


class Noted:
    """A stage that notes what it is asked for, and takes WAIT_S per row that gives an output."""

    def __init__(self) -> None:
        self.length = 0
        self.calls: list[tuple[int, int, int]] = []
        self.hidden: list[bool] = []
        self.closed = False

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        assert batch.positions[0] == self.length
        self.length += len(batch.tokens)
        self.calls.append((len(batch.tokens), self.length, batch.outputs))
        self.hidden.append(hidden is not None)
        time.sleep(WAIT_S * batch.outputs)
        return None if abort() else np.zeros((batch.outputs, VOCABULARY), np.float32)

    def apply(self, op: KvOp) -> None:
        assert isinstance(op, KvSeqRm)
        self.length = op.start

    def clear(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def load(**fields: object) -> Load:
    known = {"layers": (0, 2), "outputs": True, **fields}
    return Load("", b"", "", cells=200, hidden_size=HIDDEN, vocabulary=VOCABULARY, **known)  # type: ignore[arg-type]


def test_rows_end_at_the_context_and_the_rest_is_filled() -> None:
    stage, rests = Noted(), 0

    def rest() -> None:
        nonlocal rests
        rests += 1

    found = Bench(stage, load(), lambda: False, rest).measure(Measure((1, 2, 4), (8, 100), 0.0, burst=2))
    timed = [call for call in stage.calls if call[2]]
    assert {(rows, context) for rows, context, _ in timed} == {(r, c) for r in (1, 2, 4) for c in (8, 100)}
    assert all(outputs == rows for rows, _, outputs in timed)
    assert len(timed) == 2 * 3 * 2 * (LEAST_ROUNDS + 1)
    assert rests == len(timed) / 2
    for line in found:
        assert all(seconds >= WAIT_S * rows for seconds, rows in zip(line, (1, 2, 4), strict=True))


def test_without_rests_all_counts() -> None:
    stage = Noted()
    bench = Bench(stage, load(candidates=1), lambda: False, pytest.fail)
    ((mean,),) = bench.measure(Measure((1,), (8,), 0.05, burst=0))
    assert mean >= WAIT_S
    assert len(stage.calls) > LEAST_ROUNDS
    bench.close()
    assert stage.closed


def test_a_later_stage_is_given_hidden_states() -> None:
    stage = Noted()
    Bench(stage, load(layers=(1, 2)), lambda: False, lambda: None).measure(Measure((1,), (8,), 0.0))
    assert all(stage.hidden)


def test_a_slower_node_takes_longer() -> None:
    class Busy(Noted):
        def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
            end = time.thread_time() + WAIT_S
            while time.thread_time() < end:
                pass
            return super().forward(batch, hidden, abort)

    ((seconds,),) = Bench(Busy(), load(cpu_share=0.2), lambda: False, lambda: None).measure(Measure((1,), (8,), 0.0))
    assert seconds >= WAIT_S / 0.2


def test_a_head_that_leaves_ends_it() -> None:
    bench = Bench(Noted(), load(), lambda: True, lambda: None)
    with pytest.raises(Interrupted):
        bench.measure(Measure((1,), (8,), 1.0))
