"""What confidences are worth, by how often the draft proved right."""

import pytest

from pipeinfer.core.measured import LEAST_POWER, Measured
from pipeinfer.core.tree import chance


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
