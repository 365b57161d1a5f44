"""Rows, cells and aborts of llama.cpp stages."""

import threading
import time
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_architectures import write_architecture
from gguf_models import write_gguf
from hypothesis import given
from hypothesis import strategies as st
from llamacpp_stages import TOKENS, backend, chain, close, never, open_stages, run

from pipeinfer.core.messages import KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import Batch, CellsFull
from pipeinfer.engine.counted_cells import CountedCells
from pipeinfer.engine.kv_cells import Cells
from pipeinfer_llamacpp import abort_thread
from pipeinfer_llamacpp import stage as stage_module
from pipeinfer_llamacpp.abort_poll import AbortPoll, open_abort
from pipeinfer_llamacpp.abort_thread import AbortThread
from pipeinfer_llamacpp.library import llama
from pipeinfer_llamacpp.rows import needed_tags


def test_a_row_enters_with_the_tags_that_rows_after_it_see_it_by():
    assert needed_tags([(1,), (2,)]) == [(1,), (2,)]
    assert needed_tags([(0, 1)]) == [(0,)]
    assert needed_tags([(1, 2, 3), (1, 2), (3,)]) == [(1, 3), (1,), (3,)]


OPERATIONS = st.one_of(
    st.builds(KvSeqCp, st.integers(0, 3), st.integers(0, 3), st.integers(0, 5), st.sampled_from([-1, 2, 9])),
    st.builds(KvSeqRm, st.integers(0, 3), st.integers(0, 5), st.sampled_from([-1, 2, 9])),
    st.lists(st.sets(st.integers(0, 3), min_size=1).map(tuple), min_size=1, max_size=5),
    st.just("clear"),
)


@given(st.lists(OPERATIONS, max_size=200), st.data())
def test_cells_run_out_exactly_when_they_are_in_use(operations, data):
    counted, kept = CountedCells(12, 4), Cells(12, 4)
    for operation in operations:
        if operation == "clear":
            counted.clear()
            kept.clear()
        elif not isinstance(operation, list):
            counted.apply(operation)
            kept.apply(operation)
        else:
            start = data.draw(st.integers(0, 5))
            take_from_both(counted, kept, range(start, start + len(operation)), operation)


def take_from_both(counted, kept, positions, sequences):
    try:
        kept.take(positions, sequences)
    except CellsFull:
        with pytest.raises(CellsFull):
            counted.take(positions, sequences)
        return
    counted.take(positions, sequences)
    counted.give_back()
    counted.take(positions, sequences)


