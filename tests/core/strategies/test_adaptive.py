"""It finds the way that suits the pipeline, changes its mind with the text, and says why."""

import msgspec
import pytest

from pipeinfer.core.effects import Note, Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.strategies.adaptive import Adaptive
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.runtime.oracle import Trace, independent
from pipeinfer.runtime.sim import Simulation

REQUEST = Request(tuple(range(16)), 192)


class Costs:
    """A traversal of a second over `stages`, each further row at `width` of the first; a draft of 20 ms."""

    def __init__(self, stages: int, width: float) -> None:
        self._stages, self._width = stages, width

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return (1 + self._width * (rows - 1)) / self._stages

    def draft_s(self, rows: int, context: int) -> float:
        return 0.02

    def row_bytes(self, stage: int) -> int:
        return 0


def decode(strategy: object, stages: int, width: float, oracle: Trace) -> tuple[float, list[str]]:
    """Seconds for the text, and what was decided on the way."""
    simulation = Simulation(
        PipelineShape(stages, cells=2048, sequences=256), strategy, Costs(stages, width), oracle  # type: ignore[arg-type]
    )
    notes: list[str] = []
    simulation.note = lambda _machine, effect: notes.append(effect.text)  # type: ignore[method-assign, assignment]
    return simulation.generate(REQUEST).emit_s[-1], notes


def test_where_rows_are_dear_it_sends_them_one_by_one() -> None:
    seconds, notes = decode(adaptive := Adaptive(), 8, 1.0, independent(0.8))
    assert adaptive.way.kind == "chain"
    assert adaptive.way.k == 1
    assert seconds < 0.75 * decode(PipeInfer(), 8, 1.0, independent(0.8))[0]
    assert "a further row costs 1.00 of one" in notes[-1]


def test_on_one_stage_with_free_rows_it_decodes_synchronously() -> None:
    seconds, _ = decode(adaptive := Adaptive(), 1, 0.0, independent(0.8))
    assert adaptive.way.kind == "synchronous"
    assert seconds < 1.1 * decode(Speculative(k=10), 1, 0.0, independent(0.8))[0]


def test_a_hopeless_draft_is_given_up_where_it_costs_something() -> None:
    seconds, _ = decode(Adaptive(), 1, 1.0, independent(0.05))
    assert seconds < 1.1 * REQUEST.max_tokens


def test_it_changes_its_mind_with_the_text() -> None:
    good, bad = independent(0.95), independent(0.1)
    half = len(good.ranks) // 2
    mixed = msgspec.structs.replace(good, ranks=[*([0] * 100), *bad.ranks[half : half + 108]],
                                    confidences=good.confidences[:208])  # fmt: skip
    adaptive = Adaptive()
    _, notes = decode(adaptive, 2, 0.3, mixed)
    assert len({note.split(":")[0] for note in notes}) >= 2, notes


def test_the_same_events_have_the_same_effects() -> None:
    assert decode(Adaptive(), 4, 0.2, independent(0.7)) == decode(Adaptive(), 4, 0.2, independent(0.7))


@pytest.mark.parametrize("option", ["every", "cutoff", "decay"])
def test_options_out_of_range(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} = -1: expected"):
        Adaptive(**{option: -1})  # type: ignore[arg-type]


def test_notes_are_effects_that_a_log_keeps() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Note("chain of 2")))[1] == "chain of 2"
