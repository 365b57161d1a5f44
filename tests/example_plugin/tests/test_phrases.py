"""The draft policy and the strategy of this package, alone."""

from itertools import pairwise

import pytest
from pipeinfer_example.alternate import Alternate
from pipeinfer_example.phrases import PHRASES, Phrases

from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.sim import Simulation


def test_the_rest_of_a_phrase_follows_its_beginning() -> None:
    assert list(Phrases().continuation([9, 1, 2, 3], 2)) == [4, 5]
    assert list(Phrases().continuation([9], 2)) == []
    assert list(Phrases(least=3).continuation([9, 1, 2], 2)) == []


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="least = 8: expected 1 to 7"):
        Phrases(least=8)


class Equal:
    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 1.0

    def draft_s(self, rows: int, context: int) -> float:
        return 0.1

    def row_bytes(self, stage: int) -> int:
        return 0


def test_no_two_rounds_with_drafts_follow_each_other() -> None:
    oracle = independent(0.5)
    simulation = Simulation(PipelineShape(2), Alternate(), Equal(), oracle, policy=Phrases())
    trial = simulation.generate(Request(PHRASES[0], 20))
    assert list(trial.token_ids) == [oracle.target(len(PHRASES[0]) + at) for at in range(20)]
    drafted = [run.drafted > 0 for run in trial.runs]
    assert not any(one and next_one for one, next_one in pairwise(drafted))
