"""Exact stages: a row has the bits that it has alone, whatever the tags, branches, batches, aborts and requests around
it, and requests that take turns compute nothing twice."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeinfer.core.messages import KvSeqCp, KvSeqRm
from pipeinfer.engine import exact_texts
from pipeinfer.engine.backend import BadModel, Batch, CellsFull, chain
from pipeinfer.engine.exact import ExactStage, exact_stage
from pipeinfer.engine.invariant_width import MOST_WIDE, invariant_width
from pipeinfer.plugins import open_backend
from pipeinfer.testing.backends import never
from pipeinfer.testing.models import write_llama

CELLS, SEQUENCES = 48, 6
NUMPY = open_backend("numpy", {})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_llama(folder)
    return str(folder)


def open_stages(model, count, width=1, cells=CELLS):
    """The model as exact stages whose engines have one sequence."""
    info = NUMPY.info(model)
    borders = [stage * info.layers // count for stage in range(count + 1)]
    return [
        ExactStage(NUMPY.load(model, (start, stop), cells=cells, sequences=1), width=width, cells=cells,
                   sequences=SEQUENCES, hidden_size=info.hidden_size if start else 0, gives_logits=stop == info.layers)
        for start, stop in pairwise(borders)
    ]  # fmt: skip


def run(stages, batch):
    arrived = None
    for stage in stages:
        arrived = stage.forward(batch, arrived, never)
    return arrived


def alone(model, tokens):
    """The logits behind the last of `tokens`, computed one by one on an engine without anything else."""
    return computed_alone(model, tuple(tokens))


@cache
def computed_alone(model, tokens):
    stage = whole(model)
    stage.clear()
    return [stage.forward(chain([token], place, 1), None, never) for place, token in enumerate(tokens)][-1][0]


@cache
def whole(model):
    return NUMPY.load(model, (0, NUMPY.info(model).layers), cells=CELLS, sequences=1)


def test_numpy_itself_depends_on_the_rows_beside_a_row(model):
    """Else these tests would show nothing."""
    stage = NUMPY.load(model, (0, NUMPY.info(model).layers), cells=CELLS, sequences=1)
    together = stage.forward(chain(range(1, 13), 0, 12), None, never)
    assert any(not np.array_equal(row, alone(model, range(1, 2 + place))) for place, row in enumerate(together))


@pytest.mark.parametrize("count", [1, 3])
def test_a_tree_beside_other_sequences_is_computed_as_if_each_text_were_alone(model, count):
    stages = open_stages(model, count)
    run(stages, Batch((5, 6, 7), (0, 1, 2), [(0,)] * 3, 1))
    for stage in stages:
        stage.apply(KvSeqCp(0, 1, 0, -1))
        stage.apply(KvSeqCp(0, 2, 0, -1))
    # Behind 5 6 7 come 8 with 9 and 10 behind it, and 11.
    tree = Batch((8, 11, 9, 10), (3, 3, 4, 4), [(1, 2), (3,), (1,), (2,)], 4)
    for stage in stages:
        stage.apply(KvSeqCp(0, 3, 0, -1))
    texts = [(5, 6, 7, 8), (5, 6, 7, 11), (5, 6, 7, 8, 9), (5, 6, 7, 8, 10)]
    np.testing.assert_array_equal(run(stages, tree), [alone(model, text) for text in texts])
    # The branch that was computed first goes on after the others.
    again = run(stages, Batch((12, 13), (5, 4), [(1,), (3,)], 1))
    np.testing.assert_array_equal(again, [alone(model, (5, 6, 7, 11, 13))])


def test_rows_of_several_requests_in_one_batch(model):
    stages = open_stages(model, 2)
    for request, tokens in enumerate([(5, 6), (7, 8, 9)]):
        run(stages, of_request(tokens, 0, request))
    rows = run(stages, Batch((1, 2, 3), (2, 3, 3), [(0,), (1,), (0,)], 3, (0, 1, 0)))
    np.testing.assert_array_equal(rows, [alone(model, text) for text in ((5, 6, 1), (7, 8, 9, 2), (5, 6, 1, 3))])


class Counted:
    """A stage that keeps how many rows it and those beside it have computed, and which are closed."""

    def __init__(self, stage, counts=None):
        self._stage = stage
        self.counts = {"rows": 0, "opened": 0, "closed": 0} if counts is None else counts
        self.apply, self.clear = stage.apply, stage.clear

    def forward(self, batch, hidden, abort):
        self.counts["rows"] += len(batch.tokens)
        return self._stage.forward(batch, hidden, abort)

    def close(self):
        self.counts["closed"] += 1
        self._stage.close()


class CountedBeside(Counted):
    most = 16

    def beside(self):
        if self.counts["opened"] - self.counts["closed"] >= self.most:
            raise BadModel("no room")
        self.counts["opened"] += 1
        return Counted(self._stage.beside(), self.counts)


def counted(model, cells, kind=CountedBeside):
    inner = kind(NUMPY.load(model, (0, NUMPY.info(model).layers), cells=cells, sequences=1))
    return inner.counts, ExactStage(inner, width=1, cells=cells, sequences=8, hidden_size=0, gives_logits=True)


def of_request(tokens, start, request):
    """Rows of a text in the sequence with the number of its request."""
    rows = len(tokens)
    return Batch(tokens, range(start, start + rows), [(request,)] * rows, 1, (request,))


def take_turns(stage, model, requests, prompt, tokens):
    """Each request reads a prompt of its own, and then they decode, a token at a time; what comes is what each gets
    alone."""
    texts = {request: [1 + request, *range(2, prompt + 1)] for request in range(requests)}
    for request, text in texts.items():
        stage.forward(of_request(text, 0, request), None, never)
    for step in range(tokens):
        for request, text in texts.items():
            text.append(1 + (request + step) % 9)
            (row,) = stage.forward(of_request(text[-1:], len(text) - 1, request), None, never)
            np.testing.assert_array_equal(row, alone(model, text))


@pytest.mark.parametrize("requests", [2, 4, 8])
def test_requests_that_take_turns_compute_nothing_twice(model, requests):
    counts, stage = counted(model, cells=128)
    take_turns(stage, model, requests, prompt=8, tokens=6)
    assert counts == {"rows": requests * (8 + 6), "opened": requests, "closed": 0}
    stage.clear()
    assert counts["closed"] == requests


@pytest.mark.parametrize(("most", "kind", "held"), [(2, "CountedBeside", 2), (16, "Crowded", 2), (16, "Counted", 0)])
def test_where_there_are_fewer_engines_than_requests_the_tokens_are_the_same(model, most, kind, held, monkeypatch):
    """Two engines for four requests, memory for two, or none but the one that there is."""
    monkeypatch.setattr(exact_texts, "MOST_TEXTS", most)
    counts, stage = counted(model, 128, globals()[kind])
    take_turns(stage, model, 4, prompt=8, tokens=2)
    assert counts["opened"] - counts["closed"] == held
    assert counts["rows"] > 4 * (8 + 2)


def test_the_least_recently_used_text_goes(model, monkeypatch):
    monkeypatch.setattr(exact_texts, "MOST_TEXTS", 3)
    counts, stage = counted(model, cells=128)
    for request in range(3):
        stage.forward(of_request(range(1, 9), 0, request), None, never)
    stage.forward(of_request([9], 8, 0), None, never)
    stage.forward(of_request(range(1, 9), 0, 3), None, never)
    assert counts == {"rows": 4 * 8 + 1, "opened": 4, "closed": 1}
    stage.forward(of_request([9], 8, 2), None, never)
    stage.forward(of_request([9], 9, 0), None, never)
    assert counts["rows"] == 4 * 8 + 3, "it was that of 1"


def test_texts_have_no_more_cells_than_the_stage(model):
    counts, stage = counted(model, cells=32)
    stage.forward(of_request(range(1, 21), 0, 0), None, never)
    stage.apply(KvSeqRm(0, 0, -1))
    stage.forward(of_request(range(1, 11), 0, 1), None, never)
    assert counts["closed"] == 0
    stage.forward(of_request(range(1, 5), 0, 2), None, never)
    assert counts == {"rows": 20 + 10 + 4, "opened": 3, "closed": 1}


class Crowded(CountedBeside):
    most = 2


def test_a_request_goes_on_with_the_text_of_one_that_is_over(model):
    counts, stage = counted(model, cells=128)
    stage.forward(of_request(range(1, 11), 0, 0), None, never)
    stage.apply(KvSeqCp(0, 1, 0, 10))
    stage.forward(of_request([5], 10, 1), None, never)
    assert (counts["rows"], counts["opened"]) == (10 + 11, 2), "its text is still that of another"
    stage.end((0,))
    stage.apply(KvSeqCp(0, 2, 0, 10))
    (row,) = stage.forward(of_request([6], 10, 2), None, never)
    assert (counts["rows"], counts["opened"]) == (10 + 11 + 1, 2)
    np.testing.assert_array_equal(row, alone(model, [*range(1, 11), 6]))


STEPS = st.lists(st.tuples(st.sampled_from(["extend", "fork", "drop", "abort"]), st.integers(0, 5), st.integers(0, 5),
                           st.integers(1, 5)), max_size=25)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(steps=STEPS, data=st.data())
def test_whatever_is_done_to_sequences_a_row_has_the_bits_it_has_alone(model, steps, data):
    """Texts in sequences of two requests that are extended, copied, cut and aborted, on two stages; there are no cells
    for as many as they may be."""
    stages = open_stages(model, 2)
    texts = dict.fromkeys(range(SEQUENCES), ())
    for kind, one, other, count in steps:
        match kind:
            case "fork" if one != other:
                apply(stages, KvSeqRm(other, 0, -1), KvSeqCp(one, other, 0, -1))
                texts[other] = texts[one]
            case "drop":
                kept = max(0, len(texts[one]) - count)
                apply(stages, KvSeqRm(one, kept, -1))
                texts[one] = texts[one][:kept]
            case "extend" | "abort":
                new = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
                batch = Batch(new, range(len(texts[one]), len(texts[one]) + count), [(one,)] * count, count, (one % 2,))
                if kind == "abort":
                    looks = iter([False] * other)
                    assert stages[0].forward(batch, None, lambda looks=looks: next(looks, True)) is None or other
                    apply(stages[:1], KvSeqRm(one, len(texts[one]), -1))
                    continue
                try:
                    rows = run(stages, batch)
                except CellsFull:
                    continue
                before, texts[one] = texts[one], (*texts[one], *new)
                for place, row in enumerate(rows):
                    np.testing.assert_array_equal(row, alone(model, texts[one][: len(before) + place + 1]))
    for stage in stages:
        stage.close()


def apply(stages, *operations):
    for stage in stages:
        for operation in operations:
            stage.apply(operation)


def test_of_a_prompt_only_the_last_rows_are_given(model):
    stages = open_stages(model, 2)
    assert run(stages, Batch((5, 6, 7), (0, 1, 2), [(0,)] * 3, 0)).shape[0] == 0
    assert run(stages, Batch((8, 9), (3, 4), [(0,)] * 2, 1)).shape[0] == 1


def test_a_row_without_its_whole_text_is_refused(model):
    (stage,) = open_stages(model, 1)
    with pytest.raises(ValueError, match="a row at position 4"):
        stage.forward(Batch((1,), (4,), [(0,)], 1), None, never)
    np.testing.assert_array_equal(stage.forward(chain([3], 0, 1), None, never)[0], alone(model, [3]))


def test_how_wide_is_measured(model):
    """NumPy's own products depend on the number of rows; an exact stage does not, as far as one looks."""
    info = NUMPY.info(model)
    inner = NUMPY.load(model, (0, info.layers), cells=64, sequences=1)
    assert invariant_width(inner, cells=64, hidden_size=0) < MOST_WIDE
    stage = exact_stage(inner, cells=64, sequences=1, hidden_size=0, gives_logits=True)
    assert invariant_width(stage, cells=64, hidden_size=0) == MOST_WIDE


class Deaf:
    """A stage with hidden states that are rounded away, as before a quantised matrix."""

    def __init__(self, stage):
        self._stage = stage
        self.apply, self.clear = stage.apply, stage.clear

    def forward(self, batch, hidden, abort):
        return self._stage.forward(batch, np.round(hidden, 1), abort)


def test_equal_rows_of_a_stage_that_rounds_everything_away_prove_nothing(model):
    info = NUMPY.info(model)
    _, last = open_stages(model, 2, cells=64)
    assert invariant_width(last, cells=64, hidden_size=info.hidden_size) == MOST_WIDE
    assert invariant_width(Deaf(last), cells=64, hidden_size=info.hidden_size) == 1
