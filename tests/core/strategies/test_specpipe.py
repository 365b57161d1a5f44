"""SpecPipe as a trace: levels of the tree follow one another, and what a verdict leaves of them goes on."""

from typing import Any

from test_scheduler import Told, started

from pipeinfer.core.effects import Emit
from pipeinfer.core.measured import StageTimes
from pipeinfer.core.messages import CancelRun, Decode, DraftNode, Logits, Proposal, RunKind
from pipeinfer.core.strategies.specpipe import SpecPipe
from pipeinfer.core.strategies.window import depth

FIRST = (DraftNode(0, -1, 9, 0.6), DraftNode(1, -1, 10, 0.3))
SECOND = (DraftNode(2, 0, 20, 0.5), DraftNode(3, 1, 21, 0.9))
"""Two levels of a tree of width 2 below the token 8 at position 3."""


def sent(effects: list[Any]) -> list[tuple[RunKind, tuple[int, ...], tuple[int, ...]]]:
    runs = [effect for effect in effects if isinstance(effect, Decode)]
    return [(run.kind, run.tokens, run.positions) for run in runs]


def levels(told: Told) -> list[Any]:
    return told(Proposal(2, FIRST, False)) + told(Proposal(2, SECOND, False))


def test_each_level_is_a_run() -> None:
    assert sent(levels(started(SpecPipe(width=2)))) == [
        (RunKind.SPECULATIVE, (9, 10), (4, 4)),
        (RunKind.SPECULATIVE, (20, 21), (5, 5)),
    ]


def test_a_hit_keeps_the_subtree_and_drops_the_other_rows_of_every_level() -> None:
    told = started(SpecPipe(width=2))
    levels(told)
    effects = told(Logits(1, (10,)))
    assert effects[:2] == [Emit((10,)), CancelRun((), ((2, (0,)), (3, (0,))))]
    # The verdicts that come are of the rows that were left, and nothing else was sent for them.
    assert told(Logits(2, (21,), kept=(1,)))[0] == Emit((21,))
    effects = told(Logits(3, (30,), kept=(1,)))
    assert (effects[0], sent(effects)) == (Emit((30,)), [(RunKind.SINGLE, (30,), (6,))])


def test_a_miss_drops_everything_and_fills_the_pipe_anew() -> None:
    told = started(SpecPipe(width=2))
    levels(told)
    effects = told(Logits(1, (99,)))
    assert effects[:2] == [Emit((99,)), CancelRun((2, 3))]
    assert sent(effects) == [(RunKind.SINGLE, (99,), (4,))]


def test_levels_wait_for_a_place_and_are_drafted_no_earlier() -> None:
    told = started(SpecPipe(width=2, in_flight=2))
    assert told.generation.strategy.next_order(told.generation).until == told.generation.tip.position + 2
    told(Proposal(2, FIRST, False))
    assert told(Proposal(2, SECOND, False)) == []
    # 10 lost, and of the level that waited what continued it: its place goes to what is left.
    assert sent(told(Logits(1, (9,)))) == [(RunKind.SPECULATIVE, (20,), (5,))]


def test_a_level_wider_than_there_are_sequences_is_cut_and_nothing_continues_what_was_not_sent() -> None:
    told = started(SpecPipe(width=2), sequences=3)
    told(Proposal(2, FIRST, False))
    assert told(Proposal(2, SECOND, False)) == [], "it waits for the first level's sequences"
    told = started(SpecPipe(width=2), sequences=2)
    assert sent(told(Proposal(2, FIRST, False))) == [(RunKind.SPECULATIVE, (9,), (4,))]


def test_the_pipe_is_as_deep_as_its_links_make_it() -> None:
    told = started(SpecPipe())
    assert depth(told.generation) == 3 + 2
    told.scheduler.measured._rows[1] = _seconds(0.1, 0.1, 0.1)
    told.scheduler.measured._links = {1: 0.4}
    assert depth(told.generation) == 7 + 2


def _seconds(*stages: float) -> StageTimes:
    times = StageTimes(len(stages))
    times.add(stages)
    return times
