"""What ways should take, and what they took."""

import pytest

from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import RunKind
from pipeinfer.core.strategies.forecast import Forecast
from pipeinfer.core.strategies.ways import (
    CAUTION,
    CROWDED,
    HANDLING,
    KEPT,
    LIKELY,
    PLAIN,
    STEADY,
    STEADY_SHARED,
    UNTRIED,
    WORTH,
    Experience,
    Way,
    among_others,
    every_way,
    least_chance,
)
from pipeinfer.core.tree import Node, Run

ROUND = Way("synchronous", 3)


def forecast(*rows: int, seconds: float = 1.0) -> Forecast:
    """Of one stage that takes as long for any number of rows, runs of these having come back."""
    return Forecast(measured(*rows, seconds=seconds))


def measured(*rows: int, seconds: float = 1.0, row: float = 0.0) -> Measured:
    """Of such a stage, or of one that takes `row` seconds more for each row."""
    found = Measured(1)
    for count in rows:
        run = Run(0, 0, RunKind.SPECULATIVE, [Node(0, 0, None)] * count, count, 0.0, count, count, count)
        run.compute_s, run.finished_at = (seconds + row * count,), seconds
        found.run(run, (count,))
    return found


def test_no_way_is_several_times_as_wide_as_whatever_was_measured() -> None:
    assert max(way.rows for way in every_way(forecast(1))) == 8
    assert max(way.rows for way in every_way(forecast(1, 4))) == 32
    assert max(way.rows for way in every_way(forecast(1, 16))) == 64


def test_plain_decoding_is_worth_a_try_until_it_was_tried() -> None:
    experience = Experience(shared=False)
    assert experience.seconds(forecast(1), ROUND)[PLAIN] == UNTRIED
    assert Experience(shared=True).seconds(forecast(1), ROUND)[PLAIN] == 1.0, "there it begins with one row"
    experience.learn(PLAIN, 11.0, expected=10.0, tokens=10)
    assert experience.seconds(forecast(1), PLAIN)[PLAIN] == pytest.approx(1.1)


def test_what_one_row_takes_beside_a_draft_says_little_about_plain_decoding() -> None:
    experience = Experience(shared=False)
    experience.learn(PLAIN, 10.0, expected=10.0, tokens=10)
    assert experience.seconds(forecast(1, seconds=2.0), ROUND)[PLAIN] == pytest.approx(1 + (1 - KEPT))


def test_what_the_target_takes_alone_promises_nothing_to_ways_with_a_draft_beside_it() -> None:
    experience, runs = Experience(shared=False), Way("runs", 1)
    beside = experience.seconds(forecast(1, seconds=2.0), runs)[runs]
    alone = every_way(forecast(1))[runs]
    ways = experience.seconds(forecast(1), PLAIN)
    assert ways[runs] == pytest.approx(beside + (1 - KEPT) * (alone - beside))
    assert ways[ROUND] == every_way(forecast(1))[ROUND]
    assert experience.seconds(forecast(1), runs)[runs] == alone


def test_on_shared_cores_what_computes_at_once_takes_longer_until_it_is_known() -> None:
    experience, alone = Experience(shared=True), every_way(forecast(1))
    experience.learn(ROUND, 3.0, expected=2.0, tokens=STEADY_SHARED)
    ways = experience.seconds(forecast(1), ROUND)
    assert ways[ROUND] == pytest.approx(1.25 * alone[ROUND]), "half of what it was too short by"
    assert ways[Way("runs", 2)] == pytest.approx(CROWDED * 1.25 * alone[Way("runs", 2)])
    experience.learn(Way("runs", 2), 1.0, expected=1.0, tokens=STEADY_SHARED)
    assert ways[Way("runs", 2)] > experience.seconds(forecast(1), Way("runs", 2))[Way("runs", 2)]


def test_on_shared_cores_trees_take_longer_the_more_there_is_to_handle() -> None:
    """Messages that take half of what is computed."""
    rounds, chain = Way("rounds", 4), Way("chain", 6)
    known = forecast(1, 16)
    known.links_s = 0.5
    alone, ways = every_way(known), Experience(shared=True).seconds(known, ROUND)
    assert ways[rounds] == pytest.approx((1 + HANDLING / 2) * alone[rounds])
    assert ways[chain] == alone[chain], "one branch is soon sent"
    assert ways[Way("synchronous", 4)] == alone[Way("synchronous", 4)], "draft and target take turns"
    assert Experience(shared=False).seconds(known, ROUND)[rounds] == alone[rounds], "elsewhere links are only far"


