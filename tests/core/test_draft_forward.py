"""How many requests had best go as one forward of the draft, by what forwards were seen to take."""

from collections.abc import Callable, Sequence

import pytest

from pipeinfer.core.draft_forward import REMEMBERED, DraftTimes


def settled(seconds: Callable[[int], float], rows: Sequence[int], forwards: int = 40) -> list[int]:
    """How many go as one, forward after forward, where so many rows take so long and all always have some to feed."""
    times, chosen = DraftTimes(), []
    for _ in range(forwards):
        chosen.append(times.best(rows))
        together = sum(rows[: chosen[-1]])
        times.add(together, seconds(together))
    return chosen


@pytest.mark.parametrize(("row", "expected"), [(0.0, 8), (0.05, 8), (0.3, 7), (1.0, 1)])
def test_as_many_as_pays(row: float, expected: int) -> None:
    chosen = settled(lambda rows: 1 + row * (rows - 1), [1] * 8)
    assert chosen[0] == 8, "while nothing is known they are for free"
    assert chosen[-1] == expected


def test_the_fewest_of_those_that_are_as_good() -> None:
    """Reading the weights takes as long as computing with them for two rows; from there on every row costs the same."""
    times = DraftTimes()
    for rows in (1, 2, 4, 8):
        times.add(rows, max(1.0, 0.5 * rows))
    assert times.best([1] * 8) == 2
    assert times.best([4] * 2) == 1
    assert times.best([1, 1, 6]) == 2


def test_what_was_slow_once_is_tried_again() -> None:
    times = DraftTimes()
    times.add(8, 100.0)
    for _ in range(REMEMBERED):
        assert times.best([1] * 8) < 8
        times.add(times.best([1] * 8), 1.0)
    assert times.best([1] * 8) == 8


def test_a_text_that_is_read_takes_the_others_along() -> None:
    times = DraftTimes()
    for rows in (1, 8, 256):
        times.add(rows, 1 + 0.1 * (rows - 1))
    assert times.best([256, 1, 1, 1]) == 4
