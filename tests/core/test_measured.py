"""What confidences are worth, by how often the draft proved right; what ranks take that share cores."""

import pytest

from pipeinfer.core.measured import LEAST_POWER, Measured
from pipeinfer.core.messages import RunKind
from pipeinfer.core.tree import Node, Run, chance


def told(confidence: float, right: int, wrong: int) -> Measured:
    """A draft that was always as sure, and right so often."""
    found = Measured(1)
    for verdict in [True] * right + [False] * wrong:
        found.verdict(0, verdict, confidence)
    return found


def test_who_is_right_more_often_than_said_has_a_power_and_who_is_less_often_a_discount() -> None:
    modest, boastful = told(0.4, 32, 8), told(0.9, 20, 20)
    assert modest.discount == 1
    assert modest.mean_confidence(modest.power) == pytest.approx(modest.acceptance, abs=0.02)
    assert boastful.power == 1
    assert boastful.discount * boastful.mean_confidence(1.0) == pytest.approx(boastful.acceptance)


def test_no_power_makes_a_draft_sure_of_everything() -> None:
    assert LEAST_POWER <= told(0.01, 40, 0).power < LEAST_POWER + 0.05


def test_what_the_first_choice_leaves_the_others_share() -> None:
    assert chance(0.36, 0.36, 0.5) == pytest.approx(0.6)
    assert chance(0.32, 0.36, 0.5) == pytest.approx(0.4 * 0.5)
    assert [chance(0.2, first, 1.0) for first in (0.6, 1.0)] == pytest.approx([0.2, 0.2])


def came_back(found: Measured, rows: int, seconds: float, *, alone: bool, links: float = 0.0) -> None:
    run = Run(0, 0, RunKind.SPECULATIVE, [Node(0, 0, None)] * rows, rows, 0.0, rows, rows, rows)
    run.compute_s, run.finished_at = (seconds,), seconds + links
    found.run(run, (rows,), alone=alone)


def test_on_shared_cores_what_a_rank_takes_alone_is_what_counts() -> None:
    found = Measured(1, shared=True)
    came_back(found, 1, 1.0, alone=True)
    for _ in range(20):
        came_back(found, 1, 2.0, alone=False)
        came_back(found, 4, 3.0, alone=False)
        found.draft(0.3)
        found.draft(0.8, alone=False)
    assert found.rows[1].seconds == [1.0]
    assert found.rows[4].seconds == [pytest.approx(1.5)], "as much less as one row takes alone"
    assert found.draft_s == pytest.approx(0.3)


def test_as_long_as_nothing_was_alone_on_shared_cores_the_others_tell() -> None:
    found = Measured(1, shared=True)
    came_back(found, 1, 2.0, alone=False)
    found.draft(0.8, alone=False)
    assert (found.rows[1].seconds, found.draft_s) == ([2.0], 0.8)
    came_back(found, 4, 3.0, alone=True)
    assert list(found.rows) == [4], "nothing tells what one row takes alone"


def test_ranks_that_have_cores_compute_at_once_as_they_do_alone() -> None:
    found = Measured(1)
    came_back(found, 1, 1.0, alone=True)
    came_back(found, 1, 2.0, alone=False)
    assert found.rows[1].seconds == [1.5]


def test_a_run_that_was_uncommonly_fast_is_not_remembered_for_ever() -> None:
    found = Measured(1)
    came_back(found, 1, 1.0, links=0.1, alone=True)
    for _ in range(60):
        came_back(found, 1, 1.0, links=0.5, alone=True)
    assert found.links_s == pytest.approx(0.5, rel=0.01)
    for _ in range(60):
        came_back(found, 1, 1.0, links=3.0, alone=False)  # It waited for those before it.
    assert found.links_s == pytest.approx(0.5, rel=0.01)


def test_another_text_begins_with_what_the_pipeline_takes_and_is_judged_anew() -> None:
    before = told(0.9, 36, 4)
    before.draft(0.25)
    came_back(before, 1, 1.0, links=0.5, alone=True)
    before.learned["of somebody's"] = "what it knows"
    after = before.for_another_text()
    assert (after.draft_s, after.links_s, after.learned) == (before.draft_s, before.links_s, before.learned)
    assert after.acceptance == pytest.approx(before.acceptance), "until it is known"
    for _ in range(10):
        after.verdict(0, right=False)
    assert after.acceptance < 0.35
    assert before.acceptance > 0.8, "the text before is another one"
