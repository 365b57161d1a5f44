"""Forecasts are the closed forms, worked out with what was measured."""

import pytest

from pipeinfer.core.forecast import PRIOR_WIDTH, Forecast
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import RunKind
from pipeinfer.core.tree import Node, Run

DRAFT = 0.02


def measured(
    stages: int, acceptance: float, width_cost: float, links: float = 0.0, rows: tuple[int, ...] = (1, 5)
) -> Measured:
    """A pipeline whose traversal takes a second."""
    found = Measured(stages)
    for count in rows:
        run = Run(0, 0, RunKind.SPECULATIVE, [Node(0, 0, None)] * count, count, 0.0)
        run.compute_s = ((1 + width_cost * (count - 1)) / stages,) * stages
        run.finished_at = sum(run.compute_s) + links
        found.run(run, (count,) * stages)
    found.draft(DRAFT)
    right = round(4000 * acceptance)
    found.right[0] = [True] * right + [False] * (4000 - right)  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(
    ("acceptance", "width_cost", "links", "speedup", "best"),
    [(0.52, 0.0, 0.0, 1.86, 5), (0.79, 0.0, 0.0, 3.67, 11), (0.9, 0.1, 0.0, 3.13, 9), (0.52, 0.1, 0.0, 1.44, 2)],
)
def test_synchronous_speculation_is_best_where_theory_has_it(
    acceptance: float, width_cost: float, links: float, speedup: float, best: int
) -> None:
    forecast = Forecast(measured(8, acceptance, width_cost, links))
    found = min(range(1, 33), key=forecast.synchronous_s)
    assert abs(found - best) <= 1
    assert forecast.plain_s() / forecast.synchronous_s(found) == pytest.approx(speedup, rel=0.01)


@pytest.mark.parametrize(
    ("acceptance", "width_cost", "speedup", "best"),
    [(0.79, 0.0, 4.21, 6), (0.79, 0.1, 3.43, 2), (0.79, 0.8, 3.24, 1), (0.52, 0.0, 1.95, 6), (0.52, 0.1, 1.83, 1)],
)
def test_a_pipelined_chain_is_best_where_theory_has_it(
    acceptance: float, width_cost: float, speedup: float, best: int
) -> None:
    forecast = Forecast(measured(8, acceptance, width_cost))
    found = min(range(1, 33), key=forecast.chain_s)
    assert abs(found - best) <= 1
    assert forecast.plain_s() / forecast.chain_s(found) == pytest.approx(speedup, rel=0.01)


def test_links_that_take_four_traversals_want_a_window_of_their_delay() -> None:
    near, far = Forecast(measured(8, 0.8, 0.0)), Forecast(measured(8, 0.8, 0.0, links=4.0))
    assert near.window(1, 0) == 10
    assert far.window(1, 0) == 42


def test_until_two_widths_are_known_a_row_costs_what_is_usual() -> None:
    forecast = Forecast(measured(4, 0.8, 0.0, rows=(1,)))
    assert forecast.width_cost == pytest.approx(PRIOR_WIDTH)


def test_a_tree_costs_a_traversal_where_it_misses() -> None:
    forecast = Forecast(measured(8, 0.8, 0.0))
    assert forecast.tree_s(4, 0.9) == pytest.approx(0.9 / 8 + 0.1)
