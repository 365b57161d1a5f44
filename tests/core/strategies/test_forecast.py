"""Forecasts are the closed forms, worked out with what was measured."""

import pytest

from pipeinfer.core import theory
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import RunKind
from pipeinfer.core.strategies.forecast import Forecast, tree_lengths
from pipeinfer.core.strategies.stage_curves import PRIOR_DOUBLE, PRIOR_NARROWER
from pipeinfer.core.tree import Node, Run

DRAFT = 0.02


def measured(
    stages: int, acceptance: float, width_cost: float, links: float = 0.0, rows: tuple[int, ...] = (1, 5, 33),
    draft: float = DRAFT,
) -> Measured:
    """A pipeline whose traversal takes a second."""
    found = Measured(stages)
    for count in rows:
        run = Run(0, 0, RunKind.SPECULATIVE, [Node(0, 0, None)] * count, count, 0.0, count, count, count)
        run.compute_s = ((1 + width_cost * (count - 1)) / stages,) * stages
        run.finished_at = sum(run.compute_s) + links
        found.run(run, (count,) * stages)
    found.draft(draft)
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
    ("acceptance", "width_cost", "speedup"),
    [(0.79, 0.0, 4.21), (0.79, 0.1, 3.43), (0.79, 0.8, 3.24), (0.52, 0.0, 1.95), (0.52, 0.1, 1.83)],
)
def test_a_tree_without_other_choices_is_the_best_pipelined_chain(
    acceptance: float, width_cost: float, speedup: float
) -> None:
    known = measured(8, acceptance, width_cost)
    known._others.extend([False] * 40)
    forecast = Forecast(known)
    forecast.other = 0.0
    found = min(forecast.runs_s(rows) for rows in range(1, 33))
    assert forecast.plain_s() / found == pytest.approx(speedup, rel=0.02)


def test_other_choices_help_where_rows_are_free_and_the_draft_is_poor() -> None:
    free, dear = Forecast(measured(8, 0.52, 0.0)), Forecast(measured(8, 0.52, 1.0))
    assert free.plain_s() / free.runs_s(16) > 1.3 * 1.95
    assert dear.runs_s(1) < 0.7 * dear.runs_s(16)


def test_rounds_verify_the_likeliest_tree() -> None:
    forecast = Forecast(measured(1, 0.8, 0.0))
    wait = 7 / 2 * DRAFT
    assert forecast.rounds_s(8) == pytest.approx((1 + wait) / tree_lengths(0.8, 0.8)[7], rel=1e-3)
    assert tree_lengths(0.8, 0.0)[2] == pytest.approx(1 + 0.8 + 0.8**2)


