"""The emulated backend: it takes its time, keeps its cells like any other, and says what the oracle says."""

import time
from pathlib import Path

import msgspec
import pytest

from pipeinfer.engine.backend import Backend, BadModel, Batch
from pipeinfer.engine.sampling import Sampling, candidates, sample
from pipeinfer.runtime.oracle import RANKS, Trace, independent
from pipeinfer.testing import BackendConformance
from pipeinfer_emulated import EmulatedBackend

FULL_S = 0.05


class TestConformance(BackendConformance):
    """What holds where nothing is computed: the logits follow from the position alone."""

    test_info_agrees_with_what_is_loaded = None  # there are no weights to weigh
    test_the_tokenizer_gives_the_text_back = None  # tokens are numbers, and text only counts words
    test_position_matters = None  # hidden states are zero
    test_removing_a_range_is_leaving_it_out_of_a_copy = None  # no row attends to another

    def backend(self) -> Backend:
        return EmulatedBackend(layers=4, layer_s=0.0)

    def model(self, tmp_path: Path) -> str:
        return "target"


def row(position: int, rows: int = 1) -> Batch:
    return Batch((7,) * rows, tuple(range(position, position + rows)), ((0,),) * rows, rows)


def never() -> bool:
    return False


def test_the_target_says_what_the_oracle_says_at_every_temperature() -> None:
    stage = EmulatedBackend(layers=2, layer_s=0.0, acceptance=0.4, seed=3).load("target", (0, 2), cells=9, sequences=1)
    oracle = independent(0.4, seed=3)
    logits = stage.forward(row(0, rows=9), None, never)
    assert logits is not None
    for how in (Sampling(), Sampling(0.8, 0, 0.95, seed=5), Sampling(3.0, seed=9)):
        said = [sample(each, position + 1, how) for position, each in enumerate(logits)]
        assert said == [oracle.target(position + 1) for position in range(9)]


def test_the_draft_is_as_sure_as_the_oracle() -> None:
    stage = EmulatedBackend(draft_s=0.0, acceptance=0.4, seed=3).load("builtin:draft", (0, 1), cells=9, sequences=1)
    oracle = independent(0.4, seed=3)
    logits = stage.forward(row(0, rows=9), None, never)
    assert logits is not None
    for position, each in enumerate(logits):
        expected = oracle.candidates(position + 1, RANKS)
        found = candidates(each, position + 1, Sampling(), RANKS)
        assert [token for token, _ in found] == [token for token, _ in expected]
        total = sum(confidence for _, confidence in expected)
        assert [confidence for _, confidence in found] == pytest.approx([c / total for _, c in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("model", "layers", "rows", "seconds"),
    [
        ("target", (0, 2), 1, 0.02),
        ("target", (1, 4), 1, 0.03),
        ("target", (0, 1), 5, 0.018),
        ("draft", (0, 1), 3, 0.011),
    ],
)
def test_a_forward_takes_the_time_of_its_layers_and_rows(
    model: str, layers: tuple[int, int], rows: int, seconds: float
) -> None:
    backend = EmulatedBackend(layers=4, layer_s=0.01, row_s=0.002, draft_s=0.005, draft_row_s=0.003)
    stage = backend.load(model, layers, cells=9, sequences=1)
    start = time.monotonic()
    stage.forward(row(0, rows), None, never)
    assert seconds <= time.monotonic() - start < seconds + 30


def test_waits_are_looked_up_by_share_rows_and_context() -> None:
    curve = {"rows": [1, 4], "contexts": [1, 100], "seconds": [[0.01, 0.04], [0.02, 0.08]]}
    backend = EmulatedBackend(layers=3, layer_s=60.0, waits={"target 0-2": curve})
    stage = backend.load("target", (0, 2), cells=9, sequences=1)
    for rows, position, expected in [(1, 0, 0.01), (4, 0, 0.04), (2, 99, 0.04)]:
        batch = Batch(tuple([1] * rows), tuple([position] * rows), tuple([(0,)] * rows), 1)
        start = time.monotonic()
        assert stage.forward(batch, None, lambda: False) is not None
        assert expected <= time.monotonic() - start < expected + 30
        stage.clear()
    with pytest.raises(BadModel, match='the waits have no "target 2-3"; they have: target 0-2'):
        backend.load("target", (2, 3), cells=9, sequences=1)


def test_rows_of_several_requests_take_as_long_as_all_that_they_attend_to() -> None:
    """As in the simulator."""
    curve = {"rows": [1, 2], "contexts": [1, 100], "seconds": [[0.001, 0.1], [0.001, 0.1]]}
    stage = EmulatedBackend(waits={"draft 0-1": curve}).load("draft", (0, 1), cells=9, sequences=2)
    start = time.monotonic()
    stage.forward(Batch((1, 1), (30, 9), ((0,), (1,)), 2, (3, 7)), None, never)
    assert time.monotonic() - start >= 0.041


def test_a_trace_may_be_given_itself_and_its_confidences_are_kept() -> None:
    trace = {"ranks": [0, 2], "confidences": [[0.5, 0.2, 0.1, 0.04, 0.03, 0.02, 0.01, 0.0]] * 2}
    backend = EmulatedBackend(layer_s=0.0, draft_s=0.0, trace=trace, vocabulary=4000)
    assert backend.info("target").vocabulary == 4000
    stage = backend.load("draft", (0, 1), cells=9, sequences=1)
    logits = stage.forward(row(0), None, lambda: False)
    assert logits is not None
    found = candidates(logits[0], 1, Sampling(), 3)
    oracle = msgspec.convert(trace, Trace)
    assert [token for token, _ in found] == [token for token, _ in oracle.candidates(1, 3)]
    assert [confidence for _, confidence in found] == pytest.approx([0.5, 0.2, 0.1], rel=1e-3)


def test_an_abort_is_seen_at_the_next_look() -> None:
    stage = EmulatedBackend(layers=1, layer_s=60.0).load("target", (0, 1), cells=9, sequences=1)
    looks = iter([False, False, False, True])  # a look too many would raise StopIteration
    start = time.monotonic()
    assert stage.forward(row(0), None, looks.__next__) is None
    assert time.monotonic() - start < 10
    assert list(looks) == []


def test_it_looks_often() -> None:
    stage = EmulatedBackend(layers=1, layer_s=FULL_S).load("target", (0, 1), cells=9, sequences=1)
    looks: list[float] = []

    def look() -> bool:
        looks.append(time.monotonic())
        return False

    stage.forward(row(0), None, look)
    assert len(looks) >= 5  # some 100 on a machine that does nothing else


@pytest.mark.parametrize("options", [{"layers": 0}, {"layer_s": -1.0}, {"acceptance": 1.5}, {"draft_s": -0.1}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} = {value}: expected "):
        EmulatedBackend(**options)  # type: ignore[arg-type]


def test_there_are_two_models() -> None:
    backend = EmulatedBackend()
    assert backend.info("target") == backend.info("builtin:target")
    assert backend.info("draft").vocabulary_digest == backend.info("target").vocabulary_digest
    with pytest.raises(BadModel, match='expected the emulated model "target" or "draft", came "llama"'):
        backend.info("llama")


def test_text_becomes_a_token_per_word_and_tokens_become_numbers() -> None:
    tokenizer = EmulatedBackend().tokenizer("target")
    ids = tokenizer.encode("a few words")
    assert len(ids) == 3
    assert tokenizer.decode([1, 20, 3]) == " 1 20 3"