@pytest.mark.parametrize("op", [KvSeqCp(0, 8, 0, -1), KvSeqCp(-1, 0, 0, -1), KvSeqRm(8, 0, -1)])
def test_operations_on_sequences_that_do_not_exist_are_refused(shared, small, op):
    (stage,) = open_stages(backend(shared), small)
    with pytest.raises(ValueError, match=r"sequence ids 0\.\.7"):
        stage.apply(op)
    stage.close()


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (Batch([], [], [], 0), "> 0 tokens"),
        (Batch([1, 2], [24], [(0,), (0,)], 1), "1 positions"),
        (Batch([1], [24], [()], 1), "sequence id"),
        (Batch([1], [-1], [(0,)], 1), "positions from 0"),
        (Batch([1], [24], [(8,)], 1), r"sequence ids 0\.\.7"),
        (Batch([320], [24], [(0,)], 1), r"token ids 0\.\.319"),
        (Batch([-1], [24], [(0,)], 1), r"token ids 0\.\.319"),
        (Batch([1], [24], [(0,)], 2), "output rows"),
        (Batch([1], [26], [(0,)], 1), "inconsistent sequence positions"),
        (Batch([1], [20], [(0,)], 1), "inconsistent sequence positions"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_that_does_not_fit_changes_nothing(shared, small, batch, expected, count):
    stages, untouched = (open_stages(backend(shared), small, count, cells=25) for _ in range(2))
    run(stages, chain(TOKENS))
    run(untouched, chain(TOKENS))
    with pytest.raises(ValueError, match=expected):
        stages[0].forward(batch, None, never)
    np.testing.assert_array_equal(run(stages, chain([9], start=24)), run(untouched, chain([9], start=24)))
    close(stages, untouched)


@pytest.mark.parametrize("hidden", [None, np.zeros((2, 64), np.float32), np.zeros((1, 63), np.float32)])
def test_hidden_states_of_another_shape_are_refused(shared, small, hidden):
    stage = backend(shared).load(str(small), (1, 4), cells=8, sequences=1)
    with pytest.raises(ValueError, match="hidden states of shape"):
        stage.forward(chain([1]), hidden, never)
    stage.close()


# As many cells as the text needs -----------------------------------------------------------------------------------


def context_cells(stage):
    return llama().llama_n_ctx(stage._context)


def test_a_context_of_128k_is_not_reserved_for_a_short_text(shared, small):
    (stage,) = open_stages(backend(shared), small, cells=131_072)
    run([stage], chain(TOKENS))
    assert context_cells(stage) == 512
    stage.close()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("flash", [True, False])
def test_more_cells_hold_what_fewer_held(shared, small, monkeypatch, count, flash):
    """Stages that grow while several sequences are in their cells compute what those of all cells do."""
    opener = backend(shared, flash=flash)
    growing = open_stages(opener, small, count, cells=1500)
    monkeypatch.setattr("pipeinfer_llamacpp.stage.FIRST_CELLS", 1500)
    roomy = open_stages(opener, small, count, cells=1500)
    before, after = [stages[0]._cells.count for stages in (growing, roomy)]
    assert (before, after) == (512, 1500)
    tokens = [(7 * step * step + 3) % 300 for step in range(1400)]
    steps = [
        (None, Batch(tokens[:300], range(300), [(0,)] * 300, 1)),
        (KvSeqCp(0, 1, 0, -1), Batch([5, 6], [300, 300], [(0,), (1,)], 2)),
        (KvSeqCp(0, 2, 0, -1), Batch(tokens[:600], range(301, 901), [(0,)] * 600, 2)),
        (KvSeqRm(2, 0, -1), Batch([7, 8], [301, 901], [(1,), (0,)], 2)),
        (KvSeqRm(0, 0, -1), Batch(tokens[:1100], range(302, 1402), [(1,)] * 1100, 3)),
    ]
    for op, batch in steps:
        for stage in (*growing, *roomy):
            if op is not None:
                stage.apply(op)
        np.testing.assert_allclose(run(growing, batch), run(roomy, batch), rtol=1e-3, atol=1e-3)
    assert growing[0]._cells.count == 1500
    with pytest.raises(CellsFull, match="of 1500"):
        growing[0].forward(Batch([1] * 200, range(1402, 1602), [(1,)] * 200, 0), None, never)
    close(growing, roomy)


def test_rope_by_the_size_of_the_context_gets_all_cells_at_once(tmp_path):
    """Phi 3 turns by other factors in a long context: it must not become one in the middle of a text."""
    path = write_architecture(tmp_path / "phi3.gguf", "phi3")
    (stage,) = open_stages(backend(tmp_path), path, cells=1500)
    assert context_cells(stage) >= 1500
    stage.close()


# Aborts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slow(shared):
    """A model and a prompt that take some hundred milliseconds."""
    return write_gguf(shared / "slow.gguf", hidden=512, layers=6)


@pytest.fixture(params=[AbortPoll, AbortThread])
def asking(request, monkeypatch):
    """Who asks whether to stop: the thread that computes, or one beside it."""
    if request.param is AbortThread:
        monkeypatch.setattr(stage_module, "open_abort", AbortThread)
    elif not isinstance(open_abort(), AbortPoll):
        pytest.skip("needs a C compiler")
    return request.param


@pytest.mark.parametrize("share", [(0, 6), (0, 3), (3, 6)], ids=["whole", "first", "last"])
def test_an_abort_in_mid_compute_comes_soon_and_leaves_the_cells_as_they_were(shared, slow, share, asking):
    stage, undisturbed = (backend(shared).load(str(slow), share, cells=700, sequences=4) for _ in range(2))
    hidden = np.random.default_rng(0).standard_normal((620, 512), np.float32)
    batch = Batch([5] * 620, range(8, 628), [(0, 2)] * 310 + [(0,)] * 310, 1)  # more rows than a micro-batch
    for each in (stage, undisturbed):
        each.forward(chain(range(8)), hidden[:8], never)
        each.apply(KvSeqCp(0, 2, 0, -1))

    asked = []
    start = time.process_time()
    expected = undisturbed.forward(batch, hidden, lambda: bool(asked.append(1)))
    full = time.process_time() - start
    # Between nodes their number tells how far it has come; a thread beside it asks every few milliseconds.
    for number in (1, len(asked) // 5, 2 * len(asked) // 5) if asking is AbortPoll else (1, 2, 4):
        numbers = count(1)
        start = time.process_time()
        assert stage.forward(batch, hidden, lambda ns=numbers, last=number: next(ns) >= last) is None
        assert time.process_time() - start < full
    np.testing.assert_array_equal(stage.forward(batch, hidden, never), expected)
    close([stage, undisturbed])


@pytest.mark.usefixtures("asking")
def test_an_abort_check_that_fails_fails_the_forward(shared, slow):
    (stage,) = open_stages(backend(shared), slow, cells=400)

    def fail():
        raise ZeroDivisionError

    checks = iter([never, fail])
    with pytest.raises(ZeroDivisionError):
        stage.forward(chain([5] * 400), None, lambda: next(checks, fail)())
    assert stage.forward(chain([5] * 400, outputs=1), None, never) is not None
    stage.close()


@pytest.mark.usefixtures("asking")
def test_the_abort_check_is_not_called_outside_of_a_forward(shared, small):
    (stage,) = open_stages(backend(shared), small)
    calls = []
    stage.forward(chain(TOKENS), None, lambda: bool(calls.append(1)))
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count > 0
    stage.close()


@pytest.mark.parametrize(
    ("rows", "seconds", "computed", "watched"),
    [
        (1, 0.0, True, False),  # and so is the next
        (256, 0.3, True, True),  # one row may take as long
        (1, 0.001, True, True),  # a hundred may not be as short
        (1, 0.0, False, True),  # says nothing: it did not work
    ],
)
def test_what_may_take_long_is_watched(rows, seconds, computed, watched, monkeypatch):
    now, asked = [0.0], threading.Event()
    monkeypatch.setattr(abort_thread, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    thread = AbortThread()
    thread.start(never, rows)
    now[0] += seconds
    assert not thread.stop(computed=computed)
    thread.start(lambda: asked.set() or True, 100 if seconds == 0.001 else 1)
    assert asked.wait(30 if watched else 0.1) == watched
    assert thread.stop(computed=True) == watched
    thread.close()


def test_closing_ends_the_abort_thread(shared, small, monkeypatch):
    monkeypatch.setattr(stage_module, "open_abort", AbortThread)
    before = threading.active_count()
    stages = open_stages(backend(shared), small, 2)
    assert threading.active_count() == before + 2
    close(stages)
    assert threading.active_count() == before
