"""How many requests' rows go as one run, by what rows were measured to cost."""

import pytest

from pipeinfer.core.slots import Most, best_width, no_slower_than_wider, seconds_of


@pytest.mark.parametrize(
    ("row", "slots", "requests", "expected"),
    [
        (0.0, 8, 8, 1),  # a slot for each
        (0.0, 8, 9, 2),
        (0.0, 8, 16, 2),
        (0.0, 1, 5, 5),
        (0.1, 8, 9, 1),  # 1.125 times as much in 1.1 of the time
        (0.3, 8, 12, 2),
        (0.3, 8, 20, 2),  # 2 / 1.3; three to a run are 2.5 / 1.6
        (0.6, 8, 12, 1),
        (0.6, 8, 16, 2),
        (0.95, 8, 16, 1),
    ],
)
def test_runs_are_as_wide_as_all_together_gain_by_it(row: float, slots: int, requests: int, expected: int) -> None:
    assert best_width({1: 1.0, 2: 1.0 + row}, slots, requests, 1) == Most(expected, expected)


def test_runs_of_several_rows_each() -> None:
    assert best_width({1: 1.0, 4: 1.0, 8: 2.0}, 1, 2, 4) == Most(1, 4), "four are as many as are free"
    assert best_width({1: 1.0, 8: 1.0}, 1, 2, 4) == Most(2, 8)


def test_drafts_of_several_go_together_where_rows_are_cheap() -> None:
    """Eight requests on eight slots, drafts right in four of five cases: as one run per stage time each is nearly as
    fast as alone, which is 3.2 times plain decoding."""
    free, cheap, dear = ({1: 1.0, 2: 1.0 + row} for row in (0.0, 0.05, 0.7))
    assert best_width(free, 8, 8, 1, 1, 0.79) == Most(7, 7)
    assert best_width(cheap, 8, 8, 1, 1, 0.79) == Most(6, 6)
    assert best_width(cheap, 8, 8, 1, 4, 0.79).rows > 4, "a run of four drafts beside committed tokens"
    assert best_width(dear, 8, 8, 1, 1, 0.79) == Most(1, 1)
    assert best_width(dear, 8, 16, 1, 4, 0.79) == Most(2, 2), "committed tokens alone"


def test_rows_are_for_free_until_they_were_measured() -> None:
    assert best_width({}, 2, 6, 1) == Most(3, 3)
    assert best_width({1: 0.5}, 2, 6, 1) == Most(3, 3)


def test_what_was_measured_while_something_else_computed_is_not_believed() -> None:
    assert no_slower_than_wider({1: 1.0, 2: 9.0, 3: 1.5, 24: 4.0}) == {1: 1.0, 2: 1.5, 3: 1.5, 24: 4.0}


def test_seconds_lie_on_the_lines_between_those_that_are_known() -> None:
    known = {1: 1.0, 3: 2.0, 5: 1.5}
    assert [seconds_of(known, rows) for rows in (1, 2, 3, 4, 7)] == [1.0, 1.5, 2.0, 2.0, 2.0]
    assert seconds_of({2: 2.0, 3: 3.0}, 1) == 1.0
    assert seconds_of({2: 2.0, 3: 3.0}, 5) == 5.0