@pytest.mark.parametrize("draft_s", [0.02, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("acceptance", [0.52, 0.79, 0.9])
def test_the_asynchronous_chain_takes_what_theory_says(acceptance: float, draft_s: float) -> None:
    forecast = Forecast(measured(4, acceptance, 0.0, rows=(1, 65), draft=draft_s))
    speedup = theory.asynchronous_chain(acceptance, 1 / draft_s)
    assert forecast.plain_s() / forecast.chain_s(64) == pytest.approx(speedup, rel=0.01)


def test_a_chain_is_no_longer_than_it_may_be() -> None:
    """Rounds of two drafts at most, all of them made while the round before was verified: (1 + .8 + .64) tokens, but
    for a first one without any after each miss."""
    forecast = Forecast(measured(1, 0.8, 0.0))
    goes_on = 0.8**3
    tokens, rounds = 1 + 0.8 / (1 - goes_on) * (1 + 0.8 + 0.64), 1 + 0.8 / (1 - goes_on)
    assert forecast.chain_s(2) == pytest.approx(rounds / tokens, rel=0.01)


def test_links_that_take_four_traversals_want_a_window_of_their_delay() -> None:
    near, far = Forecast(measured(8, 0.8, 0.0)), Forecast(measured(8, 0.8, 0.0, links=4.0))
    assert near.window(1) == 8
    assert far.window(1) == 40


def test_twice_as_many_rows_as_were_seen_cost_what_is_usual() -> None:
    forecast = Forecast(measured(4, 0.8, 0.0, rows=(1,)))
    assert forecast.traversal_s(2) == pytest.approx(1 + PRIOR_DOUBLE)
    assert Forecast(measured(4, 0.8, 0.0, rows=(1, 8))).traversal_s(16) == pytest.approx(1 + PRIOR_DOUBLE)


def test_the_prompt_tells_what_many_rows_take() -> None:
    known = measured(2, 0.8, 0.0, rows=(1,))
    run = Run(0, 0, RunKind.PROMPT, [Node(0, 0, None)] * 32, 32, 0.0, 32, 32, 32)
    run.compute_s, run.finished_at = (2.0, 2.0), 4.0
    known.run(run, (32, 32))
    forecast = Forecast(known)
    assert forecast.traversal_s(4) == pytest.approx(1.0), "an eighth of what 32 rows took is less than one row takes"
    assert forecast.traversal_s(16) == pytest.approx(2.0)


def test_between_two_measured_widths_the_forecast_is_in_proportion_and_never_falls() -> None:
    known = measured(2, 0.8, 0.5, rows=(1, 5))
    assert Forecast(known).traversal_s(3) == pytest.approx(2.0)
    run = Run(0, 0, RunKind.SPECULATIVE, [Node(0, 0, None)] * 8, 8, 0.0, 8, 8, 8)
    run.compute_s, run.finished_at = (1.0, 1.0), 2.0
    known.run(run, (8, 8))
    times = [Forecast(known).traversal_s(rows) for rows in range(1, 10)]
    assert times == sorted(times)


def test_links_that_take_longer_for_more_rows() -> None:
    known = measured(2, 0.8, 0.0, rows=(1, 9))
    known._take_in()
    known._links = {1: 0.1, 9: 0.5}
    assert Forecast(known).traversal_s(5) == pytest.approx(1 + 0.1 + 4 * 0.05)


def test_beyond_the_widest_it_goes_on_as_it_rose_and_the_prompt_bears_that_out() -> None:
    known = measured(2, 0.8, 0.1, rows=(1, 5))
    assert Forecast(known).traversal_s(10) == pytest.approx(1.4 + PRIOR_DOUBLE), "without a prompt: what is usual"
    prompt = Run(0, 0, RunKind.PROMPT, [Node(0, 0, None)] * 25, 25, 0.0, 25, 25, 25)
    prompt.compute_s, prompt.finished_at = (1.2, 1.2), 2.4
    known.run(prompt, (25, 25))
    assert Forecast(known).traversal_s(10) == pytest.approx(1.4 + 5 * 1 / 20)


def test_fewer_rows_than_were_measured_are_cheaper() -> None:
    forecast = Forecast(measured(2, 0.8, 0.0, rows=(4,)))
    assert forecast.traversal_s(1) == pytest.approx(1 - PRIOR_NARROWER * 3 / 4)


def test_on_shared_cores_runs_follow_one_another_as_their_work_allows() -> None:
    """Three stages of a third of a second and the draft on two cores: what a run takes of all of them, in two."""
    known = measured(3, 0.8, 0.0)
    apart, shared = Forecast(known), Forecast(known, cores=2.0)
    drafting_s = DRAFT / apart.width_of_runs(1)
    assert apart.pace_s(1) == pytest.approx(1 / 3)
    assert shared.pace_s(1) == pytest.approx((1 + drafting_s) / 2)
    assert (apart.window(1), shared.window(1)) == (3, 2), "more would only slow one another down"
    assert shared.synchronous_s(3) == apart.synchronous_s(3), "one computes at a time"


def test_messages_are_handled_on_the_same_cores() -> None:
    known = measured(3, 0.8, 0.0, links=0.4)
    drafting_s = DRAFT / Forecast(known).width_of_runs(1)
    assert Forecast(known, cores=2.0).pace_s(1) == pytest.approx((1 + 0.4 + 2 * 0.1 + drafting_s) / 2)


def test_a_draft_that_goes_on_halves_the_speed_of_a_target_on_the_same_core() -> None:
    known = measured(1, 0.8, 0.0)
    assert Forecast(known, cores=1.0).rounds_s(8) == pytest.approx(2 * Forecast(known).rounds_s(8))
    assert Forecast(known, cores=2.0).rounds_s(8) == Forecast(known).rounds_s(8)


def test_a_draft_beside_more_ranks_than_there_are_cores_has_a_part_of_one() -> None:
    """A chain of single tokens whose draft takes as long as all else: of three that compute on two cores it gets two
    thirds of one."""
    known = measured(3, 0.8, 0.0)
    known._others.extend([False] * 40)
    known.draft(100.0)
    apart, shared = Forecast(known), Forecast(known, cores=2.0)
    assert shared.pace_s(1) == pytest.approx(1.5 * apart.pace_s(1))


def test_a_wide_forward_of_the_draft_takes_what_its_rows_took_and_until_then_what_the_targets_take() -> None:
    known = measured(2, 0.8, 0.2)
    assert Forecast(known).draft_wide_s(5) == pytest.approx(DRAFT * (1 + 4 * 0.2), rel=1e-3)
    known.draft(3 * DRAFT, rows=9)
    assert Forecast(known).draft_wide_s(5) == pytest.approx(2 * DRAFT)
    assert Forecast(known).draft_s == DRAFT, "one branch takes no longer for it"