def test_on_shared_cores_what_was_tried_is_left_for_another_way_only_where_that_is_clearly_faster() -> None:
    rounds, chain, known = Way("rounds", 4), Way("chain", 6), forecast(1, 16)
    experience, alone = Experience(shared=True), every_way(known)
    experience.learn(chain, 1.2, expected=1.0, tokens=STEADY_SHARED)
    assert experience.seconds(known, chain)[rounds] == pytest.approx(1.1 * alone[rounds]), "messages take no time"
    known.links_s = 0.5
    alone, ways = every_way(known), experience.seconds(known, chain)
    assert ways[ROUND] == pytest.approx(1.1 * (1 + CAUTION) * alone[ROUND])
    assert ways[rounds] == pytest.approx(1.1 * (1 + CAUTION) * (1 + HANDLING / 2) * alone[rounds])
    experience.learn(ROUND, 1.0, expected=1.0, tokens=STEADY_SHARED)
    ways = experience.seconds(known, ROUND)
    assert ways[ROUND] == pytest.approx((1.1 * (1 + CAUTION) + 1) / 2 * alone[ROUND]), "half of it is believed"


def test_what_was_learned_of_other_ways_fades() -> None:
    experience = Experience(shared=False)
    experience.learn(Way("runs", 2), 6.0, expected=2.0, tokens=STEADY)
    ways = [experience.seconds(forecast(1), ROUND)[Way("runs", 2)] for _ in range(200)]
    assert ways == sorted(ways, reverse=True)
    assert ways[-1] == pytest.approx(every_way(forecast(1))[Way("runs", 2)], rel=0.1)


def test_a_row_is_worth_what_it_takes_of_the_time_of_a_token() -> None:
    """Three stages of a second each, two for eight rows: a seventh of a traversal's three seconds more per row."""
    found = Measured(3)
    for rows, seconds in ((1, 1.0), (8, 2.0)):
        run = Run(0, 0, RunKind.SPECULATIVE, [Node(0, 0, None)] * rows, rows, 0.0, rows, rows, rows)
        run.compute_s, run.finished_at = (seconds,) * 3, 3 * seconds
        found.run(run, (rows,) * 3)
    found.draft(0.5)
    known, row_s = Forecast(found), 3 / 7
    assert least_chance(PLAIN, known, 2.0) == 0
    assert least_chance(Way("rounds", 4), known, 2.0) == pytest.approx(WORTH * row_s / 2)
    assert least_chance(Way("synchronous", 4), known, 2.0) == pytest.approx(WORTH * (row_s + 0.5) / 2)
    assert least_chance(Way("runs", 4), known, 2.0) == pytest.approx(WORTH * row_s / 2 / 3), "two go on"
    shared, node_s = Forecast(found, cores=2.0), known.draft_wide_s(known.width_of_runs(4)) / known.width_of_runs(4)
    assert least_chance(Way("runs", 4), shared, 2.0) == pytest.approx(WORTH * (row_s + node_s) / 2 / 2), "one goes on"
    assert least_chance(Way("rounds", 4), known, 0.01) == LIKELY


def test_requests_that_leave_stages_idle_choose_for_themselves() -> None:
    assert among_others(measured(1), 1) == {}


def test_where_rows_are_dear_many_requests_had_best_decode_plainly() -> None:
    ways = among_others(measured(1, 4, seconds=0.0, row=1.0), 4)
    assert min(ways, key=ways.__getitem__) == PLAIN
    assert ways[PLAIN] == pytest.approx(4.0), "four of them share the stage, where each row takes a second"


def test_where_rows_are_free_many_requests_had_best_draft() -> None:
    ways = among_others(measured(1, 4), 4)
    assert min(ways, key=ways.__getitem__).kind == "synchronous"


def test_fewer_rows_than_any_that_were_measured_are_worth_a_try() -> None:
    ways = among_others(measured(8), 4)
    assert min(ways, key=ways.__getitem__) == PLAIN


def test_a_way_of_which_nothing_tells_any_more_is_none_until_something_does() -> None:
    """What others' runs took is left out of account as soon as one was alone, and then those may have been wider."""
    experience, wide = Experience(shared=True), Way("chain", 12)
    assert wide in experience.seconds(forecast(1, 2), ROUND)
    assert wide not in experience.seconds(forecast(1), PLAIN)
    assert wide in experience.seconds(forecast(1, 2), PLAIN)
