"""One draft rank for several simulated requests: what their going as one is worth, in counts and virtual time."""

import pytest
from test_shared_pipe import STAGES
from test_theory import Ideal

from pipeinfer.core.draft_forward import DraftTimes
from pipeinfer.core.effects import ComputeDraft, Request, Start
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.machine import Machine
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime.load_sim import Arriving, LoadSimulation
from pipeinfer.runtime.oracle import independent

TOKENS = 64


class Costs(Ideal):
    """A row more takes a stage a twentieth of what one takes. The draft takes `draft_s` for a row, in times of a whole
    traversal, and a share `draft_row` of that for each more."""

    def __init__(self, draft_s: float, draft_row: float) -> None:
        super().__init__(STAGES, row=0.05)
        self._draft_s, self._draft_row = draft_s, draft_row

    def draft_s(self, rows: int, context: int) -> float:
        return self._draft_s * (1 + self._draft_row * (rows - 1))


class Counted(LoadSimulation):
    """Counts the forwards of the draft."""

    forwards = 0

    def compute_draft(self, machine: Machine, effect: ComputeDraft) -> None:
        self.forwards += 1
        super().compute_draft(machine, effect)


def served(requests: int, draft_s: float, draft_row: float = 0.0, strategy: str = "pipeinfer") -> tuple[float, float]:
    """Forwards of the draft per token, and tokens per time that a token alone takes through the pipeline."""
    pipeline = PipelineShape(STAGES, cells=requests * 512, sequences=requests * 64)
    load = Counted(pipeline, Costs(draft_s, draft_row), [
        Arriving(0.0, Start(Request(tuple(range(8)), TOKENS), number), open_strategy(strategy, {}),
                 independent(0.79, seed=number))
        for number in range(requests)
    ])  # fmt: skip
    load.serve()
    tokens = requests * TOKENS
    return load.forwards / tokens, tokens / max(times[-1] for times in load.emit_s.values())


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Requests take turns until this is undone."""
    monkeypatch.setattr(DraftTimes, "best", lambda _self, _rows: 1)
    return monkeypatch


@pytest.mark.parametrize("strategy", ["pipeinfer", "speculative", "adaptive"])
def test_one_request_is_drafted_for_as_ever(apart: pytest.MonkeyPatch, strategy: str) -> None:
    before = served(1, 0.25, 0.1, strategy)
    apart.undo()
    assert served(1, 0.25, 0.1, strategy) == before


@pytest.mark.parametrize(("strategy", "fewer", "faster"), [("speculative", 2.7, 2.5), ("pipeinfer", 1.4, 1.4)])
def test_a_draft_that_takes_as_long_as_two_stages_drafts_for_eight_requests(
    apart: pytest.MonkeyPatch, strategy: str, fewer: float, faster: float
) -> None:
    forwards, speed = served(8, 0.25, strategy=strategy)
    apart.undo()
    fewer_forwards, higher_speed = served(8, 0.25, strategy=strategy)
    assert forwards >= fewer * fewer_forwards
    assert higher_speed >= faster * speed


@pytest.mark.parametrize("strategy", ["pipeinfer", "speculative"])
def test_where_a_row_costs_the_draft_as_much_as_a_forward_nothing_is_lost(
    apart: pytest.MonkeyPatch, strategy: str
) -> None:
    _, before = served(8, 0.25, 1.0, strategy)
    apart.undo()
    _, speed = served(8, 0.25, 1.0, strategy)
    assert speed >= 0.97 * before

